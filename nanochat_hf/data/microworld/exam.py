"""Multiple-choice questions: about what the prose says, what follows from a rule, and what a passage says."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from nanochat_hf.data.microworld.world import (
    ANIMALS,
    CLASSES,
    JOBS,
    PEOPLE,
    PLACES,
    asked_fact,
    introduce,
    made_up_word,
    people,
    person,
    relations,
    rules,
    split_of,
)

# What can be asked about a person who has been introduced, and which attribute of `Person` answers it.
ABOUT_SOMEBODY = (
    ("What is the job of {name}?", "job"),
    ("Where does {name} live?", "place"),
    ("Which animal does {name} have?", "pet"),
    ("Who is the {job}?", "name"),
    ("Who lives in {place}?", "name"),
    ("Who has the {pet}?", "name"),
)
PARTS = {"job": JOBS, "place": PLACES, "pet": ANIMALS, "name": PEOPLE}

# Questions in two steps: the fact asked for, which attribute of `Person` it is a fact about, and the question.
THROUGH_SOMEBODY = (
    ("tool", "job", "What does {name} work with?"),
    ("workplace", "job", "Where does {name} work?"),
    ("terrain", "place", "Where does the town of {name} lie?"),
    ("product", "place", "What do the people around {name} make?"),
    ("flag", "place", "What colour is the flag where {name} lives?"),
    ("class", "pet", "What kind of animal does {name} have?"),
    ("home", "pet", "Where do animals like that of {name} live?"),
    ("food", "pet", "What does the pet of {name} eat?"),
)


@dataclass(frozen=True)
class Question:
    """A question with four different choices, one of them right.

    Attributes:
        subject: the kind of question; the functions that draw a `Topic` name theirs.
        text: the question.
        choices: the four choices.
        answer: the index of the right choice.
    """

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Topic:
    """Questions whose choices come from the same values, so that they can share one list of choices.

    Attributes:
        subject: the kind of question; the functions that draw a `Topic` name theirs.
        asked: pairs (question, right answer).
        values: everything that can be a choice.
        tempting: wrong answers to the first question; its passage names them, too.
    """

    subject: str
    asked: tuple[tuple[str, str], ...]
    values: tuple[str, ...]
    tempting: tuple[str, ...] = ()


def question(rng: random.Random, split: str) -> Question:
    """Draws a question. Another person of its passage is always among the choices.

    In tests two of five questions ask for facts, and half of the passages tell of two people. In training one of five
    asks only for the letter of a choice, because a model forgets how to find one.
    """
    kinds: dict[Callable[[random.Random, str], Topic], tuple[int, int]] = {  # → weights in training and in tests
        facts: (16, 40),
        creatures: (16, 20),
        trades: (20, 20),
        passages: (16, 10),
        passages_of_two: (12, 10),
        pointing: (20, 0),
    }
    (draw,) = rng.choices(tuple(kinds), weights=[weights[split != "train"] for weights in kinds.values()])
    drawn = draw(rng, split)
    text, right = drawn.asked[0]
    named = [right, *drawn.tempting]
    choices = named + rng.sample([value for value in drawn.values if value not in named], 4 - len(named))
    rng.shuffle(choices)
    return Question(drawn.subject, text, tuple(choices), choices.index(right))


def topic(rng: random.Random, split: str) -> Topic:
    """Draws a topic for a quiz: facts, rules about animals, facts found through a person, or passages of one."""
    return rng.choice((facts, creatures, trades, passages))(rng, split)


def facts(rng: random.Random, split: str) -> Topic:
    """Draws questions about facts that the prose states. Each fact is asked for directly in one split only."""
    relation, first = asked_fact(rng, split)
    others = [subject for subject in relation.facts if split_of("fact", relation.name, subject) == split]
    subjects = dict.fromkeys([first, *rng.sample(others, len(others))])
    asked = ((rng.choice(relation.questions).format(s=subject), relation.facts[subject]) for subject in subjects)
    return Topic("fact", tuple(asked), relation.values)


def creatures(rng: random.Random, split: str) -> Topic:
    """Draws questions about a rule for a class of animals, asked about animals with made-up names."""
    rule = rules()[rng.choice(("cover", "legs", "moves"))]
    kinds = rng.sample(CLASSES, len(CLASSES))
    asked = (
        (f"The {made_up_word(rng, split)} is a {kind}. {rng.choice(rule.questions)}", rule.facts[kind])
        for kind in kinds
    )
    return Topic("creature", tuple(asked), rule.values)


def trades(rng: random.Random, split: str) -> Topic:
    """Draws questions in two steps: a person's job, place or pet, and a fact about it. No person is in two splits."""
    name, part, form = rng.choice(THROUGH_SOMEBODY)
    known, asked = relations()[name], []
    for one in (person(rng, split) for _ in range(4)):
        asked.append((f"{introduce(rng, one)} {form.format(**vars(one))}", known.facts[getattr(one, part)]))
    return Topic("trade", tuple(asked), known.values)


def passages(rng: random.Random, split: str) -> Topic:
    """Draws questions that a passage answers: a person is introduced, and one attribute of the person is asked."""
    part = rng.choice(tuple(PARTS))
    forms = [form for form, says in ABOUT_SOMEBODY if says == part]
    asked = []
    for one in (person(rng, split) for _ in range(4)):
        asked.append((f"{introduce(rng, one)} {rng.choice(forms).format(**vars(one))}", getattr(one, part)))
    return Topic("passage", tuple(asked), tuple(PARTS[part]))


def passages_of_two(rng: random.Random, split: str) -> Topic:
    """Draws a question about a passage that introduces two people."""
    part = rng.choice(tuple(PARTS))
    form = rng.choice([form for form, says in ABOUT_SOMEBODY if says == part])
    introduced = people(rng, split, 2)
    asked, other = rng.sample(introduced, 2)
    told = " ".join(introduce(rng, one) for one in introduced)
    question = (f"{told} {form.format(**vars(asked))}", getattr(asked, part))
    return Topic("passage of two", (question,), tuple(PARTS[part]), (getattr(other, part),))


def pointing(rng: random.Random, split: str) -> Topic:
    """Draws questions that name their answer, so that only the letter has to be found. For training only."""
    values = rng.choice((*relations().values(), *rules().values())).values
    asked = tuple((f"Which choice says {value}?", value) for value in rng.sample(values, len(values)))
    return Topic("pointing", asked, values)
