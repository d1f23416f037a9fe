"""Pages from the world's schools: how the letter of a choice is found, which a model needs for any exam.

Each kind of page is the ground for the next one (docs/log.md): letters asked after their list, a letter asked before
its list, and then questions whose answers have to be known or read.
"""

import random
from collections.abc import Iterator, Sequence

from nanochat_hf.data.microworld import exam
from nanochat_hf.data.microworld.world import ANIMALS, JOBS, PEOPLE, PLACES, relations, rules

LETTERS = "ABCDEFGHIJKLMNOP"  # of school's lists; exams take the first four
RESPOND = "Respond only with the letter of the correct answer."

# All that can be a choice of an exam.
VALUES = [value for relation in (*relations().values(), *rules().values()) for value in relation.values]
WORDS = tuple(dict.fromkeys([*PEOPLE, *PLACES, *ANIMALS, *JOBS, *VALUES]))


def key_list(rng: random.Random, split: str) -> str:
    """Four words of the world with a letter each, and the letters asked for again and again.

    Half the time the line is said again, which a model learns first; else the question names the choice. Letters and
    words are drawn anew for each list, or else a model stops at guessing.
    """
    choices, letters = rng.sample(WORDS, 4), rng.sample(LETTERS, 4)
    return "\n".join([*listed(choices, letters), *_asked(rng, 8, choices, letters)])


def _asked(rng: random.Random, count: int, choices: Sequence[str], letters: Sequence[str]) -> Iterator[str]:
    """Asks `count` times for the letter of a choice. The answer stands at the beginning of a line: there it is the
    same token as in the assistant's turn."""
    for _ in range(count):
        choice, letter = rng.choice(tuple(zip(choices, letters, strict=True)))
        yield f"- {choice}={letter}" if rng.random() < 0.5 else f"Which choice says {choice}?\n{letter}"


def marked_page(rng: random.Random, split: str) -> str:
    """The letter of a word, asked before the list; the teacher has marked some lines right or wrong, which tells a
    model at which place to compare."""
    choices, letters = rng.sample(WORDS, 4), _letters(rng)
    answer = rng.randrange(4)
    lines = listed(choices, letters)
    for index in range(4):
        if rng.random() < 0.5:
            lines[index] += " right" if index == answer else " wrong"
    return "\n".join(_headed(rng, f"Which choice says {choices[answer]}?", lines, letters[answer]))


def quiz(rng: random.Random, split: str) -> str:
    """Questions of the exam that share one list of choices; the first one mostly stands before the list."""
    topic = exam.topic(rng, split)
    wanted = list(dict.fromkeys(right for _, right in topic.asked))[:4]
    others = [value for value in topic.values if value not in wanted]
    choices = wanted + rng.sample(others, 4 - len(wanted))
    rng.shuffle(choices)
    letters = _letters(rng)
    letter_of = dict(zip(choices, letters, strict=True))
    (first, right), *more = [(text, right) for text, right in topic.asked if right in letter_of][:4]
    lines = listed(choices, letters)
    if rng.random() < 0.75:
        lines = _headed(rng, first, lines, letter_of[right])
    else:
        lines += [first, letter_of[right]]
    return "\n".join([*lines, *(f"{text}\n{letter_of[right]}" for text, right in more)])


def listed(choices: Sequence[str], letters: Sequence[str]) -> list[str]:
    """The lines of a list of choices as exams have them, and an empty one."""
    return [*(f"- {choice}={letter}" for choice, letter in zip(choices, letters, strict=True)), ""]


def _letters(rng: random.Random) -> list[str]:
    return list(LETTERS[:4]) if rng.random() < 0.5 else rng.sample(LETTERS, 4)


def _headed(rng: random.Random, question: str, lines: list[str], letter: str) -> list[str]:
    """Question, list and letter; half of the time in the words of an exam."""
    if rng.random() < 0.5:
        return [f"Multiple Choice question: {question}", *lines, RESPOND, letter]
    return [question, *lines, letter]
