"""How people type: small letters, shorthand, missing or doubled marks, mistakes, and polite words around a request."""

import random
import re
from collections.abc import Sequence

OPENERS = (
    "hey, |hey |hi, |hi! |hello, |ok, |ok |okay, |so |so, |please |well, |um, |and |now |one more question: "
    "|quick question: "
    "|can you tell me |could you tell me |tell me: |tell me, |I wonder, |next: |then |alright, |sorry, "
    "|I want to know: "
    "|do you know |another one: |my question: |yes, |no, |thanks. |great. |cool. |oh, |but "
).split("|")
CLOSERS = (
    " please|, please| thanks|, thanks| thank you| for me| pls| ok| now| again| then| do you know"
    "| if you can| buddy| please tell me| my friend"
).split("|")

SHORTHAND = {
    "are": "r",
    "because": "cuz",
    "love": "luv",
    "night": "nite",
    "people": "ppl",
    "please": "pls",
    "thank": "thx",
    "thanks": "thx",
    "tomorrow": "tmrw",
    "tonight": "tonite",
    "what": "wat",
    "why": "y",
    "you": "u",
    "you're": "ur",
    "your": "ur",
}


def any_way(rng: random.Random, templates: Sequence[str]) -> str:
    """Draws a template for `as_typed`. Where some have choices, half of the draws are of these."""
    with_choices = [template for template in templates if "[" in template]
    return rng.choice(with_choices if with_choices and rng.random() < 0.5 else templates)


def as_typed(rng: random.Random, template: str, around: bool = False, **slots: str) -> str:
    """Fills a template and returns it as somebody could have typed it.

    Args:
        template: text with `{slot}`s and choices such as `[so/very/]`, of which one is taken. What fills a slot is
            never misspelt; in a text of small letters it may become small too.
        around: whether polite or connecting words may stand before and after it. Only for requests and questions.
    """
    template = chosen(rng, template) if "[" in template else template
    pieces = re.split(r"(\{\w+\})", template)  # text, slot, text, …, text
    habit = rng.random()
    small, loud = habit < 0.35, habit > 0.98
    if rng.random() < (0.7 if small else 0.2):
        pieces[-1] = pieces[-1].rstrip("?!.")
    elif rng.random() < 0.05:
        pieces[-1] += pieces[-1][-1:] if pieces[-1][-1:] in ("?", "!") else rng.choice(("...", "!", "!!", " :)"))
    elif rng.random() < 0.05 and pieces[-1][-1:] in ("?", "!", "."):
        pieces[-1] = pieces[-1][:-1] + rng.choice((" ?", ".", "!", "??"))
    if around and rng.random() < 0.18:
        pieces[0] = rng.choice(OPENERS) + (pieces[0][:1].lower() + pieces[0][1:] if rng.random() < 0.6 else pieces[0])
    if around and rng.random() < 0.1:
        mark = pieces[-1][-1:] if pieces[-1][-1:] in ("?", ".", "!") else ""
        pieces[-1] = pieces[-1][: len(pieces[-1]) - len(mark)] + rng.choice(CLOSERS) + mark
    if rng.random() < 0.3:
        pieces[::2] = [piece.replace("'", "") for piece in pieces[::2]]
    if rng.random() < 0.07:
        place = rng.choice(range(0, len(pieces), 2))
        pieces[place] = _mistyped(rng, pieces[place])
    if rng.random() < 0.06 and "c" not in slots:  # single letters would be confused with the letter to count
        pieces[::2] = [_in_shorthand(piece) for piece in pieces[::2]]
    if rng.random() < 0.02:
        pieces[0] = _drawn_out(rng, pieces[0])
    for place, piece in enumerate(pieces):
        text = slots[piece[1:-1]] if place % 2 else piece
        if (small and (not place % 2 or rng.random() < 0.7)) or (loud and not place % 2):
            text = text.lower() if small else text.upper()
        pieces[place] = text
    return "".join(pieces)


def chosen(rng: random.Random, template: str) -> str:
    """Takes one of each group of choices, and closes the gaps that empty ones leave."""
    text = re.sub(r"\[([^]]*)\]", lambda group: rng.choice(group[1].split("/")), template)
    return re.sub(r"\s+(?=[,.!?'\s])", "", text).strip(" ,")


def _in_shorthand(text: str) -> str:
    return re.sub(r"[A-Za-z']+", lambda word: SHORTHAND.get(word[0].lower(), word[0]), text)


def _drawn_out(rng: random.Random, text: str) -> str:
    """Repeats the last vowel of a word, as in "heyyy" and "sooo", if there is a word that ends in one."""
    ends = [found.end() for found in re.finditer(r"[A-Za-z]+[aeiouy]\b", text)]
    if not ends:
        return text
    end = rng.choice(ends)
    return text[:end] + text[end - 1] * rng.randint(1, 4) + text[end:]


def _mistyped(rng: random.Random, text: str) -> str:
    """Doubles, drops or swaps one letter inside a word of at least four letters, if there is one."""
    words = [found.span() for found in re.finditer(r"[A-Za-z]{4,}", text)]
    if not words:
        return text
    start, end = rng.choice(words)
    place = rng.randrange(start + 1, end - 1)
    return rng.choice(
        (
            text[:place] + text[place] + text[place:],
            text[:place] + text[place + 1 :],
            text[:place] + text[place + 1] + text[place] + text[place + 2 :],
        )
    )
