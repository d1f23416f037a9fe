"""Talking to a model in the terminal: `nanochat-hf chat CHECKPOINT`.

    nanochat-hf chat runs/quickstart/rl                          a conversation
    nanochat-hf chat runs/quickstart/rl --prompt "Who are you?"  one answer on stdout, for scripts
    nanochat-hf chat --url http://localhost:8000                 a model that `nanochat-hf serve` or any other
                                                                 OpenAI-compatible server holds

Answers stream as they are written; calculator calls show as ⟨12*3 = 36⟩. Ctrl-C stops an answer, Ctrl-D ends the chat.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nanochat_hf.settings import UserError

HELP = """\
/clear              forget the conversation
/system [TEXT]      set the system message (without TEXT: remove it) and forget the conversation
/temperature [T]    show or set the temperature; 0 always takes the likeliest token
/topk [K]           show or set from how many of the likeliest tokens is drawn; 0 is all
/retry              answer the last message once more
/help               this list
/quit               leave (also: quit, exit, Ctrl-D)"""


@dataclass
class Conversation:
    """What the chat remembers: the messages so far and how answers are drawn."""

    sampling: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def with_system(self) -> list[dict[str, Any]]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.messages


class LocalModel:
    """A checkpoint in this process."""

    def __init__(self, checkpoint: str, device: str | None, dtype: str | None):
        from nanochat_hf.generation import load_checkpoint

        self.model, self.tokenizer = load_checkpoint(checkpoint, device=device, dtype=dtype)

    def fit(self, conversation: Conversation) -> int:
        """Leaves out the oldest messages where the context is full; returns how many."""
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
        """Yields (kind, text) and at the end ("message", the assistant's message)."""
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

    def fit(self, conversation: Conversation) -> int:
        return 0  # the server knows its context

    def answer(self, conversation: Conversation) -> Iterator[tuple[str, str]]:
        sampling = conversation.sampling
        # Top-k is not in OpenAI's protocol, and strict servers refuse a request that has it.
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
        except Exception as error:  # requests', httpx's and the client's own: all mean that the server did not answer
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.url} does not answer ({reason}); is a server running there?") from None
        yield "message", {"role": "assistant", "content": whole}


def main(argv: list[str]) -> None:
    """The `chat` command."""
    options = _parse(argv)
    sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    conversation = Conversation({name: getattr(options, name) for name in names}, options.system)
    _check_sampling(conversation.sampling)
    if options.url:
        model = RemoteModel(options.url, options.checkpoint)
    else:
        model = LocalModel(options.checkpoint, options.device, options.dtype)
    if options.prompt is not None:
        conversation.messages.append({"role": "user", "content": options.prompt})
        reply(model, conversation, sys.stdout)
    else:
        talk(model, conversation, options.url or options.checkpoint)


def talk(model: LocalModel | RemoteModel, conversation: Conversation, name: str) -> None:
    """The loop of an interactive chat: reads a line, obeys it or answers it."""
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
            print(obey(line, conversation))
            continue
        else:
            conversation.messages.append({"role": "user", "content": line})
        try:
            print("model> ", end="", flush=True)
            reply(model, conversation, sys.stdout)
        except UserError as error:
            conversation.messages.pop()
            print(f"error: {error}")


def obey(line: str, conversation: Conversation) -> str:
    """Carries out a command line such as `/topk 20` and returns what to print."""
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


def reply(model: LocalModel | RemoteModel, conversation: Conversation, out: Any) -> None:
    """Streams the answer to `out` and adds it to the conversation. Ctrl-C ends the answer and keeps what was said."""
    dropped = model.fit(conversation)
    if dropped:
        print(f"(the context is full: the oldest {dropped} messages were left out)", file=out)
    from nanochat_hf.generation.tool_loop import segment_separator

    said, message, before = "", None, "text"
    try:
        for kind, content in model.answer(conversation):
            if kind == "message":
                message = content
                break
            if kind == "text":
                said += content
            print(segment_separator(before, kind) + _printable(content), end="", file=out, flush=True)
            before = kind
    except KeyboardInterrupt:
        print(" (stopped)", end="", file=out)
    print(segment_separator(before, "text"), file=out, flush=True)
    conversation.messages.append(message or {"role": "assistant", "content": said})


def _printable(text: str) -> str:
    """Text without the control characters through which a model could steer the terminal."""
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
    parser.add_argument("checkpoint", nargs="?", help="folder or Hub id (with --url: the model's name there)")
    parser.add_argument("--url", help="talk to an OpenAI-compatible server instead")
    parser.add_argument("--prompt", help="answer this one message and leave")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--temperature", type=float, default=0.6, help="0 always takes the likeliest token (0.6)")
    parser.add_argument("--top-k", type=int, default=50, help="draw from the k likeliest tokens; 0 is all (50)")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest tokens that make up this probability")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer in tokens (512)")
    parser.add_argument("--seed", type=int, help="makes answers repeatable")
    parser.add_argument("--device", help="such as cpu or cuda:0; default: the GPU where there is one")
    parser.add_argument("--dtype", help="such as bfloat16; default: the checkpoint's own")
    options = parser.parse_args(argv)
    if options.checkpoint is None and options.url is None:
        parser.error("name a checkpoint folder (or a Hub id), or a server with --url")
    return options
