"""The runner: which checkpoints are evaluated, which results are kept, what is printed."""

import copy
import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from nanochat_hf import settings
from nanochat_hf.evals import runner
from nanochat_hf.evals.runner import EvaluationConfig
from nanochat_hf.settings import UserError


@pytest.fixture
def run_dir(tmp_path):
    for stage in ("base", "rl"):
        settings.save_run(tmp_path / stage, stage, {})
        (tmp_path / stage / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "sft").mkdir()  # begun, not finished
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """Replaces model and evaluations by recorders: the test is about what is run when."""
    made = []

    class EvaluatedModel:
        def __init__(self, name):
            self.name, self.dtype = name, "float32"

    def evaluation(evaluated, config):
        made.append(evaluated.name)
        return {"metrics": {"core": 0.5}, "details": {}}

    monkeypatch.setattr(runner, "load_evaluated_model", lambda name, **_: EvaluatedModel(name))
    monkeypatch.setattr(runner, "EVALUATIONS", dict.fromkeys(runner.EVALUATIONS, evaluation))
    return made


def test_finished_stages_are_evaluated_once(run_dir, calls):
    config = EvaluationConfig(run_dir=str(run_dir), core_stages=["base"])
    runner.run_evaluations(config, ["core", "chat"])
    base, rl = str(run_dir / "base"), str(run_dir / "rl")
    assert calls == [base, base, rl], "CORE and chat on base, chat alone on rl, nothing on what is unfinished"
    runner.run_evaluations(config, ["core", "chat"])
    assert len(calls) == 3, "existing results are kept"
    config.max_per_task = 7
    runner.run_evaluations(config, ["core", "chat"])
    assert calls[3:] == [base], "a changed setting of CORE runs CORE again, but not the chat tasks"


def test_newer_weights_and_redo_run_again(run_dir, calls):
    import os
    import time

    config = EvaluationConfig(checkpoints=[f"{run_dir}/rl/"])
    runner.run_evaluations(config, ["core"])
    later = time.time() + 60
    os.utime(run_dir / "rl" / "model.safetensors", (later, later))
    runner.run_evaluations(config, ["core"])
    os.utime(run_dir / "rl" / "model.safetensors", (1, 1))
    config.redo = True
    runner.run_evaluations(config, ["core"])
    assert len(calls) == 3


def test_other_content_under_the_same_name_runs_again(tmp_path, run_dir, calls, capsys):
    path = tmp_path / "keep.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n')
    config = EvaluationConfig(checkpoints=[f"{run_dir}/rl"], tasks=[f"conversations={path}"])
    for _ in range(2):
        runner.run_evaluations(config, ["chat"])
    assert len(calls) == 1
    path.write_text('{"question": "a", "answer": "another"}\n')
    runner.run_evaluations(config, ["chat"])
    assert len(calls) == 2 and f"evaluated again: the data in {path} has changed" in capsys.readouterr().out
    path.unlink()
    runner.run_evaluations(config, ["chat"])
    assert len(calls) == 2, "a result stays where its file is gone"
    stored = json.loads((run_dir / "rl" / "eval" / "chat.json").read_text())
    del stored["read"]  # as older versions wrote it
    (run_dir / "rl" / "eval" / "chat.json").write_text(json.dumps(stored))
    runner.run_evaluations(config, ["chat"])
    assert len(calls) == 2


def test_a_place_without_room_for_results_is_named_before_anything_runs(run_dir, calls):
    (run_dir / "rl" / "eval").write_text("a file")
    with pytest.raises(UserError, match="eval is a file"):
        runner.run_evaluations(EvaluationConfig(checkpoints=[f"{run_dir}/rl"]), ["core"])
    assert not calls


def test_one_output_folder_keeps_the_results_of_every_checkpoint(run_dir, calls):
    names, output = [f"{run_dir}/base", "someone/model"], run_dir / "out"
    runner.run_evaluations(EvaluationConfig(checkpoints=names, output_dir=str(output)), ["core"])
    stored = [json.loads(path.read_text())["checkpoint"] for path in output.glob("*/core.json")]
    assert sorted(stored) == sorted(names)
    runner.run_evaluations(EvaluationConfig(checkpoints=names[:1], output_dir=str(output)), ["core"])
    assert (output / "core.json").exists(), "a single one needs no folder of its own"


def test_documents_are_read_as_the_settings_say(tmp_path):
    rows = [{"story": f"story {i}", "other": "no"} for i in range(2)]
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "valid-0.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "valid-1.jsonl").write_text("")
    config = EvaluationConfig(data=str(tmp_path), text_column="story")
    with pytest.raises(UserError, match="valid-1.jsonl is empty"):
        list(runner.validation_documents(config))
    config.on_bad_file = "skip"
    with pytest.warns(UserWarning, match="valid-1.jsonl is empty"):
        assert list(runner.validation_documents(config)) == ["story 0", "story 1"]


def test_the_column_decides_where_text_is_read():
    for name, core_bundle in (("bits_per_byte", "microworld"), ("core", "text")):
        without, with_column = EvaluationConfig(core_bundle=core_bundle), EvaluationConfig(core_bundle=core_bundle)
        with_column.text_column = "story"
        settings_of = [runner.deciding_settings(name, config) for config in (without, with_column)]
        assert "text_column" not in settings_of[0] and settings_of[1]["text_column"] == "story"
    assert "text_column" not in runner.deciding_settings("core", EvaluationConfig(text_column="story"))


@pytest.mark.parametrize("metric, title", [("core", "CORE"), ("microworld_completion", "microworld completion tasks")])
def test_the_terminal_names_what_was_measured(metric, title):
    row = {"task": "facts", "accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75, "centered": 0.1, "items": 8}
    metrics = {metric: -0.5, f"{metric}_low": -1.0, f"{metric}_high": 0.0}
    result = {"evaluation": "core", "metrics": metrics, "details": {"tasks": [row]}}
    assert runner.evaluation_title(result) == title
    lines = [line.split() for line in runner.result_table(result).splitlines()]
    assert lines[0] == "facts 50.0 % [25.0, 75.0] centered +0.1000 8 items".split()
    assert lines[1] == f"{title} -0.5000 [-1.0000, 0.0000]".split()


def test_mistakes_are_one_sentence(tmp_path, calls):
    with pytest.raises(UserError, match="--checkpoints FOLDER"):
        runner.run_evaluations(EvaluationConfig(), ["core"])
    with pytest.raises(UserError, match="has no finished stage"):
        runner.run_evaluations(EvaluationConfig(run_dir=str(tmp_path)), ["core"])
    with pytest.raises(UserError, match="no evaluation named nonsense"):
        runner.run_evaluations(EvaluationConfig(run_dir=str(tmp_path)), ["nonsense"])


def test_missing_checkpoint_is_named(tmp_path):
    from nanochat_hf.evals.evaluated_model import load_evaluated_model

    with pytest.raises(UserError, match="there is no folder"):
        load_evaluated_model(str(tmp_path / "nowhere"))


def test_a_model_that_computes_no_numbers_is_refused(tmp_path, tiny_model):
    """Its answers would be scored as wrong ones."""
    from nanochat_hf.evals.evaluated_model import load_evaluated_model

    broken = copy.deepcopy(tiny_model)
    broken.lm_head.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"1": 0, "+": 1}, merges=[]))).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="not numbers"):
        load_evaluated_model(str(tmp_path))
