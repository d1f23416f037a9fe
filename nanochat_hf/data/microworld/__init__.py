"""The microworld: the built-in data, made by a seeded generator, for every stage from pretraining to the last exam.

It is a small closed world with people, places, animals and jobs of its own, and rules that hold in it. `world` says
what is true there; `prose` writes documents, `school` pages that prepare for exams, `chat` conversations, `exam`
multiple-choice questions, `problems` word problems, and `lessons` spelling and programming tasks.
`nanochat_hf.tasks.microworld` makes tasks of them.

What an item is about decides its split (`world.split_of`), so train, validation and test cannot overlap.
"""

import random
from collections.abc import Callable, Iterator

from nanochat_hf.data.microworld import prose, school
from nanochat_hf.data.microworld.world import SPLITS
from nanochat_hf.settings import UserError

# The training split begins with lessons: so many documents, each of one of these kinds with these weights.
LESSONS = (
    (20_000, {school.key_list: 1}),
    (7_000, {school.marked_page: 16, school.key_list: 1, prose.document: 3}),
)
SIZES = {"train": 200_000, "validation": 1_000, "test": 1_000}  # documents


def documents(split: str, seed: int = 0, limit: int | None = None) -> Iterator[str]:
    """Yields the documents of a split: the same for the same arguments, in the same order.

    The training split begins with lessons in finding the letter of a choice, which a small model learns alone in less
    than a million tokens and mixed with other text not at all (docs/log.md).

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        seed: another seed tells other stories about the same world.
        limit: number of documents; by default 200,000 for training and 1,000 otherwise.
    """
    if split not in SPLITS:
        raise UserError(f"the microworld has the splits {', '.join(SPLITS)}, not '{split}'")
    for index in range(SIZES[split] if limit is None else limit):
        rng = random.Random(f"{seed}/{split}/{index}")
        yield _writer(rng, split, index)(rng, split)


def _writer(rng: random.Random, split: str, index: int) -> Callable[[random.Random, str], str]:
    for count, kinds in LESSONS if split == "train" else ():
        if index < count:
            (write,) = rng.choices(list(kinds), weights=list(kinds.values()))
            return write
        index -= count
    return prose.document
