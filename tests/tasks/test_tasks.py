"""Tasks: the rows they read, the conversations they make, and how they score."""

import json
import re

import pytest

from nanochat_hf.settings import UserError
from nanochat_hf.tasks import TASKS, check_specs, load, separate
from nanochat_hf.tasks.base import Task, choice_example, final_number, message_text
from nanochat_hf.tasks.gsm8k import solution_parts, word_problem
from nanochat_hf.tasks.humaneval import code_of, leading_imports
from nanochat_hf.tasks.spelling import split_of_word
from nanochat_hf.tools.calculator import calculate

MICROWORLD = [name for name in TASKS if name.startswith("microworld-")]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_choices_are_rendered_as_upstream_does():
    example = choice_example("Which?", ["one", "two"], ["A", "B"], "B")
    assert example["messages"][0]["content"] == (
        "Multiple Choice question: Which?\n- one=A\n- two=B\n\nRespond only with the letter of the correct answer."
    )
    assert example["messages"][1]["content"] == "B"


def test_calculator_marks_become_calls_with_the_calculators_own_output():
    parts = solution_parts("She has 48/2 = <<48/2=24>>24 left.\n#### 24")
    assert [part["type"] for part in parts] == ["text", "python", "python_output", "text"]
    assert parts[1]["text"] == "48/2"
    assert parts[2]["text"] == calculate("48/2") == "24.0"


def test_a_mark_that_the_calculator_refuses_is_left_out():
    parts = solution_parts("x is <<2**3=8>>8.\n#### 8")
    assert [part["type"] for part in parts] == ["text", "text"]
    assert message_text({"content": parts}) == "x is 8.\n#### 8"


def test_a_task_of_ones_own_is_named_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / "own_tasks.py").write_text(
        "from nanochat_hf.tasks.base import Task\n\n\n"
        "class Twice(Task):\n    name = 'twice'\n\n"
        "    def __init__(self, split='test', limit=None):\n"
        "        super().__init__(range(9) if split == 'train' else range(3), limit)\n\n\n"
        "def three(split, limit):\n    return 3\n\n\n"
        "def nothing(path):\n    return None\n"
    )
    monkeypatch.chdir(tmp_path)
    task, repeat = load("own_tasks:Twice@4*2", "train")
    assert (type(task).__name__, len(task), repeat) == ("Twice", 4, 2)
    assert len(load("own_tasks:Twice/test", "train")[0]) == 3
    assert separate(["own_tasks:Twice@4,mmlu*3"]) == ["own_tasks:Twice@4", "mmlu*3"]
    check_specs(["own_tasks:Twice@4"])
    for wrong, says in (
        ("own_tasks:Nothing", "the module own_tasks has no function or class Nothing"),
        ("no_such_module:Twice", "--tasks: cannot import the module no_such_module"),
        ("own_tasks:three", "own_tasks:three is no task; give a subclass of"),
        ("own_tasks:nothing", "own_tasks:nothing does not take split and limit"),
        ("own_tasks:Twice=my_file", "own_tasks:Twice does not take split, limit and source"),
        ("own_tasks:Twice@~4", "drawn at random already"),
    ):
        with pytest.raises(UserError, match=says):
            load(wrong, "train")


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 1,234", "1234"), ("so #### -5\n#### 6", "-5"), ("#### $5", None), ("no number", None), ("####5", None)],
)
def test_final_number(text, number):
    assert final_number(text) == number


def test_gsm8k_scores_the_number_after_the_marker(tmp_path):
    write_lines(tmp_path / "test.jsonl", [{"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"}])
    task, repeat = load(f"gsm8k={tmp_path}*3", "test")
    assert (len(task), repeat, task.kind) == (1, 3, "generative")
    assert task.score(task[0], "I think #### 2") == 1.0
    assert task.score(task[0], "I think 2") == 0.0
    assert task.score(task[0], "#### 3 #### 2") == 0.0


def test_a_reference_without_a_number_is_never_matched():
    task, _ = load("microworld-problems@1", "test")
    assert task.score(word_problem("?", "nothing"), "nothing") == 0.0


def test_exams_read_their_layouts_and_score_letters(tmp_path):
    row = {"question": "2+2?", "subject": "maths", "choices": ["1", "2", "3", "4"], "answer": 3}
    write_lines(tmp_path / "mmlu_test.jsonl", [row])
    choices = {"text": ["ice", "fire", "snow"], "label": ["1", "2", "3"]}
    write_lines(tmp_path / "ARC-Easy_test.jsonl", [{"question": "Hot?", "choices": choices, "answerKey": "2"}])
    mmlu, _ = load(f"mmlu={tmp_path}", "test")
    arc, _ = load(f"arc-easy={tmp_path}", "test")
    assert mmlu[0]["answer"] == "D" and mmlu.score(mmlu[0], "D") == 1.0 and mmlu.score(mmlu[0], "A") == 0.0
    assert arc[0]["letters"] == ["1", "2", "3"] and arc.score(arc[0], " 2\n") == 1.0
    assert mmlu.baseline == arc.baseline == 0.25


def test_a_limit_takes_the_files_first_items_or_with_a_tilde_those_of_upstreams_shuffle(tmp_path):
    write_lines(tmp_path / "test.jsonl", [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(30)])

    def answers(end, limit=None):
        return [item["answer"] for item in load(f"gsm8k={tmp_path}{end}", "test", limit)[0]]

    in_order = [str(n) for n in range(30)]
    assert answers("@10") == answers("", 10) == answers("@20", 10) == answers("@10", 20) == in_order[:10]
    assert sorted(answers(""), key=int) == in_order and answers("") != in_order
    assert answers("@~10") == answers("@~20", 10) == answers("")[:10]
    write_lines(tmp_path / "chats.jsonl", [{"prompt": f"q{n}", "response": str(n)} for n in range(30)])
    chats = [
        row["messages"][0]["content"] for row in load(f"conversations={tmp_path / 'chats.jsonl'}@~9*2", "train")[0]
    ]
    assert len(set(chats)) == 9 and set(chats) != {f"q{n}" for n in range(9)}


def test_drawn_examples_are_random_already():
    with pytest.raises(UserError, match="drawn at random already; write microworld-exam@5"):
        load("microworld-exam@~5", "test")


def test_humaneval_runs_the_answer_in_the_sandbox(tmp_path):
    row = {
        "prompt": "import math\n\ndef up(x):\n    '''Round up.'''\n",
        "canonical_solution": "    return math.ceil(x)\n",
        "entry_point": "up",
        "test": "def check(candidate):\n    assert candidate(1.5) == 2\n",
    }
    write_lines(tmp_path / "HumanEval.jsonl", [row])
    task, _ = load(f"humaneval={tmp_path}", "test")
    assert task.runs_code
    assert task.score(task[0], task[0]["messages"][-1]["content"]) == 1.0
    fenced = "Here:\n```python\ndef up(x):\n    return math.ceil(x)\n```\nDone."
    assert task.score(task[0], fenced) == 1.0  # the import is the prompt's
    assert task.score(task[0], "def up(x):\n    return 0") == 0.0


def test_code_is_taken_from_the_first_block():
    assert code_of("a\n```\nx = 1\n```\n```\ny\n```") == "x = 1"
    assert code_of("x = 1") == "x = 1"
    stub = "# hi\nimport os\nfrom a import b\n\ndef f():\n    import c"
    assert leading_imports(stub) == "import os\nfrom a import b"


def test_spelling_splits_by_word(tmp_path):
    words = [first + second + "xyz" for first in "abcdefghij" for second in "klmnopqrst"]
    (tmp_path / "words.txt").write_text("\n".join(words))
    for name in ("spelling", "spelling-bee"):
        train, _ = load(f"{name}={tmp_path}", "train")
        test, _ = load(f"{name}={tmp_path}", "test")
        assert set(train.rows) | set(test.rows) == set(words)
        assert not set(train.rows) & set(test.rows) and len(test) > 0
        assert all(split_of_word(item.upper()) == "test" for item in test.rows)
        assert all(item.score(item[0], message_text(item[0]["messages"][-1])) == 1.0 for item in (train, test))
    assert test.score(test[0], "#### 99") == 0.0


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nothing", "there is no task 'nothing'"),
        ("gsm8k=/no/such/folder", "there is no file or folder /no/such/folder"),
        ("spelling", "need a word list"),
        ("microworld-exam/dev", "train, validation, test"),
        ("conversations=/no/such.jsonl", "there are no conversations"),
        ("conversations=data/no_such.jsonl", "there are no conversations"),
        ("conversations", "needs a file: conversations=PATH.jsonl"),
        ("microworld-exam=my_world", "is built in and takes no source; leave =my_world out"),
    ],
)
def test_mistakes_are_said_in_one_sentence(spec, says):
    with pytest.raises(UserError, match=says):
        load(spec, "test")


def test_a_path_without_the_name_of_a_task_is_told_the_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "chats").mkdir(parents=True)
    for name in ("my-chats.jsonl", "b.csv", "plain"):
        (tmp_path / name).write_text("")
    for spec in ("my-chats.jsonl", "my-chats.jsonl@~20*2", "my-chats.jsonl,b.csv", "plain", "sub", "sub/chats"):
        with pytest.raises(UserError, match=re.escape(f"write conversations={spec}, or preferences={spec} for")):
            check_specs([spec])
    for spec in ("gone.jsonl", "sub/gone.json@5", "./gone"):
        with pytest.raises(
            UserError, match="is a path, and there is no such file or folder; check it, and write conv"
        ):
            check_specs([spec])
    for spec in ("gsm9k", "gsm9k=my-chats.jsonl", "conversation=gone.jsonl"):
        with pytest.raises(UserError, match="there is no task 'gsm9k'|there is no task 'conversation'"):
            check_specs([spec])
    (tmp_path / "gsm8k").mkdir()
    check_specs(["gsm8k", "my_tasks:Count"])


@pytest.mark.parametrize("name", MICROWORLD)
def test_microworld_references_score_one_and_others_nought(name):
    task, _ = load(f"{name}@40", "test")
    items = list(task)
    assert items == list(load(f"{name}@40", "test")[0])
    for item in items[:8] if task.runs_code else items:
        assert task.score(item, message_text(item["messages"][-1])) == 1.0
        assert task.score(item, "I do not know.") == 0.0


def test_tasks_may_be_joined_by_commas():
    assert separate(["gsm8k,mmlu@5, conversations=a, b.jsonl*2", "spelling"]) == [
        "gsm8k", "mmlu@5", "conversations=a, b.jsonl*2", "spelling"
    ]  # fmt: skip


@pytest.mark.parametrize("spec", ["microworld-exam@0", "microworld-exam*0"])
def test_a_task_without_examples_is_refused(spec):
    with pytest.raises(UserError, match="uses no example"):
        load(spec, "train")


@pytest.mark.parametrize(
    "spec, rows, says",
    [
        ("gsm8k", [{"prompt": "a", "completion": "b"}], r"each row needs question \(text\), answer \(text\), and"),
        ("gsm8k", [[{"role": "user", "content": "a"}]], "has no such question; conversations=PATH reads chats"),
        ("gsm8k", [{"question": "a", "answer": "#### 1"}, {"question": "a", "answer": 1}], "has no such answer"),
        ("gsm8k", [{"question": "a", "answer": "four"}], "the answer as a number after ####, and 'a' has none"),
        ("mmlu", [{"question": "a", "choices": "b", "answer": 0, "subject": "c"}], "has no such choices"),
        ("mmlu", [{"question": "a", "choices": list("bcde"), "answer": 4, "subject": "c"}], "the answer 4"),
        ("mmlu", [{"question": "a", "choices": list("bcdef"), "answer": 4, "subject": "c"}], "has 5 choices"),
        ("arc-easy", [{"question": "a", "choices": ["b"], "answerKey": "A"}], "has no such choices"),
        ("arc-easy", [{"question": "a", "choices": {"text": ["b"]}, "answerKey": "A"}], "as many texts as labels"),
        ("arc-easy", [{"question": "a", "choices": {"text": ["b"], "label": ["A"]}, "answerKey": "B"}], "among the"),
        (
            "arc-easy",
            [{"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "A"]}, "answerKey": "A"}],
            "no label twice",
        ),
        ("humaneval", [{"prompt": "a", "test": "b"}], "has no such canonical_solution"),
        ("spelling", [{"prompt": "a"}], "is no word list"),
        ("spelling-bee", [], "is no word list"),
    ],
)
def test_a_file_of_another_form_is_one_sentence(tmp_path, spec, rows, says):
    path = write_lines(tmp_path / "rows.jsonl", rows) if rows else tmp_path / "rows.txt"
    if not rows:
        path.write_text("two words\n")
    with pytest.raises(UserError, match=says) as error:
        list(load(f"{spec}={path}", "train")[0])
    assert "\n" not in str(error.value)


def test_a_word_list_needs_words_of_both_splits(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("caf\u00e9\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        load(f"spelling={path}", "train")
    path.write_text("apple\nbanana\n")
    assert len(load(f"spelling={path}", "train")[0]) == 2
    with pytest.raises(UserError, match="none of the 2 words belongs to the split test"):
        load(f"spelling={path}", "test")


ASKED, ANSWERED = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}


@pytest.mark.parametrize(
    ("example", "fault"),
    [
        (None, "it is None"),
        ([ASKED, ANSWERED], r"it is \[\{'role'"),
        ({"conversation": [ASKED, ANSWERED]}, "its messages are None"),
        ({"messages": []}, r"its messages are \[\]"),
        ({"messages": "hi"}, "its messages are 'hi'"),
        ({"messages": [ASKED]}, "its last message is from the user"),
        ({"messages": ["hi", ANSWERED]}, "message 1 is 'hi', without a role from system, user, assistant, tool"),
        ({"messages": [{"content": "hi"}, ANSWERED]}, "message 1 is {'content': 'hi'}, without a role"),
        ({"messages": [ASKED | {"role": "human"}, ANSWERED]}, "message 1 is .*'human'.*, without a role"),
        ({"messages": [ASKED, ANSWERED, ASKED | {"role": "system"}, ANSWERED]}, "message 3 is the system's"),
        ({"messages": [ASKED, {"role": "assistant", "content": 4}]}, "the content of message 2 is 4 instead of text"),
        ({"messages": [ASKED, {"role": "assistant"}]}, "the content of message 2 is None instead of text"),
        ({"messages": [ASKED, ANSWERED | {"content": ["a"]}]}, "a part of message 2 is 'a', without a type"),
        ({"messages": [ASKED, ANSWERED | {"content": [{"type": "image"}]}]}, "a part of message 2 is .*image"),
        ({"messages": [ASKED, ANSWERED | {"content": [{"type": "text"}]}]}, "the content of message 2 is None"),
        ({"messages": [ASKED, ANSWERED | {"content": "a\ud800"}]}, "the content of message 2 holds half of"),
        ({"text": 5}, "its text is 5 instead of text"),
    ],
)
def test_an_own_task_with_a_malformed_example_is_named(example, fault):
    class Own(Task):
        name = "own"

        def example(self, row):
            return row

    good = {"messages": (ASKED, ANSWERED | {"content": [{"type": "python", "text": "1+1"}]})}
    task = Own([good, {"text": "Some text."}, example])
    assert task[0] == good and task[1] == {"text": "Some text."}
    with pytest.raises(UserError, match=f"example 2 of the task own is no conversation: {fault}"):
        list(task)
