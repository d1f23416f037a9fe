"""Conversations in which anything can come: right solutions, fitting follow-ups, nothing of the stranger's list."""

import random
import re
import string

import pytest

from nanochat_hf.data.microworld import (
    everyday_problems,
    outside,
    small_talk,
    strangers_list,
    sums,
    talk,
    typing_habits,
    words,
    world_talk,
)
from nanochat_hf.data.microworld.typing_habits import as_typed
from nanochat_hf.data.microworld.world import ANIMALS, SPLITS, relations
from nanochat_hf.tasks import load
from nanochat_hf.tasks.base import message_text
from nanochat_hf.tools.calculator import calculate


def conversations(split, count=1500):
    rng = random.Random(f"talk of {split}")
    return [talk.conversation(rng, split) for _ in range(count)]


@pytest.fixture(scope="module")
def drawn():
    return {split: conversations(split) for split in SPLITS}


def said(items, role="user"):
    return [message["content"] for item in items for message in item["messages"] if message["role"] == role]


def test_no_message_is_in_two_splits_and_none_of_the_strangers_list_is_in_any(drawn):
    messages = {split: set(said(drawn[split])) for split in SPLITS}
    assert not messages["train"] & messages["test"] and not messages["train"] & messages["validation"]
    assert not strangers_list.messages() & set().union(*messages.values())


def test_every_rule_of_the_strangers_list_is_words():
    """YAML reads an unquoted `yes` as true, and no answer contains that."""
    for item in strangers_list.items():
        words = [word for rule, given in item.items() if isinstance(given, list) for word in given]
        assert all(isinstance(word, str) for word in words), item


@pytest.mark.parametrize(
    "name", ["talk", "smalltalk", "copying", "words", "chat", "identity", "problems", "spelling", "exam", "code"]
)
def test_no_judged_message_of_the_strangers_list_is_in_the_training_of_the_quickstart(name):
    task, _ = load(f"microworld-{name}@3000", "train")
    trained = {message_text(turn) for item in task for turn in item["messages"] if turn["role"] == "user"}
    assert not strangers_list.messages() & trained


def test_the_strangers_list_is_long_varied_and_has_a_rule_for_every_item():
    items = strangers_list.items()
    assert len(items) >= 150 and len({item["kind"] for item in items}) >= 10
    assert sum(len(item["says"]) > 1 for item in items) >= 30
    rules = {"any", "all", "none", "number", "spells"}
    assert all(rules & set(item) and set(item) <= rules | {"kind", "says"} for item in items)


def test_every_mark_is_what_the_calculator_says_and_is_the_result_that_follows(drawn):
    marks = 0
    for text in said(drawn["train"], "assistant"):
        for expression, result, follows in re.findall(r"<<([^<>]+)=([^<>=]+)>>(\S+)", text):
            assert calculate(expression) == result and follows.rstrip(".") == result
            marks += 1
    assert marks > 300


def test_spelled_answers_have_the_letters_of_a_word_of_the_question(drawn):
    spelled = 0
    for item in drawn["train"]:
        answer = item["messages"][-1]["content"].lower()
        letters = re.match(r"[a-z](-[a-z])+(?=\n|$)", answer)
        asked = " ".join(said([item])).lower()  # "And how many r?" is about the word of an earlier question
        if letters and letters.group() != "-".join(string.ascii_lowercase):
            assert letters.group().replace("-", "") in asked
            spelled += 1
    assert spelled > 100


def test_follow_ups_refer_to_the_turn_before(drawn):
    found = set()
    of_animals = {form.lower().rstrip("?") for part in ("home", "food") for form in world_talk.AND_IT[part].split("|")}
    for item in drawn["train"]:
        messages = [message["content"] for message in item["messages"] if message["role"] != "system"]
        for before, question, answer in zip(messages[1::2], messages[2::2], messages[3::2], strict=False):
            total = re.search(r">>(\d+)$", before)
            if total and answer.startswith(f"{total[1]} ") and total[1] not in question:
                found.add("sum")
            animal = next((name for name in ANIMALS if f"The {name}" in before), None)
            if animal and question.lower().rstrip("?") in of_animals:
                assert f"The {animal}" in answer
                found.add("it")
            if answer.startswith("You said: "):
                found.add("said")
                assert answer.removeprefix("You said: ") in messages
            if answer.startswith("Your name is "):
                name = answer.removeprefix("Your name is ").rstrip(".")
                assert any(name.lower() in earlier.lower() for earlier in messages[: messages.index(question)])
                found.add("name")
    assert found == {"sum", "it", "said", "name"}


def test_yes_and_no_are_true():
    rng = random.Random(3)
    for _ in range(300):
        asked = world_talk.yes_or_no(rng, "train")
        value = relations()[asked.relation.name].facts[asked.subject]
        says_value = re.search(rf"\b{value.lower()}\b", asked.question.lower()) is not None
        if asked.answer.startswith("Yes"):
            assert says_value
        else:
            assert asked.answer.startswith("No") and not says_value


def test_outside_questions_are_not_about_a_fact_that_the_world_states():
    rng = random.Random(4)
    asked = {outside.question(rng) for _ in range(1500)}
    inside = {
        form.format(s=subject) for one in relations().values() for subject in one.facts for form in one.questions
    }
    assert len(asked) > 1300 and not asked & inside


def test_words_are_of_many_lengths_and_belong_to_one_split():
    drawn = {
        split: [words.any_word(random.Random(f"{split}{index}"), split) for index in range(1500)] for split in SPLITS
    }
    assert not set(drawn["train"]) & set(drawn["test"])
    assert {len(word) for word in drawn["train"]} >= set(range(2, 13))
    assert {letter for word in drawn["train"] for letter in word} == set("abcdefghijklmnopqrstuvwxyz")


def test_everyday_problems_and_sums_have_one_right_result():
    rng = random.Random(5)
    for _ in range(300):
        _, solution = everyday_problems.everyday_problem(rng)
        *_, result = re.findall(r"=(-?\d+)>>", solution)
        assert solution.endswith(f"#### {result}") and int(result) >= 0
        question, answer, result = sums.plain_sum(rng)
        assert question and answer.endswith(f">>{result}")


def test_as_typed_changes_the_template_but_never_misspells_a_slot():
    rng = random.Random(6)
    typed = [as_typed(rng, "How do you spell {w}?", around=True, w="Qwertzuiop") for _ in range(400)]
    assert all("qwertzuiop" in text.lower() for text in typed)
    assert len(set(typed)) > 60 and "How do you spell Qwertzuiop?" in typed and "how do you spell qwertzuiop" in typed


def test_small_talk_has_no_phrase_with_two_meanings():
    owners, rng = {}, random.Random(7)
    for name, kind in small_talk.kinds().items():
        patterns = [phrase for phrase in kind.said if "[" in phrase]
        made = [typing_habits.chosen(rng, rng.choice(patterns)) for _ in range(1000 if patterns else 0)]
        for phrase in {*kind.said, *made}.difference(patterns):
            owners.setdefault(phrase.lower().rstrip("?!. "), set()).add(name)
    double = {phrase: names for phrase, names in owners.items() if len(names) > 1 and phrase}
    assert not double


def test_a_right_answer_scores_one_and_another_one_zero():
    task, _ = load("microworld-talk@300", "test")
    kinds = set()
    for item in task:
        parts = item["messages"][-1]["content"]
        text = parts if isinstance(parts, str) else "".join(part["text"] for part in parts if part["type"] == "text")
        assert task.score(item, text) == 1.0 and task.score(item, text + " and so on") in (0.0, 1.0)
        assert task.score(item, "Something else.") == 0.0
        kinds.add(isinstance(parts, str))
    assert kinds == {True, False}
