"""Talks to a model in the terminal.

    nanochat-hf chat runs/quickstart/rl                          a conversation
    nanochat-hf chat runs/quickstart/rl --prompt "Who are you?"  one answer on stdout, for scripts
    nanochat-hf chat --url http://localhost:8000                 a model behind `nanochat-hf serve`, or behind any
                                                                 other OpenAI-compatible server

The answer appears while it is generated. Calculator calls show as ⟨12*3 = 36⟩. Ctrl-C stops an answer, Ctrl-D ends the
chat.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from nanochat_hf.settings import UserError

HELP = """\
/clear              start a new conversation
/system [TEXT]      set the system message (without TEXT: remove it) and start a new conversation
/temperature [T]    show or set the temperature; 0 always takes the most likely token
/topk [K]           show or set top-k: sample from the K most likely tokens; 0 is all
/retry              answer the last message again
/help               show this list
/quit               end the chat (also: quit, exit, Ctrl-D)"""


@dataclass
class Conversation:
    """The state of a chat.

    Attributes:
        sampling: the fields of [`Sampling`], and `seed`.
        system: the system message, or None.
        messages: the messages so far, without the system message.
    """

    sampling: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def with_system(self) -> list[dict[str, Any]]:
        """Returns the messages, the system message first."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.messages


class LocalModel:
    """A checkpoint, loaded in this process."""

    def __init__(self, checkpoint: str, device: str | None, dtype: str | None):
        from nanochat_hf.generation import load_checkpoint

        self.model, self.tokenizer = load_checkpoint(checkpoint, device=device, dtype=dtype)

    def drop_oldest_messages(self, conversation: Conversation) -> int:
        """Removes the oldest messages until the rest fits in the context; returns how many it removed.

        Raises:
            UserError: the last message alone is too long.
        """
        from nanochat_hf.generation import DEFAULT_CONTEXT_LENGTH, context_length_of, fit_conversation

        messages, dropped = fit_conversation(
            self.tokenizer,
            conversation.with_system(),
            context_length_of(self.model) or DEFAULT_CONTEXT_LENGTH,
            conversation.sampling["max_new_tokens"],
        )
        conversation.messages = [message for message in messages if message["role"] != "system"]
        return dropped

    def answer(self, conversation: Conversation) -> Iterator[tuple[str, str]]:
        """Yields (kind, text), the kind as in [`Chunk`], and at the end ("message", the assistant's message)."""
        from nanochat_hf.generation import stream_chat

        for chunk in stream_chat(self.model, self.tokenizer, conversation.with_system(), **conversation.sampling):
            if chunk.rollout is not None:
                yield "message", chunk.rollout.messages[0]
            else:
                yield chunk.type, chunk.text


class RemoteModel:
    """A model behind an OpenAI-compatible server, through huggingface_hub's `InferenceClient`."""

    def __init__(self, url: str, model: str | None = None):
        from huggingface_hub import InferenceClient

        self.url = url
        self.client = InferenceClient(base_url=url)
        self.extra = {"model": model} if model else {}

    def drop_oldest_messages(self, conversation: Conversation) -> int:
        """Removes nothing and returns 0: the server's context length is not known here."""
        return 0

    def answer(self, conversation: Conversation) -> Iterator[tuple[str, str]]:
        """Yields ("text", text), and at the end ("message", the assistant's message).

        Raises:
            UserError: the server does not answer.
        """
        sampling = conversation.sampling
        # No top-k: it is not in OpenAI's protocol, and strict servers refuse a request that has it.
        try:
            stream = self.client.chat_completion(
                conversation.with_system(),
                stream=True,
                max_tokens=sampling["max_new_tokens"],
                temperature=sampling["temperature"],
                top_p=sampling["top_p"],
                seed=sampling["seed"],
                extra_body=self.extra or None,
            )
            whole = ""
            for event in stream:
                text = event.choices[0].delta.content if event.choices else None
                if text:
                    whole += text
                    yield "text", text
        except Exception as error:  # of httpx or of the client: all mean that the server did not answer
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.url} does not answer ({reason}); is a server running there?") from None
        yield "message", {"role": "assistant", "content": whole}


def main(argv: list[str]) -> None:
    """Runs the `chat` command.

    Raises:
        UserError: a wrong option, a checkpoint that cannot be loaded, or a server that does not answer.
    """
    options = _parse(argv)
    sys.stdout.reconfigure(errors="replace")  # a terminal may not be able to show every character
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    conversation = Conversation({name: getattr(options, name) for name in names}, options.system)
    _check_sampling(conversation.sampling)
    if options.url:
        model = RemoteModel(options.url, options.checkpoint)
    else:
        model = LocalModel(options.checkpoint, options.device, options.dtype)
    if options.prompt is not None:
        conversation.messages.append({"role": "user", "content": options.prompt})
        print_answer(model, conversation, sys.stdout)
    else:
        chat_loop(model, conversation, options.url or options.checkpoint)


def chat_loop(model: LocalModel | RemoteModel, conversation: Conversation, name: str) -> None:
    """Runs an interactive chat: reads a line, then runs it as a slash command or answers it, until the user leaves."""
    try:
        import readline  # noqa: F401  gives input() history and editing
    except ImportError:
        pass
    print(f"Talking to {name}. /help lists the commands, Ctrl-D ends the chat.")
    while True:
        try:
            line = input("\nyou> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not line:
            continue
        if line in ("/quit", "/exit", "quit", "exit"):
            return
        if line == "/retry":
            if not conversation.messages:
                print("there is nothing to answer yet")
                continue
            if conversation.messages[-1]["role"] == "assistant":
                conversation.messages.pop()
        elif line.startswith("/"):
            print(run_slash_command(line, conversation))
            continue
        else:
            conversation.messages.append({"role": "user", "content": line})
        try:
            print("model> ", end="", flush=True)
            print_answer(model, conversation, sys.stdout)
        except UserError as error:
            conversation.messages.pop()
            print(f"error: {error}")


def run_slash_command(line: str, conversation: Conversation) -> str:
    """Runs a command such as `/topk 20` and returns what to print."""
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    settings = {"/temperature": ("temperature", float), "/topk": ("top_k", int)}
    if command == "/help":
        return HELP
    if command == "/clear":
        conversation.messages.clear()
        return "(cleared)"
    if command == "/system":
        conversation.system = argument or None
        conversation.messages.clear()
        return f"({'system message set' if argument else 'no system message'}, conversation cleared)"
    if command in settings:
        name, kind = settings[command]
        if argument:
            try:
                changed = {**conversation.sampling, name: kind(argument)}
                _check_sampling(changed)
            except (ValueError, UserError) as error:
                return f"error: {error}"
            conversation.sampling = changed
        return f"{name} = {conversation.sampling[name]}"
    return f"unknown command {command}; /help lists them"


def print_answer(model: LocalModel | RemoteModel, conversation: Conversation, out: TextIO) -> None:
    """Streams the answer to `out` and adds it to the conversation. Ctrl-C stops the answer and keeps its text."""
    dropped = model.drop_oldest_messages(conversation)
    if dropped:
        print(f"(the context is full: the oldest {dropped} messages were left out)", file=out)
    from nanochat_hf.generation.tool_loop import segment_separator

    text, message, before = "", None, "text"
    try:
        for kind, content in model.answer(conversation):
            if kind == "message":
                message = content
                break
            if kind == "text":
                text += content
            print(segment_separator(before, kind) + _printable(content), end="", file=out, flush=True)
            before = kind
    except KeyboardInterrupt:
        print(" (stopped)", end="", file=out)
    print(segment_separator(before, "text"), file=out, flush=True)
    conversation.messages.append(message or {"role": "assistant", "content": text})


def _printable(text: str) -> str:
    """Removes the control characters with which a model could control the terminal."""
    return "".join(char for char in text if char in "\n\t" or char.isprintable() or (char.isspace() and char > " "))


def _check_sampling(sampling: dict[str, Any]) -> None:
    from nanochat_hf.generation.sampling import Sampling

    try:
        Sampling(**{name: value for name, value in sampling.items() if name != "seed"})
    except ValueError as error:
        raise UserError(str(error)) from None


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="nanochat-hf chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", nargs="?", help="folder or Hub id (with --url: the model's name there)"
    )
    parser.add_argument("--url", help="talk to a model behind an OpenAI-compatible server")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this message and exit")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        default=0.6,
        help="0 always takes the most likely token (default 0.6)",
    )
    parser.add_argument(
        "--top-k",
        metavar="K",
        type=int,
        default=50,
        help="sample from the K most likely tokens; 0 is all (default 50)",
    )
    parser.add_argument(
        "--top-p", metavar="P", type=float, help="sample from the most likely tokens that make up this probability"
    )
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=int, default=512, help="longest answer, in tokens (default 512)"
    )
    parser.add_argument("--seed", metavar="N", type=int, help="the same seed and messages give the same answers")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the GPU if there is one)")
    parser.add_argument("--dtype", help="such as bfloat16 (default: the checkpoint's own)")
    options = parser.parse_args(argv)
    if options.checkpoint is None and options.url is None:
        parser.error("name a checkpoint folder (or a Hub id), or a server with --url")
    return options
