"""One assistant's turn as it grows: when it ends, when the calculator speaks, and what it says as messages."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nanochat_hf.tools.calculator import calculate

MAX_EXPRESSION_TOKENS = 256
# A control token of the turn → the kind of text that it opens (None: it closes, plain text goes on).
KINDS = {
    "<|python_start|>": "python",
    "<|python_end|>": None,
    "<|output_start|>": "python_output",
    "<|output_end|>": None,
}
TURN_END = ("<|assistant_end|>", "<|bos|>")
TURN_MARKS = ("<|user_start|>", "<|user_end|>", "<|assistant_start|>")


@dataclass(frozen=True)
class Vocabulary:
    """What generation has to know of a tokenizer.

    Attributes:
        stop: ids that end a turn.
        kinds: id of a control token → the kind of text it opens; empty where the tokenizer has no such tokens.
        silent: ids that never show as text.
        call_start, call_end, output_start, output_end: the calculator's brackets; None where it cannot be used.
    """

    stop: frozenset[int]
    kinds: dict[int, str | None] = field(default_factory=dict)
    silent: frozenset[int] = frozenset()
    call_start: int | None = None
    call_end: int | None = None
    output_start: int | None = None
    output_end: int | None = None

    @classmethod
    def of(cls, tokenizer: Any, model: Any = None) -> "Vocabulary":
        """Reads the control tokens, and for a foreign tokenizer the end tokens of its generation config."""
        names = [*KINDS, *TURN_END, *TURN_MARKS]
        known = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
        if tokenizer.convert_ids_to_tokens([token or 0 for token in known.values()]) == names:
            brackets = [known[name] for name in KINDS]
            return cls(
                frozenset(known[name] for name in TURN_END),
                {known[name]: kind for name, kind in KINDS.items()},
                frozenset(known.values()),
                *brackets,
            )
        stop = {tokenizer.eos_token_id}
        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        stop |= set(configured if isinstance(configured, (list, tuple)) else [configured])
        return cls(frozenset(stop - {None}), silent=frozenset(tokenizer.all_special_ids))


class Turn:
    """The tokens of one turn. `add` takes what the model drew and returns what the turn goes on with.

    The two differ while the calculator speaks: after `<|python_end|>` its result is forced into the turn, wrapped in
    `<|output_start|>` and `<|output_end|>`, and what the model drew in the meantime is thrown away.

    Attributes:
        token_ids: everything after the prompt, the ending token included.
        sampled: for each of them, True where the model drew it, False where it was forced.
        finish_reason: None while it grows, then "stop" (ended by the model) or "length".
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        tokenizer: Any,
        max_tokens: int,
        tool: Callable[[str], str | None] | None = calculate,
    ):
        self.vocabulary, self.tokenizer, self.max_tokens = vocabulary, tokenizer, max_tokens
        self.tool = tool if vocabulary.call_start is not None else None
        self.token_ids: list[int] = []
        self.sampled: list[bool] = []
        self.finish_reason: str | None = None
        self._forced: deque[int] = deque()
        self._expression: list[int] | None = None

    def add(self, drawn: int) -> int:
        forced = bool(self._forced)
        token = self._forced.popleft() if forced else drawn
        self.token_ids.append(token)
        self.sampled.append(not forced)
        if not forced:
            self._listen(token)
        if token in self.vocabulary.stop:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
        return token

    def _listen(self, token: int) -> None:
        """Follows the model's own tokens; at the end of a call, queues the tool's answer."""
        if self.tool is None:
            return
        if token == self.vocabulary.call_start:
            self._expression = []
        elif token == self.vocabulary.call_end and self._expression is not None:
            expression, self._expression = self._expression, None
            if not 0 < len(expression) <= MAX_EXPRESSION_TOKENS:
                return
            result = self.tool(decode(self.tokenizer, expression))
            if result is not None:
                # A result that spells a control token is text, not that token.
                answer = self.tokenizer.encode(result, add_special_tokens=False, split_special_tokens=True)
                self._forced.extend([self.vocabulary.output_start, *answer, self.vocabulary.output_end])
        elif self._expression is not None:
            self._expression.append(token)

    def parts(self) -> list[dict[str, str]]:
        """The turn as upstream's list of parts: {"type": "text" | "python" | "python_output", "text": …}."""
        segments: list[tuple[str, list[int]]] = [("text", [])]
        for token in self.token_ids:
            if token in self.vocabulary.kinds:
                segments.append((self.vocabulary.kinds[token] or "text", []))
            elif token not in self.vocabulary.silent and token not in self.vocabulary.stop:
                segments[-1][1].append(token)
        return [{"type": kind, "text": decode(self.tokenizer, ids)} for kind, ids in segments if ids]

    def message(self) -> dict[str, Any]:
        """The turn as an assistant's message: content is a string, or a list of parts where a tool was used."""
        parts = self.parts()
        if all(part["type"] == "text" for part in parts):
            return {"role": "assistant", "content": "".join(part["text"] for part in parts)}
        return {"role": "assistant", "content": parts}


def call_brackets(before: str, after: str) -> str:
    """What to show between two kinds of text, so that a tool call reads ⟨12*3 = 36⟩."""
    if before == after:
        return ""
    if (before, after) == ("python", "python_output"):
        return " = "
    return ("" if before == "text" else "⟩") + {"python": "⟨", "python_output": "⟨ = "}.get(after, "")


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Text of ids, exactly: nothing skipped and no spaces tidied."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
