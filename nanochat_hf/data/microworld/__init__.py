"""The microworld: the built-in data, made by a seeded generator, for every stage from pretraining to the last exam.

It is a small closed world with people, places, animals and jobs of its own, and rules that hold in it. `world` says
what is true there; `prose` writes documents, `chat` conversations, `exam` multiple-choice questions, `problems` word
problems, and `lessons` spelling and programming tasks. `nanochat_hf.tasks.microworld` makes tasks of them.

What an item is about decides its split (`world.split_of`), so train, validation and test cannot overlap.
"""

import random
from collections.abc import Iterator

from nanochat_hf.data.microworld import prose
from nanochat_hf.data.microworld.world import SPLITS
from nanochat_hf.settings import UserError

LESSONS = 17_000  # of the training split's documents: the first ones, which only teach to find the letter of a choice
SIZES = {"train": 200_000, "validation": 1_000, "test": 1_000}  # documents


def documents(split: str, seed: int = 0, limit: int | None = None) -> Iterator[str]:
    """Yields the documents of a split: the same for the same arguments, in the same order.

    The training split begins with lessons in one skill, which a small model learns alone in half a million tokens
    and mixed with other text not at all (docs/log.md).

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        seed: another seed tells other stories about the same world.
        limit: number of documents; by default 60,000 for training and 1,000 otherwise.
    """
    if split not in SPLITS:
        raise UserError(f"the microworld has the splits {', '.join(SPLITS)}, not '{split}'")
    for index in range(SIZES[split] if limit is None else limit):
        write = prose.key_list if split == "train" and index < LESSONS else prose.document
        yield write(random.Random(f"{seed}/{split}/{index}"), split)
