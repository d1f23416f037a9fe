"""What a visitor's message goes through: checks, limits, and the answer as it grows. Nothing here knows Gradio."""

import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_hf.chat import Answer, Model, for_model, read_message
from nanochat_hf.chat.models import clean
from nanochat_hf.page.views import NOTES
from nanochat_hf.settings import UserError

REDRAW_SECONDS = 0.05  # between two versions of a growing answer
MAX_VISITORS = 10_000  # whose last messages are remembered


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for.

    Attributes:
        characters: of one message, and of the system message.
        messages: of one conversation.
        seconds: of one answer.
        per_minute: messages of one visitor; 0 is any number.
        queue: visitors that may wait at the same time.
        at_once: answers that are written at the same time.
        new_tokens: the longest answer that the settings offer, in tokens.
    """

    characters: int = 8_000
    messages: int = 200
    seconds: float = 120.0
    per_minute: int = 30
    queue: int = 32
    at_once: int = 1
    new_tokens: int = 2_048


class Rate:
    """Counts the messages of each visitor in the last minute."""

    def __init__(self, per_minute: int):
        self.per_minute = per_minute
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, visitor: str, now: float | None = None) -> None:
        """Counts a message.

        Raises:
            UserError: the visitor has sent too many.
        """
        if not self.per_minute:
            return
        now = time.monotonic() if now is None else now
        with self._lock:
            times = self._times.setdefault(visitor, deque())
            self._times.move_to_end(visitor)
            while len(self._times) > MAX_VISITORS:
                self._times.popitem(last=False)
            while times and now - times[0] >= 60:
                times.popleft()
            if len(times) >= self.per_minute:
                wait = int(60 - (now - times[0])) + 1
                raise UserError(f"That was fast: {self.per_minute} messages per minute. Please wait {wait} seconds.")
            times.append(now)


def check_message(text: Any, limits: Limits, name: str = "message") -> str:
    """Returns a message as it may be sent.

    Raises:
        UserError: it is empty or too long.
    """
    text = clean(text if isinstance(text, str) else "")
    if not text.strip():
        raise UserError(f"The {name} is empty. Please write something first.")
    if len(text) > limits.characters:
        raise UserError(
            f"The {name} is too long: it has {len(text):,} characters, and {limits.characters:,} are allowed."
        )
    return text


def read_messages(found: Any, limits: Limits) -> list[dict[str, Any]]:
    """Checks a conversation that a browser sent, and returns its messages.

    An answer may say what the model has read before it: the system message as `system`, and all messages but the
    `left_out` oldest.

    Raises:
        UserError: it is none, or it is too long.
    """
    if not isinstance(found, list):
        raise UserError("This conversation cannot be read. Please start a new one.")
    if len(found) > limits.messages:
        raise UserError(f"A conversation has at most {limits.messages} messages here. Please start a new one.")
    messages = []
    for one in found:
        message = read_message(one)
        if message["role"] in ("user", "system") and isinstance(message["content"], str):
            message["content"] = clean(message["content"])
        if one.get("note") in NOTES:
            message["note"] = one["note"]
        if message["role"] == "assistant" and isinstance(one.get("system"), str):
            message["system"] = one["system"]
        if message["role"] == "assistant" and type(one.get("left_out")) is int and one["left_out"] >= 0:
            message["left_out"] = one["left_out"]
        messages.append(message)
    return messages


def is_dropping(model: Model, messages: Sequence[dict[str, Any]], new_tokens: int) -> bool:
    """Returns whether the oldest messages of this conversation do not fit any more."""
    try:
        return bool(messages) and model.fit(messages, new_tokens)[1] > 0
    except UserError:
        return False


def write_answer(
    model: Model, messages: Sequence[dict[str, Any]], limits: Limits, **sampling: Any
) -> Iterator[dict[str, Any]]:
    """Yields the assistant's message as it grows; the last one is the whole answer.

    A message that is still growing has the note "stopped", because it is what stays if the visitor stops it.

    Args:
        model: who answers.
        messages: a conversation that ends with the user's message, as it fits in the context.
        limits: for the seconds.
        sampling: see [`Model.answer`].

    Raises:
        UserError: there is no answer.
    """
    parts: list[dict[str, str]] = []
    started = drawn = time.monotonic()
    answers = model.answer([for_model(message) for message in messages], **sampling)
    try:
        for piece in answers:
            if isinstance(piece, Answer):
                message = piece.message()
                yield {**message, "note": "length"} if piece.finish_reason == "length" else message
                return
            if parts and parts[-1]["type"] == piece.kind:
                parts[-1]["text"] += piece.text
            else:
                parts.append({"type": piece.kind, "text": piece.text})
            now = time.monotonic()
            if now - started > limits.seconds:
                yield _growing(parts, "seconds")
                return
            if now - drawn >= REDRAW_SECONDS:
                drawn = now
                yield {**_growing(parts, "stopped"), "writing": True}
    finally:
        close = getattr(answers, "close", None)
        if close is not None:
            close()


def _growing(parts: Sequence[dict[str, str]], note: str) -> dict[str, Any]:
    only_text = all(part["type"] == "text" for part in parts)
    content: Any = "".join(part["text"] for part in parts) if only_text else [dict(part) for part in parts]
    return {"role": "assistant", "content": content, "note": note}


class Feedback:
    """Writes what visitors think of answers to a file, one JSON object per line."""

    def __init__(self, path: str | Path):
        """Takes the file.

        Raises:
            UserError: it cannot be written.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("a", encoding="utf-8").close()
        except OSError as error:
            raise UserError(f"cannot write feedback to {path} ({error.strerror}); give another file") from None

    def write(self, messages: Sequence[dict[str, Any]], index: int, liked: bool, model: str) -> None:
        """Appends a line: the model, the conversation up to the answer, and whether it was liked."""
        record = {
            "model": model,
            "liked": liked,
            "messages": [for_model(message) for message in messages[: index + 1]],
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        line = json.dumps(record, ensure_ascii=False)
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
