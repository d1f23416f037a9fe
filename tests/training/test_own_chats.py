"""One's own chats through the real stages and the evaluation; RL says when there is nothing to learn."""

import json

import pytest
from chat_toy import make_base, run_stage

from nanochat_hf import tasks
from nanochat_hf.evals.runner import EvaluationConfig, run_evaluations
from nanochat_hf.settings import UserError
from nanochat_hf.tasks.base import Task

SHAREGPT = {"conversations": [{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "I am nanochat."}]}
CALL = {"id": "c1", "type": "function", "function": {"name": "calc", "arguments": '{"x": 1}'}}
WITH_TOOL = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "What is 1?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "assistant", "content": "It is 1."},
    ],
    "tools": [],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("run") / "base", sequence_length=64)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sft(base, output, chats, **changes):
    options = {"model": base, "output_dir": output, "tasks": f"conversations={chats}", "total_batch_size": 128}
    options |= {"device_batch_size": 2, "num_threads": 1, "save_every": 0} | changes
    run_stage("sft", *[word for name, value in options.items() for word in (f"--{name}", value)])


def test_training_and_evaluation_read_the_same_formats(base, tmp_path, capsys):
    chats = write_lines(tmp_path / "chats.jsonl", [SHAREGPT] * 12 + [WITH_TOOL] * 12)
    sft(base, tmp_path / "sft", chats)
    said = capsys.readouterr()
    formats = "format ShareGPT (from, value) (12), messages (role, content) with tool calls (12)"
    assert f"{chats}: 24 conversations, {formats}" in said.out
    assert "packing: 24 conversations" in said.out and "longer than" not in said.out + said.err
    assert json.loads((tmp_path / "sft" / "run.json").read_text())["stage"] == "sft"
    config = EvaluationConfig([str(tmp_path / "sft")], tasks=[f"conversations={chats}"], max_new_tokens=4)
    run_evaluations(config, ["chat"])
    result = json.loads((tmp_path / "sft" / "eval" / "chat.json").read_text())
    (row,) = result["details"]["tasks"]
    assert row["items"] == 24 and f"{chats}: 24 conversations, {formats}" in capsys.readouterr().out


def test_a_file_in_latin_1_ends_both_with_one_sentence(base, tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_bytes('[{"role": "user", "content": "café?"}]\n'.encode("latin1"))
    says = "is not UTF-8: byte 0xe9 at offset 33 .line 1."
    with pytest.raises(UserError, match=says):
        sft(base, tmp_path / "sft", chats)
    with pytest.raises(UserError, match=says):
        run_evaluations(EvaluationConfig([str(base)], tasks=[f"conversations={chats}"]), ["chat"])


def test_long_conversations_and_a_last_step_are_warned_of(base, tmp_path, capsys):
    long = [{"role": "user", "content": "Hello! " * 20}, {"role": "assistant", "content": "I am nanochat. " * 20}]
    sft(base, tmp_path / "sft", write_lines(tmp_path / "chats.jsonl", [long, SHAREGPT, SHAREGPT] * 3), max_seq_len=32)
    err = capsys.readouterr().err
    assert "warning: packing: 3 of 9 (33.3%) conversations are longer than 32 tokens and are cut" in err
    assert "raise --max_seq_len" in err


class NoRightAnswer(Task):
    name = "no-right-answer"

    def example(self, row):
        return {"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Yes."}]}

    def score(self, example, completion):
        return 0.0


def rl(base, output, task, **changes):
    options = {"model": base, "output_dir": output, "tasks": task, "val_tasks": task, "prompts_per_step": 2}
    options |= {"num_generations": 2, "max_new_tokens": 4, "num_iterations": 6, "device_batch_size": 4}
    options |= {"eval_every": 0, "save_every": 0} | changes
    run_stage("rl", *[word for name, value in options.items() for word in (f"--{name}", value)])


def test_rl_says_when_all_answers_score_the_same(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "load", lambda spec, split: (NoRightAnswer(range(8)), 1))
    rl(base, tmp_path / "rl", "toy")
    err = capsys.readouterr().err
    says = "for 5 steps all answers to each prompt have had the same score (mean 0.00), so nothing is learned"
    assert err.count(says) == 1 and "no answer is right: take easier tasks" in err


def test_tasks_without_a_scorer_are_refused_before_anything_is_loaded(base, tmp_path):
    chats = write_lines(tmp_path / "train.jsonl", [SHAREGPT])
    says = "smoltalk has no right answers to score; train on it with SFT"
    with pytest.raises(UserError, match=says):
        rl(base, tmp_path / "rl", f"smoltalk={chats}")
    with pytest.raises(UserError, match=says):
        run_evaluations(EvaluationConfig([str(base)], tasks=[f"smoltalk={chats}"]), ["chat"])


def test_prompts_left_out_of_rl_are_warned_of(base, tmp_path, capsys):
    long, short = "Hello! " * 20, "Hello!"
    rows = [{"prompt": question, "completion": "Yes."} for question in (long, short, short, short, short)]
    chats = write_lines(tmp_path / "chats.jsonl", rows)
    rl(base, tmp_path / "rl", f"conversations={chats}", num_iterations=-1, prompts_per_step=3)
    err = capsys.readouterr().err
    assert "warning: rl: 1 of 5 (20.0%) prompts are longer than 60 tokens" in err and "lower --max_new_tokens" in err
    assert "warning: last step: 1 of 4 (25.0%) prompts do not fill a step and are left out" in err
