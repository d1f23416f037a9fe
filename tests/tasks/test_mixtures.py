import random

import pytest

from nanochat_hf.tasks.mixtures import TaskMixture


def task(name: str, size: int) -> list[dict]:
    return [{"messages": [{"role": "user", "content": f"{name}{i}"}]} for i in range(size)]


def contents(mixture) -> list[str]:
    return [conversation["messages"][0]["content"] for conversation in mixture]


def test_order_is_upstreams_shuffle_of_the_concatenated_index():
    mixture = TaskMixture([task("a", 5), task("b", 3)], seed=42)
    index = [("a", i) for i in range(5)] + [("b", i) for i in range(3)]
    random.Random(42).shuffle(index)
    assert contents(mixture) == [f"{name}{i}" for name, i in index]
    assert contents(TaskMixture([task("a", 5), task("b", 3)], seed=43)) != contents(mixture)


def test_repeats_and_caps():
    mixture = TaskMixture([(task("a", 5), 2), task("b", 30)], max_per_task=4)
    assert len(mixture) == 4 * 2 + 4
    assert sorted(contents(mixture)) == sorted([f"a{i}" for i in range(4)] * 2 + [f"b{i}" for i in range(4)])
    with pytest.raises(ValueError, match="0 times"):
        TaskMixture([(task("a", 5), 0)])


def test_the_parts_of_a_split_share_no_example_even_with_repeats():
    mixture = TaskMixture([(task("a", 40), 3), task("b", 10), task("c", 1)])
    training, held_out = mixture.split(0.1)
    assert not set(contents(training)) & set(contents(held_out))
    assert len(contents(held_out)) == len(set(contents(held_out))) == 4 + 1 + 0
    assert sorted(contents(training) + [c for c in contents(held_out) for _ in range(3 if c[0] == "a" else 1)]) == (
        sorted(contents(mixture))
    )
