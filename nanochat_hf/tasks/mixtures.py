"""Several tasks shuffled into one training set: tasks and repeats in, a sequence of conversations out."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Examples(Protocol):
    """What can be mixed: any sequence of conversations, such as a `nanochat_hf.tasks.base.Task`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class TaskMixture:
    """The examples of several tasks in one shuffled order, which depends only on the tasks' sizes and the seed.

    Args:
        tasks: tasks, or pairs (task, how many times each of its examples is used per epoch).
        seed: seed of the shuffle; 42 gives upstream's order.
        max_per_task: use only the first so many examples of each task, before repeating.

    Raises:
        ValueError: a task's number of repeats is below 1.
    """

    def __init__(
        self,
        tasks: Sequence[Examples | tuple[Examples, int]],
        seed: int = 42,
        max_per_task: int | None = None,
    ):
        pairs = [task if isinstance(task, tuple) else (task, 1) for task in tasks]
        self.tasks, repeats = [task for task, _ in pairs], [repeat for _, repeat in pairs]
        self.index: list[tuple[int, int]] = []  # (task, example)
        for number, (task, repeat) in enumerate(zip(self.tasks, repeats, strict=True)):
            if repeat < 1:
                raise ValueError(f"task {number} is to be used {repeat} times; leave it out or use it once")
            size = len(task) if max_per_task is None else min(len(task), max_per_task)
            self.index += [(number, example) for _ in range(repeat) for example in range(size)]
        random.Random(seed).shuffle(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> dict[str, Any]:
        task, example = self.index[position]
        return self.tasks[task][example]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[position] for position in range(len(self)))

    def split(self, fraction: float, minimum: int = 1) -> tuple["TaskMixture", "TaskMixture"]:
        """Splits off held-out examples of each task, with all their repeats, so that the two parts share none.

        Args:
            fraction: share of each task's examples that is held out.
            minimum: hold out at least so many per task, but never all of a task.

        Returns:
            The training and the held-out mixture; the held-out one has each example once.
        """
        examples = sorted(set(self.index))
        random.Random(0).shuffle(examples)
        held_out: set[tuple[int, int]] = set()
        for task in range(len(self.tasks)):
            own = [pair for pair in examples if pair[0] == task]
            count = max(round(fraction * len(own)), min(minimum, len(own) - 1))
            held_out.update(own[:count])
        training = [pair for pair in self.index if pair not in held_out]
        return self._with_index(training), self._with_index([pair for pair in examples if pair in held_out])

    def _with_index(self, index: list[tuple[int, int]]) -> "TaskMixture":
        part = object.__new__(TaskMixture)
        part.tasks, part.index = self.tasks, index
        return part
