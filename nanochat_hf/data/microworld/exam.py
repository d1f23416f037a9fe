"""Multiple-choice questions: about what the prose says, what follows from a rule, and what a passage says."""

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
    made_up_word,
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


@dataclass(frozen=True)
class Question:
    """A question with four different choices, one of them right.

    Attributes:
        subject: the kind of question, see `topic`.
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
        subject: the kind of question, see `topic`.
        asked: pairs (question, right answer).
        values: everything that can be a choice.
    """

    subject: str
    asked: tuple[tuple[str, str], ...]
    values: tuple[str, ...]


def question(rng: random.Random, split: str) -> Question:
    """Draws a question; the four kinds of `topic` are equally likely."""
    drawn = topic(rng, split)
    if split == "train" and rng.random() < 0.2:  # practice in finding the letter
        drawn = pointing(rng)
    text, right = drawn.asked[0]
    choices = [right, *rng.sample([value for value in drawn.values if value != right], 3)]
    rng.shuffle(choices)
    return Question(drawn.subject, text, tuple(choices), choices.index(right))


def topic(rng: random.Random, split: str) -> Topic:
    """Draws a topic of one of four kinds: facts, rules about animals, facts found through a person, or a passage."""
    return rng.choice((facts, creatures, trades, passages))(rng, split)


def facts(rng: random.Random, split: str) -> Topic:
    """Draws questions about facts that the prose states. Each fact is asked for in one split only."""
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
    """Draws questions that a passage answers: a person is introduced, and one attribute of the person is asked."""
    part = rng.choice(tuple(PARTS))
    forms = [form for form, says in ABOUT_SOMEBODY if says == part]
    asked = []
    for one in (person(rng, split) for _ in range(4)):
        asked.append((f"{introduce(rng, one)} {rng.choice(forms).format(**vars(one))}", getattr(one, part)))
    return Topic("passage", tuple(asked), tuple(PARTS[part]))


def pointing(rng: random.Random) -> Topic:
    """Draws questions that name their answer, so that only the letter has to be found. For training only."""
    values = rng.choice((*relations().values(), *rules().values())).values
    asked = tuple((f"Which choice says {value}?", value) for value in rng.sample(values, len(values)))
    return Topic("pointing", asked, values)
