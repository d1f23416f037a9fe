"""Short word problems as people make them up: any names, any things, one to three steps."""

import random

from nanochat_hf.data.microworld import problems
from nanochat_hf.data.microworld.small_talk import any_name
from nanochat_hf.data.microworld.typing_habits import as_typed
from nanochat_hf.data.microworld.words import CREATURES, FOODS
from nanochat_hf.data.microworld.world import ITEMS

THINGS = (
    "marbles dogs cats cars toys dollars euros coins pens pencils stickers cards balls flowers roses books cookies candies "
    "sweets oranges bananas lemons cherries grapes potatoes tomatoes carrots balloons stamps tickets chairs cups plates "
    "bottles buttons bikes fish birds horses cows sheep chickens ducks trees seeds leaves shirts shoes socks hats photos "
    "letters songs games points friends children students bricks sticks rocks keys"
).split()
# Question, solution. {n} and {m} are people, {i} things, {a} and {b} numbers, {r} the result.
ONE_STEP = {
    "a+b": (
        ("{n} has {a} {i}. {m} gives {n} {b} more. How many {i} does {n} have now?", "Now {n} has"),
        ("{n} has {a} {i} and buys {b} more. How many {i} does {n} have now?", "Now {n} has"),
        ("{n} had {a} {i} and found {b} more. How many does {n} have?", "Now {n} has"),
        ("{n} has {a} {i} and gets {b} {i} from {m}. How many {i} are there now?", "Now {n} has"),
        ("{n} has {a} {i} and {m} has {b} {i}. How many {i} do they have together?", "Together they have"),
        ("{n} has {a} {i}, {m} has {b}. How many do they have in total?", "Together they have"),
        ("If {n} has {a} {i} and {m} has {b}, how many are there altogether?", "Together they have"),
        ("There are {a} {i} on the table. {n} brings {b} more. How many {i} are there?", "Now there are"),
        ("I have {a} {i}. I get {b} more. How many do I have?", "Now you have"),
        ("I have {a} {i} and buy {b} more. How many {i} do I have now?", "Now you have"),
        ("If I have {a} {i} and {n} gives me {b} {i}, how many {i} do I have?", "Now you have"),
    ),
    "a-b": (
        ("{n} has {a} {i} and gives {b} to {m}. How many {i} does {n} have left?", "Now {n} has"),
        ("{n} has {a} {i}. {n} gives {m} {b} of them. How many does {n} have now?", "Now {n} has"),
        ("{n} had {a} {i} and lost {b}. How many {i} are left?", "Now {n} has"),
        ("{n} has {a} {i} and eats {b}. How many are left?", "Now {n} has"),
        ("{n} has {a} {i} and sells {b}. How many {i} does {n} still have?", "Now {n} has"),
        ("{n} had {a} {i}. {b} of them broke. How many are left?", "Now {n} has"),
        ("There are {a} {i} in a box. {n} takes {b}. How many {i} are left?", "Now there are"),
        ("There were {a} {i}. {b} went away. How many {i} are there now?", "Now there are"),
        ("I have {a} {i} and eat {b}. How many are left?", "Now you have"),
        ("I have {a} {i}. I give {b} to {n}. How many do I have?", "Now you have"),
        ("If I have {a} {i} and lose {b}, how many {i} do I have left?", "Now you have"),
        ("I had {a} {i} and spent {b}. How many {i} do I have now?", "Now you have"),
    ),
    "a*b": (
        ("{n} has {a} boxes with {b} {i} each. How many {i} does {n} have?", "In all there are"),
        ("{n} has {a} bags. Each bag has {b} {i}. How many {i} are there?", "In all there are"),
        ("There are {a} boxes of {b} {i}. How many {i} are there in all?", "In all there are"),
        ("{n} buys {a} bags with {b} {i} in each. How many {i} is that?", "In all there are"),
        ("I have {a} boxes with {b} {i} each. How many {i} do I have?", "In all there are"),
        ("{n} makes {b} {i} a day. How many {i} does {n} make in {a} days?", "In all there are"),
        ("{n} buys {a} {i} for {b} coins each. How many coins does {n} pay?", "In all it costs"),
        ("If one of the {i} costs {b} coins, how much do {a} {i} cost?", "In all it costs"),
    ),
    "a//b": (
        ("{n} shares {a} {i} among {b} friends. How many {i} does each friend get?", "Each one gets"),
        ("{a} {i} are shared by {b} children. How many does each get?", "Each one gets"),
        ("{n} puts {a} {i} into {b} boxes. How many {i} are in each box?", "Each one gets"),
        ("I share {a} {i} with {b} people equally. How many {i} does each get?", "Each one gets"),
    ),
}


def everyday_problem(rng: random.Random) -> tuple[str, str]:
    """Returns a question and its solution, in the format of `problems.problem`."""
    if rng.random() < 0.3:
        return _chain(rng)
    kind = rng.choices(tuple(ONE_STEP), weights=(36, 36, 20, 8))[0]
    template, begin = rng.choice(ONE_STEP[kind])
    a, b = rng.randint(2, 99), rng.randint(1, 60)
    if kind == "a-b":
        a, b = max(a, b + 1), min(a, b)
    elif kind == "a*b":
        a, b = rng.randint(2, 15), rng.randint(2, 30)
    elif kind == "a//b":
        b = rng.randint(2, 12)
        a = b * rng.randint(2, 20)
    names, item = _names(rng), any_things(rng)
    slots = {"n": names[0], "m": names[1], "i": item, "a": str(a), "b": str(b)}
    expression = kind.replace("a", str(a)).replace("b", str(b))
    result = eval(expression)  # of two numbers and a sign
    unit = "coins" if "costs" in begin else item
    solution = f"{begin.format(**slots)} <<{expression}={result}>>{result} {unit}.\n#### {result}"
    return as_typed(rng, template, around=rng.random() < 0.2, **slots), solution


def _chain(rng: random.Random) -> tuple[str, str]:
    """A problem of `problems.chain` with other names and things."""
    name, other = _names(rng)
    question, solution = problems.chain(rng, [], name, other, any_things(rng), rng.choice((1, 2, 2, 3)))
    return as_typed(rng, question) if rng.random() < 0.5 else question, solution


def _names(rng: random.Random) -> tuple[str, str]:
    first, second = any_name(rng), any_name(rng)
    while second == first:
        second = any_name(rng)
    if rng.random() < 0.08:
        first = rng.choice(("My brother", "My sister", "My friend", "A man", "A girl", "The baker", "My mother"))
    return first, second


def any_things(rng: random.Random) -> str:
    """Draws countable things in the plural."""
    if rng.random() < 0.25:
        return rng.choice(ITEMS)
    if rng.random() < 0.6:
        return rng.choice(THINGS)
    word = rng.choice((*CREATURES, *FOODS))
    return word if word.endswith("s") else word + "s"
