"""Sums that are asked plainly: `What is 128 * 7?`. The calculator works them out."""

import random

from nanochat_hf.data.microworld.typing_habits import as_typed

ASK = (
    "What is {e}?|What's {e}?|How much is {e}?|Calculate {e}.|Compute {e}.|{e}|{e} =|{e}=|{e} = ?|{e}?|Work out {e}."
    "|Can you work out {e}?|Solve {e}.|Tell me {e}.|What do you get for {e}?|What does {e} make?"
    "|What is the result of {e}?"
    "|I need {e}.|Do you know what {e} is?|What would {e} be?|Find {e}.|Please calculate {e}."
    "|How much does {e} make?|What is {e} equal to?"
    "|Can you calculate {e}?|Can you solve {e}?|What is the answer to {e}?|Evaluate {e}.|The result of {e}?"
    "|Give me {e}."
).split("|")
SIGNS = {
    "+": ("+", "+", "plus", "and"),
    "-": ("-", "-", "minus", "less"),
    "*": ("*", "*", "x", "times", "multiplied by", "×"),
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
    "+": "And plus {b}?|Plus {b}|Add {b}.|Add {b} to that.|Now add {b}.|+ {b}|And {b} more?|And if I add {b}?",
    "-": "And minus {b}?|Minus {b}|Subtract {b}.|Subtract {b} from that.|Take away {b}.|- {b}|And {b} less?"
    "|Now minus {b}",
    "*": "And times {b}?|Times {b}|Multiply that by {b}.|Now multiply it by {b}.|* {b}|Multiply by {b}."
    "|And that times {b}?",
    "/": "And divided by {b}?|Divide that by {b}.|/ {b}|Now divide it by {b}.|Divided by {b}",
}


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
    if shape < 0.07:
        third, second_sign = str(rng.randint(1, 99)), rng.choice("+-*")
        if rng.random() < 0.3:
            asked = f"({a} {sign} {b}) {second_sign} {third}"
        else:
            gap = rng.choice(("", " "))
            asked = f"{a}{gap}{sign}{gap}{b}{gap}{second_sign}{gap}{third}"
        return as_typed(rng, rng.choice(ASK), around=True, e=asked), *worked_out(asked)
    if shape < 0.25:
        return as_typed(rng, rng.choice(IN_WORDS[sign].split("|")), around=True, a=a, b=b), *worked_out(
            f"{a} {sign} {b}"
        )
    if shape < 0.31:
        asked, sum_of_it = rng.choice(
            (
                ("Double {a}.", "{a} * 2"),
                ("What is twice {a}?", "{a} * 2"),
                ("What is the double of {a}?", "{a} * 2"),
                ("What is half of {a}?", "{a} / 2"),
                ("Half of {a}?", "{a} / 2"),
                ("Halve {a}.", "{a} / 2"),
                ("What is {a} squared?", "{a} * {a}"),
                ("Square {a}.", "{a} * {a}"),
                ("What is three times {a}?", "{a} * 3"),
                ("What is the square of {a}?", "{a} * {a}"),
                ("What is a third of {a}?", "{a} / 3"),
            )
        )
        if "/" in sum_of_it:
            a = str(rng.randint(1, 400) * (3 if "3" in sum_of_it else 2))
        return as_typed(rng, asked, around=True, a=a), *worked_out(sum_of_it.format(a=a))
    said = rng.choice(SIGNS[sign])
    if shape < 0.37:
        said = rng.choice(SIGNS[sign][2:3])
        a, b = str(rng.randint(0, 40)), str(rng.randint(1, 20))
        if sign == "/":
            a = str(int(b) * rng.randint(1, 4))
        question = as_typed(rng, rng.choice(ASK), around=True, e=f"{in_words(int(a))} {said} {in_words(int(b))}")
        return question, *worked_out(f"{a} {sign} {b}")
    gap = "" if not said.isalpha() and " " not in said and rng.random() < 0.35 else " "
    if said == "and":
        question = as_typed(
            rng, rng.choice(("How much is {e}?", "What do {e} make?", "What is {e}?")), e=f"{a} and {b}"
        )
    else:
        question = as_typed(rng, rng.choice(ASK), around=True, e=f"{a}{gap}{said}{gap}{b}")
    return question, *worked_out(f"{a} {sign} {b}")


def go_on(rng: random.Random, before: str) -> tuple[str, str, str]:
    """Like `plain_sum`, for a question that goes on with the result of the sum before."""
    sign = rng.choices("+-*/", weights=(30, 30, 30, 10))[0]
    b = str(rng.randint(2, 20) if sign in "*/" else rng.randint(1, 99))
    if sign == "*" and rng.random() < 0.2:
        return as_typed(
            rng, rng.choice(("Double it.", "And twice that?", "Now double that.", "Twice that"))
        ), *worked_out(f"{before} * 2")
    return as_typed(rng, rng.choice(GO_ON[sign].split("|")), b=b), *worked_out(f"{before} {sign} {b}")


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
