"""How an answer with tool calls is shown: in the terminal, on the page, in a report and on a model card.

A model's turn is a list of parts: text, `python` (a call) and `python_output` (its result). Plain text shows a call as
⟨8+26 = 34⟩. Where the model then writes the result once more, the repetition is left out. The line `#### 34`, which
GSM8K's answers end with, becomes `Answer: 34`. A page shows the calls apart from the text (see [`flowing_text`]).

    >>> plain_text([{"type": "text", "text": "It is "}, {"type": "python", "text": "8+26"},
    ...             {"type": "python_output", "text": "34"}, {"type": "text", "text": "34.\\n#### 34"}])
    'It is ⟨8+26 = 34⟩.\\nAnswer: 34'
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

ANSWER_MARK = "#### "
ANSWER_LABEL = "Answer: "


@dataclass(frozen=True)
class ToolCall:
    """A tool call inside a turn.

    Attributes:
        call: what the model asked for, such as `8+26`.
        result: what the tool answered; None where it refused the call.
    """

    call: str
    result: str | None = None


def parts_of(content: Any) -> list[dict[str, str]]:
    """Returns a message's content as a list of parts; text becomes one part of type text."""
    if isinstance(content, str) or content is None:
        return [{"type": "text", "text": content or ""}]
    return [part if isinstance(part, dict) else {"type": "text", "text": str(part)} for part in content]


def tool_calls(content: Any) -> list[ToolCall]:
    """Returns the tool calls of a message's content, in order."""
    found: list[ToolCall] = []
    for part in parts_of(content):
        if part["type"] == "python":
            found.append(ToolCall(part["text"]))
        elif part["type"] == "python_output" and found:
            found[-1] = ToolCall(found[-1].call, part["text"])
    return found


def said_text(content: Any) -> str:
    """Returns what the assistant says itself, without calls and results, as the model wrote it."""
    return "".join(part["text"] for part in parts_of(content) if part["type"] == "text")


def plain_text(content: Any) -> str:
    """Returns a message's content as plain text, with calls in brackets."""
    writer = TextWriter()
    pieces = [writer.add(part["type"], part["text"]) for part in parts_of(content)]
    return "".join(span.text for span in (*(span for piece in pieces for span in piece), *writer.end()))


def flowing_text(content: Any) -> str:
    """Returns a message's text for a page that shows the calls apart from it.

    A result that the model did not write into its text is added at its place, so that no sentence has a gap. A final
    line `#### 34` becomes `**Answer: 34**` in a paragraph of its own (Markdown).
    """
    parts, text = parts_of(content), ""
    for index, part in enumerate(parts):
        if part["type"] == "text":
            text += part["text"]
        elif part["type"] == "python_output":
            following = parts[index + 1]["text"] if index + 1 < len(parts) else None
            if following is not None and parts[index + 1]["type"] == "text":
                text += "" if following.lstrip().startswith(part["text"]) else part["text"]
    lines = []
    for line in text.split("\n"):
        if line.startswith(ANSWER_MARK):
            lines += ["", f"**{ANSWER_LABEL}{line.removeprefix(ANSWER_MARK).strip()}**"]
        else:
            lines.append(line)
    return "\n".join(lines).strip("\n")


@dataclass(frozen=True)
class Span:
    """A piece of plain text and its style: "text", "tool" (a call in brackets) or "answer" (the final answer)."""

    style: str
    text: str


class TextWriter:
    """Turns a stream of parts into plain text. The pieces of a part may be cut anywhere.

    writer = TextWriter()
    for kind, text in pieces:            # "text", "python" or "python_output"
        for span in writer.add(kind, text):
            print(span.text, end="")
    for span in writer.end():
        print(span.text, end="")
    """

    def __init__(self) -> None:
        self._kind = "text"
        self._result = ""  # of the last call, as long as the following text may repeat it
        self._held = ""  # text that may turn out to be the repeated result or an answer's mark
        self._line_start = True
        self._style = "text"

    def add(self, kind: str, text: str) -> list[Span]:
        """Takes the next piece of a part and returns what can be shown now."""
        spans: list[Span] = []
        if kind != self._kind:
            if self._kind == "text":
                spans += self._text("", last=True)
            if (self._kind, kind) == ("python", "python_output"):
                spans.append(Span("tool", " = "))
            else:
                if self._kind != "text":
                    spans.append(Span("tool", "⟩"))
                opening = {"python": "⟨", "python_output": "⟨ = "}.get(kind)
                spans += [Span("tool", opening)] if opening else []
            if kind != "text":
                self._result = ""
            self._kind = kind
        if kind == "text":
            return spans + self._text(text)
        self._line_start = False
        if kind == "python_output":
            self._result += text
        return spans + ([Span("tool", text)] if text else [])

    def end(self) -> list[Span]:
        """Returns what is still held back, and closes an open call."""
        if self._kind == "text":
            return self._text("", last=True)
        self._kind = "text"
        return [Span("tool", "⟩")]

    def _text(self, text: str, last: bool = False) -> list[Span]:
        """Returns the spans of a piece of text; holds back a beginning that may still be a result or a mark."""
        text, self._held = self._held + text, ""
        if self._result:
            undecided = (self._result, f"{self._result}.", f"{self._result},")  # 3 may go on as 3.5
            if not last and (text in undecided or self._result.startswith(text)):
                self._held = text
                return []
            repeats = text.startswith(self._result) and not re.match(r"\d|[.,]\d", text[len(self._result) :])
            text, self._result = text[len(self._result) :] if repeats else text, ""
        spans: list[Span] = []
        while text:
            if self._line_start:
                if text.startswith(ANSWER_MARK):
                    self._style, text = "answer", ANSWER_LABEL + text.removeprefix(ANSWER_MARK)
                elif not last and ANSWER_MARK.startswith(text):
                    self._held = text
                    break
            line, newline, text = text.partition("\n")
            spans += [Span(self._style, line)] if line else []
            spans += [Span("text", newline)] if newline else []
            self._line_start = bool(newline)
            self._style = "text" if newline else self._style
        return spans


def joined(spans: Iterable[Span]) -> str:
    """Returns the text of spans without their styles."""
    return "".join(span.text for span in spans)
