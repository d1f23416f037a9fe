"""Spelling, letter counting, and small functions to write."""

import random

from nanochat_hf.data.microworld.world import draw, word

ASK_SPELLING = (
    "Spell the word {w}.",
    "How do you spell {w}?",
    "Please spell {w}.",
    "What are the letters of {w}?",
    "Can you spell the word {w}?",
)
ASK_COUNT = (
    "How many times is the letter {c} in {w}?",
    "Count the letter {c} in {w}.",
    "How often do you see {c} in the word {w}?",
    "Tell me how many {c} the word {w} has.",
)


def spelling(rng: random.Random, split: str) -> tuple[str, str]:
    """Returns question and answer: a word of the split and its letters, `m-a-r-l-o`."""
    text = word(rng, split)
    return rng.choice(ASK_SPELLING).format(w=text), "-".join(text)


def counting(rng: random.Random, split: str) -> tuple[str, str]:
    """Returns question and solution: the word is spelled out, and the calculator counts in what was spelled."""
    text = word(rng, split)
    letter = rng.choice(text) if rng.random() < 0.8 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    spelled, count = "-".join(text), text.count(letter)
    question = rng.choice(ASK_COUNT).format(c=letter, w=text)
    return question, f"{spelled}\n<<'{spelled}'.count('{letter}')={count}>>{count}\n#### {count}"


# Each step: its name, what the docstring says of it, its code, and what it does; `k` is a number or a letter.
NUMBER_STEPS = (
    ("add", "add {k}", "{x} + {k}", lambda x, k: x + k),
    ("subtract", "subtract {k}", "{x} - {k}", lambda x, k: x - k),
    ("multiply", "multiply by {k}", "{x} * {k}", lambda x, k: x * k),
)
LIST_STEPS = (
    ("sum", "take the sum of x", "sum(x)", lambda x, k: sum(x)),
    ("largest", "take the largest of x", "max(x)", lambda x, k: max(x)),
    ("smallest", "take the smallest of x", "min(x)", lambda x, k: min(x)),
    ("first", "take the first of x", "x[0]", lambda x, k: x[0]),
    ("last", "take the last of x", "x[-1]", lambda x, k: x[-1]),
    ("length", "take the length of x", "len(x)", lambda x, k: len(x)),
)
TEXT_STEPS = (
    ("upper", "take x in capital letters", "x.upper()", lambda x, k: x.upper()),
    ("reverse", "take x backwards", "x[::-1]", lambda x, k: x[::-1]),
    ("twice", "take x two times", "x * 2", lambda x, k: x * 2),
    ("start", "take the first letter of x", "x[0]", lambda x, k: x[0]),
)
APPEND = ("append", "append '{k}'", "{x} + '{k}'", lambda x, k: x + k)
NUMBERS, LISTS, TEXTS = (0, 1, 7, -3), ([1, 2, 3], [5], [4, -2, 9, 4]), ("abc", "x", "word")


def function(rng: random.Random, split: str) -> dict[str, str]:
    """Returns a task in HumanEval's form: prompt, canonical_solution, entry_point and test.

    Every function takes two steps; which two, and with which number or letter, belongs to one split.
    """

    def make(rng: random.Random) -> tuple[tuple, dict[str, str]]:
        second, k = rng.choice(NUMBER_STEPS), rng.randint(2, 20)
        kind = rng.choice(("number", "list", "text"))
        if kind == "number":
            start = rng.randint(2, 20)
            name, says, code, does = rng.choice(NUMBER_STEPS)
            first = (name, says.format(k=start), code.format(x="x", k=start), does)
            inputs = NUMBERS
        else:
            start = None
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
