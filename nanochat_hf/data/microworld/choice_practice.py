"""Pages that train to find the letter of a choice, which a model needs for any multiple-choice exam.

Each kind of page prepares for the next one (docs/log.md): `lookup_list` asks for letters after the list, `marked_page`
asks before the list, and `quiz` asks questions whose answers have to be known or read.
"""

import random
from collections.abc import Iterator, Sequence

from nanochat_hf.data.microworld import exam
from nanochat_hf.data.microworld.world import ANIMALS, JOBS, PEOPLE, PLACES, relations, rules

LETTERS = "ABCDEFGHIJKLMNOP"  # exams use the first four
RESPOND = "Respond only with the letter of the correct answer."

# Everything that can be a choice in an exam.
VALUES = [value for relation in (*relations().values(), *rules().values()) for value in relation.values]
WORDS = tuple(dict.fromkeys([*PEOPLE, *PLACES, *ANIMALS, *JOBS, *VALUES]))


def lookup_list(rng: random.Random, split: str) -> str:
    """Writes four words of the world with a letter each, then eight requests for the letter of one of them.

    Half of the requests repeat the line, which a model learns first; the others ask which letter a word has. Letters
    and words are drawn anew for each list; with fixed ones a model learns to guess and stops there.
    """
    choices, letters = rng.sample(WORDS, 4), rng.sample(LETTERS, 4)
    return "\n".join([*listed(choices, letters), *_asked(rng, 8, choices, letters)])


def _asked(rng: random.Random, count: int, choices: Sequence[str], letters: Sequence[str]) -> Iterator[str]:
    """Yields `count` requests for the letter of a choice, with the answers.

    An answer to a question begins a line: there it is the same token as in the assistant's message.
    """
    for _ in range(count):
        choice, letter = rng.choice(tuple(zip(choices, letters, strict=True)))
        yield f"- {choice}={letter}" if rng.random() < 0.5 else f"Which choice says {choice}?\n{letter}"


def marked_page(rng: random.Random, split: str) -> str:
    """Writes a question for the letter of a word, the list after it, and the letter.

    About half of the lines are marked right or wrong, which shows a model where to compare.
    """
    choices, letters = rng.sample(WORDS, 4), _letters(rng)
    answer = rng.randrange(4)
    lines = listed(choices, letters)
    for index in range(4):
        if rng.random() < 0.5:
            lines[index] += " right" if index == answer else " wrong"
    return "\n".join(_with_question(rng, f"Which choice says {choices[answer]}?", lines, letters[answer]))


def quiz(rng: random.Random, split: str) -> str:
    """Writes one to four exam questions that share a list of choices; the first mostly stands before the list."""
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
        lines = _with_question(rng, first, lines, letter_of[right])
    else:
        lines += [first, letter_of[right]]
    return "\n".join([*lines, *(f"{text}\n{letter_of[right]}" for text, right in more)])


def listed(choices: Sequence[str], letters: Sequence[str]) -> list[str]:
    """Returns the lines of a list of choices as in an exam, and an empty line."""
    return [*(f"- {choice}={letter}" for choice, letter in zip(choices, letters, strict=True)), ""]


def _letters(rng: random.Random) -> list[str]:
    return list(LETTERS[:4]) if rng.random() < 0.5 else rng.sample(LETTERS, 4)


def _with_question(rng: random.Random, question: str, lines: list[str], letter: str) -> list[str]:
    """Returns question, list and letter as lines; half of the time with the wording of an exam."""
    if rng.random() < 0.5:
        return [f"Multiple Choice question: {question}", *lines, RESPOND, letter]
    return [question, *lines, letter]
