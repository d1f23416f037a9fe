"""The stranger's list: does a chat model of the microworld give sensible answers to what a stranger types first?

The messages and the rules for a sensible answer are in `nanochat_hf/data/microworld/strangers_list.yaml`. Answers are
sampled as the chat samples them, and the model reads its own earlier answers in follow-ups.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_hf.data.microworld import strangers_list
from nanochat_hf.evals.evaluated_model import EvaluatedModel
from nanochat_hf.evals.metrics.formulas import accuracy_with_interval, mean
from nanochat_hf.generation import context_length_of, fit_conversation, generate_with_tools

MOST_WORDS = 60  # of a sensible answer
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Answered:
    """One item of the list with one conversation about it.

    Attributes:
        item: of `strangers_list.items`.
        messages: the conversation, the model's answers included.
        sensible: whether the last answer keeps the item's rules.
    """

    item: dict[str, Any]
    messages: list[dict[str, Any]]
    sensible: bool


def is_sensible(item: dict[str, Any], answer: str) -> bool:
    """Whether an answer, given as text without tool calls, keeps the rules of an item."""
    said = answer.lower()
    if not said.strip() or len(said.split()) > MOST_WORDS:
        return False
    if not all(str(text).lower() in said for text in item.get("all", ())):
        return False
    if any(str(text).lower() in said for text in item.get("none", ())):
        return False
    if "any" in item and not any(
        re.search(rf"(?<![a-z0-9]){re.escape(str(text).lower())}", said) for text in item["any"]
    ):
        return False
    if "number" in item:
        numbers = NUMBER.findall(said.replace(",", ""))
        if not numbers or float(numbers[-1]) != float(item["number"]):
            return False
    if "spells" in item:
        spelled = r"[-\s,]+".join(item["spells"])
        if not re.search(rf"(?<![a-z]-)(?<![a-z]){spelled}(?!-?[a-z])", said):
            return False
    return True


def evaluate(
    evaluated: EvaluatedModel,
    sampling: dict[str, Any],
    *,
    num_samples: int = 3,
    seed: int = 0,
    max_new_tokens: int = 128,
    progress: Callable[[int], Any] | None = None,
) -> list[Answered]:
    """Holds every conversation of the list `num_samples` times.

    Args:
        evaluated: a chat model.
        sampling: fields of `nanochat_hf.generation.Sampling`, without `max_new_tokens`.
        progress: called with the number of finished conversations.

    Returns:
        The conversations, those about one item next to each other.
    """
    model, tokenizer = evaluated.model, evaluated.tokenizer
    context = context_length_of(model) or 2048
    held = [(item, []) for item in strangers_list.items() for _ in range(num_samples)]
    finished: dict[int, str] = {}
    for turn in range(max(len(item["says"]) for item, _ in held)):
        asked = [number for number, (item, _) in enumerate(held) if len(item["says"]) > turn]
        prompts = []
        for number in asked:
            item, messages = held[number]
            messages.append({"role": "user", "content": item["says"][turn]})
            prompts.append(fit_conversation(tokenizer, messages, context, min(max_new_tokens, context // 2))[0])
        rollouts = generate_with_tools(
            model, tokenizer, prompts, seed=seed + turn, max_new_tokens=max_new_tokens, **sampling
        )
        for number, (rollout,) in zip(asked, rollouts, strict=True):
            item, messages = held[number]
            messages += rollout.messages
            if len(item["says"]) == turn + 1:
                finished[number] = rollout.text if rollout.finish_reason == "stop" else ""
                if progress is not None:
                    progress(1)
    return [
        Answered(item, messages, is_sensible(item, finished[number])) for number, (item, messages) in enumerate(held)
    ]


def rows(answered: Sequence[Answered], num_samples: int) -> list[dict[str, Any]]:
    """Returns a row per kind and one for all, with the share of sensible answers and its 95 % Wilson interval.

    The interval counts each item once, with the mean over its samples, because samples of one item are alike.
    """
    kinds = list(dict.fromkeys(one.item["kind"] for one in answered))
    found = []
    for kind in (*kinds, "all"):
        chosen = [float(one.sensible) for one in answered if kind in (one.item["kind"], "all")]
        outcomes = [mean(chosen[start : start + num_samples]) for start in range(0, len(chosen), num_samples)]
        found.append({"task": kind, "items": len(outcomes), **accuracy_with_interval(outcomes), "baseline": 0.0})
    return [row | {"centered": row["accuracy"]} for row in found]
