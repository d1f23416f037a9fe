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
    people,
    person,
    relations,
    rules,
    word,
)


@dataclass(frozen=True)
class Question:
    """A question with four different choices, one of them right."""

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int


def question(rng: random.Random, split: str) -> Question:
    """Draws a question: two in five ask for a fact, the rest for what follows from a rule or from a passage."""
    kinds, weights = (fact, creature, trade, passage), (40, 15, 15, 30)
    if split == "train":  # pupils first learn how an exam works
        kinds, weights = (*kinds, pointing), (30, 10, 10, 25, 25)
    (write,) = rng.choices(kinds, weights=weights)
    text, right, wrong = write(rng, split)
    choices = [right, *rng.sample(sorted(set(wrong) - {right}), 3)]
    rng.shuffle(choices)
    return Question(write.__name__, text, tuple(choices), choices.index(right))


def fact(rng: random.Random, split: str) -> tuple[str, str, tuple[str, ...]]:
    """A fact that the prose states, and that is asked for in this split only."""
    relation, subject = asked_fact(rng, split)
    return rng.choice(relation.questions).format(s=subject), relation.facts[subject], relation.values


def creature(rng: random.Random, split: str) -> tuple[str, str, tuple[str, ...]]:
    """A rule about a class, asked of an animal with a name that nobody has heard before."""
    rule = rules()[rng.choice(("cover", "legs", "moves"))]
    kind = rng.choice(CLASSES)
    return f"The {word(rng, split)} is a {kind}. {rng.choice(rule.questions)}", rule.facts[kind], rule.values


def trade(rng: random.Random, split: str) -> tuple[str, str, tuple[str, ...]]:
    """A fact about a job, place or animal that has to be found through a person: no person is in two splits."""
    one = person(rng, split)
    name, subject, ask = rng.choice(
        (
            ("tool", one.job, f"What does {one.name} work with?"),
            ("workplace", one.job, f"Where does {one.name} work?"),
            ("product", one.place, f"What do the people around {one.name} make?"),
            ("food", one.pet, f"What does the {one.pet} of {one.name} eat?"),
        )
    )
    relation = relations()[name]
    return f"{introduce(rng, one)} {ask}", relation.facts[subject], relation.values


def passage(rng: random.Random, split: str) -> tuple[str, str, tuple[str, ...]]:
    """Two people are introduced; the question asks for one thing about one of them."""
    one, two = people(rng, split, 2)
    text = f"{introduce(rng, one)} {introduce(rng, two)}"
    about, other = (one, two) if rng.random() < 0.5 else (two, one)
    ask, right, near, far = rng.choice(
        (
            (f"What is the job of {about.name}?", about.job, other.job, JOBS),
            (f"Where does {about.name} live?", about.place, other.place, PLACES),
            (f"Which animal does {about.name} have?", about.pet, other.pet, ANIMALS),
            (f"Who is the {about.job}?", about.name, other.name, PEOPLE),
            (f"Who lives in {about.place}?", about.name, other.name, PEOPLE),
            (f"Who has the {about.pet}?", about.name, other.name, PEOPLE),
        )
    )
    return f"{text} {ask}", right, (near, *rng.sample([item for item in far if item not in (right, near)], 2))


def pointing(rng: random.Random, split: str) -> tuple[str, str, tuple[str, ...]]:
    """The question names its answer, so that only the letter has to be found. Used for training, never for scores."""
    relation = rng.choice((*relations().values(), *rules().values()))
    right = rng.choice(relation.values)
    return rng.choice((f"Which choice says {right}?", f"Where is {right}?")), right, relation.values
