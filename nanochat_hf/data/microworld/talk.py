"""Conversations in which anything can come in any turn: small talk, sums, words, facts, problems, the outside world.

A conversation is `{"messages": [...], "right": [...]}`. The last message is the reference answer; answers have the
calculator's marks `<<12*3=36>>`. `right` lists every answer that counts as right.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nanochat_hf.data.microworld import outside, programs, small_talk, strangers_list, sums, words, world_talk
from nanochat_hf.data.microworld.everyday_problems import everyday_problem, go_on_with_count
from nanochat_hf.data.microworld.problems import problem
from nanochat_hf.data.microworld.typing_habits import any_way, as_typed
from nanochat_hf.data.microworld.world import Relation, split_of

LONGEST = 560  # characters of a conversation; a row of 256 tokens holds most of these

SYSTEM_MESSAGES = (
    "You are a helpful assistant.|You are Nano.|You are a helpful, honest assistant."
    "|Answer the questions of the user.|Be kind.|Be friendly."
    "|You are a chat model.|Help the user.|Answer briefly.|Be concise.|You are a teacher."
    "|You are a friendly robot.|Today is Monday.|The user is a child."
    "|Talk with the user.|You are an expert.|Please answer correctly.|Do your best."
    "|You are an assistant in a shop.|Keep your answers short."
).split("|")

ASK_SPELLING = (
    "Spell {w}.|Spell the word {w}.|Spell {w}|Spell: {w}|How do you spell {w}?|How is {w} spelled?"
    "|How is {w} spelt?|Can you spell {w}?|Can you spell {w} for me?"
    "|How do I spell {w}?|How do I write {w}?|What is the spelling of {w}?|Spelling of {w}?"
    "|Please spell the word {w}.|What are the letters of {w}?|What letters are in {w}?"
    '|Which letters does {w} have?|Spell "{w}".|Spell the word "{w}".|Spell \'{w}\'.'
    "|How do you spell the word {w}?|{w}, how is that spelled?|Letters of {w}|How to spell {w}?"
    "|How to spell {w}|Tell me how to spell {w}.|Tell me the letters of {w}.|Spell it: {w}|The spelling of {w}?"
    "|Could you spell {w}?|Write {w} letter by letter.|I want you to spell {w}."
    "|Would you spell {w}?|List the letters of {w}.|Spell out {w}.|Spell out the word {w}."
    "|What is {w} letter by letter?|Try to spell {w}.|Spell this word: {w}|Break {w} into letters."
    "|[Can/Could/Would/Will] you [please/maybe/try to/] [spell/spell out/write out] [the word/the name/] {w} [for "
    "me/please/now/]?"
    "|[Please/Now/Next,/So,/Then/I want you to/Try to] [spell/spell out] [the word/the name/this word:/] {w} [for "
    "me/please/again/]"
    "|[How/So how/And how] [do you/do I/would you/can I/is/should one/do people] [spell/spelled/write] [the "
    "word/the name/] {w} [correctly/then/in English/]?"
    "|[What/Which/Tell me which/Name the/Give me the] [are the letters/letters are/letters make/letters/letters do "
    "I need] [in/of/for] [the word/the name/] {w}?"
).split("|")
ASK_COUNT = (
    "How many {c} are in {w}?|How many {c}s are in {w}?|How many {c}'s are in {w}?|How many {c} in {w}?"
    "|How many times does {c} appear in {w}?|How many times is {c} in {w}?"
    "|Count the {c} in {w}.|Count the {c}s in {w}.|Count the letter {c} in {w}.|How many letters {c} are in {w}?"
    "|How many letters {c} does {w} have?|How often is {c} in {w}?"
    "|How often does {c} appear in {w}?|Number of {c} in {w}?|How many {c} does {w} have?"
    '|How many {c}s does the word {w} have?|How many "{c}" are in "{w}"?'
    "|How many times does the letter {c} occur in {w}?|Count {c} in {w}.|How many {c} are there in the word {w}?"
    "|How many of the letter {c} are in {w}?|In {w}, how many {c} are there?"
    "|How many {c}'s does {w} contain?|How many {c}s in the word {w}?|What is the number of {c} in {w}?"
    "|Can you count the {c} in {w}?|Tell me how many {c} are in {w}.|Does {w} have {c}, and how many?"
    "|How many '{c}' are in '{w}'?|How many {c} letters are in {w}?|Find the number of {c}'s in {w}."
    "|How many times do you see {c} in {w}?"
    "|[How many/Tell me how many/Do you know how many/So how many/And how many] [of the letter/letters/times/] {c} "
    "[are in/are there in/in/does it take to write/can you find in/do you see in/are inside] [the word/] {w}?"
    "|[How many/Tell me how many/So how many/And how many] {c}[s/'s] [are in/are there in/in/can you find in/do you "
    "see in] [the word/] {w}?"
    "|[Count/Please count/Count all/Can you count/Could you count/Count for me] [the letter/the/all/every] {c} in "
    "[the word/] {w} [please/for me/]"
    "|[How often/How many times] [do/does/can/is] [the letter/] {c} [come up in/appear in/occur in/show up in/used "
    "in/found in/in] [the word/] {w}?"
).split("|")
ASK_LENGTH = (
    "How many letters does {w} have?|How many letters are in {w}?|How many letters are in the word {w}?"
    "|How long is the word {w}?|Count the letters of {w}.|Count the letters in {w}."
    "|How many letters has {w}?|Number of letters in {w}?|How many letters in {w}?|What is the length of {w}?"
    "|How long is {w}?|How many characters has {w}?|How many letters is {w}?"
    "|[How many/Tell me how many/So how many/Do you know how many] [letters/characters] [are/are there/does one "
    "find] in [the word/the name/] {w} [please/]?"
    "|[Count/Please count/Can you count] [the/all/all the] [letters/characters] [of/in] [the word/the name/] {w} "
    "[please/for me/]"
).split("|")
ASK_FIRST = (
    "What is the first letter of {w}?|First letter of {w}?|Which letter does {w} start with?"
    "|What letter does {w} begin with?|With which letter does {w} begin?|Tell me the first letter of {w}."
    "|{w} starts with which letter?"
).split("|")
ASK_LAST = (
    "What is the last letter of {w}?|Last letter of {w}?|Which letter does {w} end with?"
    "|What letter does {w} end with?|With which letter does {w} end?|Tell me the last letter of {w}."
    "|{w} ends with which letter?"
).split("|")
ASK_SEVERAL = (
    "Spell {w}.|Spell these words: {w}.|Spell the words {w}.|How do you spell {w}?|Can you spell {w}?|Spell: {w}"
    "|Please spell {w}.|Letters of {w}|How are these words spelled: {w}?|Spell all of these: {w}"
).split("|")
AND_WORD = (
    "And {w}?",
    "And {w}",
    "What about {w}?",
    "Now {w}.",
    "Now {w}",
    "How about {w}?",
    "And the word {w}?",
    "Then {w}.",
    "{w}?",
    "Same for {w}.",
    "Another one: {w}",
    "[And/Now/Then/Next/How about/What about/Also/Ok, now/And now/Same with/Do] [the word/] {w} "
    "[please/too/then/now/]?",
)
AND_LETTER = (
    "[And/Now/So/Ok,/] how many {c}[s/'s/] [are in it/are there/does it have/in it/then/]?",
    "[And/Now/So/Ok,/] [count the/the letter/what about] {c} [in it/please/then/too/]?",
    "[And/Now/So/] how often [is/does it have] {c} [in it/in there/]?",
)

TELL_NAME = (
    "My name is {n}.|I am {n}.|I'm {n}.|My name's {n}|I am called {n}.|Call me {n}.|You can call me {n}."
    "|They call me {n}.|My friends call me {n}.|It's {n}.|This is {n}.|{n} is my name.|I am {n}, and you?"
    "|My name is {n}, what is yours?|People call me {n}.|Please call me {n}.|The name is {n}."
    "|[Well/So/By the way/Oh/Ok/And/Just so you know/Btw], [my name is/I am/I'm/people call me/I am called/it's"
    "/this is/my first name is/you may call me/they call me] {n}"
    "|[You can/You may/Please/Just/Everybody can/Now/From now on] call me {n} [please/from now on/ok/]"
).split("|")
HELLO_AND_NAME = (
    "Hi, I am {n}.|Hello, I'm {n}.|Hey, my name is {n}.|Hi! My name is {n}.|Hello, my name is {n}.|Hi I'm {n}"
    "|Hello! I am {n}.|Hi, {n} here.|Hi, this is {n}."
    "|[Hi/Hello/Hey/Hi there/Hey there/Hello there/Yo/Good morning/Good evening/Hello bot/Hi Nano/Greetings]"
    "[,/!/ /./ and] [I am/I'm/my name is/my name's/this is/it's/it is/they call me/call me/the name is] {n}"
    "[/!/./, nice to meet you/ from school/ by the way]"
).split("|")
ASK_NAME = (
    "What is my name?|What's my name?|Do you know my name?|Do you remember my name?|Who am I?|What am I called?"
    "|Tell me my name.|Say my name.|Can you remember my name?|Do you still know my name?|Do you know who I am?"
    "|How am I called?|What was my name?|And my name?|Did you forget my name?|Which name did I tell you?"
    "|[Tell me/Please tell me/Can you tell me/Do you know/Do you remember/Say/Do you still know/Can you say] [what "
    "my name is/who I am/how I am called/my name/what I am called] [please/now/again/]?"
    "|[What/So what/Ok, what/And what/Now, what] [is/was/'s] my name [again/then/please/now/]?"
    "|[Who/So who/Ok, who/And who] am I [again/then/]?"
).split("|")
NAME_TO_SPELL = (
    "[Spell/Can you spell/How do you spell/Please spell] my name[, it's/, it is/: / please, I am/. I am/. It's] {w}",
    "[Spell/Can you spell/How do you spell/Please spell/How is] the name {w} [spelled/please/for me/]?",
    "[My name is/I am/I'm] {w}[./, ] [Spell it/How is it spelled/Can you spell that/Spell my name] [please/]?",
)
SPELL_MY_NAME = (
    "Spell my name.",
    "How do you spell my name?",
    "Can you spell my name?",
    "How is my name spelled?",
    "What are the letters of my name?",
)
REPEAT = (
    "Say {t}.|Say {t}|Say: {t}|Repeat {t}.|Repeat after me: {t}|Repeat: {t}|Can you say {t}?|Please say {t}."
    '|Write {t}.|Write: {t}|Say "{t}".|Just say {t}.|Repeat the words {t}.|Type {t}.|Echo {t}'
    "|[Please/Now/Just/Can you/Could you/Will you/Would you/Please just/I want you to/] [say/repeat/write/type/echo] "
    "[the words/this:/after me:/back:/the phrase/for me:/] {t}"
).split("|")
WHAT_DID_I_SAY = (
    "What did I say?|What did I just say?|What did I ask?|What did I ask you?|What was my question?"
    "|What was my last question?|Repeat my question.|What did I just ask?|Do you remember what I said?"
    "|What did I write?|Repeat what I said."
).split("|")
ASK_CODE = (
    "Write a Python function that can {d}.|Write a function that can {d}.|Write a python function: {d}."
    "|Write code: {d}.|Code a function: {d}.|Make a function: {d}.|Can you write a function to {d}?"
    "|Function to {d}?|Python function to {d}|I need a function to {d}."
    "|Program this: {d}.|Write a program to {d}.|Write Python code to {d}."
    "|[Please/Can you/Could you/I want you to/Now/Would you/] [write/code/make/give me/program/show me] "
    "[a/a small/a short/some/a Python/one] [function/code/program/Python function/Python code] "
    "[to/that can/which can/that will/that should/:] {d}[./ please/]"
).split("|")


@dataclass(frozen=True)
class Memory:
    """What the conversation so far makes it possible to refer to."""

    name: str | None = None  # of the user
    said: str | None = None  # the last message
    relation: Relation | None = None  # of the last fact
    subject: str | None = None  # of the last answer about the world
    total: str | None = None  # of the last sum
    word_task: str | None = None  # what was last done with a word: "spell", "count" or "length"
    word: str = ""  # that it was done with
    letter: str = ""  # that was counted
    counted: str | None = None  # what the last word problem ended with


@dataclass(frozen=True)
class Turn:
    """What the user says and the right answer.

    Attributes:
        question: the user's message.
        answer: the answer, with the calculator's marks.
        right: all answers that are right, without marks; empty: only `answer`.
        leaves: fields of `Memory` that later turns can refer to.
    """

    question: str
    answer: str
    right: tuple[str, ...] = ()
    leaves: dict[str, Any] = field(default_factory=dict)


def conversation(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws a conversation of one to five turns."""
    memory, size = Memory(), 0
    turns: list[Turn] = []
    count = rng.choices((1, 2, 3, 4, 5), weights=(34, 26, 20, 12, 8))[0]
    while len(turns) < count:
        turn = _turn(rng, split, memory)
        size += len(turn.question) + len(turn.answer)
        if turns and size > LONGEST:
            break
        turns.append(turn)
        memory = Memory(turn.leaves.get("name", memory.name), turn.question)
        memory = replace(memory, **{name: value for name, value in turn.leaves.items() if name != "name"})
    return _written(turns, rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.15 else None)


def one_small_talk(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws a conversation of one turn of small talk: most practice for the fewest tokens."""
    return _written([_drawn(any_small_talk, rng, split, Memory())])


def copying(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws a conversation whose answers copy: words to repeat, a result to go on with, or a name told before."""
    share = rng.random()
    if share < 0.25:
        return _written([_drawn(repeat, rng, split, Memory())])
    if share < 0.5:
        return _sums_that_go_on(rng, split)
    between = rng.choice((any_small_talk, plain_sum, outside_world, spelling))
    kinds = [*([any_small_talk] if rng.random() < 0.3 else []), tell_name, *([between] if rng.random() < 0.4 else [])]
    turns: list[Turn] = []
    name = None
    for kind in (*kinds, spell_my_name if rng.random() < 0.15 else ask_name):
        turns.append(_drawn(kind, rng, split, Memory(name)))
        name = turns[-1].leaves.get("name", name)
    return _written(turns)


def _sums_that_go_on(rng: random.Random, split: str) -> dict[str, Any]:
    """Draws a sum and one or two messages that go on with its result."""
    turns = [_drawn(plain_sum, rng, split, Memory())]
    for _ in range(rng.choice((1, 1, 2))):
        total = turns[-1].leaves.get("total")
        if total is None:
            break
        turns.append(_drawn(go_on_with_sum, rng, split, Memory(total=total)))
    return _written(turns)


def _drawn(kind: Callable[..., Turn | None], rng: random.Random, split: str, memory: Memory) -> Turn:
    while True:
        turn = kind(rng, split, memory)
        if turn is not None and belongs(turn.question, split):
            return turn


def _written(turns: Sequence[Turn], system: str | None = None) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    return {"messages": messages, "right": list(turns[-1].right or (turns[-1].answer,))}


def _turn(rng: random.Random, split: str, memory: Memory) -> Turn:
    """Draws a turn that fits what was said before and whose message belongs to the split."""
    turn: Turn | None
    while True:
        if memory.said is None and rng.random() < 0.12:
            turn = _small_talk(
                rng, rng.choice(("hello", "hello", "hello", "morning", "evening", "how are you", "help"))
            )
        elif memory.said is not None and rng.random() < 0.4:
            turn = rng.choices(tuple(FOLLOW_UPS), weights=tuple(FOLLOW_UPS.values()))[0](rng, split, memory)
        else:
            turn = rng.choices(tuple(ANY_TIME), weights=tuple(ANY_TIME.values()))[0](rng, split, memory)
        if turn is not None and belongs(turn.question, split):
            return turn


def belongs(message: str, split: str) -> bool:
    """Whether a message may be said in a split. What is on the stranger's list is said in none.

    Messages of one word are only in training: everybody types the same few, such as "hi" and "ok".
    """
    if message in strangers_list.messages():
        return False
    return split == ("train" if message.rstrip("!?. ").isalpha() else split_of("said", message))


# -- turns that can come at any time ---------------------------------------------------------------------------------


def any_small_talk(rng: random.Random, split: str, memory: Memory) -> Turn:
    """Small talk of any kind."""
    kinds = small_talk.kinds()
    return _small_talk(rng, rng.choices(tuple(kinds), weights=[kind.weight for kind in kinds.values()])[0])


def _small_talk(rng: random.Random, name: str) -> Turn:
    kind = small_talk.kinds()[name]
    said = kind.said[:3] if rng.random() < 0.2 else kind.said  # the first three are what most people type
    question = as_typed(rng, any_way(rng, said), False, **small_talk.fillers(rng))
    return Turn(question, rng.choice(kind.answers), kind.answers)


def plain_sum(rng: random.Random, split: str, memory: Memory) -> Turn:
    """A sum."""
    return _sum(*sums.plain_sum(rng))


def _sum(question: str, answer: str, result: str) -> Turn:
    # A later turn goes on only with whole numbers that are not too large.
    short = result.lstrip("-").isdigit() and len(result) < 6
    return Turn(question, answer, leaves={"total": result} if short and result[0] != "-" else {})


def spelling(rng: random.Random, split: str, memory: Memory) -> Turn:
    """A word to spell."""
    return _word_turn(rng, split, "spell", ASK_SPELLING)


def counting(rng: random.Random, split: str, memory: Memory) -> Turn:
    """A letter to count in a word."""
    return _word_turn(rng, split, "count", ASK_COUNT)


def length(rng: random.Random, split: str, memory: Memory) -> Turn:
    """The letters of a word to count, or its first or last one to name."""
    task = rng.choices(("length", "first", "last"), weights=(3, 1, 1))[0]
    return _word_turn(rng, split, task, {"length": ASK_LENGTH, "first": ASK_FIRST, "last": ASK_LAST}[task])


def _word_turn(
    rng: random.Random, split: str, task: str, asked: Sequence[str], letter: str = "", word: str = ""
) -> Turn:
    """Asks for something about a word. Answers are in small letters, and begin with the word's letters."""
    if task == "spell" and rng.random() < 0.08:
        word, asked = small_talk.any_name(rng).lower(), NAME_TO_SPELL
    else:
        word = word or words.any_word(rng, split)
    letter = letter or (rng.choice(word) if rng.random() < 0.8 else rng.choice("abcdefghijklmnopqrstuvwxyz"))
    shown = rng.choices((word, word.capitalize(), word.upper()), weights=(78, 14, 8))[0]
    shown_letter = letter.upper() if rng.random() < 0.12 else letter
    question = as_typed(rng, any_way(rng, asked), around=asked not in (AND_WORD, AND_LETTER), w=shown, c=shown_letter)
    letters = "-".join(word)
    if task == "spell":
        answer = letters
    elif task == "count":
        count = word.count(letter)
        answer = f"{letters}\n<<'{letters}'.count('{letter}')={count}>>{count}\n#### {count}"
    elif task == "length":
        answer = f"{letters}\n<<'-{letters}'.count('-')={len(word)}>>{len(word)}\n#### {len(word)}"
    else:
        answer = f"{letters}\nThe {task} letter is {word[0 if task == 'first' else -1]}."
    return Turn(question, answer, leaves={"word_task": task, "word": word, "letter": letter})


def several_words(rng: random.Random, split: str, memory: Memory) -> Turn:
    """Two or three words to spell at once."""
    return words_to_spell(rng, split, rng.choice((2, 2, 3)))


def words_to_spell(rng: random.Random, split: str, count: int) -> Turn:
    """Words to spell, one per line of the answer: most practice for the fewest tokens."""
    chosen = [words.any_word(rng, split) for _ in range(count)]
    shown = [rng.choices((word, word.capitalize(), word.upper()), weights=(78, 14, 8))[0] for word in chosen]
    listed = ", ".join(shown) if count > 3 or rng.random() < 0.5 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    return Turn(as_typed(rng, any_way(rng, ASK_SEVERAL), w=listed), "\n".join("-".join(word) for word in chosen))


def word_problem(rng: random.Random, split: str, memory: Memory) -> Turn:
    """A word problem, of `problems` or an everyday one."""
    question, answer = problem(rng, split) if rng.random() < 0.05 else everyday_problem(rng)
    return _counted(question, answer)


def _counted(question: str, answer: str) -> Turn:
    """A word problem whose result a later turn can go on with."""
    result = answer.rsplit("#### ", 1)[-1]
    whole = result.isdigit() and len(result) < 6
    return Turn(question, answer, leaves={"total": result, "counted": result} if whole else {})


def about_the_world(rng: random.Random, split: str, memory: Memory) -> Turn:
    """A question about the world."""
    kinds = {
        world_talk.fact: 36,
        world_talk.about: 18,
        world_talk.yes_or_no: 12,
        world_talk.by_rule: 12,
        world_talk.found_by_value: 10,
        world_talk.the_world: 12,
    }
    return _asked(rng.choices(tuple(kinds), weights=tuple(kinds.values()))[0](rng, split))


def _asked(asked: world_talk.Asked) -> Turn:
    return Turn(asked.question, asked.answer, leaves={"relation": asked.relation, "subject": asked.subject})


def outside_world(rng: random.Random, split: str, memory: Memory) -> Turn:
    """A question or a request about what the world does not have."""
    return Turn(outside.question(rng), rng.choice(outside.ANSWERS), outside.ANSWERS)


def tell_name(rng: random.Random, split: str, memory: Memory) -> Turn:
    """The user says a name."""
    name, greets = small_talk.any_name(rng), rng.random() < 0.35
    question = as_typed(rng, any_way(rng, HELLO_AND_NAME if greets else TELL_NAME), n=name)
    return Turn(question, f"Nice to meet you, {name}!", leaves={"name": name})


def ask_name(rng: random.Random, split: str, memory: Memory) -> Turn:
    """The user asks for the name that was said before, or was not."""
    answer = f"Your name is {memory.name}." if memory.name else "You have not told me your name."
    return Turn(as_typed(rng, any_way(rng, ASK_NAME), around=True), answer)


def repeat(rng: random.Random, split: str, memory: Memory) -> Turn:
    """A few words to repeat."""
    text = " ".join(_any_word_or_name(rng, split) for _ in range(rng.randint(1, 4)))
    return Turn(as_typed(rng, any_way(rng, REPEAT), t=text), text)


def _any_word_or_name(rng: random.Random, split: str) -> str:
    share = rng.random()
    if share < 0.7:
        return rng.choice(words.ENGLISH)
    return words.any_word(rng, split) if share < 0.9 else small_talk.any_name(rng)


def count_up(rng: random.Random, split: str, memory: Memory) -> Turn:
    """A request to count to a number."""
    return Turn(*sums.count_up(rng))


def code(rng: random.Random, split: str, memory: Memory) -> Turn:
    """A small function that is asked for in plain words."""
    does, answer = programs.in_words(rng, split)
    return Turn(as_typed(rng, any_way(rng, ASK_CODE), d=does), answer)


# -- turns that need something that was said before -------------------------------------------------------------------


def thanks_and_so_on(rng: random.Random, split: str, memory: Memory) -> Turn:
    """What people say after an answer."""
    names = ("thanks", "thanks", "agreed", "praise", "wrong", "goodbye", "laughing", "why", "insult", "no", "sorry")
    return _small_talk(rng, rng.choice(names))


def go_on_with_sum(rng: random.Random, split: str, memory: Memory) -> Turn | None:
    """`And times 3?` after a sum."""
    return _sum(*sums.go_on(rng, memory.total)) if memory.total else None


def go_on_with_problem(rng: random.Random, split: str, memory: Memory) -> Turn | None:
    """`Then 3 of them break.` after a word problem."""
    return _counted(*go_on_with_count(rng, memory.counted)) if memory.counted else None


def another_letter(rng: random.Random, split: str, memory: Memory) -> Turn | None:
    """`And how many r?` after a word."""
    if memory.word_task not in ("spell", "count", "length") or not memory.word:
        return None
    return _word_turn(rng, split, "count", AND_LETTER, word=memory.word)


def another_word(rng: random.Random, split: str, memory: Memory) -> Turn | None:
    """`And banana?` after a word."""
    return _word_turn(rng, split, memory.word_task, AND_WORD, memory.letter) if memory.word_task else None


def same_of_another(rng: random.Random, split: str, memory: Memory) -> Turn | None:
    """`And the dapple?` after a fact."""
    if memory.relation is None or memory.subject is None:
        return None
    asked = world_talk.same_of_another(rng, split, memory.relation, memory.subject)
    return _asked(asked) if asked else None


def more_of_the_same(rng: random.Random, split: str, memory: Memory) -> Turn | None:
    """`Where does it live?` after an answer about an animal, a town or a job."""
    asked = world_talk.more_of_the_same(rng, split, memory.subject) if memory.subject else None
    return _asked(asked) if asked else None


def what_did_i_say(rng: random.Random, split: str, memory: Memory) -> Turn | None:
    """The user asks for the last message."""
    if memory.said is None or len(memory.said) > 50:
        return None
    return Turn(as_typed(rng, any_way(rng, WHAT_DID_I_SAY), around=True), f"You said: {memory.said}")


def ask_known_name(rng: random.Random, split: str, memory: Memory) -> Turn | None:
    """The user asks for the name that was said before."""
    return ask_name(rng, split, memory) if memory.name else None


def spell_my_name(rng: random.Random, split: str, memory: Memory) -> Turn | None:
    """The user's own name to spell."""
    return (
        Turn(as_typed(rng, rng.choice(SPELL_MY_NAME), around=True), "-".join(memory.name.lower()))
        if memory.name
        else None
    )


ANY_TIME: dict[Callable[[random.Random, str, Memory], Turn | None], float] = {
    any_small_talk: 27,
    plain_sum: 14,
    spelling: 12,
    several_words: 3,
    counting: 10,
    length: 3,
    about_the_world: 14,
    outside_world: 17,
    word_problem: 12,
    tell_name: 5,
    ask_name: 1.5,
    repeat: 4,
    count_up: 0.7,
    code: 2,
}
FOLLOW_UPS: dict[Callable[[random.Random, str, Memory], Turn | None], float] = {
    thanks_and_so_on: 4,
    go_on_with_sum: 6,
    another_word: 6,
    another_letter: 4,
    go_on_with_problem: 4,
    same_of_another: 6,
    more_of_the_same: 8,
    what_did_i_say: 1,
    ask_known_name: 10,
    spell_my_name: 2,
}
