"""Spelling made-up words and counting their letters: questions with their solutions."""

import random

from nanochat_hf.data.microworld.world import made_up_word

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
    """Returns a question and its answer, the letters of a word: `m-a-r-l-o`."""
    text = made_up_word(rng, split)
    return rng.choice(ASK_SPELLING).format(w=text), "-".join(text)


def counting(rng: random.Random, split: str) -> tuple[str, str]:
    """Returns a question and its solution: the word is spelled, then the calculator counts the letter.

    The solution has GSM8K's format, with the calculator's mark `<<expression=result>>` and `#### result` at the end.
    """
    text = made_up_word(rng, split)
    letter = rng.choice(text) if rng.random() < 0.8 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    spelled, count = "-".join(text), text.count(letter)
    question = rng.choice(ASK_COUNT).format(c=letter, w=text)
    return question, f"{spelled}\n<<'{spelled}'.count('{letter}')={count}>>{count}\n#### {count}"
