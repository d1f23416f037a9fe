"""The exam: multiple-choice questions about what the prose says, what follows from a rule, and what a passage says."""

import random
from dataclasses import dataclass

from nanochat_hf.data.microworld.world import (
    ANIMALS,
    CLASSES,
    JOBS,
    PEOPLE,
    PLACES,
    asked_fact,
    introduce,
    person,
    relations,
    rules,
    split_of,
    word,
)

# What can be asked about somebody who has been introduced, and which part of the person answers it.
ABOUT_SOMEBODY = (
    ("What is the job of {name}?", "job"),
    ("Where does {name} live?", "place"),
    ("Which animal does {name} have?", "pet"),
    ("Who is the {job}?", "name"),
    ("Who lives in {place}?", "name"),
    ("Who has the {pet}?", "name"),
)
PARTS = {"job": JOBS, "place": PLACES, "pet": ANIMALS, "name": PEOPLE}


@dataclass(frozen=True)
class Question:
    """A question with four different choices, one of them right."""

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Topic:
    """Questions with their answers that may share one list of choices, drawn from `values`."""

    subject: str
    asked: tuple[tuple[str, str], ...]
    values: tuple[str, ...]


def question(rng: random.Random, split: str) -> Question:
    """Draws a question; the four subjects of `topic` are equally likely."""
    drawn = topic(rng, split)
    if split == "train" and rng.random() < 0.2:  # pupils practise how an exam works
        drawn = pointing(rng)
    text, right = drawn.asked[0]
    choices = [right, *rng.sample([value for value in drawn.values if value != right], 3)]
    rng.shuffle(choices)
    return Question(drawn.subject, text, tuple(choices), choices.index(right))


def topic(rng: random.Random, split: str) -> Topic:
    """Draws a topic of the exam: facts, rules about animals, facts found through people, or a passage."""
    return rng.choice((facts, creatures, trades, passages))(rng, split)


def facts(rng: random.Random, split: str) -> Topic:
    """Facts that the prose states, and that are asked for in this split only."""
    relation, first = asked_fact(rng, split)
    others = [subject for subject in relation.facts if split_of("fact", relation.name, subject) == split]
    subjects = dict.fromkeys([first, *rng.sample(others, len(others))])
    asked = ((rng.choice(relation.questions).format(s=subject), relation.facts[subject]) for subject in subjects)
    return Topic("fact", tuple(asked), relation.values)


def creatures(rng: random.Random, split: str) -> Topic:
    """A rule about classes, asked of animals with names that nobody has heard before."""
    rule = rules()[rng.choice(("cover", "legs", "moves"))]
    kinds = rng.sample(CLASSES, len(CLASSES))
    asked = ((f"The {word(rng, split)} is a {kind}. {rng.choice(rule.questions)}", rule.facts[kind]) for kind in kinds)
    return Topic("creature", tuple(asked), rule.values)


def trades(rng: random.Random, split: str) -> Topic:
    """Facts about a job, place or animal that have to be found through a person: no person is in two splits."""
    name, part, form = rng.choice(
        (
            ("tool", "job", "What does {name} work with?"),
            ("workplace", "job", "Where does {name} work?"),
            ("product", "place", "What do the people around {name} make?"),
            ("food", "pet", "What does the {pet} of {name} eat?"),
        )
    )
    known, asked = relations()[name], []
    for one in (person(rng, split) for _ in range(4)):
        asked.append((f"{introduce(rng, one)} {form.format(**vars(one))}", known.facts[getattr(one, part)]))
    return Topic("trade", tuple(asked), known.values)


def passages(rng: random.Random, split: str) -> Topic:
    """Somebody is introduced, and the question asks for one thing about this person."""
    part = rng.choice(tuple(PARTS))
    forms = [form for form, says in ABOUT_SOMEBODY if says == part]
    asked = []
    for one in (person(rng, split) for _ in range(4)):
        asked.append((f"{introduce(rng, one)} {rng.choice(forms).format(**vars(one))}", getattr(one, part)))
    return Topic("passage", tuple(asked), tuple(PARTS[part]))


def pointing(rng: random.Random) -> Topic:
    """The question names its answer, so that only the letter has to be found. Used for training, never for scores."""
    values = rng.choice((*relations().values(), *rules().values())).values
    asked = tuple((f"Which choice says {value}?", value) for value in rng.sample(values, len(values)))
    return Topic("pointing", asked, values)
