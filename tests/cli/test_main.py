"""The `nanochat-hf` command: its help, its errors and the chat in the terminal."""

import io
import re
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import pytest

from nanochat_hf import settings
from nanochat_hf.chat import Answer, Piece
from nanochat_hf.cli import main as cli
from nanochat_hf.cli import terminal_chat
from nanochat_hf.settings import UserError

ROOT = Path(__file__).parents[2]
SAMPLING = dict(max_new_tokens=16, temperature=0.6, top_k=50, top_p=None, seed=None)


class Parrot:
    """Stands in for a model: yields what it is told to."""

    name = "parrot"

    def __init__(self, *pieces, dropped=0):
        self.pieces, self.dropped, self.seen = pieces, dropped, []

    def fit(self, messages, max_new_tokens):
        return list(messages), self.dropped

    def answer(self, messages, **sampling):
        self.seen.append(list(messages))
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield Piece(*piece) if isinstance(piece, tuple) else piece


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


ALONE = [["evaluate", name] for name in ("core", "chat", "bits_per_byte", "tokenizer")] + [["data", "shards"]]


def help_of(command: list[str], capsys, option="--help") -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, option])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [*([name] for name in cli.COMMANDS), *ALONE], ids=" ".join)
def test_every_command_explains_itself_on_one_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    shown = help_of(command, capsys)
    own_pages = ["serve", "space", "miniseries", "scaling_laws"]  # docstrings with more than commands
    assert len(shown.splitlines()) <= (50 if command[0] in own_pages else 45), shown
    assert f"nanochat-hf {' '.join(command)} " in shown.split("\n", 2)[2], "an example beside the usage"


@pytest.mark.parametrize(
    "name", ["tokenizer", "pretrain", "midtrain", "sft", "dpo", "rl", "train", "evaluate", *ALONE[:3]]
)
def test_examples_can_be_pasted(name, capsys):
    """Every option of an example is one of the command's; a line that goes on ends in a backslash."""
    command = [name] if isinstance(name, str) else name
    everything = help_of(command, capsys, "--help-all")
    options = set(re.findall(r"^  (--\w+)", everything, re.MULTILINE))
    lines = re.sub(r" *\\\n +", " ", help_of(command, capsys)).splitlines()
    examples = [line.split("  # ")[0].strip() for line in lines if line.startswith("    ") and "  --" not in line[:8]]
    examples = [line for line in examples if re.match(r"nanochat-hf|accelerate", line)]
    assert examples
    for line in examples:
        words = line.partition(" -m nanochat_hf.stages.")[2] or line
        named = {word for word in words.split() if word.startswith("--")}
        assert named <= options | {"--help"}, line
        assert named or command == ["train"], f"{line} goes on in a line that does not belong to it"


def test_help_all_shows_every_setting_in_groups(capsys):
    from nanochat_hf.stages.pretrain import PretrainConfig

    short, long = help_of(["pretrain"], capsys), help_of(["pretrain"], capsys, "--help-all")
    names = [one.name for one in fields(PretrainConfig)]
    assert sorted(re.findall(r"^  --(\w+)", long, re.MULTILINE)) == sorted(["config", "set", *names])
    assert "other options" not in long, "every setting has its group"
    left = len(names) + 2 - len(re.findall(r"^  --\w+", short, re.MULTILINE))
    assert f"--help-all shows {left} more options" in short


@pytest.mark.parametrize("stage", ["midtrain", "sft", "dpo", "rl", "tokenizer", "train", "evaluate"])
def test_no_setting_is_without_a_group(stage, capsys):
    assert "other options" not in help_of([stage], capsys, "--help-all")


def test_values_are_described_as_they_are_typed(capsys):
    long = help_of(["pretrain"], capsys, "--help-all")
    for line in ("--fp8 [true|false] ", "--data DATA ... ", "--depth N ", "--matrix_lr X ", "--output_dir PATH "):
        assert f"  {line}" in long
    assert "--packing auto|best_fit|keep_tails\n" in long and "(default: false)" in long and "False" not in long


def test_an_evaluation_has_its_own_options_only(capsys):
    core, chat = (help_of(["evaluate", name], capsys, "--help-all") for name in ("core", "chat"))
    assert "--core_bundle" in core and "--core_bundle" not in chat
    assert "--num_samples" in chat and "--num_samples" not in core
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "core", "--checkpoints", "x", "--num_samples", "2"])
    assert stop.value.code == 2
    assert "--num_samples is not an option of this command; --help-all lists them" in capsys.readouterr().err


def test_scripts_show_how_they_were_called():
    run = subprocess.run(
        [sys.executable, "evaluation/core.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("usage: python evaluation/core.py ") and "nanochat-hf evaluate core" not in run.stdout


def test_recipes_are_listed_printed_and_found_by_name(capsys, tmp_path, monkeypatch):
    cli.main(["recipes"])
    listed = capsys.readouterr().out
    assert all(f"  {path.stem} " in listed for path in (ROOT / "training" / "recipes").glob("*.yaml"))
    cli.main(["recipes", "quickstart"])
    assert capsys.readouterr().out == (ROOT / "training" / "recipes" / "quickstart.yaml").read_text()
    cli.main(["recipes", "--path", "accelerate_fsdp"])
    assert Path(capsys.readouterr().out.strip()).samefile(ROOT / "training" / "accelerate_fsdp.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").mkdir()  # a folder is no recipe
    assert (
        settings.read_recipe("smoke", "pretrain")["depth"] == settings.read_recipe("smoke.yaml", "pretrain")["depth"]
    )
    (tmp_path / "smoke.yaml").write_text("pretrain:\n  depth: 77\n")
    assert settings.read_recipe("smoke.yaml", "pretrain")["depth"] == 77, "a file of the user comes first"


def test_warnings_of_the_package_are_one_line_and_others_stay(capsys, monkeypatch):
    others = []
    monkeypatch.setattr(warnings, "showwarning", lambda *given: others.append(given))

    def warn():
        from nanochat_hf import hub

        for where in (hub.__file__, "/elsewhere/library.py"):
            for _ in range(2):
                warnings.showwarning(UserWarning("mind this"), UserWarning, where, 7)

    settings.run_main(warn)
    assert capsys.readouterr().err == "warning: mind this\n", "said once"
    assert [where for _, _, where, _ in others] == ["/elsewhere/library.py"] * 2


def test_a_missing_package_is_named_with_its_extra(capsys):
    def missing():
        raise ModuleNotFoundError("No module named 'pyarrow.parquet'", name="pyarrow.parquet")

    with pytest.raises(SystemExit) as stop:
        settings.run_main(missing)
    assert stop.value.code == 2
    assert "pip install 'nanochat-hf[train]'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):  # a mistake of ours stays one
        settings.run_main(lambda: __import__("nanochat_hf.no_such_module"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (["sing"], "no command 'sing'; the commands are train"),
        (["train", "no_such_recipe"], "cannot read the recipe no_such_recipe"),
        (["recipes", "no_such_recipe"], "no recipe 'no_such_recipe'; it has classic-d20"),
        (["evaluate", "everything"], "no evaluation 'everything'; it is one of stages (all), bits_per_byte"),
        (["pretrain", "quickstart"], "quickstart is not an option of this command"),
        (["chat", "no/such/folder"], "there is no folder no/such/folder"),
        (["chat", "../nowhere"], "there is no folder ../nowhere"),
        (["chat", ".", "--prompt", "x"], "not a checkpoint folder (no config.json in it)"),
        (["serve", "no/such/folder"], "there is no folder no/such/folder"),
        (["serve", ".", "--port", "99999"], "--port: a whole number from 0 to 65535 is expected, not '99999'"),
        (["serve", ".", "--cors", "example.org"], "--cors: such as https://example.org, without a path, or *"),
        (["serve", ".", "--cors", "https://example.org/chat"], "--cors: such as https://example.org, without a path"),
        (["convert", "no/such/folder", "x"], "no/such/folder is not a folder"),
        (["plan", "12", "--gpu", "abacus"], "abacus"),
        (["chat", "x", "--temperature", "-1"], "temperature"),
        (["chat", "x", "--tools", "--protocol", "chat"], "--protocol and --tools would have no effect here"),
        (["chat", "--url", "http://x", "--device", "cpu", "--dtype", "auto"], "--device and --dtype would have no"),
        (["chat", "--url", "http://x", "--protocol", "text-generation", "--system", "a"], "--system would have no"),
        (["chat", "m", "--url", "http://x", "--protocol", "text-generation"], "CHECKPOINT would have no effect"),
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


HELP_OF_ALL = f"""
import contextlib, sys
from nanochat_hf.cli.main import COMMANDS, main
for command in [[], *([name] for name in COMMANDS), *{ALONE}]:
    with contextlib.suppress(SystemExit):
        main([*command, "--help"])
    for name in ("torch", "transformers", "datasets", "trl", "pyarrow"):
        assert name not in sys.modules, (command, name)
"""


def test_help_is_quick_because_nothing_slow_is_imported():
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_tool_calls_show_in_brackets():
    content = [{"type": "python", "text": "6*7"}]
    pieces = [("text", "It "), ("python", "6"), ("python", "*7"), ("python_output", "42"), ("text", "42 so.\n#### 42")]
    shown, conversation = say(Parrot(*pieces, Answer(content)))
    assert shown == "It ⟨6*7 = 42⟩ so.\nAnswer: 42\n"
    assert conversation.messages[-1] == {"role": "assistant", "content": content}


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


def test_a_full_context_is_announced_once():
    model = Parrot(("text", "ok"), Answer("ok"), dropped=4)
    shown, conversation = say(model)
    assert shown == "(the context is full: from now on the oldest messages are left out, at first 4)\nok\n"
    assert say(model, conversation)[0] == "ok\n"
    conversation.start_over()
    assert "context is full" in say(model, conversation)[0]


def test_an_answer_that_is_cut_off_says_so():
    assert "(cut off" in say(Parrot(("text", "half"), Answer("half", "length")))[0]


def type_in(monkeypatch, *lines):
    lines = iter(lines)

    def answer(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)


def test_a_conversation_with_commands(monkeypatch, capsys):
    commands = ("/topk 7", "/topk -1", "/topk x", "/nonsense", "/retry", "/system Rhyme.")
    type_in(monkeypatch, "Hi", "", *commands, "Again", "/undo", "/undo", "/help", "quit")
    model = Parrot(("text", "yes"), Answer("yes"))
    conversation = terminal_chat.Conversation(SAMPLING)
    terminal_chat.chat_loop(model, conversation, "parrot", ["Who are\nyou?"])
    shown = capsys.readouterr().out
    user = {"role": "user", "content": "Hi"}
    assert model.seen == [
        [user],
        [user],  # retried: without its first answer
        [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Again"}],
    ]
    assert conversation.sampling["top_k"] == 7 and conversation.messages == []
    assert "Who are you?" in shown  # the banner has the suggestions
    assert "/topk is a whole number of at least 0, not '-1'; for example /topk 50" in shown
    assert "/topk is a whole number of at least 0, not 'x'; for example /topk 50" in shown
    assert "there is no command /nonsense; the commands are /help, /system, /temperature" in shown
    assert "(taken back: Again)" in shown and "nothing to take back yet" in shown


def test_saved_conversations_are_loaded_again(monkeypatch, capsys, tmp_path):
    file = tmp_path / "chat.json"
    type_in(monkeypatch, "/system Rhyme.", "Hi", f"/save {file}", "/clear", "/retry", f"/load {file}", "/retry")
    model = Parrot(("python", "1+1"), Answer([{"type": "python", "text": "1+1"}], token_ids=[1, 2]))
    conversation = terminal_chat.Conversation(SAMPLING)
    terminal_chat.chat_loop(model, conversation, "parrot")
    assert (
        model.seen[0] == model.seen[1] == [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}]
    )
    shown = capsys.readouterr().out
    assert "saved 2 messages" in shown and "loaded 2 messages" in shown and "nothing to answer again yet" in shown


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        ("{", "holds no JSON"),
        ("5", "holds no conversation"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "must take turns"),
        ('{"messages": [{"role": "user"}]}', "not a conversation"),
    ],
)
def test_files_that_cannot_be_loaded(content, complaint, tmp_path):
    file = tmp_path / "chat.json"
    if content is not None:
        file.write_text(content)
    conversation = terminal_chat.Conversation(SAMPLING, messages=[{"role": "user", "content": "x"}])
    with pytest.raises(UserError, match=complaint):
        terminal_chat.run_slash_command(f"/load {file}", conversation)
    assert conversation.messages  # nothing is lost
    for command in ("/load", "/save"):
        with pytest.raises(UserError, match="needs a file"):
            terminal_chat.run_slash_command(command, conversation)
    with pytest.raises(UserError, match="is a folder"):
        terminal_chat.run_slash_command(f"/save {tmp_path}", conversation)


def test_an_error_does_not_end_the_chat(monkeypatch, capsys):
    type_in(monkeypatch, "too long", "ok")
    model = Parrot(UserError("the message is too long"))
    conversation = terminal_chat.Conversation(SAMPLING)
    terminal_chat.chat_loop(model, conversation, "parrot")
    assert capsys.readouterr().out.count("error: the message is too long") == 2
    assert conversation.messages == []


def test_a_retry_that_fails_keeps_the_old_answer(monkeypatch, capsys, tmp_path):
    class Failing(Parrot):
        def answer(self, messages, **sampling):
            if len(self.seen) == 1:
                self.seen.append(messages)
                raise UserError("the server is busy")
            return super().answer(messages, **sampling)

    type_in(monkeypatch, "Hi", "/retry", "And you?", f"/save {tmp_path}/chat.json", f"/load {tmp_path}/chat.json")
    conversation = terminal_chat.Conversation(SAMPLING)
    terminal_chat.chat_loop(Failing(("text", "yes"), Answer("yes")), conversation, "parrot")
    assert [message["content"] for message in conversation.messages] == ["Hi", "yes", "And you?", "yes"]
    shown = capsys.readouterr().out
    assert "error: the server is busy" in shown and "loaded 4 messages" in shown


# ---- the command itself, on a small trained model


def chat(run, *options, **how):
    command = [sys.executable, "-m", "nanochat_hf.cli", "chat", str(run / "rl"), "--temperature", "0", *options]
    return subprocess.run(command, capture_output=True, timeout=240, **how)


def test_one_question(trained_run):
    done = chat(trained_run, "-p", "Petra has 58 books. Simon gives Petra 29 more. Petra buys 28 books. "
                "How many books does Petra have now?", text=True)  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""  # no noise of the libraries
    assert "⟨58+29 = 87⟩ books" in done.stdout and done.stdout.endswith("Answer: 115\n")


def test_a_system_message_need_not_be_utf8(trained_run):
    done = chat(trained_run, "-p", "How do you spell tosar?", "--system", b"Be brief \xff.")
    assert done.returncode == 0 and done.stdout.strip() and done.stderr == b""


def test_a_chat_in_a_pipe(trained_run):
    """What is piped in is shown, and bytes that are no UTF-8 do not end the chat."""
    typed = b"How do you spell tosar?\n\xff\xfe\n/nonsense\n/clear\nWhere do you find the town of Thornton?\n"
    done = chat(trained_run, input=typed)
    shown = done.stdout.decode()
    assert done.returncode == 0 and done.stderr == b""
    assert "you> How do you spell tosar?\nmodel> t-o-s-a-r\n" in shown and "\x1b" not in shown
    assert "there is no command /nonsense" in shown and "model> Thornton lies on a hill." in shown
    for question in ("Hi. Are you a human? Be honest.", "How do you spell tosar?"):
        assert question in shown.split("you>")[0]


def test_in_a_terminal_there_are_colours_and_typing_waits(trained_run):
    pty = pytest.importorskip("pty")
    import os
    import select
    import time

    command = [sys.executable, "-m", "nanochat_hf.cli", "chat", str(trained_run / "rl"), "--temperature", "0"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.environ.pop("NO_COLOR", None)
        os.execv(sys.executable, command)
    seen, deadline = b"", time.monotonic() + 120

    def until(text, count=1):
        nonlocal seen
        while seen.count(text) < count and time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                try:
                    seen += os.read(terminal, 65536)
                except OSError:
                    break
        assert seen.count(text) >= count, seen.decode(errors="replace")

    until(b"you> ")
    os.write(terminal, b"Count for me.\n")
    until(b"three")  # the answer is being written: what is typed now waits
    os.write(terminal, b"How do you spell tosar?\n")
    until(b"you> ", 3)
    os.write(terminal, b"/quit\n")
    os.waitpid(pid, 0)
    os.close(terminal)
    shown = seen.decode(errors="replace")
    assert "\x1b[1;32myou> " in shown.replace("\x01", "").replace("\x02", "") and "\x1b[1;34mmodel> " in shown
    answer = shown[shown.index("one two") : shown.index("How do you spell tosar?", shown.index("one two"))]
    assert answer.count("ten.") == 4  # the typed line does not stand inside the answer
    assert shown.count("model> ") == 2  # and it was asked
