"""Tokens as text: piece by piece while they come, or each on its own."""

from typing import Any

from nanochat_hf.generation.tool_loop import decode_exactly
from nanochat_hf.tokenizer import byte_letters


class TextStream:
    """Turns tokens into text as they come: whole characters only, each once."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start = self.read = 0  # tokens [start:read] are the context of the text that comes next

    def push(self, token: int) -> str:
        """Adds a token and returns the text that is complete now."""
        self.ids.append(token)
        return self._next(False)

    def rest(self) -> str:
        """Returns the text of tokens that never became a whole character."""
        return self._next(True)

    def _next(self, final: bool) -> str:
        before = decode_exactly(self.tokenizer, self.ids[self.start : self.read])
        text = decode_exactly(self.tokenizer, self.ids[self.start :])
        if len(text) <= len(before) or (text.endswith("\ufffd") and not final):
            return ""
        self.start, self.read = self.read, len(self.ids)
        return text[len(before) :]


def token_text(tokenizer: Any, token: int) -> tuple[str, bytes]:
    """Returns a token as text, and its bytes.

    A token that holds part of a character has no text. It is written as "bytes:\\xe2\\x80", as OpenAI does it.
    """
    text = decode_exactly(tokenizer, [token])
    if "\ufffd" not in text:
        return text, text.encode()
    letters = byte_letters()
    spelled = tokenizer.convert_ids_to_tokens(token)
    if not all(letter in letters for letter in spelled):
        return text, text.encode()
    data = bytes(letters[letter] for letter in spelled)
    return "bytes:" + "".join(f"\\x{value:02x}" for value in data), data
