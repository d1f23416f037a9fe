"""Short word problems as people make them up: any names, any things, one to three steps."""

import random

from nanochat_hf.data.microworld import problems
from nanochat_hf.data.microworld.small_talk import any_name
from nanochat_hf.data.microworld.typing_habits import any_way, as_typed
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
WAYS = {
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
        (
            "{n} [has/had/owns/got/saw] {a} {i} [and/and then/. Then {p2}/, then {p2}] "
            "[buys/bought/found/finds/gets/got/"
            "wins/won/receives/picks up/picked/collected/made] {b} [more/more {i}/others/new ones/other {i}]. "
            "How many [{i}/] [now/in all/in total/altogether/are there now/does {n} have now/has {n} got/is that]?",
            "Now {n} has",
        ),
        (
            "[I have/I had/I've got/If I have/Say I have] {a} {i} and [then/] [buy/get/find/win/receive/pick "
            "up/make/add] "
            "{b} [more/more {i}/others/new ones/of them], how many [{i}/] [do I have/are there/is that/have I got] "
            "[now/in all/in total/then/altogether/]?",
            "Now you have",
        ),
        (
            "[There are/There were/We see/I see] {a} {i} [in the garden/on the table/in a room/in the box/on the "
            "shelf/"
            "in the shop/here/in the river/on the bus] and {b} [more come/more arrive/more are added/others join/"
            "more are put there]. How many [{i}/] [now/in all/in total/are there now/are there altogether]?",
            "Now there are",
        ),
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
        (
            "[A/My/The/This] book has {a} pages[ and/. / and so far] [I read/I have read/{n} read/{n} has read] {b}"
            "[. How many/, how many] [pages/] [to go/are left/are still to read/left/remain]?",
            "Now there are",
        ),
        (
            "[{n} is/My mother is/My brother is/My uncle is] {a} years old and [{m}/my sister/my aunt] is {b}. [How "
            "many years "
            "older is/How much older is] [{n}/the first one]?",
            "Now there are",
        ),
        (
            "[I have/{n} has/We have] {a} [dollars/coins/euros] and [a/the/one] [toy/game/book/ticket/cake/ball] "
            "costs {b}. "
            "How much is left [after that/then/]?",
            "Now there are",
        ),
        ("There are {a} {i} in a box. {n} takes {b}. How many {i} are left?", "Now there are"),
        ("There were {a} {i}. {b} went away. How many {i} are there now?", "Now there are"),
        ("I have {a} {i} and eat {b}. How many are left?", "Now you have"),
        ("I have {a} {i}. I give {b} to {n}. How many do I have?", "Now you have"),
        ("If I have {a} {i} and lose {b}, how many {i} do I have left?", "Now you have"),
        ("I had {a} {i} and spent {b}. How many {i} do I have now?", "Now you have"),
        (
            "{n} [has/had/owns/got/bought] {a} {i} [and/and then/. Then {p2}/, but/, but then] "
            "[lost/loses/sold/sells/ate/"
            "eats/gave away/gives away/used/uses/broke/threw away/dropped/forgot/lent out/spent] {b} [of them/{i}/]. "
            "How many [{i}/] [now/are left/left/remain/does {n} have now/does {n} have left/are still there/stay]?",
            "Now {n} has",
        ),
        (
            "[I have/I had/I've got/If I have/Say I have] {a} {i} and [then/] [lose/sell/eat/give away/use/break/"
            "throw away/drop/spend/lend out] {b} [of them/{i}/], how many [{i}/] [do I have/are/have I got/will be] "
            "[left/now/left over/then]?",
            "Now you have",
        ),
        (
            "[There are/There were/We see/I see] {a} {i} [in the garden/on the table/in a room/in the box/on the "
            "shelf/"
            "in the shop/here/in the river/on the bus]. {b} [of them/] [leave/left/are taken/go away/went away/are "
            "sold/"
            "disappear/get out/run away]. How many [{i}/] [now/are left/left/remain/are there now/stay/are still "
            "there]?",
            "Now there are",
        ),
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
        (
            "[If I buy/I buy/If you buy/We buy/I want] {a} {i} [for/at] {b} [coins/dollars/euros] [each/a piece/per "
            "piece]"
            "[. How much/, how much/. What] do [I/we] pay [in all/in total/]?",
            "In all it costs",
        ),
        (
            "[{n}/My sister/My brother] [saves/earns/gets/spends/makes] {b} [dollars/coins/euros/cents] "
            "[a/each/every/per] "
            "week. How much [is that/does that make/is it] [after/in] {a} weeks?",
            "In all there are",
        ),
        (
            "[I save/I earn/I get/I spend/If I save/We save] {b} [dollars/coins/euros/cents] [a/each/every/per] "
            "day[. How/, how] "
            "much [is that/do I have/is it] [after/in] {a} days?",
            "In all there are",
        ),
        (
            "[{n} walks/{n} runs/{n} drives/A train goes/A car goes] {b} [miles/km/kilometres] [a/each/every/per/in "
            "one] "
            "[hour/day]. How [far/many miles] [is that/is it] in {a} [hours/days]?",
            "In all there are",
        ),
        (
            "[A/One/Each/Every] [table/spider/box/car/team/class/room/page] has {b} {i}. How many {i} [do/have] {a} "
            "[of them/]"
            " have [together/in all/]?",
            "In all there are",
        ),
    ),
    "a-b+c": (
        (
            "[A bus has/A train has/There are/There were/A room has/A ship has] {a} "
            "[people/children/men/guests/passengers]"
            "[. Then/./ and] {b} [get off/leave/go out/go home/walk away] and {c} [get on/come in/arrive/come/more "
            "come]. "
            "How many [people/] are [there now/on it now/there/left there]?",
            "Now there are",
        ),
        (
            "{n} [has/had/owns] {a} {i}[. {p}/, then {p2}/ and] [loses/sells/eats/gives away/uses] {b} and [then/] "
            "[buys/finds/gets/wins/makes] {c} [more/new ones/]. How many [{i}/] [now/does {n} have now/in the "
            "end/are there]?",
            "Now {n} has",
        ),
    ),
    "a+b-c": (
        (
            "{n} [has/had/owns] {a} {i}[. {p}/, then {p2}/ and] [buys/finds/gets/wins/makes] {b} [more/new ones/] "
            "and [then/] "
            "[loses/sells/eats/gives away/uses] {c}. How many [{i}/] [now/does {n} have now/in the end/are left]?",
            "Now {n} has",
        ),
        (
            "[There are/We have/I see] {a} [red/big/green/small] and {b} [blue/old/new/white] {i}. {c} [of them/] "
            "[are sold/go away/break/are lost]. How many [{i}/] [are left/now/remain]?",
            "Now there are",
        ),
    ),
    "a*b-c": (
        (
            "{n} has {a} [boxes/bags/packs/baskets] [with/of] {b} {i} [each/] and [loses/sells/eats/gives "
            "away/uses] {c} "
            "[of them/{i}/]. How many [{i}/] [are left/now/does {n} have now]?",
            "Now {n} has",
        ),
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

UNITS = ("pages", "people", "children", "passengers", "dollars", "coins", "euros", "cents", "miles", "km", "years")
AND_THEN = {
    "+": (
        "[And/Then/And then/Now/And if/Next,] [{p}/I/{n}/we/they] [buys/gets/finds/makes/wins] {b} [more/new "
        "ones/others]"
        "[. How many/, how many/?] [now/are there now/in all/]?",
        "[And/Then/And then/Now/Next,] {b} [more come/more arrive/more are added]. How many [now/are there now/in "
        "all/]?",
    ),
    "-": (
        "[And/Then/And then/Now/And if/Next,] [{p}/I/{n}/we/they] [loses/sells/eats/gives away/breaks/drops] {b} "
        "[of them/]"
        "[. How many/, how many/?] [now/are left/are there now/]?",
        "[And/Then/And then/Now/Next,] {b} [of them/] [break/fall down/get lost/are sold/go "
        "away/leave/burst/disappear]"
        "[. How many now/. How many are left/, how many are left/]?",
    ),
}


def everyday_problem(rng: random.Random) -> tuple[str, str]:
    """Returns a question and its solution, in the format of `problems.problem`."""
    if rng.random() < 0.3:
        return _chain(rng)
    kind = rng.choices(tuple(WAYS), weights=(30, 32, 20, 5, 4, 3, 6))[0]
    begin_of = dict(WAYS[kind])
    template = any_way(rng, tuple(begin_of))
    begin = begin_of[template]
    a, b, c = rng.randint(2, 99), rng.randint(1, 60), rng.randint(1, 40)
    if kind.startswith("a-b"):
        a, b = max(a, b + 1), min(a, b)
    elif kind.startswith("a*b"):
        a, b = rng.randint(2, 15), rng.randint(2, 30)
    elif kind == "a//b":
        b = rng.randint(2, 12)
        a = b * rng.randint(2, 20)
    if kind.endswith("-c"):
        c = min(c, (a * b if "*" in kind else a + b) - 1)
    names, item = _names(rng), any_things(rng)
    he, him = rng.choice((("he", "him"), ("she", "her")))
    slots = {"n": names[0], "m": names[1], "p": he.capitalize(), "p2": he, "o": him, "i": item}
    slots |= {"a": str(a), "b": str(b), "c": str(c)}
    question = as_typed(rng, template, around=rng.random() < 0.2, **slots)
    expression = kind.replace("a", str(a)).replace("b", str(b)).replace("c", str(c))
    counted = item if "{i}" in template else next((unit for unit in UNITS if unit in question.lower()), "")
    return question, _solution(begin.format(**slots), expression, "coins" if "costs" in begin else counted)


def go_on_with_count(rng: random.Random, before: str) -> tuple[str, str]:
    """Returns what happens after a problem that ended with `before` things, and the solution."""
    sign = rng.choice("+-") if int(before) > 1 else "+"
    b = rng.randint(1, min(60, int(before) - 1) if sign == "-" else 60)
    question = as_typed(rng, rng.choice(AND_THEN[sign]), b=str(b), p=rng.choice(("he", "she")), n=any_name(rng))
    return question, _solution("Now there are", f"{before}{sign}{b}", "")


def _solution(begin: str, expression: str, counted: str) -> str:
    result = eval(expression)  # of numbers and signs
    return f"{begin} <<{expression}={result}>>{' '.join((str(result), counted)).strip()}.\n#### {result}"


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
