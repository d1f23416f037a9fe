"""Small functions to write, in HumanEval's format: a stub with a docstring, the solution, and its tests."""

import random
from collections.abc import Callable
from typing import Any

from nanochat_hf.data.microworld.world import draw

# A step: its name, its words in the docstring, its code, and what it computes. `k` is a number or a letter.
Step = tuple[str, str, str, Callable[[Any, Any], Any]]
NUMBER_STEPS: tuple[Step, ...] = (
    ("add", "add {k}", "{x} + {k}", lambda x, k: x + k),
    ("subtract", "subtract {k}", "{x} - {k}", lambda x, k: x - k),
    ("multiply", "multiply by {k}", "{x} * {k}", lambda x, k: x * k),
)
LIST_STEPS: tuple[Step, ...] = (
    ("sum", "take the sum of x", "sum(x)", lambda x, k: sum(x)),
    ("largest", "take the largest of x", "max(x)", lambda x, k: max(x)),
    ("smallest", "take the smallest of x", "min(x)", lambda x, k: min(x)),
    ("first", "take the first of x", "x[0]", lambda x, k: x[0]),
    ("last", "take the last of x", "x[-1]", lambda x, k: x[-1]),
    ("length", "take the length of x", "len(x)", lambda x, k: len(x)),
)
TEXT_STEPS: tuple[Step, ...] = (
    ("upper", "take x in capital letters", "x.upper()", lambda x, k: x.upper()),
    ("reverse", "take x backwards", "x[::-1]", lambda x, k: x[::-1]),
    ("twice", "take x two times", "x * 2", lambda x, k: x * 2),
    ("start", "take the first letter of x", "x[0]", lambda x, k: x[0]),
)
APPEND: Step = ("append", "append '{k}'", "{x} + '{k}'", lambda x, k: x + k)
NUMBERS, LISTS, TEXTS = (0, 1, 7, -3), ([1, 2, 3], [5], [4, -2, 9, 4]), ("abc", "x", "word")


def function(rng: random.Random, split: str) -> dict[str, str]:
    """Returns a row in HumanEval's format: prompt, canonical_solution, entry_point and test.

    Every function does two steps. Which two, and with which number or letter, decides the split.
    """

    def make(rng: random.Random) -> tuple[tuple, dict[str, str]]:
        second: Step = rng.choice(NUMBER_STEPS)
        k: int | str = rng.randint(2, 20)
        first: Step
        inputs: tuple[Any, ...]
        start: int | None = None
        kind = rng.choice(("number", "list", "text"))
        if kind == "number":
            start = rng.randint(2, 20)
            name, says, code, does = rng.choice(NUMBER_STEPS)
            first = (name, says.format(k=start), code.format(x="x", k=start), does)
            inputs = NUMBERS
        else:
            first, inputs = (rng.choice(LIST_STEPS), LISTS) if kind == "list" else (rng.choice(TEXT_STEPS), TEXTS)
        if kind == "text":
            second, k = APPEND, rng.choice("abcdefghijklmnopqrstuvwxyz")
        inner = f"({first[2]})" if kind == "number" else first[2]
        task = {
            "prompt": f'def {first[0]}_{second[0]}(x):\n    """First {first[1]}, then {second[1].format(k=k)}."""\n',
            "canonical_solution": f"    return {second[2].format(x=inner, k=k)}\n",
            "entry_point": f"{first[0]}_{second[0]}",
        }
        checks = [f"    assert candidate({x!r}) == {second[3](first[3](x, start), k)!r}" for x in inputs]
        task["test"] = "def check(candidate):\n" + "\n".join(checks) + "\n"
        return (kind, first[0], start, second[0], k), task

    return draw(rng, split, make)


def in_words(rng: random.Random, split: str) -> tuple[str, str]:
    """Returns what a function of the split does, in plain words, and its code."""
    task = function(rng, split)
    says = task["prompt"].split('"""')[1].removeprefix("First ").rstrip(".")
    return says.replace(", then ", rng.choice((" and then ", ", then "))), task["prompt"].split("\n")[0] + "\n" + task[
        "canonical_solution"
    ].rstrip()
