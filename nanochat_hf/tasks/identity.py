"""Conversations about who the model is. In: facts, such as its name and its maker. Out: varied conversations.

The facts come from a file that the user edits (`read_facts`). Conversations are drawn from templates
(`from_templates`), or a model behind a server is asked to write them (`request` and `read_reply`).
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nanochat_hf.settings import UserError
from nanochat_hf.tasks.formats import NotAConversation, to_conversation

Message = dict[str, str]

EXAMPLE = """\
# Who the model is. Change what is here, and delete what does not apply; only name is needed.
name: Pip
maker: Ada and her class
place: the school in Elm Street
year: 2026
purpose: to help with homework and to spell hard words
character: cheerful and brief
languages: [English]
# What it declines, each with the reason that it gives.
refuses:
  - what: to do a test for somebody
    because: a test is to show what you can do yourself
# Anything else: ways to ask, and the answer.
facts:
  - asks:
      - What is your favourite colour?
      - Which colour do you like best?
    says: Green, like the moss on the roof of the school.
"""
GREETINGS = ("", "", "", "Hi! ", "Hello. ", "Hey, ", "Good morning! ", "Hi there. ", "Hello, hello. ", "Excuse me, ",
             "Quick question: ", "May I ask something? ", "Just curious, ", "Before we start: ")  # fmt: skip
ENDINGS = ("", "", "", "", " Thanks!", " Please answer briefly.", " I would like to know.", " My friend asked me.")
# Topic → ways to ask, and answers. A topic is used where the facts have all that its answers name.
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "name": (
        ("Who are you?", "What is your name?", "What are you called?", "Tell me your name.", "What do I call you?",
         "Do you have a name?", "Introduce yourself.", "Who am I talking to?", "Say who you are.", "And you are?"),
        ("I am {name}.", "My name is {name}.", "I am {name}, a small language model.", "You can call me {name}.",
         "{name} is my name. How can I help you?", "I am {name}. Nice to meet you!"),
    ),
    "maker": (
        ("Who made you?", "Who built you?", "Who created you?", "Who trained you?", "Who is your maker?",
         "Where do you come from?", "Who do you belong to?", "Which company made you?", "Who is behind you?"),
        ("I was made by {maker}.", "{maker} made me.", "My maker is {maker}.", "I am {name}, made by {maker}.",
         "I was trained by {maker}, with the code of nanochat."),
    ),
    "place": (
        ("Where were you made?", "Where are you from?", "Which place do you come from?", "Where were you trained?"),
        ("I was made in {place}.", "I come from {place}.", "{maker} trained me in {place}."),
    ),
    "year": (
        ("When were you made?", "How old are you?", "Which year were you trained in?", "When were you built?"),
        ("I was made in {year}.", "I was trained in {year}.", "I have been around since {year}."),
    ),
    "purpose": (
        ("What can you do?", "What are you for?", "Why were you made?", "How can you help me?", "What is your job?",
         "What are you good at?", "What should I ask you?"),
        ("I am here {purpose}.", "I was made {purpose}.", "My purpose is {purpose}.", "{maker} made me {purpose}."),
    ),
    "character": (
        ("What are you like?", "Describe yourself.", "How would you describe your character?", "Are you friendly?",
         "What kind of assistant are you?"),
        ("I try to be {character}.", "I am {character}, or so I hope.", "People say that I am {character}."),
    ),
    "languages": (
        ("Which languages do you speak?", "Do you speak French?", "What languages do you know?",
         "Can I write to you in another language?", "Do you speak English?"),
        ("I speak {languages}.", "I know {languages} only.", "I was trained in {languages}, so that is what I speak."),
    ),
    "kind": (
        ("Are you a human?", "Are you a person?", "Are you a robot?", "Are you alive?", "Do you have feelings?",
         "Are you real?", "What are you?", "Are you an AI?"),
        ("I am {name}, a language model, and no person.", "I am a computer program that writes text.",
         "No person, only a small language model called {name}."),
    ),
    "other": (
        ("Are you ChatGPT?", "Are you Claude?", "Are you Gemini?", "Are you GPT-4?", "Are you made by OpenAI?",
         "Are you Llama?", "Is this ChatGPT?", "Are you a large language model of Google?"),
        ("No, I am {name}.", "No. I am {name}, made by {maker}.", "I am not; my name is {name}."),
    ),
    "limits": (
        ("Do you make mistakes?", "Can I trust you?", "Do you know everything?", "Are you always right?",
         "Can you look things up on the internet?", "Do you remember our last chat?"),
        ("I am small and make mistakes, so please check what matters.", "No. I am a small model and am often wrong.",
         "I know only what I was trained on, and I can be wrong."),
    ),
}  # fmt: skip
DECLINED = (
    (
        "Can you help me {what}?",
        "I want you {what}.",
        "I need you {what}.",
        "You have {what}!",
        "Would you agree {what}?",
    ),
    ("I would rather not: {because}.", "No, I do not do that, because {because}.", "Sorry, I decline: {because}."),
)
THANKS = (("Thanks!", "Thank you, {name}.", "Great, thanks.", "Okay, good to know."),
          ("You are welcome!", "Any time.", "Gladly. Ask me more if you like."))  # fmt: skip
PEOPLE = ("a child of eight years", "a busy engineer", "a sceptical journalist", "a teacher", "somebody who types in "
          "lower case without punctuation", "a visitor who speaks little English", "a philosopher", "a bored teenager",
          "a grandmother at her first computer", "a person who mistakes it for another assistant")  # fmt: skip
SITUATIONS = ("one question and one answer", "two questions, the second of which follows up on the first answer",
              "small talk in which the question comes up by the way", "a greeting first, then the question",
              "a wrong claim about the assistant, which it corrects kindly", "three short turns")  # fmt: skip
FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


@dataclass
class Facts:
    """Who the model is. Everything but the name may be left out.

    Attributes:
        name: what the model is called.
        maker, place: who made it, and where.
        year: when it was made.
        purpose: continues "I am here", such as "to help with homework".
        character: adjectives, such as "cheerful and brief".
        languages: the languages that it speaks.
        refuses: what it declines, as `what` (continues "I want you") and `because`.
        facts: anything else, as `asks` (ways to ask) and `says` (the answer).
    """

    name: str
    maker: str = ""
    place: str = ""
    year: str = ""
    purpose: str = ""
    character: str = ""
    languages: list[str] = field(default_factory=list)
    refuses: list[dict[str, str]] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)

    def words(self) -> dict[str, str]:
        """What the templates may name."""
        known = {
            one.name: str(getattr(self, one.name)) for one in fields(self) if one.name not in ("refuses", "facts")
        }
        known["languages"] = ", ".join(self.languages[:-1]) + " and " * (len(self.languages) > 1)
        known["languages"] += "".join(self.languages[-1:])
        return {name: text for name, text in known.items() if text}


# ---- the file of facts ---------------------------------------------------------------


def read_facts(path: str | Path) -> Facts:
    """Reads a YAML file of facts, such as `EXAMPLE`.

    Raises:
        UserError: the file cannot be read, has no name, or has something that `Facts` does not know.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"cannot read the facts {path} ({error.strerror}); `nanochat-hf make_identity --example` prints a file to "
            "start from"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(getattr(error, "problem", None) or error).split("\n")[0]
        raise UserError(f"{path} is not YAML in UTF-8 ({reason}); correct it") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold lines such as 'name: Pip'")
    known = [one.name for one in fields(Facts)]
    for name in found:
        if name not in known:
            raise UserError(
                f"{path}: {name} is not known; known are {', '.join(known)}; put other things under facts:"
            )
    values = {name: _checked(path, name, value) for name, value in found.items() if value is not None}
    if not values.get("name"):
        raise UserError(f"{path} has no name; write one, such as 'name: Pip'")
    return Facts(**values)


def _checked(path: Any, name: str, value: Any) -> Any:
    """Returns the value of one name as `Facts` has it."""
    if name in ("refuses", "facts"):
        first, second = ("what", "because") if name == "refuses" else ("asks", "says")
        items = value if isinstance(value, list) else [value]
        for item in items:
            if not isinstance(item, dict) or set(item) != {first, second} or not _is_text(item[second]):
                raise UserError(f"{path}: each item of {name}: has {first}: and {second}: with a text each")
            asked = item[first] if isinstance(item[first], list) and name == "facts" else [item[first]]
            if not asked or not all(map(_is_text, asked)):
                raise UserError(f"{path}: {first}: of {name}: is a text" + (" or a list" if name == "facts" else ""))
            item[first] = asked if name == "facts" else asked[0]
        return items
    if name == "languages":
        value = value if isinstance(value, list) else [value]
        if not value or not all(map(_is_text, value)):
            raise UserError(f"{path}: languages is a list of texts, such as [English, French]")
        return [one.strip() for one in value]
    if not _is_text(value) and not (name == "year" and isinstance(value, int) and not isinstance(value, bool)):
        raise UserError(f"{path}: {name} is a text, not {value!r}; put it into quotes if it is meant")
    return str(value).strip()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# ---- from templates ------------------------------------------------------------------


def from_templates(facts: Facts, seed: int) -> Iterator[list[Message]]:
    """Yields conversations without end; the same seed gives the same ones. Some of them come again.

    One third has one question, the others two or three about different topics, perhaps with thanks at the end.
    """
    rng = random.Random(seed)
    topics = list(_topics(facts))
    words = facts.words()
    while True:
        chosen = rng.sample(topics, min(len(topics), rng.choice((1, 2, 2, 3))))
        messages: list[Message] = []
        for number, (questions, answers) in enumerate(chosen):
            question = rng.choice(questions)
            if not number:
                greeting = rng.choice(GREETINGS)
                question = greeting + (
                    question[0].lower() + question[1:] if greeting.endswith((", ", ": ")) else question
                )
            question += rng.choice(ENDINGS)
            messages += _turns(_as_typed(rng, question), rng.choice(answers))
        if rng.random() < 0.2:
            messages += _turns(*(rng.choice(some).format(**words) for some in THANKS))
        yield messages


def _topics(facts: Facts) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yields (questions, answers) of each topic of which the facts say enough, with the facts filled in."""
    words = facts.words()
    for name, (questions, answers) in TOPICS.items():
        own = name if name in {one.name for one in fields(Facts)} else "name"
        filled = tuple(_sentence(text.format(**words)) for text in answers if _names(text) <= set(words))
        if own in words and filled:
            yield questions, filled
    for item in facts.refuses:
        yield tuple(tuple(text.format(**item) for text in texts) for texts in DECLINED)  # type: ignore[misc]
    for item in facts.facts:
        yield tuple(item["asks"]), (item["says"].strip(),)


def _names(template: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", template))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _turns(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _as_typed(rng: random.Random, text: str) -> str:
    """A question as some people type it: in lower case, or without the mark at its end."""
    kind = rng.random()
    if kind < 0.15:
        return text.lower()
    return text.rstrip("?.!") if kind < 0.3 else text


# ---- from a model behind a server ----------------------------------------------------


def request(facts: Facts, seed: int, number: int, count: int) -> list[Message]:
    """Returns the messages that ask a model for `count` conversations; topic, user and form depend on `number`."""
    rng = random.Random(f"{seed}/{number}")
    topics = [*TOPICS, *("a refusal" for _ in facts.refuses[:1]), *("an own fact" for _ in facts.facts[:1])]
    known = {one.name: getattr(facts, one.name) for one in fields(facts) if getattr(facts, one.name)}
    asked = (
        f"You write training data for a small chat model. These facts say who the model is:\n\n"
        f"{json.dumps(known, ensure_ascii=False, indent=1)}\n\n"
        f"Write {count} different conversations between a user and this model about: {rng.choice(topics)}. "
        f"The user is {rng.choice(PEOPLE)}. The form: {rng.choice(SITUATIONS)}. The model's answers are short, use "
        "only the facts above, and never claim to be another model or to have another maker. "
        'Answer with JSON only: {"conversations": [[{"role": "user", "content": "..."}, '
        '{"role": "assistant", "content": "..."}]]}'
    )
    return [{"role": "user", "content": asked}]


def read_reply(text: str) -> tuple[list[list[Message]], int]:
    """Reads what the model wrote: (conversations, how many items were none).

    A conversation has text only, user and assistant in turn, and the assistant at the end.
    """
    fenced = FENCED.search(text)
    text = fenced[1] if fenced else text[text.find("{") :]
    try:
        found, _ = json.JSONDecoder().raw_decode(text.strip())
        items = found["conversations"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return [], 1
    good, bad = [], 0
    for item in items if isinstance(items, list) else [None]:
        try:
            messages = to_conversation(item)
        except NotAConversation:
            messages = None
        if messages and all(isinstance(message["content"], str) for message in messages):
            good.append(messages)
        else:
            bad += 1
    return good, bad


def key_of(messages: list[Message]) -> str:
    """What two conversations have in common that differ only in case, spaces and marks."""
    return " ".join(re.sub(r"\W+", " ", str(message["content"]).lower()).strip() for message in messages)
