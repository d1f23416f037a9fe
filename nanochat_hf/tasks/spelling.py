"""Spelling words and counting their letters: what a model that reads tokens must learn about what is inside them.

`SimpleSpelling` asks for the letters of a word. `SpellingBee` asks how often a letter is in a word; the answer spells
the word, keeps a count, and checks it with the calculator. A word belongs to one split for good, by a hash of its
letters, so no test word was ever seen in training.
"""

import os
import random
import string
import zlib
from pathlib import Path
from typing import Any

from nanochat_hf.settings import UserError
from nanochat_hf.tasks.common import Task
from nanochat_hf.tasks.gsm8k import score_final_number, solution_parts

TEST_SHARE = 20  # one word in twenty is a test word
ASK_SPELL = ("Spell the word: {word}", "How do you spell {word}?", "Please spell {word}.", "Spell {word} for me.")
ASK_COUNT = (
    "How many {letter} are in the word {word}?",
    "How many times does {letter} occur in {word}?",
    "Count the letter {letter} in {word}.",
    "How often do you see {letter} in {word}?",
    "In {word}, how many {letter} are there?",
    "Tell me the number of {letter} in {word}.",
    "What is the count of {letter} in {word}?",
    "How many {letter} does {word} have?",
)


class SimpleSpelling(Task):
    """The letters of a word. Args: `source` a text file with one word a line; `split` train or test."""

    name = "spelling"

    def __init__(self, source: str | os.PathLike | None = None, split: str = "test", limit: int | None = None):
        super().__init__(words_of_split(read_words(source), split), limit)

    def example(self, row: str) -> dict[str, Any]:
        return spelling_example(row, random.Random(row))

    def score(self, example: dict[str, Any], completion: str) -> float:
        return score_spelling(example, completion)


class SpellingBee(Task):
    """How often a letter is in a word. Args: as `SimpleSpelling`."""

    name = "spelling-bee"

    def __init__(self, source: str | os.PathLike | None = None, split: str = "test", limit: int | None = None):
        super().__init__(words_of_split(read_words(source), split), limit)

    def example(self, row: str) -> dict[str, Any]:
        return counting_example(row, random.Random(row))

    def score(self, example: dict[str, Any], completion: str) -> float:
        return score_final_number(example, completion)


def split_of_word(word: str) -> str:
    """Returns "train" or "test": a property of the word alone, whatever list it stands in."""
    return "test" if zlib.crc32(word.lower().encode()) % TEST_SHARE == 0 else "train"


def words_of_split(words: list[str], split: str) -> list[str]:
    """Returns the words of a split in an order that does not follow the alphabet."""
    if split not in ("train", "test"):
        raise UserError(f"spelling has the splits train and test, not '{split}'")
    chosen = sorted({word for word in words if split_of_word(word) == split})
    random.Random(0).shuffle(chosen)
    return chosen


def read_words(source: str | os.PathLike | None) -> list[str]:
    """Reads a word list, one word a line; from a folder, its only .txt file."""
    if source is None:
        raise UserError("the spelling tasks need a word list: spelling=PATH and spelling-bee=PATH, one word a line")
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if len(files) != 1:
            raise UserError(f"{path} must hold one .txt file with one word a line, and holds {len(files)}")
        path = files[0]
    try:
        words = [line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"cannot read the word list {path} ({error.strerror}); give a file, one word a line") from None
    return [word for word in words if word.isalpha() and word.isascii()]


def spelling_example(word: str, rng: random.Random) -> dict[str, Any]:
    """The answer is `word:l,e,t,t,e,r,s`, where every letter is a token of its own in any vocabulary."""
    answer = f"{word}:{','.join(word)}"
    messages = [{"role": "user", "content": rng.choice(ASK_SPELL).format(word=word)}]
    return {"messages": [*messages, {"role": "assistant", "content": answer}], "answer": answer}


def counting_example(word: str, rng: random.Random) -> dict[str, Any]:
    """Mostly asks for a letter that the word has, sometimes for any letter, so that zero is an answer too."""
    letter = rng.choice(word) if rng.random() < 0.9 else rng.choice(string.ascii_lowercase)
    quoted_letter = letter if rng.random() < 0.5 else f"'{letter}'"
    quoted_word = word if rng.random() < 0.5 else f"'{word}'"
    question = rng.choice(ASK_COUNT).format(letter=quoted_letter, word=quoted_word)
    count, lines = 0, []
    for position, character in enumerate(word, 1):
        count += character == letter
        lines.append(f"{position}:{character}" + (f" is {letter}, count {count}" if character == letter else ""))
    solution = (
        f"{word}:{','.join(word)}\n" + "\n".join(lines) + f"\nThe calculator says "
        f"<<'{word}'.count('{letter}')={count}>>{count}.\n#### {count}"
    )
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": solution_parts(solution)}]
    return {"messages": messages, "answer": str(count)}


def score_spelling(example: dict[str, Any], completion: str) -> float:
    """1.0 for the word and its letters, blanks aside."""
    return float(completion.replace(" ", "").strip() == example["answer"])
