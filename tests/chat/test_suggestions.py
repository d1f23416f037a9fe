"""Suggested questions: they come from the checkpoint, and the checkpoint answers each of them."""

from trained_chat import examples

from nanochat_hf import settings, tasks
from nanochat_hf.chat import LocalModel, suggestions
from nanochat_hf.chat.suggestions import LONGEST, WRITTEN
from nanochat_hf.tools.presentation import said_text


def test_each_suggestion_is_answered_right(trained_run):
    model, known = LocalModel(str(trained_run / "rl"), device="cpu"), examples()
    found = suggestions(trained_run / "rl", limit=9)
    assert {one.task for one in found} == set(known)
    for one in found:
        *_, answer = model.answer([{"role": "user", "content": one.question}], temperature=0.0, max_new_tokens=128)
        task, _ = tasks.load(one.task, "test")
        assert task.score(known[one.task], said_text(answer.content)) == 1, (one, answer.content)


def test_they_are_what_the_evaluation_saw_answered_right(tmp_path):
    user = [{"role": "user", "content": "Which?"}]
    samples = {
        "gsm8k": [
            {"prompt": [{"role": "user", "content": "wrongly answered"}], "answer": "", "score": 0.0},
            {"prompt": [{"role": "system", "content": "s"}, *user], "answer": "", "score": 1.0},
            {"prompt": [{"role": "user", "content": "x" * (LONGEST + 1)}], "answer": "", "score": 1.0},
            {"prompt": user, "answer": "", "score": 1.0},
        ],
        "spelling": [{"prompt": user, "answer": "", "score": 0.0}],
    }
    settings.write_json(tmp_path / "eval" / "chat.json", {"details": {"samples": samples}})
    assert suggestions(tmp_path) == []  # not trained yet
    names = ["gsm8k@100", "spelling/train*2", "spelling-bee", "mmlu", "conversations=my.jsonl"]
    settings.save_run(tmp_path, "sft", {"tasks": names})
    found = {one.task: one.question for one in suggestions(tmp_path)}
    # a task that was evaluated without one right answer gets no suggestion, one without an evaluation a written one
    assert found == {"gsm8k": "Which?", "spelling-bee": WRITTEN["spelling-bee"]}


def test_damaged_evaluations_and_hub_ids_do_no_harm(tmp_path):
    settings.save_run(tmp_path, "sft", {"tasks": ["microworld-identity"]})
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "chat.json").write_text('{"details": {"samples": {"microworld-identity": [{"score": 1}]}}}')
    assert [one.question for one in suggestions(tmp_path)] == [WRITTEN["microworld-identity"]]
    assert suggestions("user/model") == []


def test_written_questions_belong_to_tasks():
    assert set(WRITTEN) <= set(tasks.TASKS)
