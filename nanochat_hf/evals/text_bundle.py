"""Completion tasks made of held-out text, as a bundle in the format of CORE: which words continue a passage?

They say what a small model has learned from text of one's own, where the tasks of CORE are still at chance. The mean
centered accuracy is reported as `text_completion`, because it cannot be compared with CORE.
"""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from nanochat_hf.evals.bundle import Item, write_tasks
from nanochat_hf.settings import UserError

QUERY_WORDS, CHOICE_WORDS, CHOICES = 40, 10, 4


class TooLittleText(UserError):
    """The text has too few or too short documents for completion tasks."""


def write_bundle(folder: str | Path, texts: Iterable[str], *, items: int = 200, seed: int = 0) -> Path:
    """Writes a bundle of two tasks and returns its folder. The same arguments give the same bytes.

    Each item is a passage of `QUERY_WORDS` words and `CHOICES` continuations of `CHOICE_WORDS` words:

    - `text_other`: the wrong ones are from other documents;
    - `text_same`: the wrong ones are from other places of the same document, which is harder.

    Args:
        folder: is made where it is missing.
        texts: the documents; those too short for an item of a task are left out of it.
        items: the most items per task.
        seed: of the draws.

    Raises:
        TooLittleText: as `long_documents`.
    """
    long, longer = long_documents(texts)
    tasks = {}
    for label, documents, same in (("text_other", long, False), ("text_same", longer, True)):
        rng = random.Random(f"{label} {seed}")
        made = [make_item(rng, documents, number % len(documents), same) for number in range(items)]
        tasks[label] = (made, "multiple_choice", 0, " ", 100 / CHOICES)
    return write_tasks(Path(folder), "text", tasks)


def long_documents(texts: Iterable[str]) -> tuple[list[list[str]], list[list[str]]]:
    """The documents that are long enough for each of the two tasks of `write_bundle`, as lists of words.

    Raises:
        TooLittleText: no document is long enough, or fewer than `CHOICES` are.
    """
    cut = [text.split() for text in texts]
    long = [words for words in cut if len(words) >= QUERY_WORDS + CHOICE_WORDS]
    longer = [words for words in cut if len(words) >= QUERY_WORDS + 2 * CHOICES * CHOICE_WORDS]
    if len(long) < CHOICES or not longer:
        raise TooLittleText(
            f"the validation text has {len(long)} documents of {QUERY_WORDS + CHOICE_WORDS} words, the longest with "
            f"{max(map(len, cut), default=0)}; completion tasks need {CHOICES}, and one of "
            f"{QUERY_WORDS + 2 * CHOICES * CHOICE_WORDS}: give more validation text, or another core_bundle"
        )
    return long, longer


def make_item(rng: random.Random, documents: Sequence[list[str]], number: int, same: bool) -> Item:
    """Draws a passage of document `number`, its continuation and the wrong ones; see `write_bundle`."""
    words = documents[number]
    start = rng.randrange(len(words) - QUERY_WORDS - CHOICE_WORDS + 1)
    end = start + QUERY_WORDS
    right = _span(words, end)
    if same:  # spans of the document that touch neither the passage nor its continuation
        places = range(0, len(words) - CHOICE_WORDS + 1, CHOICE_WORDS)
        places = [at for at in places if at + CHOICE_WORDS <= start or at >= end + CHOICE_WORDS]
        wrong = [_span(words, at) for at in rng.sample(places, CHOICES - 1)]
    else:
        others = rng.sample([index for index in range(len(documents)) if index != number], CHOICES - 1)
        wrong = [_span(documents[one], rng.randrange(len(documents[one]) - CHOICE_WORDS + 1)) for one in others]
    choices = [right, *wrong]
    rng.shuffle(choices)
    return {"query": " ".join(words[start:end]), "choices": choices, "gold": choices.index(right)}


def _span(words: Sequence[str], start: int) -> str:
    return " ".join(words[start : start + CHOICE_WORDS])
