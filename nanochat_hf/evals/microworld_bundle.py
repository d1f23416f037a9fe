"""Completion tasks about the microworld, as a bundle in the format of CORE. Nothing is downloaded.

The mean centered accuracy says what a model knows of the microworld. It is reported as `microworld_completion`,
because it cannot be compared with CORE on its 22 tasks.
"""

import random
from collections.abc import Callable
from pathlib import Path

from nanochat_hf.data.microworld import exam, world
from nanochat_hf.data.microworld.prose import introduce
from nanochat_hf.evals.bundle import Item, write_tasks


def facts(rng: random.Random, split: str) -> Item:
    """Multiple choice: the last word of a sentence of the world's encyclopaedia."""
    relation, subject = world.asked_fact(rng, split)
    statement = next(form for form in relation.statements if form.endswith("{v}."))
    right = relation.facts[subject]
    wrong = rng.sample([value for value in relation.values if value != right], 3)
    choices = [f"{value}." for value in (right, *wrong)]
    rng.shuffle(choices)
    query = statement.format(s=subject, v="").removesuffix(" .")
    return {"query": query, "choices": choices, "gold": choices.index(f"{right}.")}


def passages(rng: random.Random, split: str) -> Item:
    """Multiple choice: a question about two people who have just been introduced."""
    told, about, other = _two_people(rng, split)
    form, part = rng.choice(exam.ABOUT_SOMEBODY)
    right, near = getattr(about, part), getattr(other, part)
    choices = [right, near, *rng.sample([value for value in exam.PARTS[part] if value not in (right, near)], 2)]
    rng.shuffle(choices)
    query = f"Question: {told} {form.format(**vars(about))}"
    return {"query": query, "choices": choices, "gold": choices.index(right)}


def owners(rng: random.Random, split: str) -> Item:
    """Schema: who has this job? The two contexts differ in one name."""
    told, about, other = _two_people(rng, split)
    options = [f"{told} {name} is the" for name in (about.name, other.name)]
    right = options[0]
    rng.shuffle(options)
    return {"context_options": options, "continuation": f"{about.job}.", "gold": options.index(right)}


def _two_people(rng: random.Random, split: str) -> tuple[str, world.Person, world.Person]:
    """A text that introduces two people, and the two people in random order."""
    one, two = world.people(rng, split, 2)
    told = f"{introduce(rng, one)} {introduce(rng, two)}"
    return (told, one, two) if rng.random() < 0.5 else (told, two, one)


def recall(rng: random.Random, split: str) -> Item:
    """Language modelling: the last word of an encyclopaedia sentence, exactly."""
    relation, subject = world.asked_fact(rng, split)
    statement = next(form for form in relation.statements if form.endswith("{v}."))
    return {"context": statement.format(s=subject, v="").removesuffix(" ."), "continuation": relation.facts[subject]}


# Label → maker, kind, few-shot examples, delimiter, chance in percent.
TASKS: dict[str, tuple[Callable[[random.Random, str], Item], str, int, str, float]] = {
    "microworld_facts": (facts, "multiple_choice", 0, " ", 25),
    "microworld_passages": (passages, "multiple_choice", 2, "\nAnswer: ", 25),
    "microworld_owners": (owners, "schema", 0, " ", 50),
    "microworld_recall": (recall, "language_modeling", 2, " ", 0),
}


def write_bundle(folder: str | Path, *, items: int = 100, split: str = "test", seed: int = 0) -> Path:
    """Writes the bundle and returns its folder. The same arguments give the same bytes.

    Args:
        folder: is made where it is missing.
        items: items per task.
        split: split of the microworld that the questions are about: "train", "validation" or "test".
        seed: of the draws.
    """
    tasks = {}
    for label, (make, *about) in TASKS.items():
        rng = random.Random(f"{label} {split} {seed}")
        tasks[label] = ([make(rng, split) for _ in range(items)], *about)
    return write_tasks(Path(folder), "microworld", tasks)
