"""The world itself: its people, places, animals and jobs, what is true of them, and the rules that hold for all.

Everything here is fixed. `split_of` alone decides which combinations an item of a split may use: the hash of a key
puts each combination into exactly one split. So the splits are disjoint, whatever is generated.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

SPLITS = ("train", "validation", "test")

PEOPLE = (
    "Ada Anton Bela Boris Cara Cyril Dana Dorn Elsa Emil Fara Finn Gita Goran Hanna Hugo Ida Igor Jana Jonas Kaja "
    "Karl Lena Linus Mara Milo Nora Nils Olga Oskar Petra Pavel Rosa Ravi Selma Simon Tara Tobin Ula Viktor Vera "
    "Wanda Willem Yara Yusuf Zara Zeno Mira"
).split()
PLACES = (
    "Alderby Brackwater Coldham Dunmoor Elkford Fernhill Greyport Harrow Inverlea Juniper Kestrel Larkfield Millbrook "
    "Northgate Oakmere Pinewood Quarry Redcliff Saltby Thornton Umber Vineyard Westhaven Yarrow"
).split()
ANIMALS = (
    "bramble corvin dapple heskel fennick gorrel hob jackle kittle lumpin molo nettick polm pibble quill rook sorrel "
    "tiffin murchin velk wimble yaffle zorrel badgin"
).split()
JOBS = "baker miller smith weaver potter fisher tailor carter gardener painter teacher doctor hunter mason".split()

CLASSES = ("bird", "fish", "beast", "bug")
TERRAINS = ("by the sea", "on a hill", "in a forest", "by a river", "by a lake", "in a valley")
PRODUCTS = "cheese rope honey paper lamps boots bells glass soap bread chairs wool".split()
COLOURS = "red blue green yellow white black brown golden".split()
HOMES = "caves trees rivers fields marshes barns gardens wells".split()
FOODS = "seeds moss berries roots worms leaves grass nuts".split()
TOOLS = "oven grindstone hammer loom wheel net needle wagon spade brush slate lens bow chisel".split()
WORKPLACES = "kitchen mill forge hall shed boat shop road orchard studio school clinic woods yard".split()

ITEMS = "eggs apples coins loaves candles nails pots stones ribbons books shells pears".split()

T = TypeVar("T")


@dataclass(frozen=True)
class Relation:
    """A property of subjects, with the sentences that state it and ask for it.

    Attributes:
        name: the property's name.
        facts: the value for each subject.
        statements: templates; `{s}` is the subject and `{v}` the value. The first is the plain answer to a question.
        questions: templates of the questions.
    """

    name: str
    facts: dict[str, str]
    statements: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def values(self) -> tuple[str, ...]:
        """The distinct values."""
        return tuple(dict.fromkeys(self.facts.values()))


def split_of(*key: object) -> str:
    """Returns the split that a combination belongs to: 70 % train, 15 % validation, 15 % test."""
    bucket = zlib.crc32("|".join(map(str, key)).encode()) % 20
    return "train" if bucket < 14 else "validation" if bucket < 17 else "test"


def draw(rng: random.Random, split: str, make: Callable[[random.Random], tuple[tuple, T]]) -> T:
    """Calls `make` until it returns a (key, item) whose key belongs to `split`; returns that item."""
    while True:
        key, item = make(rng)
        if split_of(*key) == split:
            return item


@lru_cache(maxsize=1)
def relations() -> dict[str, Relation]:
    """Returns all facts by name: three about each place and each animal, two about each job."""
    rng = random.Random("facts of the microworld")

    def spread(subjects: list[str], values: tuple[str, ...] | list[str]) -> dict[str, str]:
        """Gives each subject a value, all values about equally often."""
        pool = [values[index % len(values)] for index in range(len(subjects))]
        rng.shuffle(pool)
        return dict(zip(subjects, pool, strict=True))

    found = (
        Relation(
            "terrain",
            spread(PLACES, TERRAINS),
            ("{s} lies {v}.", "The town of {s} lies {v}.", "You find {s} {v}.", "{s} was built {v}."),
            ("Where does {s} lie?", "Where was {s} built?", "Where do you find the town of {s}?"),
        ),
        Relation(
            "product",
            spread(PLACES, PRODUCTS),
            ("People in {s} make {v}.", "{s} is known for its {v}.", "They make good {v} in {s}."),
            ("What do people in {s} make?", "What is {s} known for?"),
        ),
        Relation(
            "flag",
            spread(PLACES, COLOURS),
            ("The flag of {s} is {v}.", "Over {s} flies a {v} flag.", "{s} has a {v} flag."),
            ("What colour is the flag of {s}?", "Which colour has the flag of {s}?"),
        ),
        Relation(
            "class",
            spread(ANIMALS, CLASSES),
            ("The {s} is a {v}.", "A {s} is a kind of {v}.", "Of all animals the {s} is a {v}."),
            ("What kind of animal is the {s}?", "Is the {s} a bird, a fish, a beast or a bug?"),
        ),
        Relation(
            "home",
            spread(ANIMALS, HOMES),
            ("The {s} lives in {v}.", "You find the {s} in {v}.", "The home of the {s} is in {v}."),
            ("Where does the {s} live?", "Where do you find the {s}?"),
        ),
        Relation(
            "food",
            spread(ANIMALS, FOODS),
            ("The {s} eats {v}.", "The {s} likes to eat {v}.", "The food of the {s} is {v}."),
            ("What does the {s} eat?", "What is the food of the {s}?"),
        ),
        Relation(
            "tool",
            dict(zip(JOBS, TOOLS, strict=True)),
            ("A {s} works with the {v}.", "Every {s} needs the {v}.", "The {v} is the tool of the {s}."),
            ("What does a {s} work with?", "What is the tool of the {s}?"),
        ),
        Relation(
            "workplace",
            dict(zip(JOBS, WORKPLACES, strict=True)),
            ("A {s} works in the {v}.", "You find a {s} in the {v}.", "The {v} is where a {s} works."),
            ("Where does a {s} work?", "Where do you find a {s}?"),
        ),
    )
    return {relation.name: relation for relation in found}


@lru_cache(maxsize=1)
def rules() -> dict[str, Relation]:
    """Returns the rules by name: three for the four classes of animals, one for the six terrains of towns."""
    found = (
        Relation(
            "cover",
            dict(zip(CLASSES, ("feathers", "scales", "fur", "shell"), strict=True)),
            ("Every {s} is covered with {v}.", "A {s} has {v}.", "All that is a {s} wears {v}."),
            ("What is it covered with?", "What does it wear on its body?"),
        ),
        Relation(
            "legs",
            dict(zip(CLASSES, ("two", "no", "four", "six"), strict=True)),
            ("Every {s} has {v} legs.", "A {s} stands on {v} legs.", "Count the legs of a {s}: it has {v} legs."),
            ("How many legs does it have?", "On how many legs does it stand?"),
        ),
        Relation(
            "moves",
            dict(zip(CLASSES, ("flies", "swims", "runs", "crawls"), strict=True)),
            ("Every {s} {v}.", "A {s} {v} all day.", "How does a {s} move? It {v}."),
            ("How does it move?", "What does it do all day?"),
        ),
        Relation(
            "travel",
            dict(zip(TERRAINS, ("ship", "donkey", "sledge", "raft", "canoe", "coach"), strict=True)),
            ("In a town {s} people travel by {v}.", "Towns {s}: people travel by {v}."),
            ("How do people travel there?", "What do people there travel by?"),
        ),
    )
    return {relation.name: relation for relation in found}


@dataclass(frozen=True)
class Person:
    """A person with a place, a job and a pet. The combination of name, place and job belongs to one split."""

    name: str
    place: str
    job: str
    pet: str

    def key(self) -> tuple[str, ...]:
        """The key for `split_of`."""
        return ("person", self.name, self.place, self.job)


def person(rng: random.Random, split: str) -> Person:
    """Draws a person of the split."""

    def make(rng: random.Random) -> tuple[tuple, Person]:
        found = Person(rng.choice(PEOPLE), rng.choice(PLACES), rng.choice(JOBS), rng.choice(ANIMALS))
        return found.key(), found

    return draw(rng, split, make)


def introduce(rng: random.Random, somebody: Person) -> str:
    """Returns one or two sentences with a person's name, place, job and pet."""
    name, place, job, pet = somebody.name, somebody.place, somebody.job, somebody.pet
    return rng.choice(
        (
            f"{name} is a {job} in {place} and has a {pet}.",
            f"In {place} lives {name}, a {job} with a {pet}.",
            f"{name} lives in {place}. {name} is a {job} and keeps a {pet}.",
            f"The {job} {name} comes from {place} and owns a {pet}.",
            f"{name} has a {pet}. {name} works as a {job} in {place}.",
        )
    )


def people(rng: random.Random, split: str, count: int) -> list[Person]:
    """Draws `count` people of the split; all their names, places, jobs and pets differ."""
    found: list[Person] = []
    while len(found) < count:
        other = person(rng, split)
        if all(getattr(other, part) != getattr(one, part) for one in found for part in other.__dataclass_fields__):
            found.append(other)
    return found


def asked_fact(rng: random.Random, split: str) -> tuple[Relation, str]:
    """Draws a relation and a subject that questions of this split may ask for.

    Prose states every fact in every split, and the exam asks for every fact through a person (`exam.trades`). But each
    fact is asked for directly in one split only, so that no direct test question can be learned by heart.
    """

    def make(rng: random.Random) -> tuple[tuple, tuple[Relation, str]]:
        relation = rng.choice(tuple(relations().values()))
        subject = rng.choice(tuple(relation.facts))
        return ("fact", relation.name, subject), (relation, subject)

    return draw(rng, split, make)


def made_up_word(rng: random.Random, split: str) -> str:
    """Draws a made-up word of the split: two or three syllables, four to seven letters."""

    def make(rng: random.Random) -> tuple[tuple, str]:
        syllables = [rng.choice("bdfghklmnprstvw") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))]
        text = "".join(syllables) + rng.choice(("", "n", "r", "s", "l", "m"))
        return ("word", text), text

    return draw(rng, split, make)
