"""Short word problems as people make them up: any names, any things, one to three steps."""

import random

from nanochat_hf.data.microworld import problems
from nanochat_hf.data.microworld.small_talk import any_name
from nanochat_hf.data.microworld.typing_habits import as_typed
from nanochat_hf.data.microworld.words import CREATURES, FOODS
from nanochat_hf.data.microworld.world import ITEMS

THINGS = (
    "marbles dogs cats cars toys dollars euros coins pens pencils stickers cards balls flowers roses books "
    "cookies candies sweets oranges bananas lemons cherries grapes potatoes tomatoes carrots balloons stamps "
    "tickets chairs cups plates bottles buttons bikes fish birds horses cows sheep chickens ducks trees seeds "
    "leaves shirts shoes socks hats photos letters songs games points friends children students bricks sticks "
    "rocks keys"
).split()
# Questions with the beginnings of their solutions, by what is to be calculated. {n} and {m} are people, {p} and {p2}
# he or she, {o} him or her, {i} things, {a} and {b} numbers.
ONE_STEP = {
    "a+b": (
        ("{n} has {a} {i}. {p} buys {b} more. How many {i} does {n} have now?", "Now {n} has"),
        ("{n} had {a} {i}. {m} gave {o} {b} more. How many {i} does {n} have?", "Now {n} has"),
        ("{n} picked {a} {i} and {m} picked {b}. How many {i} did they pick in all?", "Together they have"),
        ("There are {a} {i} in one box and {b} in another. How many {i} are there in total?", "Now there are"),
        ("There are {a} {i} in the tree and {b} more come. How many are there now?", "Now there are"),
        ("How many {i} does {n} have if {p2} has {a} and gets {b} more?", "Now {n} has"),
        ("{n} read {a} pages on Monday and {b} on Tuesday. How many pages did {n} read?", "In all {n} read"),
        ("{n} has {a} {i}, {m} has {b} more. How many {i} does {m} have?", "Now {m} has"),
        ("{n} has {a} red {i} and {b} blue {i}. How many {i} does {n} have in all?", "Now {n} has"),
        ("If you have {a} {i} and I give you {b}, how many do you have?", "Now there are"),
        ("{a} {i} and {b} {i} make how many {i}?", "Now there are"),
        ("I had {a} {i}, then I found {b} more. How many now?", "Now you have"),
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
        ("{n} has {a} {i}. {p} gives {b} to {m}. How many {i} does {n} have now?", "Now {n} has"),
        ("{n} had {a} {i}. {p} gave {b} to {m}. How many does {n} have left?", "Now {n} has"),
        ("{n} has {a} {i}. {p} loses {b} {i}. How many are left?", "Now {n} has"),
        ("{n} baked {a} {i} and ate {b}. How many {i} are left?", "Now {n} has"),
        ("There are {a} {i} on the tree. {b} fall down. How many are left?", "Now there are"),
        ("There are {a} {i} in the room. {b} leave. How many {i} are still there?", "Now there are"),
        ("A box has {a} {i}. {n} takes out {b}. How many {i} stay in the box?", "Now there are"),
        ("How many {i} are left if {n} has {a} and gives away {b}?", "Now {n} has"),
        ("{n} has {a} {i}, {m} has {b} less. How many {i} does {m} have?", "Now {m} has"),
        ("{n} has {a} {i} and {m} has {b}. How many more does {n} have?", "Now {n} has"),
        ("I have {a} {i} and use {b}. How many {i} remain?", "Now you have"),
        ("I have {a} {i} and spend {b}. How much do I have left?", "Now you have"),
        ("{n} has {a} {i}. {b} are red. How many are not red?", "Now there are"),
        ("{n} needs {a} {i} and has {b}. How many more does {n} need?", "Now {n} needs"),
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
        ("There are {a} rows with {b} {i} each. How many {i} are there?", "In all there are"),
        ("{n} has {b} {i} in each of {a} boxes. How many {i} are there in total?", "In all there are"),
        ("{a} friends have {b} {i} each. How many {i} do they have together?", "In all there are"),
        ("Each day {n} eats {b} {i}. How many {i} does {p2} eat in {a} days?", "In all there are"),
        ("How many {i} are in {a} bags of {b}?", "In all there are"),
        ("One bag costs {b} coins. What do {a} bags cost?", "In all it costs"),
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
        ("{n} divides {a} {i} between {b} people. How many does each person get?", "Each one gets"),
        ("If {b} friends share {a} {i}, how many does each one get?", "Each one gets"),
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
    he, him = rng.choice((("he", "him"), ("she", "her")))
    pronouns = {"p": he.capitalize(), "p2": he, "o": him}
    if "pages" in template:
        item = "pages"
    slots = {**pronouns, "n": names[0], "m": names[1], "i": item, "a": str(a), "b": str(b)}
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
