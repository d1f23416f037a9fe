"""The tool loop: follows one assistant turn token by token, answers its tool calls and says when it ends."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat_hf.generation.prompts import Message, encode_as_text
from nanochat_hf.tools.registry import run_call

MAX_EXPRESSION_TOKENS = 256
# The control tokens inside a turn, in the order call start, call end, output start, output end. Each begins a new
# segment of the kind given here; the kinds are those of upstream's message parts.
SEGMENT_KINDS = {
    "<|python_start|>": "python",
    "<|python_end|>": "text",
    "<|output_start|>": "python_output",
    "<|output_end|>": "text",
}
TURN_END_TOKENS = ("<|assistant_end|>", "<|bos|>")
OTHER_CONTROL_TOKENS = ("<|user_start|>", "<|user_end|>", "<|assistant_start|>")


@dataclass(frozen=True)
class ControlTokens:
    """The ids of a tokenizer's control tokens, as far as generation needs them.

    Attributes:
        stop: ids that end a turn.
        segment_kinds: id of a control token → kind of the segment that begins after it. Empty where the tokenizer has
            no such tokens.
        hidden: ids that are never shown as text.
        call_start, call_end, output_start, output_end: the tokens around a tool call and around its result.
            None where the tokenizer does not have them; then no tool is used.
    """

    stop: frozenset[int]
    segment_kinds: dict[int, str] = field(default_factory=dict)
    hidden: frozenset[int] = frozenset()
    call_start: int | None = None
    call_end: int | None = None
    output_start: int | None = None
    output_end: int | None = None

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, model: Any = None) -> "ControlTokens":
        """Reads the ids from a tokenizer.

        Args:
            tokenizer: with nanochat's control tokens, or any other of transformers.
            model: for other tokenizers, the end tokens of this model's generation config end a turn as well.
        """
        names = [*SEGMENT_KINDS, *TURN_END_TOKENS, *OTHER_CONTROL_TOKENS]
        known = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
        if tokenizer.convert_ids_to_tokens([token or 0 for token in known.values()]) == names:
            return cls(
                frozenset(known[name] for name in TURN_END_TOKENS),
                {known[name]: kind for name, kind in SEGMENT_KINDS.items()},
                frozenset(known.values()),
                *(known[name] for name in SEGMENT_KINDS),
            )
        stop = {tokenizer.eos_token_id}
        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        stop |= set(configured if isinstance(configured, (list, tuple)) else [configured])
        return cls(frozenset(stop - {None}), hidden=frozenset(tokenizer.all_special_ids))


@dataclass(frozen=True)
class Rollout:
    """One finished turn.

    Attributes:
        token_ids: the tokens after the prompt, including the ending control token if the model sampled one.
        sampled: per token, True if the model sampled it and False if it is part of a tool's output.
        messages: the new messages: one assistant message. Its content is text, or a list of parts if a tool was used.
        finish_reason: "stop" if the model ended the turn, "length" if a limit did.
        prompt_ids: the token ids of the prompt.
        text: what the assistant says, without tool calls and their outputs.
    """

    token_ids: list[int]
    sampled: list[bool]
    messages: list[Message]
    finish_reason: str
    prompt_ids: list[int]
    text: str


class Turn:
    """An assistant turn while it is generated.

    When the model ends a tool call, the turn runs the tool. The result, between `<|output_start|>` and
    `<|output_end|>`, then replaces the tokens that the model samples, until it is complete.

    Attributes:
        token_ids: all tokens after the prompt, the ending token included.
        sampled: per token, True if the model sampled it and False if it was forced.
        finish_reason: None while the turn goes on, then "stop" (ended by the model) or "length".
    """

    def __init__(
        self,
        control: ControlTokens,
        tokenizer: Any,
        max_tokens: int,
        tool: Callable[[str], str | None] | None = run_call,
        begin: Sequence[Sequence[int]] = (),
    ):
        """Starts an empty turn.

        Args:
            control: the tokenizer's control tokens.
            tokenizer: decodes the expressions and encodes the results.
            max_tokens: the turn ends with "length" at this many tokens, tool outputs included.
            tool: call → result, or None to leave the call without an output. None switches tools off.
            begin: beginnings, such as the start of a call, as token ids; the turn has one of them, which the model
                chooses.
        """
        self.control, self.tokenizer, self.max_tokens = control, tokenizer, max_tokens
        self.tool = tool if control.call_start is not None else None
        self.token_ids: list[int] = []
        self.sampled: list[bool] = []
        self.finish_reason: str | None = None
        self._begin = [list(each) for each in begin]  # what is left of the beginnings that are still possible
        self._forced: deque[int] = deque()
        self._expression: list[int] | None = None

    def add(self, sampled: int) -> int:
        """Appends the next token and returns it: the sampled one, or a forced one that replaces it."""
        allowed, is_output = self.allowed(), bool(self._forced)
        token = self._forced.popleft() if is_output else sampled
        if allowed and sampled not in allowed:
            token = allowed[0]
        self._begin = [each[1:] for each in self._begin if each[:1] == [token]]
        self.token_ids.append(token)
        self.sampled.append(not (is_output or allowed))
        if not is_output:
            self._follow_tool_call(token)
        if token in self.control.stop:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
        return token

    def allowed(self) -> list[int]:
        """The tokens that may come next at the beginning of the turn; empty where all may."""
        return [each[0] for each in self._begin] if all(self._begin) else []

    def _follow_tool_call(self, token: int) -> None:
        """Collects the expression of a tool call; at the end of the call, runs the tool and queues its output."""
        if self.tool is None:
            return
        if token == self.control.call_start:
            self._expression = []
        elif token == self.control.call_end and self._expression is not None:
            expression, self._expression = self._expression, None
            if not 0 < len(expression) <= MAX_EXPRESSION_TOKENS:
                return
            result = self.tool(decode_exactly(self.tokenizer, expression))
            if result is not None:
                # A result may spell a control token. It stays text: a tool must not end the turn.
                output = encode_as_text(self.tokenizer, result)
                self._forced.extend([self.control.output_start, *output, self.control.output_end])
        elif self._expression is not None:
            self._expression.append(token)

    def parts(self) -> list[Message]:
        """Returns the turn as upstream's list of parts: {"type": "text" | "python" | "python_output", "text": …}."""
        segments: list[tuple[str, list[int]]] = [("text", [])]
        for token in self.token_ids:
            if token in self.control.segment_kinds:
                segments.append((self.control.segment_kinds[token], []))
            elif token not in self.control.hidden and token not in self.control.stop:
                segments[-1][1].append(token)
        return [{"type": kind, "text": decode_exactly(self.tokenizer, ids)} for kind, ids in segments if ids]

    def message(self) -> Message:
        """Returns the turn as an assistant message. Its content is text, or a list of parts if a tool was used."""
        parts = self.parts()
        if all(part["type"] == "text" for part in parts):
            return {"role": "assistant", "content": "".join(part["text"] for part in parts)}
        return {"role": "assistant", "content": parts}

    def rollout(self, prompt_ids: Sequence[int]) -> Rollout:
        """Returns the finished turn, with the prompt that it continues."""
        text = "".join(part["text"] for part in self.parts() if part["type"] == "text")
        return Rollout(
            self.token_ids, self.sampled, [self.message()], self.finish_reason or "length", list(prompt_ids), text
        )


def segment_separator(before: str, after: str) -> str:
    """Returns what to print between segments of two kinds, so that a tool call reads ⟨12*3 = 36⟩."""
    if before == after:
        return ""
    if (before, after) == ("python", "python_output"):
        return " = "
    return ("" if before == "text" else "⟩") + {"python": "⟨", "python_output": "⟨ = "}.get(after, "")


def decode_exactly(tokenizer: Any, ids: list[int]) -> str:
    """Decodes ids without skipping special tokens and without changing spaces."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
