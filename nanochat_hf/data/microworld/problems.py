"""Word problems in GSM8K's format: a question, and a solution with `<<12*3=36>>` marks that ends in `#### 36`.

Most problems are a chain of two or three events that change a number of things. The kind of problem, the kinds of
events and the numbers decide the split: no chain with the same numbers is in two splits.
"""

import random
from collections.abc import Callable

from nanochat_hf.data.microworld.world import ITEMS, PEOPLE, draw

PLACES_TO_KEEP = ("basket", "shed", "cellar", "box", "cart")


def problem(rng: random.Random, split: str) -> tuple[str, str]:
    """Returns a question and its solution, drawn from the split."""

    def make(rng: random.Random) -> tuple[tuple, tuple[str, str]]:
        # The functions' names are part of the key: to rename one moves its problems to other splits.
        kind = rng.choice((_chain, _chain, _chain, _shop, _days, _compare))
        numbers: list[int] = []
        item = kind(rng, numbers)
        return (kind.__name__, *numbers), item

    return draw(rng, split, make)


def _chain(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    name, other = rng.sample(PEOPLE, 2)
    item = rng.choice(ITEMS)
    return chain(rng, numbers, name, other, item)


def chain(
    rng: random.Random, numbers: list[int], name: str, other: str, item: str, count: int | None = None
) -> tuple[str, str]:
    """Writes a problem about things whose number changes in `count` events, by default two or three.

    Adds its numbers to `numbers`.
    """
    have = rng.randint(5, 60)
    numbers.append(have)
    question = [f"{name} has {have} {item}."]
    steps = []
    for _ in range(count or rng.choice((2, 2, 3))):
        event = rng.choice(_EVENTS)
        sentence, expression, have, used = event(rng, name, other, item, have)
        numbers += (_EVENTS.index(event), *used)
        question.append(sentence)
        steps.append(f"{rng.choice(('Now', 'Then'))} {name} has <<{expression}={have}>>{have} {item}.")
    question.append(rng.choice((f"How many {item} does {name} have now?", f"How many {item} are there in the end?")))
    return " ".join(question), "\n".join((*steps, f"#### {have}"))


# What an event returns: its sentence, the expression to calculate, the new number of things, and its numbers.
Outcome = tuple[str, str, int, tuple[int, ...]]
Event = Callable[[random.Random, str, str, str, int], Outcome]


def _gain(rng: random.Random, name: str, other: str, item: str, have: int) -> Outcome:
    more = rng.randint(2, 40)
    sentence = rng.choice(
        (f"{other} gives {name} {more} more.", f"{name} finds {more} {item}.", f"{name} buys {more} {item}.")
    )
    return sentence, f"{have}+{more}", have + more, (more,)


def _lose(rng: random.Random, name: str, other: str, item: str, have: int) -> Outcome:
    if have < 2:
        return _gain(rng, name, other, item, have)
    less = rng.randint(1, min(have - 1, 40))
    sentence = rng.choice(
        (f"{name} gives {other} {less}.", f"{name} sells {less} {item}.", f"{name} loses {less} of them.")
    )
    return sentence, f"{have}-{less}", have - less, (less,)


def _packs(rng: random.Random, name: str, other: str, item: str, have: int) -> Outcome:
    packs, size = rng.randint(2, 9), rng.randint(2, 12)
    keep = rng.choice(PLACES_TO_KEEP)
    sentence = rng.choice(
        (f"{name} gets {packs} {keep}s with {size} {item} each.", f"{other} brings {packs} {keep}s of {size} {item}.")
    )
    return sentence, f"{have}+{packs}*{size}", have + packs * size, (packs, size)


def _double(rng: random.Random, name: str, other: str, item: str, have: int) -> Outcome:
    if have > 200:
        return _lose(rng, name, other, item, have)
    times, factor = rng.choice((("twice", 2), ("three times", 3)))
    return f"A week later {name} has {times} as many.", f"{have}*{factor}", have * factor, (factor,)


def _halve(rng: random.Random, name: str, other: str, item: str, have: int) -> Outcome:
    if have % 2:
        return _gain(rng, name, other, item, have)
    return f"{name} gives half of the {item} to {other}.", f"{have}//2", have // 2, ()


_EVENTS: tuple[Event, ...] = (_gain, _lose, _packs, _double, _halve)


def _shop(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    """Writes a problem about buying two kinds of things and getting change."""
    name = rng.choice(PEOPLE)
    first, second = rng.sample([item for item in ITEMS if item != "coins"], 2)
    a, price_a, b, price_b = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    cost = a * price_a + b * price_b
    paid = cost + rng.randint(1, 40)
    numbers += (a, price_a, b, price_b, paid)
    question = (
        f"{name} buys {a} {first} for {price_a} coins each and {b} {second} for {price_b} coins each. "
        f"{name} pays with {paid} coins. How many coins does {name} get back?"
    )
    solution = (
        f"The {first} cost <<{a}*{price_a}={a * price_a}>>{a * price_a} coins.\n"
        f"The {second} cost <<{b}*{price_b}={b * price_b}>>{b * price_b} coins.\n"
        f"{name} gets back <<{paid}-{a * price_a}-{b * price_b}={paid - cost}>>{paid - cost} coins.\n"
        f"#### {paid - cost}"
    )
    return question, solution


def _days(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    """Writes a problem about making things for some days and selling some of them."""
    name = rng.choice(PEOPLE)
    item = rng.choice(ITEMS)
    days, daily = rng.randint(2, 12), rng.randint(3, 20)
    made = days * daily
    sold = rng.randint(1, made - 1)
    numbers += (days, daily, sold)
    question = (
        f"{name} makes {daily} {item} a day for {days} days and then sells {sold} of them. How many {item} are left?"
    )
    solution = (
        f"{name} makes <<{daily}*{days}={made}>>{made} {item}.\n"
        f"There are <<{made}-{sold}={made - sold}>>{made - sold} {item} left.\n#### {made - sold}"
    )
    return question, solution


def _compare(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    """Writes a problem about three people: the second has more than the first, the third a multiple of that."""
    one, two, three = rng.sample(PEOPLE, 3)
    item = rng.choice(ITEMS)
    have, more, times = rng.randint(5, 40), rng.randint(2, 30), rng.choice((2, 3))
    word = {2: "twice", 3: "three times"}[times]
    numbers += (have, more, times)
    second, third = have + more, (have + more) * times
    question = (
        f"{one} has {have} {item}. {two} has {more} more than {one}, and {three} has {word} as many as {two}. "
        f"How many {item} does {three} have?"
    )
    solution = (
        f"{two} has <<{have}+{more}={second}>>{second} {item}.\n"
        f"{three} has <<{second}*{times}={third}>>{third} {item}.\n#### {third}"
    )
    return question, solution
