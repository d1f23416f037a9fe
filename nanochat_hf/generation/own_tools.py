"""Turns of models of another kind, whose chat template has a form of its own for tool calls.

Such a model ends its message after a call. So the batch is generated in rounds: all answers to their ends, then the
results of the calls, then what the model says to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat_hf.generation.batch import generate_with_tools
from nanochat_hf.generation.chat_format import ChatFormat
from nanochat_hf.generation.loading import DEFAULT_CONTEXT_LENGTH, context_length_of
from nanochat_hf.generation.tool_loop import Rollout
from nanochat_hf.tools.registry import run_tool

MAX_ROUNDS = 8
REFUSED = "error: there is no result"


@dataclass
class _Turn:
    """A turn of several messages while it is generated; `limit` is the number of tokens that it may have."""

    prompt: list[int]
    limit: int
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    finish_reason: str = "length"

    def extend(self, ids: Sequence[int], sampled: bool) -> None:
        self.ids += ids
        self.sampled += [sampled] * len(ids)


def generate_with_own_tools(
    model: Any,
    form: ChatFormat,
    prompts: Sequence[Sequence[int]],
    *,
    num_samples: int = 1,
    seed: int | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    context_length: int | None = None,
    **sampling: Any,
) -> list[list[Rollout]]:
    """Samples turns; our tools answer the calls inside them.

    Args:
        form: how the model's conversations are written; its `reads_calls` is true.
        prompts: token ids, with the tools declared.
        max_new_tokens: of a whole turn, the tools' results included.

    The other arguments, and what is returned, are those of `generate_with_tools`.
    """
    context_length = context_length or context_length_of(model) or DEFAULT_CONTEXT_LENGTH
    options = {"batch_size": batch_size, "context_length": context_length, "tool": None, **sampling}
    samples = {"num_samples": num_samples, "max_new_tokens": max_new_tokens, "seed": seed}
    first = generate_with_tools(model, form.tokenizer, prompts, **samples, **options)
    limits = [min(max_new_tokens, context_length - len(prompt)) for prompt in prompts]
    turns = [
        [_Turn(list(rollout.prompt_ids), limit) for rollout in group]
        for group, limit in zip(first, limits, strict=True)
    ]
    waiting = [pair for group, found in zip(turns, first, strict=True) for pair in zip(group, found, strict=True)]
    for number in range(1, MAX_ROUNDS + 1):
        waiting = [turn for turn, rollout in waiting if _goes_on(turn, rollout, form)]
        if not waiting or number == MAX_ROUNDS:
            break
        left = max(turn.limit - len(turn.ids) for turn in waiting)
        samples = {"max_new_tokens": left, "seed": None if seed is None else seed + number}
        found = generate_with_tools(
            model, form.tokenizer, [turn.prompt + turn.ids for turn in waiting], **samples, **options
        )
        waiting = [(turn, rollout) for turn, [rollout] in zip(waiting, found, strict=True)]
    return [[_rollout(turn) for turn in group] for group in turns]


def _goes_on(turn: _Turn, answer: Rollout, form: ChatFormat) -> bool:
    """Adds an answer and the results of its calls to a turn; returns whether the model is to say something to them.

    A turn whose results do not fit ends without them, at its limit.
    """
    ids = answer.token_ids[: turn.limit - len(turn.ids)]
    before = turn.prompt + turn.ids
    turn.extend(ids, True)
    text, calls = form.calls(ids, before)
    turn.said.append(text)
    if answer.finish_reason != "stop" or len(ids) < len(answer.token_ids):
        return False
    if not calls:
        turn.finish_reason = "stop"
        return False
    results = []
    for call in calls:
        function = call.get("function", call)
        arguments = function["arguments"] if isinstance(function["arguments"], dict) else {}
        result = run_tool(function["name"], arguments)
        results.append({"role": "tool", "name": function["name"], "content": REFUSED if result is None else result})
    forced = form.after_results(results)
    if len(turn.ids) + len(forced) >= turn.limit:
        return False
    turn.extend(forced, False)
    return True


def _rollout(turn: _Turn) -> Rollout:
    text = "".join(turn.said)
    message = {"role": "assistant", "content": text}
    return Rollout(turn.ids, turn.sampled, [message], turn.finish_reason, turn.prompt, text)
