"""Sums that are asked plainly: `What is 128 * 7?`. The calculator works them out."""

import random

from nanochat_hf.data.microworld.typing_habits import any_way, as_typed

ASK = (
    "What is {e}?|What's {e}?|How much is {e}?|Calculate {e}.|Compute {e}.|{e}|{e} =|{e}=|{e} = ?|{e}?|Work out {e}."
    "|Can you work out {e}?|Solve {e}.|Tell me {e}.|What do you get for {e}?|What does {e} make?"
    "|What is the result of {e}?"
    "|I need {e}.|Do you know what {e} is?|What would {e} be?|Find {e}.|Please calculate {e}."
    "|How much does {e} make?|What is {e} equal to?"
    "|Can you calculate {e}?|Can you solve {e}?|What is the answer to {e}?|Evaluate {e}.|The result of {e}?"
    "|Give me {e}."
    "|[Please/Can you/Could you/Quickly/Now/Ok, now/Would you/] [calculate/compute/solve/work out/tell me/do/add up/"
    "find out] {e} [for me/please/now/]"
    "|[What/So what/And what/Tell me what/Do you know what/Hi, what/What's that,] "
    "[is/does/do I get for/equals/would be/makes] {e} [in total/then/please/equal/]?"
    "|[How much/So how much/Tell me how much/Quick, how much] [is/would be/makes/does it make, ] {e} "
    "[then/please/together/]?"
).split("|")
SIGNS = {
    "+": ("+", "+", "plus", "and"),
    "-": ("-", "-", "minus", "less"),
    "*": ("*", "*", "x", "X", "times", "multiplied by", "×"),
    "/": ("/", "/", "divided by", "over", "÷"),
}
IN_WORDS = {
    "+": "What is the sum of {a} and {b}?|Add {a} and {b}.|Add {b} to {a}.|Can you add {a} and {b}?"
    "|What is {b} more than {a}?"
    "|How much is {a} and {b} together?|Sum of {a} and {b}|Sum up {a} and {b}.|Total of {a} and {b}?|{a} added to {b}",
    "-": "What is the difference between {a} and {b}?|Subtract {b} from {a}.|Take {b} away from {a}."
    "|What is {a} take away {b}?"
    "|What is {b} less than {a}?|Can you subtract {b} from {a}?|Difference of {a} and {b}"
    "|How much more is {a} than {b}?",
    "*": "What is the product of {a} and {b}?|Multiply {a} by {b}.|Multiply {a} and {b}."
    "|Can you multiply {a} with {b}?|Product of {a} and {b}"
    "|How much is {a} multiplied with {b}?|Multiply {a} with {b}.",
    "/": "Divide {a} by {b}.|What is {a} divided by {b}?|Can you divide {a} by {b}?"
    "|How often does {b} go into {a}?|Share {a} among {b}.",
}
GO_ON = {
    "+": "[And/Now/Ok, now/Then/So/] [plus/add/with/increase it by/and] {b} [more/then/please/to it/]?"
    "|And plus {b}?|Plus {b}|Add {b}.|Add {b} to that.|Now add {b}.|+ {b}|And {b} more?|And if I add {b}?",
    "-": "[And/Now/Ok, now/Then/So/] [minus/less/take away/subtract/without/reduce it by] {b} [then/please/from it/]?"
    "|And minus {b}?|Minus {b}|Subtract {b}.|Subtract {b} from that.|Take away {b}.|- {b}|And {b} less?"
    "|Now minus {b}",
    "*": "[And/Now/Ok, now/Then/So/] [times/multiply it by/multiplied by/that times/multiply by] {b} [then/please/]?"
    "|And times {b}?|Times {b}|Multiply that by {b}.|Now multiply it by {b}.|* {b}|Multiply by {b}."
    "|And that times {b}?",
    "/": "[And/Now/Ok, now/Then/So/] [divided by/divide it by/divide by/that divided by/split by] {b} [then/please/]?"
    "|And divided by {b}?|Divide that by {b}.|/ {b}|Now divide it by {b}.|Divided by {b}",
}
# The same in as few words as possible, as most people type.
GO_ON_IN_SHORT = {
    "+": "plus {b}|plus {b}?|and plus {b}?|+ {b}|+{b}",
    "-": "minus {b}|minus {b}?|and minus {b}?|- {b}|-{b}",
    "*": "times {b}|times {b}?|and times {b}?|* {b}|x {b}",
    "/": "divided by {b}|divided by {b}?|and divided by {b}?|/ {b}|/{b}",
}

# Three numbers, asked in words.
OF_THREE = (
    "[Add/Add up/Sum/Sum up/Please add/Can you add/Now add] {a}[,/ and/ +] {b} and {c} [for me/please/together/]"
    "|[What is/What's/How much is/Give me/Tell me] the [sum/total] of {a}, {b} and {c} [please/]?"
    "|[What is/What's/How much is/What do you get for/Calculate] {a} plus {b} plus {c} [please/]?"
    "|{a}, {b} and {c} [together/in total/added up/in all]?"
).split("|")
# One number, with what is done to it.
OF_ONE = (
    ("[Double/Can you double/Please double/Now double] {a}", "{a} * 2"),
    ("[What is/What's/How much is/Tell me] [twice/double/two times/the double of] {a}?", "{a} * 2"),
    ("[What is/What's/How much is/Tell me] [half of/a half of/one half of/half/the half of] {a}?", "{a} / 2"),
    ("[Halve/Half of/Please halve/Half of] {a}", "{a} / 2"),
    ("[What is/What's/How much is/Tell me] {a} squared?", "{a} * {a}"),
    ("[What is/What's/How much is/Tell me] the square of {a}?", "{a} * {a}"),
    ("Square {a}.", "{a} * {a}"),
    ("[What is/What's/How much is/Tell me] [three times/the triple of/triple] {a}?", "{a} * 3"),
    ("[What is/What's/How much is/Tell me] [a third of/one third of] {a}?", "{a} / 3"),
    ("[What is/What's/How much is/Tell me] [a quarter of/one quarter of] {a}?", "{a} / 4"),
)
# What is done to the result of the sum before.
AND_ONE = (
    (
        "[And/Now/Ok, now/Then/So/] [double/twice/two times/the double of] [it/that/this/the result] [please/then/]?",
        "* 2",
    ),
    (
        "[And/Now/Ok, now/Then/So/] [half of/halve/the half of/a half of] [it/that/this/the result] [please/then/]?",
        "/ 2",
    ),
    ("[And/Now/Ok, now/Then/So/] [three times/triple] [it/that/this/the result] [please/then/]?", "* 3"),
)

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """Writes a number below 100 in words."""
    if number < 20:
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{SMALL[ones]}" if ones else "")


def count_up(rng: random.Random) -> tuple[str, str]:
    """Returns a request to count to a number, and the numbers."""
    last = rng.randint(3, 20)
    shown = str(last) if rng.random() < 0.6 else in_words(last)
    asked = rng.choice(
        (
            "Count to {n}.",
            "Can you count to {n}?",
            "Count from 1 to {n}.",
            "Count from one to {n}.",
            "Count up to {n}.",
            "Please count to {n}.",
            "Count until {n}.",
        )
    )
    return as_typed(rng, asked, around=True, n=shown), ", ".join(map(str, range(1, last + 1))) + "."


def plain_sum(rng: random.Random) -> tuple[str, str, str]:
    """Returns a question for a sum, the answer with the calculator's mark, and the result."""
    sign = rng.choices("+-*/", weights=(32, 26, 34, 8))[0]
    a, b = _numbers(rng, sign)
    shape = rng.random()
    if shape < 0.08:
        third, second_sign = str(rng.randint(1, 99)), rng.choice("++-*")
        if rng.random() < 0.3:
            asked = f"({a} {sign} {b}) {second_sign} {third}"
        else:
            gap = rng.choice(("", " "))
            asked = f"{a}{gap}{sign}{gap}{b}{gap}{second_sign}{gap}{third}"
        return as_typed(rng, any_way(rng, ASK), around=True, e=asked), *worked_out(asked)
    if shape < 0.12:
        three = [str(rng.randint(1, rng.choice((9, 20, 99)))) for _ in range(3)]
        question = as_typed(rng, rng.choice(OF_THREE), around=True, **dict(zip("abc", three, strict=True)))
        return question, *worked_out(" + ".join(three))
    if shape < 0.25:
        return as_typed(rng, rng.choice(IN_WORDS[sign].split("|")), around=True, a=a, b=b), *worked_out(
            f"{a} {sign} {b}"
        )
    if shape < 0.31:
        asked, sum_of_it = rng.choice(OF_ONE)
        if "/" in sum_of_it:
            a = str(rng.randint(1, rng.choice((50, 400))) * int(sum_of_it[-1]))
        return as_typed(rng, asked, around=True, a=a), *worked_out(sum_of_it.format(a=a))
    said = rng.choice(SIGNS[sign])
    if shape < 0.39:
        said = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
        a, b = str(rng.randint(0, 40)), str(rng.randint(1, 20))
        if sign == "/":
            a = str(int(b) * rng.randint(1, 4))
        question = as_typed(rng, any_way(rng, ASK), around=True, e=f"{in_words(int(a))} {said} {in_words(int(b))}")
        return question, *worked_out(f"{a} {sign} {b}")
    gap = "" if len(said) == 1 and rng.random() < 0.35 else " "
    if said == "and":
        question = as_typed(
            rng, rng.choice(("How much is {e}?", "What do {e} make?", "What is {e}?")), e=f"{a} and {b}"
        )
    else:
        question = as_typed(rng, any_way(rng, ASK), around=True, e=f"{a}{gap}{said}{gap}{b}")
    return question, *worked_out(f"{a} {sign} {b}")


def go_on(rng: random.Random, before: str) -> tuple[str, str, str]:
    """Like `plain_sum`, for a question that goes on with the result of the sum before."""
    sign = rng.choices("+-*/", weights=(30, 30, 30, 10))[0]
    b = str(rng.randint(2, 20) if sign in "*/" else rng.randint(1, 99))
    if rng.random() < 0.15:
        asked, and_then = rng.choice(AND_ONE)
        if and_then != "/ 2" or int(before) % 2 == 0:
            return as_typed(rng, asked), *worked_out(f"{before} {and_then}")
    ways = GO_ON_IN_SHORT if rng.random() < 0.3 else GO_ON
    return as_typed(rng, any_way(rng, ways[sign].split("|")), b=b), *worked_out(f"{before} {sign} {b}")


def worked_out(asked: str) -> tuple[str, str]:
    """Returns the answer to a sum, with the calculator's mark, and the result."""
    expression = asked.replace(" ", "")
    result = eval(expression, {"__builtins__": {}})  # of numbers and signs; tasks ask the calculator itself
    return f"{asked} = <<{expression}={result}>>{result}", str(result)


def _numbers(rng: random.Random, sign: str) -> tuple[str, str]:
    if sign == "/":
        b = rng.randint(2, 20)
        return str(b * rng.randint(1, 60)), str(b)
    if rng.random() < 0.04 and sign != "*":  # halves and quarters, which have short results
        return (
            f"{rng.randint(0, 99)}.{rng.choice(('5', '25', '75'))}",
            f"{rng.randint(0, 99)}.{rng.choice(('5', '25'))}",
        )
    sizes = (9, 20, 99, 99, 99, 999, 999, 9_999, 99_999) if sign != "*" else (9, 12, 20, 99, 99, 99, 999, 2_000)
    a, b = rng.randint(0, rng.choice(sizes)), rng.randint(0, rng.choice(sizes))
    if sign == "-" and b > a and rng.random() < 0.8:
        a, b = b, a
    return str(a), str(b)
