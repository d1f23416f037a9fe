"""Talks to a model in the terminal.

    nanochat-hf chat runs/quickstart/rl                          a conversation
    nanochat-hf chat runs/quickstart/rl -p "Who are you?"        one answer on stdout, for scripts
    nanochat-hf chat --url http://localhost:8000                 a model behind `nanochat-hf serve`, or behind any
                                                                 other OpenAI-compatible server
    nanochat-hf chat --url http://localhost:8000 --protocol text-generation    let the server continue each message

The answer appears while it is written. Calculator calls show as ⟨12*3 = 36⟩. Ctrl-C stops an answer, Ctrl-D ends the
chat. A message typed during an answer is asked next. A server's key is read from NANOCHAT_API_KEY or HF_TOKEN.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from nanochat_hf.settings import DTYPES, MAX_SEED, Parser, UserError, check_device, convert, find_checkpoint

HELP = """\
/help               show this list
/system [TEXT]      set the system message (without TEXT: remove it) and start a new conversation
/temperature [T]    show or set the temperature; 0 always takes the most likely token
/topk [K]           show or set top-k: sample from the K most likely tokens; 0 is all
/clear              start a new conversation
/undo               take back the last message and its answer
/retry              answer the last message again
/save FILE          write the conversation to a file, as JSON
/load FILE          go on with a conversation from a file
/quit               end the chat (also: quit, exit, Ctrl-D)"""
COLOURS = {"tool": "\x1b[36m", "answer": "\x1b[1m", "prompt": "\x1b[1;32m", "model": "\x1b[1;34m", "note": "\x1b[2m"}
RESET = "\x1b[0m"
# The sampling settings: type, and the values that are allowed.
SAMPLING: dict[str, tuple[type, dict[str, Any]]] = {
    "max_new_tokens": (int, {"at_least": 1, "at_most": 1_000_000}),
    "temperature": (float, {"at_least": 0.01, "at_most": 100, "also": (0,)}),
    "top_k": (int, {"at_least": 0}),
    "top_p": (float, {"above": 0, "at_most": 1}),
    "seed": (int, {"at_least": 0, "at_most": MAX_SEED}),
}


@dataclass
class Conversation:
    """The state of a chat.

    Attributes:
        sampling: the fields of [`Sampling`], and `seed`.
        system: the system message, or None.
        messages: the messages so far, without the system message.
        told_full: whether the user knows already that the context is full.
    """

    sampling: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    told_full: bool = False

    def with_system(self) -> list[dict[str, Any]]:
        """Returns the messages, the system message first."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.messages

    def start_over(self) -> None:
        """Forgets the messages; system message and settings stay."""
        self.messages, self.told_full = [], False


def main(argv: list[str]) -> None:
    """Runs the `chat` command.

    Raises:
        UserError: a wrong option, a checkpoint that cannot be loaded, or a server that does not answer.
    """
    from nanochat_hf.chat.models import default_sampling

    options = _parse(argv)
    # A terminal may not show every character, and what is typed or piped in may not be UTF-8.
    sys.stdout.reconfigure(errors="replace")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    check_device(options.device)
    given = {
        name: _number(name, text, f"--{name.replace('_', '-')}")
        for name in SAMPLING
        if (text := getattr(options, name)) is not None
    }
    first_questions: list[str] = []
    if options.url:
        from nanochat_hf.chat import RemoteModel

        protocol = options.protocol or "chat"
        model: Any = RemoteModel(options.url, options.checkpoint, protocol=protocol, tools=options.tools)
    else:
        from nanochat_hf.chat.suggestions import suggestions

        find_checkpoint(options.checkpoint)  # before torch is imported, which takes seconds
        with _quiet():
            from nanochat_hf.chat import LocalModel

            model = LocalModel(options.checkpoint, options.device, options.dtype)
        first_questions = [one.question for one in suggestions(options.checkpoint)]
    defaults = {**default_sampling(model), "seed": None}
    sampling = {**defaults, **given}
    conversation = Conversation(sampling, options.system and _clean(options.system))
    if options.prompt is not None:
        conversation.messages.append({"role": "user", "content": _clean(options.prompt)})
        print_answer(model, conversation, sys.stdout, notes=sys.stderr)
    else:
        chat_loop(model, conversation, options.url or options.checkpoint, first_questions)


def chat_loop(model: Any, conversation: Conversation, name: str, first_questions: Sequence[str] = ()) -> None:
    """Runs an interactive chat: reads a line, then runs it as a slash command or answers it, until the user leaves.

    Args:
        model: a [`nanochat_hf.chat.Model`].
        conversation: where to begin.
        name: of the model, for the banner.
        first_questions: suggestions for the banner.
    """
    try:
        import readline  # noqa: F401  gives input() history and editing
    except ImportError:
        pass
    print(f"Talking to {name}. /help lists the commands, Ctrl-D ends the chat.")
    if first_questions:
        print("It was trained for questions like these:")
        for question in first_questions:
            print("  " + _paint("note", " ".join(question.split()), sys.stdout))
    interactive = sys.stdin.isatty()
    while True:
        try:
            line = input(_prompt()).strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError:
            print("(that line is not UTF-8 text; please type it again)")
            continue
        line = _clean(line)
        if not interactive:
            print(line)  # nobody typed it, so nothing has shown it yet
        if not line:
            continue
        before = list(conversation.messages)
        if line in ("/quit", "/exit", "quit", "exit"):
            return
        if line.startswith("/"):
            try:
                shown, answer_now = run_slash_command(line, conversation)
            except UserError as error:
                print(f"error: {error}")
                continue
            if shown:
                print(_paint("note", shown, sys.stdout) if line != "/help" else shown)
            if not answer_now:
                continue
        else:
            conversation.messages.append({"role": "user", "content": line})
        try:
            print(_paint("model", "model> ", sys.stdout), end="", flush=True)
            with _typing_waits():
                print_answer(model, conversation, sys.stdout)
        except UserError as error:
            print(f"\nerror: {error}")
            conversation.messages = before  # without a message that got no answer, and with an answer to be replaced


# ---- slash commands ----------------------------------------------------------------


def run_slash_command(line: str, conversation: Conversation) -> tuple[str, bool]:
    """Runs a command such as `/topk 20`.

    Returns:
        What to print, and whether the last message is to be answered now.

    Raises:
        UserError: there is no such command, or it cannot be done; the message says what would work.
    """
    name, _, argument = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise UserError(f"there is no command {name}; the commands are {', '.join(COMMANDS)}")
    return command(conversation, argument.strip()), name == "/retry"


def _help(conversation: Conversation, argument: str) -> str:
    return HELP


def _clear(conversation: Conversation, argument: str) -> str:
    conversation.start_over()
    return "(a new conversation)"


def _system(conversation: Conversation, argument: str) -> str:
    conversation.system = argument or None
    conversation.start_over()
    return f"({'system message set' if argument else 'no system message'}; a new conversation)"


def _setting(name: str, command: str, example: str) -> Callable[[Conversation, str], str]:
    def run(conversation: Conversation, argument: str) -> str:
        if argument:
            try:
                conversation.sampling = {**conversation.sampling, name: _number(name, argument, command)}
            except UserError as error:
                raise UserError(f"{error}; for example {command} {example}") from None
        value = conversation.sampling[name]
        return f"{name} = {'not set' if value is None else value}"

    return run


def _undo(conversation: Conversation, argument: str) -> str:
    users = [index for index, message in enumerate(conversation.messages) if message["role"] == "user"]
    if not users:
        raise UserError("there is nothing to take back yet; write a message first")
    taken = conversation.messages[users[-1]]["content"]
    del conversation.messages[users[-1] :]
    return f"(taken back: {_printable(taken)[:60]})"


def _retry(conversation: Conversation, argument: str) -> str:
    if not conversation.messages:
        raise UserError("there is nothing to answer again yet; write a message first")
    if conversation.messages[-1]["role"] == "assistant":
        conversation.messages.pop()
    return ""


def _save(conversation: Conversation, argument: str) -> str:
    if not argument:
        raise UserError("/save needs a file, such as /save chat.json")
    from nanochat_hf.settings import write_json

    if Path(argument).is_dir():
        raise UserError(f"{argument} is a folder; give a file in it, such as /save {argument.rstrip('/')}/chat.json")
    try:
        write_json(argument, {"messages": conversation.with_system()})
    except OSError as error:
        raise UserError(f"cannot write {argument} ({error.strerror}); give another file") from None
    return f"(saved {len(conversation.messages)} messages to {argument})"


def _load(conversation: Conversation, argument: str) -> str:
    if not argument:
        raise UserError("/load needs a file that /save wrote, such as /load chat.json")
    from nanochat_hf.chat.models import read_message

    try:
        content = json.loads(Path(argument).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {argument} ({error.strerror}); give a file that /save wrote") from None
    except ValueError:
        raise UserError(f"{argument} holds no JSON; give a file that /save wrote") from None
    found = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(found, list):
        raise UserError(f"{argument} holds no conversation; give a file that /save wrote")
    messages = [read_message(message) for message in found]
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
    if any(message["role"] != ("user", "assistant")[index % 2] for index, message in enumerate(messages)):
        raise UserError(f"{argument} holds no conversation: user and assistant must take turns, the user first")
    conversation.start_over()
    conversation.system, conversation.messages = system, messages
    return f"(loaded {len(messages)} messages from {argument})"


COMMANDS: dict[str, Callable[[Conversation, str], str]] = {
    "/help": _help,
    "/system": _system,
    "/temperature": _setting("temperature", "/temperature", "0.8"),
    "/topk": _setting("top_k", "/topk", "50"),
    "/clear": _clear,
    "/undo": _undo,
    "/retry": _retry,
    "/save": _save,
    "/load": _load,
    "/quit": lambda conversation, argument: "",  # the loop itself ends the chat
}


# ---- answers -----------------------------------------------------------------------


def print_answer(model: Any, conversation: Conversation, out: TextIO, notes: TextIO | None = None) -> None:
    """Streams the answer to `out` and adds it to the conversation. Ctrl-C stops the answer and keeps its text.

    Remarks on it go to `notes`, by default `out`.

    Raises:
        UserError: there is no answer; nothing was added to the conversation.
    """
    from nanochat_hf.tools.presentation import TextWriter

    notes = notes or out
    messages, dropped = model.fit(conversation.with_system(), conversation.sampling["max_new_tokens"])
    if dropped and not conversation.told_full:
        conversation.told_full = True
        note = f"(the context is full: from now on the oldest messages are left out, at first {dropped})"
        print(_paint("note", note, notes), file=notes)
    writer, parts, answer = TextWriter(), [], None

    def show(spans: Any) -> None:
        for span in spans:
            print(_paint(span.style, _printable(span.text), out), end="", file=out, flush=True)

    try:
        for piece in model.answer(messages, **conversation.sampling):
            if hasattr(piece, "content"):
                answer = piece
                break
            if parts and parts[-1]["type"] == piece.kind:
                parts[-1]["text"] += piece.text
            else:
                parts.append({"type": piece.kind, "text": piece.text})
            show(writer.add(piece.kind, piece.text))
        show(writer.end())
    except KeyboardInterrupt:
        show(writer.end())
        print(_paint("note", " (stopped)", out), end="", file=out)
    print(file=out, flush=True)
    if answer is not None:
        if answer.finish_reason == "length":
            print(_paint("note", "(cut off at the longest answer, or at the end of the context)", notes), file=notes)
        conversation.messages.append(answer.message())
    else:
        only_text = all(part["type"] == "text" for part in parts)
        content: Any = "".join(part["text"] for part in parts) if only_text else parts
        conversation.messages.append({"role": "assistant", "content": content})


# ---- the terminal ------------------------------------------------------------------


def _coloured(out: TextIO) -> bool:
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _paint(style: str, text: str, out: TextIO) -> str:
    colour = COLOURS.get(style)
    return f"{colour}{text}{RESET}" if colour and text and _coloured(out) else text


def _prompt() -> str:
    if not _coloured(sys.stdout) or not sys.stdin.isatty():
        return "\nyou> "
    # readline counts what stands between \x01 and \x02 as of no width
    return f"\n\x01{COLOURS['prompt']}\x02you> \x01{RESET}\x02"


def _clean(text: str) -> str:
    from nanochat_hf.chat.models import clean

    return clean(text)


def _printable(text: str) -> str:
    """Removes the control characters with which a model could control the terminal."""
    return "".join(char for char in text if char in "\n\t" or char.isprintable() or (char.isspace() and char > " "))


@contextmanager
def _typing_waits() -> Iterator[None]:
    """While an answer is written, what is typed is not shown; the terminal keeps it for the next prompt."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin.fileno())
    except Exception:  # no terminal, or no such system
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' notes and warnings out of the chat; errors still come through as exceptions."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _number(name: str, text: str, called: str) -> float:
    """Returns a sampling setting; raises `UserError`, which calls it `called`, where it is none that is allowed."""
    kind, rules = SAMPLING[name]
    return convert(text, kind, rules, called)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="nanochat-hf chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", nargs="?", help="folder or Hub id (with --url: the model's name there)"
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="answer this message and exit")
    parser.add_argument("--url", help="talk to a model behind a server")
    parser.add_argument(
        "--protocol",
        choices=("chat", "text-generation"),
        help="of the server: OpenAI's chat (default), or text-generation-inference's, which continues a text",
    )
    parser.add_argument(
        "--tools", action="store_true", help="with --url: run the calculator here for the server's model"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--temperature",
        metavar="T",
        help="0 always takes the most likely token (default: the checkpoint's own, else 0.6)",
    )
    parser.add_argument(
        "--top-k",
        metavar="K",
        help="sample from the K most likely tokens; 0 is all (default: the checkpoint's own, else 50; with --url the "
        "server's)",
    )
    parser.add_argument(
        "--top-p", metavar="P", help="sample from the most likely tokens that make up this probability"
    )
    parser.add_argument("--max-new-tokens", metavar="N", default="512", help="longest answer, in tokens (default 512)")
    parser.add_argument("--seed", metavar="N", help="the same seed and messages give the same answers")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="such as bfloat16 (default: the checkpoint's own)")
    options = parser.parse_args(argv)
    if options.checkpoint is None and options.url is None:
        parser.error("name a checkpoint folder (or a Hub id), or a server with --url")
    unused = _without_effect(options)
    if unused:
        parser.error(f"{' and '.join(unused)} would have no effect here; leave it out")
    if options.prompt is not None and not options.prompt.strip():
        parser.error("--prompt is empty; give the message to answer")
    return options


def _without_effect(options: argparse.Namespace) -> list[str]:
    """The options that are given, and that this kind of chat cannot use."""
    if options.url is None:
        names = ("protocol", "tools")
    elif options.protocol == "text-generation":
        names = ("device", "dtype", "tools", "system", "checkpoint")
    else:
        names = ("device", "dtype")
    return ["CHECKPOINT" if name == "checkpoint" else f"--{name}" for name in names if getattr(options, name)]
