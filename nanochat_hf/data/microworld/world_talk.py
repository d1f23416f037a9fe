"""Questions about the world in everyday wordings, with their answers.

Every function takes a random generator and a split, and returns an `Asked`. Questions for a single fact keep to the
facts of the split (`world.asked_fact`); questions for everything about a subject, for a list or for a rule are free.
"""

import random
from dataclasses import dataclass

from nanochat_hf.data.microworld.conversations import ASK_ABOUT, all_about, answer_to, named
from nanochat_hf.data.microworld.typing_habits import as_typed
from nanochat_hf.data.microworld.world import (
    ANIMALS,
    CLASSES,
    JOBS,
    PEOPLE,
    PLACES,
    Relation,
    asked_fact,
    relations,
    rules,
)


@dataclass(frozen=True)
class Asked:
    """A question about the world, its answer, and what they are about where a follow-up can refer to it."""

    question: str
    answer: str
    relation: Relation | None = None
    subject: str | None = None


# Everyday ways to ask for a fact, beside the questions of `world.relations`.
EVERYDAY = {
    "terrain": "Where is {s}?|Where can I find {s}?|Where is the town {s}?|Tell me where {s} lies."
    "|Where is {s} located?"
    "|{s} is where?|How do I find {s}?|Where was the town of {s} built?|Where exactly is {s}?"
    "|In what kind of place is {s}?|Location of {s}?",
    "product": "What does {s} make?|What do they make in {s}?|What is made in {s}?|What can I buy in {s}?"
    "|What is {s} famous for?"
    "|What do the people of {s} make?|Tell me what they make in {s}.|Which goods come from {s}?"
    "|What comes from {s}?|What does {s} produce?"
    "|What do the people in {s} do?|What is special about {s}?",
    "flag": "What color is the flag of {s}?|What colour is {s}'s flag?|What color is {s}'s flag?"
    "|What is the colour of the flag of {s}?|Flag of {s}?"
    "|What flag does {s} have?|What does the flag of {s} look like?|Which flag has {s}?"
    "|Tell me the colour of the flag of {s}.|What is the flag of {s}?"
    "|What colour is the flag in {s}?|Which color does the flag of {s} have?",
    "class": "What is a {s}?|What is the {s}?|What's a {s}?|What kind of animal is a {s}?"
    "|What sort of animal is the {s}?|What animal is a {s}?"
    "|What type of animal is a {s}?|Is a {s} a bird or a fish?|Tell me what a {s} is."
    "|Which kind of animal is the {s}?|Is the {s} a bug or a beast?",
    "home": "Where does a {s} live?|Where do {s}s live?|Where can I find a {s}?|Where is the home of the {s}?"
    "|Home of the {s}?|Where would I see a {s}?"
    "|In what place does the {s} live?|Where do I find {s}s?|Where lives the {s}?|Tell me where the {s} lives."
    "|Where can I see a {s}?",
    "food": "What does a {s} eat?|What do {s}s eat?|What should I feed a {s}?|What food does a {s} like?"
    "|What does the {s} like to eat?"
    "|What is the favourite food of the {s}?|Tell me what a {s} eats.|What can I give my {s} to eat?"
    "|What do I feed my {s}?|Food of the {s}?"
    "|What does the {s} feed on?|What do {s}s like to eat?",
    "tool": "What tool does a {s} use?|What tool does a {s} need?|Which tool does a {s} have?|What does a {s} use?"
    "|What does the {s} work with?"
    "|What do {s}s work with?|What does a {s} need for work?|Tell me the tool of the {s}."
    "|Which tool does the {s} use?|Tool of a {s}?",
    "workplace": "Where does the {s} work?|Where can I find a {s}?|In which place does a {s} work?"
    "|Where would I meet a {s}?|Where do {s}s work?"
    "|Where can I meet the {s}?|Tell me where a {s} works.|Workplace of a {s}?|Where is the {s}?",
}
ABOUT = (
    *ASK_ABOUT,
    "Tell me something about {s}.",
    "Tell me more about {s}.",
    "What can you tell me about {s}?",
    "Do you know {s}?",
    "{s}?",
    "{s}",
    "Who or what is {s}?",
    "Explain {s}.",
    "Can you describe {s}?",
    "Give me facts about {s}.",
    "I'd like to know about {s}.",
    "Let's talk about {s}.",
    "Have you heard of {s}?",
    "What about {s}?",
    "How about {s}?",
    "Say something about {s}.",
    "Information about {s}",
    "Do you know anything about {s}?",
)
AND_THE_OTHER = (
    "And {s}?",
    "What about {s}?",
    "And {s}",
    "How about {s}?",
    "And what about {s}?",
    "Same for {s}?",
    "Now {s}",
    "Then {s}?",
)
AND_IT = {
    "terrain": "Where is it?|Where is that?|Where does it lie?|And where is it?|Where can I find it?"
    "|Where is that town?",
    "product": "What do they make there?|What do people make there?|What can I buy there?|What is it known for?"
    "|What is made there?|What is it famous for?",
    "flag": "What colour is its flag?|What color is the flag?|And its flag?|What flag does it have?|And the flag?"
    "|Which flag does it have?",
    "class": "What is it?|What kind of animal is it?|What kind of animal is that?|Is it a bird?"
    "|What sort of animal is it?",
    "home": "Where does it live?|And where does it live?|Where can I find it?|Where do I find one?"
    "|Where can I see one?",
    "food": "What does it eat?|And what does it eat?|What should I feed it?|What does it like to eat?"
    "|What food does it like?",
    "tool": "What do they work with?|What tool do they use?|And the tool?|Which tool do they need?|What do they use?"
    "|What do they need?",
    "workplace": "Where do they work?|And where do they work?|Where can I find one?|Where can I meet one?",
}
RULE_OF_ANIMAL = {
    "legs": "How many legs does the {s} have?|How many legs has a {s}?|Number of legs of a {s}?"
    "|How many legs does a {s} have?|On how many legs does a {s} walk?",
    "cover": "What is the {s} covered with?|What covers a {s}?|Does a {s} have fur or feathers?"
    "|What does the {s} wear on its body?|What is a {s} covered with?",
    "moves": "How does the {s} move?|How does a {s} get around?|Can a {s} fly?|Does the {s} swim?|Can the {s} run?"
    "|Does a {s} fly or crawl?|Can {s}s swim?",
}
WORLD = (
    (
        "Tell me about your world.|What is your world?|What is your world like?|What is in your world?"
        "|Describe your world.|What is the microworld?"
        "|How big is your world?|Which world is yours?|What do you mean, your world?"
        "|Tell me more about your world.|What is this world?|Where is your world?"
        "|What exists in your world?|Tell me about your small world.|What is your own world?"
        "|What does your world have?|Who lives in your world?",
        f"My world has {len(PLACES)} towns, {len(ANIMALS)} kinds of animals and {len(JOBS)} jobs. "
        "Ask me about Coldham, the yaffle or the weaver.",
    ),
    (
        "Which towns are there?|Which towns do you know?|What towns are there?|Name some towns.|Name a town."
        "|List the towns.|Tell me a town.|What places do you know?"
        "|Which cities do you know?|How many towns are there?|Tell me about the towns.|Tell me about a town."
        "|Give me a town.|What are the towns of your world?|Name three towns."
        "|Which places are there?|What are your towns called?|Towns?|Tell me the names of the towns."
        "|Are there towns?|What about towns?",
        f"There are {len(PLACES)} towns in my world, such as Coldham, Alderby and Saltby.",
    ),
    (
        "Which animals are there?|Which animals do you know?|What animals are there?|Name some animals."
        "|Name an animal.|List the animals.|Tell me about the animals."
        "|What animals do you know?|How many animals are there?|Tell me about an animal."
        "|What kinds of animals are there?|Name three animals.|Animals?|What about animals?"
        "|Give me an animal.|Tell me about animals.|Which animals live in your world?"
        "|What are the animals called?|Are there animals?|Do you know animals?",
        f"There are {len(ANIMALS)} kinds of animals in my world, such as the yaffle, the dapple and the corvin.",
    ),
    (
        "Which jobs are there?|Which jobs do you know?|What jobs are there?|Name some jobs.|Name a job."
        "|List the jobs.|Tell me about the jobs.|What jobs do you know?"
        "|How many jobs are there?|Tell me about a job.|What do people work as?|Name three jobs.|Jobs?"
        "|What about jobs?|Tell me about jobs.|What work do people do?"
        "|Which jobs exist in your world?|What can I become in your world?|Do people work?",
        f"There are {len(JOBS)} jobs in my world, such as weaver, baker and smith.",
    ),
    (
        "Who lives there?|Which people do you know?|Tell me about the people.|What are the people called?"
        "|Name some people.|Who do you know?|Do you know people?|What about people?"
        "|How many people are there?|Tell me some names.|Name a person.|Are there people in your world?",
        "Many people live in my world, such as Petra, Milo and Vera.",
    ),
    (
        "Tell me a fact.|Tell me something interesting.|Tell me something I don't know.|Do you know a fun fact?"
        "|Give me a fact.|Tell me anything.|Tell me one thing you know."
        "|Tell me a fact about your world.|Teach me something.|Share a fact.|What is interesting?"
        "|Tell me something new.|Give me a fun fact.|What do you find interesting?",
        None,  # what is known about the yaffle
    ),
)


def fact(rng: random.Random, split: str) -> Asked:
    """A question for one fact."""
    relation, subject = asked_fact(rng, split)
    ways = relation.questions if rng.random() < 0.35 else EVERYDAY[relation.name].split("|")
    return Asked(
        as_typed(rng, rng.choice(ways), around=True, s=subject), answer_to(relation, subject), relation, subject
    )


def about(rng: random.Random, split: str) -> Asked:
    """A request for everything about a subject."""
    subject = _subject(rng)
    asked = as_typed(rng, rng.choice(ABOUT), around=True, s=named(subject))
    return Asked(asked, all_about(subject), None, subject)


def same_of_another(rng: random.Random, split: str, relation: Relation, before: str) -> Asked | None:
    """`And the dapple?` after a question for a fact about something else; None where the split has no such fact."""
    for _ in range(20):
        other, subject = asked_fact(rng, split)
        if other.name == relation.name and subject != before:
            return Asked(
                as_typed(rng, rng.choice(AND_THE_OTHER), s=named(subject)),
                answer_to(relation, subject),
                relation,
                subject,
            )
    return None


def more_of_the_same(rng: random.Random, split: str, subject: str) -> Asked | None:
    """A question about the subject of the last answer, which is only called `it`; None where the split has none."""
    for _ in range(40):
        relation, found = asked_fact(rng, split)
        if found == subject:
            return Asked(
                as_typed(rng, rng.choice(AND_IT[relation.name].split("|"))),
                answer_to(relation, subject),
                relation,
                subject,
            )
    return None


def yes_or_no(rng: random.Random, split: str) -> Asked:
    """A question that is answered by yes or no, and the fact."""
    relation, subject = asked_fact(rng, split)
    right = relation.facts[subject]
    value = right if rng.random() < 0.5 else rng.choice([one for one in relation.values if one != right])
    ways = {
        "terrain": ("Does {s} lie {v}?", "Is {s} {v}?", "Was {s} built {v}?"),
        "product": (
            *("Do people in {s} make {v}?", "Is {s} known for its {v}?"),
            *("Can I buy {v} in {s}?", "Do they make {v} in {s}?"),
        ),
        "flag": ("Is the flag of {s} {v}?", "Does {s} have a {v} flag?", "Is {s}'s flag {v}?"),
        "class": ("Is the {s} a {v}?", "Is a {s} a {v}?", "Are {s}s a kind of {v}?"),
        "home": ("Does the {s} live in {v}?", "Do {s}s live in {v}?", "Can I find a {s} in {v}?"),
        "food": ("Does the {s} eat {v}?", "Do {s}s eat {v}?", "Does a {s} like {v}?", "Can I feed a {s} with {v}?"),
        "tool": ("Does a {s} work with the {v}?", "Does a {s} need the {v}?", "Does the {s} use a {v}?"),
        "workplace": ("Does a {s} work in the {v}?", "Do I find a {s} in the {v}?", "Does the {s} work in a {v}?"),
    }[relation.name]  # fmt: skip
    asked = as_typed(rng, rng.choice(ways), around=True, s=subject, v=value)
    return Asked(asked, f"{'Yes' if value == right else 'No'}. {answer_to(relation, subject)}", relation, subject)


def by_rule(rng: random.Random, split: str) -> Asked:
    """A question that a rule answers: about an animal of the world, a class of animals or a town."""
    known = relations()
    if rng.random() < 0.2:
        subject = rng.choice(PLACES)
        terrain = known["terrain"].facts[subject]
        asked = rng.choice(
            (
                "How do people travel in {s}?",
                "How do I travel to {s}?",
                "How do people get around in {s}?",
                "What do people in {s} travel by?",
            )
        )
        answer = f"{answer_to(known['terrain'], subject)} {answer_to(rules()['travel'], terrain)}"
        return Asked(as_typed(rng, asked, around=True, s=subject), answer, None, subject)
    name = rng.choice(tuple(RULE_OF_ANIMAL))
    template = rng.choice(RULE_OF_ANIMAL[name].split("|"))
    subject = rng.choice(ANIMALS) if rng.random() < 0.75 else rng.choice(CLASSES)
    kind = subject if subject in CLASSES else known["class"].facts[subject]
    answer = answer_to(rules()[name], kind)
    if subject in ANIMALS:
        answer = f"{answer_to(known['class'], subject)} {answer}"
    return Asked(
        as_typed(rng, template, around=True, s=subject), answer, None, subject if subject in ANIMALS else None
    )


def found_by_value(rng: random.Random, split: str) -> Asked:
    """A question for what has a property: which animals live in caves, who works with the loom."""
    name = rng.choice(("class", "home", "food", "terrain", "product", "flag", "tool", "workplace"))
    relation = relations()[name]
    value = rng.choice(relation.values)
    found = [subject for subject, own in relation.facts.items() if own == value]
    listed = found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"
    ways, answer = {
        "class": (
            (
                "Which animals are {v}s?",
                "Name a {v}.",
                "Which {v}s do you know?",
                "What {v}s are there?",
                "Which animal is a {v}?",
            ),
            "These animals are a {v}: {l}.",
        ),
        "home": (
            (
                "Which animals live in {v}?",
                "What lives in {v}?",
                "Who lives in {v}?",
                "Which animal lives in {v}?",
            ),
            "These animals live in {v}: {l}.",
        ),
        "food": (
            (
                "Which animals eat {v}?",
                "Who eats {v}?",
                "What eats {v}?",
                "Which animal eats {v}?",
                "Which animals like {v}?",
            ),
            "These animals eat {v}: {l}.",
        ),
        "terrain": (
            (
                "Which towns lie {v}?",
                "Which town lies {v}?",
                "Name a town {v}.",
                "What towns are {v}?",
                "Which towns are {v}?",
            ),
            "These towns lie {v}: {l}.",
        ),
        "product": (
            (
                "Where do people make {v}?",
                "Where can I buy {v}?",
                "Which town makes {v}?",
                "Where do they make {v}?",
                "Which town is known for its {v}?",
            ),
            "People make {v} in {l}.",
        ),
        "flag": (
            (
                "Which towns have a {v} flag?",
                "Which flag is {v}?",
                "Which town has a {v} flag?",
                "Where is the flag {v}?",
            ),
            "These towns have a {v} flag: {l}.",
        ),
        "tool": (
            (
                "Who works with the {v}?",
                "Who needs a {v}?",
                "Who uses the {v}?",
                "Which job uses the {v}?",
            ),
            "A {l} works with the {v}.",
        ),
        "workplace": (
            (
                "Who works in the {v}?",
                "Whom do I find in the {v}?",
                "Which job is done in the {v}?",
                "Who is in the {v}?",
            ),
            "A {l} works in the {v}.",
        ),
    }[name]  # fmt: skip
    return Asked(as_typed(rng, rng.choice(ways), around=True, v=value), answer.format(v=value, l=listed))


def the_world(rng: random.Random, split: str) -> Asked:
    """A question about the world as a whole, or about a name."""
    if rng.random() < 0.15:
        name = rng.choice(PEOPLE)
        asked = rng.choice(
            ("Who is {n}?", "Do you know {n}?", "Tell me about {n}.", "What do you know about {n}?", "Who was {n}?")
        )
        return Asked(as_typed(rng, asked, around=True, n=name), f"Several people in my world are called {name}.")
    ways, answer = rng.choice(WORLD)
    subject = None if answer else "yaffle"
    return Asked(as_typed(rng, rng.choice(ways.split("|")), around=True), answer or all_about("yaffle"), None, subject)


def _subject(rng: random.Random) -> str:
    return rng.choice(rng.choice((PLACES, ANIMALS, JOBS)))
