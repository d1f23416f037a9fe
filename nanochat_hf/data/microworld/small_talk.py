"""Small talk: what people say that is neither a question about the world nor a task, and the answers to it.

The phrases are in `small_talk.yaml`, by kind.
"""

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nanochat_hf.data.microworld import conversations, words
from nanochat_hf.data.microworld.world import PEOPLE

PATH = Path(__file__).with_name("small_talk.yaml")
# Names of users that the world does not have.
NAMES = (
    "Tom Anna John Mary Sarah Peter Paul Lisa Emma Ben Max Julia Laura David Mark Sophie Alice Bob Carol Dave "
    "Eve Frank Grace Henry Ivan Jack Kate Leo Maria Nina Oliver Priya Quentin Rachel Sam Tina Uma Victor Will "
    "Xavier Yuki Zoe Alex Chris Jamie Robin Kim Lee Mohammed Fatima Wei Chen Ali Omar Carlos Jose Juan Luis Ana "
    "Elena Pierre Marie Jean Luca Giulia Hans Klaus Ingrid Lars Sven Bjorn Olaf Sean Liam Noah Mia Ella Lily "
    "Ruby Amy Jim Joe Dan Mike"
).split()


@dataclass(frozen=True)
class Kind:
    """One kind of small talk.

    Attributes:
        said: messages, some with slots and choices, as `typing_habits.as_typed` reads them.
        answers: the right answers.
        weight: how often the kind comes up beside the others.
    """

    said: tuple[str, ...]
    answers: tuple[str, ...]
    weight: float


@lru_cache(maxsize=1)
def kinds() -> dict[str, Kind]:
    """Returns all kinds of small talk by name."""
    import yaml

    about_itself = {
        "assistant": conversations.NAME,
        "model": conversations.KIND,
        "maker": conversations.MAKER,
    }
    return {
        name: Kind(
            said=(*(text.strip() for text in kind["said"].split("|")), *kind.get("patterns", "").splitlines()),
            answers=tuple(answer.format(**about_itself) for answer in kind["answers"]),
            weight=kind["weight"],
        )
        for name, kind in yaml.safe_load(PATH.read_text(encoding="utf-8")).items()
    }


def fillers(rng: random.Random) -> dict[str, str]:
    """Draws what can stand in the slots of small talk and of questions about the outside world."""
    return {
        "thing": rng.choice(rng.choice((words.ENGLISH, words.SUBJECTS, words.FOODS, words.CREATURES))).lower(),
        "other": rng.choice(words.ENGLISH),
        "creature": rng.choice(words.CREATURES),
        "food": rng.choice(words.FOODS),
        "subject": rng.choice(words.SUBJECTS),
        "country": rng.choice(words.COUNTRIES),
        "city": rng.choice(words.CITIES),
        "who": rng.choice(words.CELEBRITIES),
        "brand": rng.choice(words.BRANDS),
        "name": any_name(rng),
        "age": str(rng.randint(3, 90)),
        "year": str(rng.randint(1000, 2030)),
        "digits": str(rng.randint(0, 10 ** rng.randint(1, 7))),
        "gibberish": "".join(rng.choice("bcdfghjklmnpqrstvwxzaeiouyy") for _ in range(rng.randint(3, 7))),
    }


def any_name(rng: random.Random) -> str:
    """Draws a first name: of the world, common, or made up."""
    if rng.random() < 0.4:
        parts = [rng.choice(words.ONSETS) + rng.choice(words.VOWELS) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
        return "".join((*parts, rng.choice((*words.CODAS, "na", "la", "ro", "ni", "tta", "rd")))).capitalize()
    return rng.choice(NAMES) if rng.random() < 0.6 else rng.choice(PEOPLE)
