"""The `nanochat-hf` command: its help, its errors and the chat in the terminal."""

import io
import subprocess
import sys

import pytest

from nanochat_hf.cli import main as cli
from nanochat_hf.cli import terminal_chat
from nanochat_hf.settings import UserError

SAMPLING = dict(max_new_tokens=16, temperature=0.6, top_k=50, top_p=None, seed=None)


class Parrot:
    """Stands in for a model: yields what it is told to."""

    def __init__(self, *pieces, dropped=0):
        self.pieces, self.dropped, self.seen = pieces, dropped, []

    def drop_oldest_messages(self, conversation):
        return self.dropped

    def answer(self, conversation):
        self.seen.append(list(conversation.with_system()))
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


def say(model, conversation=None):
    conversation = conversation or terminal_chat.Conversation(SAMPLING, messages=[{"role": "user", "content": "x"}])
    out = io.StringIO()
    terminal_chat.print_answer(model, conversation, out)
    return out.getvalue(), conversation


def test_help_names_every_command(capsys):
    cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)
    assert "example" in shown


@pytest.mark.parametrize("command", ["chat", "serve", "plan", "convert", "report"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"nanochat-hf {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (["sing"], "no command 'sing'; the commands are chat"),
        (["chat", "no/such/folder"], "there is no folder no/such/folder"),
        (["chat", "../nowhere"], "there is no folder ../nowhere"),
        (["chat", ".", "--prompt", "x"], "not a checkpoint folder (no config.json in it)"),
        (["serve", "no/such/folder"], "there is no folder no/such/folder"),
        (["serve", ".", "--port", "99999"], "--port must be between 0 and 65535"),
        (["convert", "no/such/folder", "x"], "no/such/folder is not a folder"),
        (["plan", "12", "--gpu", "abacus"], "abacus"),
        (["chat", "x", "--temperature", "-1"], "temperature"),
    ],
)
def test_mistakes_end_in_one_line(line, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(line)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: ") and complaint in error


def test_plan_takes_the_spelling_of_the_pretraining_script(capsys):
    settings = {"param_data_ratio": "8", "device_batch_size": "4", "vocab_size": "4096"}
    shown = set()
    for spelling in (str, lambda name: name.replace("_", "-")):
        cli.main(["plan", "4", *(word for name, value in settings.items() for word in (f"--{spelling(name)}", value))])
        shown.add(capsys.readouterr().out)
    assert len(shown) == 1
    cli.main(["plan", "4"])
    assert capsys.readouterr().out not in shown


def test_help_is_quick_because_nothing_is_imported():
    code = "import sys; from nanochat_hf.cli.main import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_tool_calls_show_in_brackets():
    message = {"role": "assistant", "content": [{"type": "python", "text": "6*7"}]}
    pieces = [("text", "It "), ("python", "6"), ("python", "*7"), ("python_output", "42"), ("text", " so.")]
    shown, conversation = say(Parrot(*pieces, ("message", message)))
    assert shown == "It ⟨6*7 = 42⟩ so.\n"
    assert conversation.messages[-1] == message


def test_a_refused_call_and_a_bare_output():
    assert say(Parrot(("python", "1/0"), ("text", "?")))[0] == "⟨1/0⟩?\n"
    assert say(Parrot(("python", "1/0")))[0] == "⟨1/0⟩\n"
    assert say(Parrot(("python_output", "5")))[0] == "⟨ = 5⟩\n"


def test_the_model_cannot_steer_the_terminal():
    shown, _ = say(Parrot(("text", "a\x1b[2Jb\x07\x9b1mc\u202ed\te\nf é 日本 😀")))
    assert shown == "a[2Jb1mcd\te\nf é 日本 😀\n"


def test_an_interrupt_keeps_what_was_said():
    shown, conversation = say(Parrot(("text", "half a "), KeyboardInterrupt()))
    assert shown == "half a  (stopped)\n"
    assert conversation.messages[-1] == {"role": "assistant", "content": "half a "}


def test_a_full_context_is_announced():
    shown, _ = say(Parrot(("text", "ok"), dropped=4))
    assert shown == "(the context is full: the oldest 4 messages were left out)\nok\n"


def type_in(monkeypatch, *lines):
    lines = iter(lines)

    def answer(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)


def test_a_conversation_with_commands(monkeypatch, capsys):
    commands = ("/topk 7", "/topk -1", "/nonsense", "/retry", "/system Rhyme.")
    type_in(monkeypatch, "Hi", "", *commands, "Again", "/help", "quit")
    model = Parrot(("text", "yes"))
    conversation = terminal_chat.Conversation(SAMPLING)
    terminal_chat.chat_loop(model, conversation, "parrot")
    shown = capsys.readouterr().out
    user = {"role": "user", "content": "Hi"}
    assert model.seen == [
        [user],
        [user],  # retried: without its first answer
        [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Again"}],
    ]
    assert conversation.sampling["top_k"] == 7
    assert "top_k must be" in shown and "unknown command /nonsense" in shown and "/temperature" in shown


def test_an_error_does_not_end_the_chat(monkeypatch, capsys):
    type_in(monkeypatch, "too long", "ok")
    model = Parrot(UserError("the message is too long"))
    conversation = terminal_chat.Conversation(SAMPLING)
    terminal_chat.chat_loop(model, conversation, "parrot")
    assert capsys.readouterr().out.count("error: the message is too long") == 2
    assert conversation.messages == []
