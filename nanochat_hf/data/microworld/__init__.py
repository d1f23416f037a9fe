"""The microworld: built-in data from a seeded generator, for every stage from pretraining to evaluation.

It is a small closed world with people, places, animals and jobs of its own, and with rules that hold in it.

- `world`: what is true there, and which split owns which combination of it.
- `prose`: documents for pretraining.
- `choice_practice`: pages that train to find the letter of a choice.
- `conversations`: chats about the world and about the assistant.
- `exam`: multiple-choice questions.
- `problems`: word problems; `letters`: spelling and counting letters; `programs`: small functions to write.
- `talk`: conversations in which anything can come in any turn. It draws on `small_talk`, `sums`, `everyday_problems`,
  `world_talk` (the world in everyday wordings), `outside` (what the world does not have), `words` (words of any kind)
  and `typing_habits` (small letters, typing mistakes).
- `strangers_list`: what a stranger may type; to evaluate with, never to train on.

`nanochat_hf.tasks.microworld` makes tasks of them. The subject of an item decides its split (`world.split_of`), so
that train, validation and test cannot overlap.
"""

import random
from collections.abc import Callable, Iterator

from nanochat_hf.data.microworld import choice_practice, prose
from nanochat_hf.data.microworld.world import SPLITS
from nanochat_hf.settings import UserError

# The training split begins with these phases: number of documents, and the weight of each kind of document.
CURRICULUM = (
    (20_000, {choice_practice.lookup_list: 1}),
    (7_000, {choice_practice.marked_page: 16, choice_practice.lookup_list: 1, prose.document: 3}),
)
SIZES = {"train": 200_000, "validation": 1_000, "test": 1_000}  # documents


def documents(split: str, seed: int = 0, limit: int | None = None) -> Iterator[str]:
    """Yields the documents of a split: the same for the same arguments, in the same order.

    The training split begins with practice in finding the letter of a choice. On such pages alone a small model learns
    that in less than a million tokens; mixed with other text it does not learn it at all (docs/log.md).

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        seed: another seed gives other documents about the same world.
        limit: number of documents; default 200,000 for training, else 1,000.

    Raises:
        UserError: there is no such split.
    """
    if split not in SPLITS:
        raise UserError(f"the microworld has the splits {', '.join(SPLITS)}, not '{split}'")
    for index in range(SIZES[split] if limit is None else limit):
        rng = random.Random(f"{seed}/{split}/{index}")
        write = _choose_kind(rng, split, index)
        yield write(rng, split)


def _choose_kind(rng: random.Random, split: str, index: int) -> Callable[[random.Random, str], str]:
    """Returns the function that writes document `index` of the split."""
    for count, kinds in CURRICULUM if split == "train" else ():
        if index < count:
            (write,) = rng.choices(list(kinds), weights=list(kinds.values()))
            return write
        index -= count
    return prose.document
