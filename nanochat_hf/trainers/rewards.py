"""What an answer is worth in RL: the task's own score, math-verify, or functions of one's own by import path.

A reward function has the form of TRL's:

    def score(prompts, completions, **columns) -> list[float | None]

Each prompt is a list of messages and each completion a list with the assistant's message, whose content is what the
model says without tool calls and their results. Further columns: `completion_ids`, `solution` (the reference answer as
text), `example` (what the task made), `log_metric` and `log_extra` (TRL's, for curves and the table of completions).
None or NaN leaves an answer without this reward.
"""

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_hf.settings import UserError, load_function
from nanochat_hf.tasks.base import is_finite, message_text, score_of

TASK, MATH = "task", "math-verify"


@dataclass(frozen=True)
class Reward:
    """A reward, as `GRPOTrainer` takes it.

    Attributes:
        name: how curves call it.
        weight: its factor in the sum of all rewards.
        function: prompts, completions and columns → one number per answer.
    """

    name: str
    weight: float
    function: Callable[..., list[float | None]]


def check_rewards(specs: Sequence[str]) -> list[tuple[str, float]]:
    """Reads the settings `name[*weight]`, in order: (name, weight).

    Raises:
        UserError: a setting has another form, two have one name, or a package is missing.
    """
    found = []
    for spec in specs:
        name, star, weight = spec.partition("*")
        try:
            number = float(weight) if star else 1.0
        except ValueError:
            raise UserError(f"--reward {spec}: the weight {weight} is no number; write such as {name}*0.5") from None
        if not math.isfinite(number):
            raise UserError(f"--reward {spec}: the weight {weight} is not finite; write such as {name}*0.5")
        if name not in (TASK, MATH) and ":" not in name:
            raise UserError(
                f"--reward {spec} is unknown; take {TASK}, {MATH} or module:function, such as rewards:score"
            )
        if name == MATH and importlib.util.find_spec("math_verify") is None:
            raise UserError(f"--reward {MATH} needs its package: pip install math-verify")
        found.append((name, number))
    if not found:
        raise UserError(f"give a --reward, such as {TASK}, or leave the setting out")
    if len({name for name, _ in found}) < len(found):
        raise UserError("--reward names one function twice; give it once, with the sum of its weights")
    return found


def read_rewards(specs: Sequence[str], tasks: Sequence[Any]) -> list[Reward]:
    """Makes the rewards of the settings.

    Args:
        specs: `task`, `math-verify` or `module:function`, each with `*weight` where that is not 1.
        tasks: what the rows' columns `task` and `index` point into.
    """
    rewards = []
    for name, weight in check_rewards(specs):
        if name == TASK:
            function, label = _task_scores(tasks), "reward"
        else:
            path = "trl.rewards:accuracy_reward" if name == MATH else name
            function, label = _in_trls_form(load_function(path, "--reward"), tasks, path), path.partition(":")[2]
        function.__name__ = label  # TRL calls the curves by it
        rewards.append(Reward(label, weight, function))
    return rewards


def _task_scores(tasks: Sequence[Any]) -> Callable[..., list[float | None]]:
    def reward(task: list[int], index: list[int], answer: list[str], **_: Any) -> list[float | None]:
        return [score_of(tasks[t], tasks[t][i], text) for t, i, text in zip(task, index, answer, strict=True)]

    return reward


def _in_trls_form(function: Callable[..., Any], tasks: Sequence[Any], path: str) -> Callable[..., list[float | None]]:
    """Gives a function messages and reference answers, where our rows have texts and positions.

    What it returns is checked: an infinite reward would make all weights NaN.
    """

    def reward(
        prompts: list[str],
        completions: list[str],
        task: list[int],
        index: list[int],
        answer: list[str],
        **columns: Any,
    ) -> list[float | None]:
        examples = [tasks[t][i] for t, i in zip(task, index, strict=True)]
        found = function(
            prompts=[json.loads(prompt) for prompt in prompts],
            completions=[[{"role": "assistant", "content": text}] for text in answer],
            example=examples,
            solution=[_solution(example) for example in examples],
            **columns,
        )
        if not hasattr(found, "__len__") or isinstance(found, str | dict) or len(found) != len(answer):
            number = f"{len(found)} values" if hasattr(found, "__len__") else repr(found)
            raise UserError(
                f"--reward {path} returned {number:.60}, not a list of {len(answer)} numbers, one per answer"
            )
        rewards = [None if one is None or one != one else one for one in found]  # NaN is not equal to itself
        wrong = next((one for one in rewards if one is not None and not is_finite(one)), None)
        if wrong is not None:
            raise UserError(f"--reward {path} returned {wrong!r:.60} for an answer; return a finite number, or None")
        return [None if one is None else float(one) for one in rewards]

    return reward


def _solution(example: dict[str, Any]) -> str:
    """The reference answer: the task's short form where it has one, else the assistant's message."""
    return str(example["answer"]) if "answer" in example else message_text(example["messages"][-1])
