"""A conversation as the messages of Gradio's Chatbot. The conversation itself is never read back from them."""

from collections.abc import Sequence
from typing import Any

from nanochat_hf.page.safe_text import code_span, message_markdown, safe_markdown
from nanochat_hf.tools.presentation import flowing_text, parts_of, tool_calls

NOTES = {
    "stopped": "*(stopped)*",
    "length": "*(cut off: the longest answer, or the end of the context, was reached)*",
    "seconds": "*(stopped: an answer may take only so many seconds here)*",
}


def chatbot_messages(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
    """Turns a conversation into Chatbot messages.

    A tool call is a folded box above the text that it belongs to: call and result in its title and in it. The final
    answer of a word problem stands in bold.

    Returns:
        The Chatbot messages, and for each of them the index of its message in the conversation.
    """
    shown: list[dict[str, Any]] = []
    owners: list[int] = []
    for index, message in enumerate(messages):
        if message["role"] == "system":
            continue
        made = _user(message) if message["role"] == "user" else _assistant(message)
        shown += made
        owners += [index] * len(made)
    return shown, owners


def _user(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": message_markdown(message["content"])}]


def _assistant(message: dict[str, Any]) -> list[dict[str, Any]]:
    boxes = []
    for call in tool_calls(message["content"]):
        if call.result is None:
            title, body = f"Calculator: {call.call}", f"Call: {code_span(call.call)}\n\nNo result: it was refused."
        else:
            title = f"Calculator: {call.call} = {call.result}"
            body = f"Call: {code_span(call.call)}\n\nResult: {code_span(call.result)}"
        metadata = {"title": safe_markdown(" ".join(title.split())), "status": "done"}
        boxes.append({"role": "assistant", "content": body, "metadata": metadata})
    said = parts_of(message["content"])
    if len(said) == 1 and said[0]["type"] == "text":
        text = message_markdown(flowing_text(message["content"]))
    else:
        text = safe_markdown(flowing_text(message["content"]))
    note = NOTES.get(message.get("note", ""))
    text = "\n\n".join(filter(None, (text, note)))
    if not text and message.get("writing"):
        return boxes
    return [*boxes, {"role": "assistant", "content": text or "*(the model said nothing)*"}]
