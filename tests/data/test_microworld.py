"""The microworld: same arguments, same data; no combination in two splits; every fact is in the prose."""

import random
import re
from collections import Counter

import pytest

from nanochat_hf.data.microworld import (
    CURRICULUM,
    choice_practice,
    conversations,
    documents,
    exam,
    letters,
    problems,
    programs,
    prose,
)
from nanochat_hf.data.microworld.world import SPLITS, made_up_word, person, relations, rules, split_of
from nanochat_hf.settings import UserError
from nanochat_hf.tasks import load
from nanochat_hf.tasks.base import choice_example, message_text

KINDS = ("chat", "identity", "exam", "problems", "spelling", "code")


def draws(make, split, count=600):
    rng = random.Random(f"test of {split}")
    return [make(rng, split) for _ in range(count)]


def test_documents_are_the_same_for_the_same_arguments():
    first = list(documents("train", seed=1, limit=50))
    assert first == list(documents("train", seed=1, limit=50))
    assert first == list(documents("train", seed=1, limit=80))[:50]
    assert first != list(documents("train", seed=2, limit=50))
    assert len(set(first)) > 45


def test_training_begins_with_practice_in_finding_a_letter():
    (lists, _), (pages, _) = CURRICULUM
    first = list(documents("train", limit=lists + pages + 500))
    assert all(text.startswith("- ") for text in first[:lists])
    asking = [text.startswith(("Which choice says", "Multiple Choice question: Which")) for text in first[lists:]]
    assert sum(asking[:pages]) > 0.7 * pages and 20 < sum(asking[pages:]) < 100
    assert not all(text.startswith("- ") for text in documents("validation", limit=20))


def read_key(text):
    key = dict(re.findall(r"^- (.*)=([A-P])(?: right| wrong)?$", text, flags=re.M))
    assert len(key) == 4 and len(set(key.values())) == 4
    return key


def test_a_list_is_asked_for_its_own_letters():
    for text in draws(choice_practice.lookup_list, "train", 200):
        choices, answers = text.split("\n\n")
        key = read_key(choices)
        said = re.findall(r"^- (.*)=([A-P])$", answers, flags=re.M)
        said += re.findall(r"^Which choice says (.*)\?\n([A-P])$", answers, flags=re.M)
        assert len(said) == 8 and all(key[choice] == letter for choice, letter in said)


def test_a_page_ends_with_the_letter_of_its_word_and_marks_are_true():
    marks = set()
    for text in draws(choice_practice.marked_page, "train", 300):
        key, letter = read_key(text), text.split("\n")[-1]
        (choice,) = re.findall(r"Which choice says (.*)\?", text)
        assert key[choice] == letter
        marks |= {
            (mark, said == choice) for said, mark in re.findall(r"^- (.*)=[A-P] (right|wrong)$", text, flags=re.M)
        }
    assert marks == {("right", True), ("wrong", False)}


def test_a_quiz_has_the_right_letter_for_every_question():
    answers, before = {}, 0
    for _ in range(40):
        for topic in draws(exam.topic, "train", 50):
            answers.update(topic.asked)
    for text in draws(choice_practice.quiz, "train", 400):
        key = read_key(text)
        lines = [
            line for line in text.split("\n") if line and not line.startswith("- ") and line != choice_practice.RESPOND
        ]
        questions = [line.removeprefix("Multiple Choice question: ") for line in lines[::2]]
        assert 1 <= len(questions) == len(lines[1::2]) <= 4
        known = [
            (question, letter) for question, letter in zip(questions, lines[1::2], strict=True) if question in answers
        ]
        assert all(key[answers[question]] == letter for question, letter in known)
        before += not text.startswith("- ")
    assert 240 < before < 360


def test_pages_that_look_like_exams_have_the_words_of_exams():
    pages = [text for text in draws(choice_practice.quiz, "train", 100) if text.startswith("Multiple Choice")]
    assert len(pages) > 10
    for text in pages:
        question = text.split("\n")[0].removeprefix("Multiple Choice question: ")
        choices, letters = zip(*read_key(text).items(), strict=True)
        message, _ = choice_example(question, choices, letters, letters[0])["messages"]
        assert text.startswith(f"{message['content']}\n")


def test_unknown_split_is_refused():
    with pytest.raises(UserError, match="train, validation, test"):
        next(documents("dev"))


def test_keys_fall_into_one_split_in_the_promised_shares():
    owners = [split_of("anything", number) for number in range(4000)]
    assert set(owners) == set(SPLITS)
    assert 0.65 < owners.count("train") / 4000 < 0.75


@pytest.mark.parametrize(
    "make",
    [
        lambda rng, split: person(rng, split).key(),
        made_up_word,
        lambda rng, split: problems.problem(rng, split)[0],
        lambda rng, split: exam.question(rng, split).text,
        lambda rng, split: letters.spelling(rng, split)[1],
        lambda rng, split: letters.counting(rng, split)[1],
        lambda rng, split: programs.function(rng, split)["prompt"],
        lambda rng, split: conversations.identity(rng, split)["messages"][0]["content"],
    ],
    ids=["people", "words", "problems", "exam", "spelling", "counting", "code", "identity"],
)
def test_no_two_splits_share_a_combination(make):
    train, validation, test = (set(draws(make, split)) for split in SPLITS)
    assert train and validation and test
    assert not train & validation and not train & test and not validation & test


def test_questions_for_facts_belong_to_one_split():
    """A fact that the test split asks for directly is asked for in training through a person only."""

    def asked(split):
        texts = [question.text for question in draws(exam.question, split, 1500) if question.subject == "fact"]
        texts += [turn["messages"][-2]["content"] for turn in draws(conversations.fact, split, 800)]
        return {
            (relation.name, subject)
            for relation in relations().values()
            for subject in relation.facts
            for text in relation.questions
            if text.format(s=subject) in texts
        }

    train, test = asked("train"), asked("test")
    assert len(train) > 50 and len(test) > 10
    assert not train & test


def test_no_test_prompt_is_in_training():
    for kind in KINDS:
        prompts = {}
        for split in ("train", "test"):
            task, _ = load(f"microworld-{kind}@400", split)
            prompts[split] = {"\n".join(message_text(turn) for turn in item["messages"][:-1]) for item in task}
        assert not prompts["train"] & prompts["test"], kind


def test_prose_states_every_fact_in_every_split():
    for split in SPLITS:
        text = "\n".join(draws(prose.document, split, 3000))
        for relation in (*relations().values(), *rules().values()):
            for subject, value in relation.facts.items():
                forms = [form.format(s=subject, v=value) for form in relation.statements]
                assert any(form in text for form in forms), (split, relation.name, subject)


def test_people_of_stories_do_not_meet_across_splits():
    introductions = {}
    for split in SPLITS:
        introductions[split] = set()
        for text in draws(prose.document, split, 1500):
            for line in text.split(". "):
                if " is a " in line and " and has a " in line:
                    introductions[split].add(line.split(" and has a ")[0])
    assert len(introductions["train"]) > 50
    assert not introductions["train"] & (introductions["test"] | introductions["validation"])


def test_two_of_five_questions_of_a_test_ask_for_facts_and_half_of_the_passages_tell_of_two_people():
    questions = draws(exam.question, "test", 2000)
    share = {subject: count / 2000 for subject, count in Counter(one.subject for one in questions).items()}
    expected = {"fact": 0.4, "creature": 0.2, "trade": 0.2, "passage": 0.1, "passage of two": 0.1}
    assert share == pytest.approx(expected, abs=0.03)


def test_the_other_person_of_a_passage_is_a_choice():
    asked = [one for one in draws(exam.question, "train", 600) if one.subject == "passage of two"]
    assert len(asked) > 40
    for question in asked:
        told = question.text.rpartition(". ")[0]
        assert sum(re.search(rf"\b{choice}\b", told) is not None for choice in question.choices) == 2, question


def test_questions_in_two_steps_name_a_person_and_not_what_the_fact_is_about():
    known, found = relations(), set()
    for topic in draws(exam.topic, "train", 800):
        if topic.subject == "trade":
            for text, answer in topic.asked:
                told, _, question = text.rpartition(". ")
                words = set(re.findall(r"\w+", told))
                about = [(name, words & set(one.facts)) for name, one in known.items() if one.values == topic.values]
                assert any(known[name].facts[subject] == answer for name, subjects in about for subject in subjects)
                assert not any(subjects & set(re.findall(r"\w+", question)) for _, subjects in about)
                found |= {name for name, _ in about}
    assert found == set(known)


def test_exam_questions_have_four_choices_and_the_answers_are_spread():
    questions = draws(exam.question, "test")
    assert all(len(set(question.choices)) == 4 for question in questions)
    share = [sum(question.answer == place for question in questions) / len(questions) for place in range(4)]
    assert all(0.18 < part < 0.32 for part in share)
    longest = sum(max(question.choices, key=len) == question.choices[question.answer] for question in questions)
    assert longest / len(questions) < 0.4  # the length of a choice gives nothing away


def test_solutions_of_problems_are_what_their_marks_say():
    for question, solution in draws(problems.problem, "train"):
        last = None
        for mark in (piece.split(">>")[0] for piece in solution.split("<<")[1:]):
            expression, result = mark.split("=")
            assert all(character in "0123456789+-*/" for character in expression)
            assert eval(expression) == int(result)
            last = result
        assert solution.endswith(f"#### {last}")
        assert int(last) >= 0 and question.endswith("?")
