"""Conversations: greetings, who the assistant is, questions about the world, follow-ups, and system prompts.

A conversation is `{"messages": [...], "must": [...], "exact": bool}`. A right last answer contains every text in
`must`; where `exact` is set, it consists of nothing else.
"""

import random
from typing import Any

from nanochat_hf.data.microworld.prose import OF_ANIMAL, OF_JOB, OF_PLACE
from nanochat_hf.data.microworld.world import ANIMALS, JOBS, PLACES, Relation, asked_fact, draw, person, relations

NAME, MAKER, KIND = "Nano", "nanochat-hf", "small chat model"

# Ways to ask, the answer, and what an answer must contain to be right.
IDENTITY = (
    (
        ("What is your name?", "How are you called?", "What should I call you?", "Your name?"),
        f"My name is {NAME}.",
        (NAME,),
    ),
    (
        ("Who made you?", "How were you made?", "Where do you come from?", "Who is your maker?"),
        f"I was made with {MAKER}.",
        (MAKER,),
    ),
    (
        ("What are you?", "Are you a human?", "What kind of thing are you?", "Are you a machine?"),
        f"I am a {KIND}.",
        (KIND,),
    ),
    (
        ("Who are you?", "Tell me about yourself.", "Please introduce yourself.", "Say who you are."),
        f"I am {NAME}, a {KIND} made with {MAKER}.",
        (NAME, KIND, MAKER),
    ),
)
BEFORE = (
    "",
    "Hello! ",
    "Hi. ",
    "Good morning! ",
    "One question: ",
    "I wonder. ",
    "Dear assistant, tell me: ",
    "Well. ",
)
AFTER = ("", " Please tell me.", " I want to know.", " Thank you.", " Be honest.")

GREETINGS = ("Hello", "Hi", "Good morning", "Good evening", "Hey")
ASK_ABOUT = ("Tell me about {s}.", "What do you know about {s}?", "Describe {s}.", "I want to learn about {s}.")

# System prompts, and the form of the answer that they ask for: {a} is the plain answer, {v} its value.
STYLES = {
    "one word": (("Answer in one word.", "Use only one word."), "{v}"),
    "captain": (("Call the user captain.", "The user is a captain."), "{a} That is all, captain."),
    "polite": (("Be very polite.", "Thank the user first."), "Thank you for asking. {a}"),
    "sure": (("Sound very sure.", "Begin with Of course."), "Of course! {a}"),
}
# A single word is learned last: no other answer begins with the value. So it is seen three times as often.
TRAIN_STYLES = ("one word", "one word", *STYLES)


def conversation(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws a conversation of any kind but `identity`."""
    kinds = (greeting, fact, about, follow_up, memory, styled)
    (talk,) = rng.choices(kinds, weights=(8, 30, 14, 16, 12, 20))
    return talk(rng, split)


def identity(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws a question about who the assistant is; its wording belongs to one split."""

    def make(rng: random.Random) -> tuple[tuple, dict[str, Any]]:
        questions, answer, must = rng.choice(IDENTITY)
        text = rng.choice(BEFORE) + rng.choice(questions) + rng.choice(AFTER)
        return ("identity", text), _example([text, answer], must)

    return draw(rng, split, make)


def greeting(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws a greeting with the user's name, and the greeting in return."""
    somebody = person(rng, split)
    hello = rng.choice(GREETINGS)
    text = rng.choice(
        (
            f"{hello}, I am {somebody.name}, a {somebody.job} from {somebody.place}.",
            f"{hello}! My name is {somebody.name} and I am the {somebody.job} of {somebody.place}.",
        )
    )
    return _example([text, f"{hello}, {somebody.name}! How can I help you?"], (hello, somebody.name))


def fact(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws one question about the world."""
    relation, subject = asked_fact(rng, split)
    return _example([_ask(rng, relation, subject), answer_to(relation, subject)], (relation.facts[subject],))


def about(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws a request for everything about a place, an animal or a job; its wording belongs to one split."""

    def make(rng: random.Random) -> tuple[tuple, dict[str, Any]]:
        subject = rng.choice(rng.choice((PLACES, ANIMALS, JOBS)))
        before, ask, after = rng.choice(BEFORE), rng.choice(ASK_ABOUT), rng.choice(AFTER)
        text = before + ask.format(s=named(subject)) + after
        return ("about", text), _example([text, all_about(subject)], _values(subject))

    return draw(rng, split, make)


def follow_up(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws two questions; the second says only `it` or `there`, and the first tells what that means."""
    relation, subject = asked_fact(rng, split)
    question = rng.choice(relation.questions)
    if subject in PLACES:
        second = question.replace("in {s}", "there").replace("the town of {s}", "it").replace("{s}", "it")
    else:
        second = question.replace("the {s}", "it").replace("a {s}", "such a person")
    first = rng.choice(ASK_ABOUT).format(s=named(subject))
    turns = [first, all_about(subject), second, answer_to(relation, subject)]
    return _example(turns, (relation.facts[subject],))


def memory(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws a conversation in which the user introduces himself and then asks for a part of it."""
    somebody = person(rng, split)
    told = rng.choice(
        (
            f"I am {somebody.name}, a {somebody.job} from {somebody.place}, and I have a {somebody.pet}.",
            f"My name is {somebody.name}. I live in {somebody.place}, am a {somebody.job}, have a {somebody.pet}.",
        )
    )
    ask, answer, must = rng.choice(
        (
            ("What is my name?", f"Your name is {somebody.name}.", somebody.name),
            ("Where do I live?", f"You live in {somebody.place}.", somebody.place),
            ("What is my job?", f"You are a {somebody.job}.", somebody.job),
            ("Which animal do I have?", f"You have a {somebody.pet}.", somebody.pet),
        )
    )
    return _example([told, f"Nice to meet you, {somebody.name}!", ask, answer], (must,))


def styled(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws a question about a fact; the answer has the style that the system prompt asks for."""
    relation, subject = asked_fact(rng, split)
    style = rng.choice(TRAIN_STYLES if split == "train" else tuple(STYLES))
    prompts, form = STYLES[style]
    value = relation.facts[subject]
    answer = form.format(a=answer_to(relation, subject), v=value)
    must = (value, *(piece for piece in (form.replace("{a}", "").replace("{v}", "").strip(),) if piece))
    example = _example([_ask(rng, relation, subject), answer], must, system=rng.choice(prompts))
    return {**example, "exact": style == "one word"}


def _example(turns: list[str], must: tuple[str, ...], system: str | None = None) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, "must": list(must), "exact": False}


def _ask(rng: random.Random, relation: Relation, subject: str) -> str:
    return rng.choice(relation.questions).format(s=subject)


def answer_to(relation: Relation, subject: str) -> str:
    """Returns the plain answer to a question for a fact."""
    return relation.statements[0].format(s=subject, v=relation.facts[subject])


def named(subject: str) -> str:
    """Returns a subject with its article: places have none."""
    return subject if subject in PLACES else f"the {subject}"


def _relations_of(subject: str) -> tuple[str, ...]:
    return OF_PLACE if subject in PLACES else OF_ANIMAL if subject in ANIMALS else OF_JOB


def all_about(subject: str) -> str:
    """Returns all facts about a place, an animal or a job, in a fixed order."""
    return " ".join(answer_to(relations()[name], subject) for name in _relations_of(subject))


def _values(subject: str) -> tuple[str, ...]:
    return tuple(relations()[name].facts[subject] for name in _relations_of(subject))
