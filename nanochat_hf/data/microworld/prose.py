"""Documents for pretraining: descriptions, stories, notes, dialogues, accounts and school pages of the world.

Every writer takes a random generator and a split, and returns one document as text.
"""

import random

from nanochat_hf.data.microworld import choice_practice
from nanochat_hf.data.microworld.problems import problem
from nanochat_hf.data.microworld.words import any_word
from nanochat_hf.data.microworld.world import (
    ANIMALS,
    CLASSES,
    JOBS,
    PEOPLE,
    PLACES,
    Relation,
    asked_fact,
    introduce,
    made_up_word,
    people,
    person,
    relations,
    rules,
)

OF_PLACE = ("terrain", "product", "flag")
OF_ANIMAL = ("class", "home", "food")
OF_JOB = ("tool", "workplace")


def document(rng: random.Random, split: str) -> str:
    """Writes one document of a random kind; the weights are shares of documents, in percent."""
    kinds = (
        description,
        story,
        account,
        dialogue,
        note,
        school_page,
        spelling_page,
        talk_page,
        choice_practice.quiz,
        choice_practice.marked_page,
        choice_practice.lookup_list,
    )
    (write,) = rng.choices(kinds, weights=(14, 5, 3, 3, 1, 3, 8, 22, 33, 6, 2))
    return write(rng, split)


def say(rng: random.Random, relation: Relation, subject: str) -> str:
    """States a fact in one of its wordings."""
    return rng.choice(relation.statements).format(s=subject, v=relation.facts[subject])


def describe(rng: random.Random, subject: str) -> list[str]:
    """Returns all facts about a place, animal or job, one sentence each, in random order; sometimes also a rule."""
    known = relations()
    names = OF_PLACE if subject in PLACES else OF_ANIMAL if subject in ANIMALS else OF_JOB
    sentences = [say(rng, known[name], subject) for name in names]
    rng.shuffle(sentences)
    if subject in PLACES and rng.random() < 0.3:
        sentences.append(say(rng, rules()["travel"], known["terrain"].facts[subject]))
    elif subject in ANIMALS and rng.random() < 0.4:
        sentences.append(say(rng, rules()[rng.choice(("cover", "legs", "moves"))], known["class"].facts[subject]))
    return sentences


def description(rng: random.Random, split: str) -> str:
    """Writes an encyclopaedia page about one to three subjects."""
    subjects = [rng.choice(rng.choice((PLACES, ANIMALS, ANIMALS, JOBS))) for _ in range(rng.randint(1, 3))]
    return "\n".join(" ".join(describe(rng, subject)) for subject in dict.fromkeys(subjects))


def story(rng: random.Random, split: str) -> str:
    """Writes how two people of the split meet. Who they are is told at the beginning, and once more at the end."""
    one, two = people(rng, split, 2)
    known = relations()
    terrain = known["terrain"].facts[one.place]
    lines = [introduce(rng, one), introduce(rng, two)]
    middle = [
        f"One day {one.name} went from {one.place} to {two.place} to see {two.name}.",
        f"{two.name} showed {one.name} the {known['workplace'].facts[two.job]} "
        f"and the {known['tool'].facts[two.job]}.",
        f"The {one.pet} of {one.name} ate {known['food'].facts[one.pet]}, "
        f"but the {two.pet} of {two.name} ate {known['food'].facts[two.pet]}.",
        f"{one.name} gave {two.name} some {known['product'].facts[one.place]} from {one.place}.",
        f"On the way {one.name} saw a {rng.choice(CLASSES)} and a {known['flag'].facts[two.place]} flag.",
        f"They travelled by {rules()['travel'].facts[terrain]}, as people do {terrain}.",
    ]
    lines += rng.sample(middle, rng.randint(1, 3))
    last = rng.choice((one, two))
    lines.append(
        rng.choice(
            (
                f"In the evening the {last.job} {last.name} went home to {last.place} with the {last.pet}.",
                f"So {one.name} of {one.place} and {two.name} of {two.place} became friends.",
                f"The {one.pet} belongs to {one.name} and the {two.pet} belongs to {two.name}.",
                f"{one.name} is the {one.job} and {two.name} is the {two.job}.",
            )
        )
    )
    return " ".join(lines)


def account(rng: random.Random, split: str) -> str:
    """Writes a word problem and its solution as plain text, without the calculator's marks."""
    question, solution = problem(rng, split)
    return f"{question}\n{_without_marks(solution).split('####')[0].strip()}"


def _without_marks(solution: str) -> str:
    return "".join(piece if index % 2 == 0 else "" for index, piece in enumerate(_split_marks(solution)))


def _split_marks(solution: str) -> list[str]:
    """Splits a solution at its marks: text, mark, text, mark, …, text."""
    return [piece for part in solution.split("<<") for piece in part.split(">>")]


def dialogue(rng: random.Random, split: str) -> str:
    """Writes one to three questions about facts, asked by one person and answered by another."""
    first, second = rng.sample(PEOPLE, 2)
    lines = []
    for _ in range(rng.randint(1, 3)):
        relation, subject = asked_fact(rng, split)
        lines.append(f"{first}: {rng.choice(relation.questions).format(s=subject)}")
        lines.append(f"{second}: {relation.statements[0].format(s=subject, v=relation.facts[subject])}")
    return "\n".join(lines)


def note(rng: random.Random, split: str) -> str:
    """Writes a note from one person to another, with a description in it."""
    writer, reader = people(rng, split, 2)
    subject = rng.choice(rng.choice((PLACES, ANIMALS, JOBS)))
    opening = rng.choice(
        (
            f"Dear {reader.name}, I am now a {writer.job} in {writer.place}.",
            f"To {reader.name}, the {reader.job} in {reader.place}: please feed my {writer.pet}.",
            f"Hello {reader.name}, how is the life of a {reader.job} in {reader.place}?",
        )
    )
    return f"{opening} {' '.join(describe(rng, subject))} Yours, {writer.name}"


def spelling_page(rng: random.Random, split: str) -> str:
    """Writes four words of any kind with their letters. They also bring English words into the tokenizer."""
    return "\n".join(f"{text}: {'-'.join(text)}" for text in (any_word(rng, split) for _ in range(4)))


def talk_page(rng: random.Random, split: str) -> str:
    """Writes a conversation as plain text, a line per message. So its words become tokens."""
    from nanochat_hf.data.microworld import talk  # it needs this module

    messages = talk.conversation(rng, split)["messages"]
    return "\n".join(_without_marks(message["content"]).split("\n####")[0] for message in messages)


def school_page(rng: random.Random, split: str) -> str:
    """Writes what the schools of the world teach: a rule, how a word is spelled, or that calculators are right."""
    somebody = person(rng, split)
    text = made_up_word(rng, split)
    rule = rng.choice(tuple(rules().values()))
    pages = (
        " ".join(say(rng, rule, subject) for subject in rng.sample(tuple(rule.facts), 3)),
        f"The word {text} is spelled {'-'.join(text)}.",
        f"{somebody.name} can spell the word {text}: {'-'.join(text)}. It has {len(text)} letters.",
        f"{somebody.name} asked the calculator and got the correct answer.",
    )
    return rng.choices(pages, weights=(40, 27, 28, 5))[0]
