"""Spelling words and counting their letters: a model that reads tokens must learn which letters they stand for.

`SimpleSpelling` asks for the letters of a word. `SpellingBee` asks how often a letter is in a word; the answer spells
the word, keeps a count, and checks it with the calculator. A hash of a word's letters decides its split, so that no
test word is seen in training.
"""

import os
import random
import string
import zlib
from pathlib import Path
from typing import Any

from nanochat_hf.data.decoding import text_lines
from nanochat_hf.data.files import errors_as_sentences
from nanochat_hf.settings import UserError
from nanochat_hf.tasks.base import Task
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
    """Asks for the letters of a word.

    Args:
        source: a text file with one word per line, or a folder with one such file.
        split: `"train"` or `"test"`.
        limit: use only the first so many words, after shuffling.

    Raises:
        UserError: there is no word list, or no such split.
    """

    name = "spelling"

    def __init__(self, source: str | os.PathLike | None = None, split: str = "test", limit: int | None = None):
        super().__init__(words_of_split(read_words(source), split), limit)

    def example(self, row: str) -> dict[str, Any]:
        return spelling_example(row, random.Random(row))

    def score(self, example: dict[str, Any], completion: str) -> float:
        return score_spelling(example, completion)


class SpellingBee(Task):
    """Asks how often a letter is in a word. Arguments and errors: as `SimpleSpelling`."""

    name = "spelling-bee"

    def __init__(self, source: str | os.PathLike | None = None, split: str = "test", limit: int | None = None):
        super().__init__(words_of_split(read_words(source), split), limit)

    def example(self, row: str) -> dict[str, Any]:
        return counting_example(row, random.Random(row))

    def score(self, example: dict[str, Any], completion: str) -> float:
        return score_final_number(example, completion)


def split_of_word(word: str) -> str:
    """Returns `"train"` or `"test"`. It depends on the word alone, not on the list that it comes from."""
    return "test" if zlib.crc32(word.lower().encode()) % TEST_SHARE == 0 else "train"


def words_of_split(words: list[str], split: str) -> list[str]:
    """Returns the distinct words of a split, shuffled with a fixed seed.

    Raises:
        UserError: the split is neither `"train"` nor `"test"`, or has no word.
    """
    if split not in ("train", "test"):
        raise UserError(f"spelling has the splits train and test, not '{split}'")
    chosen = sorted({word for word in words if split_of_word(word) == split})
    if not chosen:
        raise UserError(
            f"none of the {len(words)} words belongs to the split {split} (one in {TEST_SHARE} is a test word); "
            "give a longer list"
        )
    random.Random(0).shuffle(chosen)
    return chosen


def read_words(source: str | os.PathLike | None) -> list[str]:
    """Reads a word list: one word per line, lower-cased; words with other characters than a to z are left out.

    Args:
        source: a text file, or a folder with exactly one .txt file.

    Raises:
        UserError: no source is given, or it cannot be read.
    """
    if source is None:
        raise UserError("the spelling tasks need a word list: spelling=PATH and spelling-bee=PATH, one word per line")
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if len(files) != 1:
            raise UserError(f"{path} must hold one .txt file with one word per line, and holds {len(files)}")
        path = files[0]
    with errors_as_sentences(path):
        lines = [line.strip().lower() for line in text_lines(path)]
    words = [word for word in lines if word.isalpha() and word.isascii()]
    if not words:
        raise UserError(f"{path} is no word list: no line of it is one word of the letters a to z")
    return words


def spelling_example(word: str, rng: random.Random) -> dict[str, Any]:
    """Makes an example with the answer `word:l,e,t,t,e,r,s`: the commas make each letter a token in any vocabulary."""
    answer = f"{word}:{','.join(word)}"
    messages = [{"role": "user", "content": rng.choice(ASK_SPELL).format(word=word)}]
    return {"messages": [*messages, {"role": "assistant", "content": answer}], "answer": answer}


def counting_example(word: str, rng: random.Random) -> dict[str, Any]:
    """Makes an example that asks for a letter of the word; in one of ten for any letter, so that 0 can be right."""
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
    """Returns 1.0 for the word and its letters; blanks are ignored."""
    return float(completion.replace(" ", "").strip() == example["answer"])
