"""Every setting of every stage: bad input ends in exit status 2 and one sentence, before anything slow is imported."""

import subprocess
import sys
import typing
from collections import Counter
from dataclasses import fields

import pytest
from stage_configs import STAGES, TRAINING, config_class

from nanochat_hf import settings
from nanochat_hf.settings import UserError

SETTINGS = [(stage, one.name) for stage in STAGES for one in fields(config_class(stage))]
# Settings for which 0 needs no explanation in the help.
PLAIN_ZERO = {
    *("embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr", "smear_lr", "backout_lr", "lr_scale"),
    *("weight_decay", "init_lr_frac", "final_lr_frac", "warmup_ratio", "warmdown_ratio", "warmup_steps"),
    *("momentum_start", "momentum_peak", "momentum_warmup_steps", "seed", "data_seed"),
}
# Texts that the stage itself has to look up: names of files, tasks, columns and kernels.
LOOKED_UP = {
    *("model", "output_dir", "tokenizer", "data", "text_column", "tasks", "val_tasks", "core_bundle", "run_dir"),
    *(
        "window_pattern",
        "attention",
        "initialize_control_tokens",
        "default_sampling",
        "phases",
        "accelerate_config",
        "first_words",
        "title",
        "stages",
    ),
}


def parts_of(stage, name):
    config = config_class(stage)
    kind = typing.get_type_hints(config)[name]
    inner = [one for one in typing.get_args(kind) if one is not type(None)]
    is_list = typing.get_origin(kind) is list
    metadata = next(one for one in fields(config) if one.name == name).metadata
    return (inner[0] if inner else kind), is_list, metadata


def parse(stage, name, value):
    return getattr(settings.parse_stage(stage, config_class(stage), [f"--{name}={value}"]), name)


def refused(stage, name, value):
    """The sentence that refuses a value; None where it is accepted."""
    try:
        parse(stage, name, value)
    except UserError as error:
        sentence = str(error)
        assert f"--{name}" in sentence and "\n" not in sentence, sentence
        return sentence
    return None


@pytest.mark.parametrize(("stage", "name"), SETTINGS)
def test_bad_values_are_refused_in_one_sentence(stage, name):
    kind, is_list, metadata = parts_of(stage, name)
    if kind in (int, float):
        for wrong in ("banana", "", "true", "1,5", "nan", "inf", "1e999", "[]", "{}"):
            assert refused(stage, name, wrong), wrong
        if kind is int:
            assert refused(stage, name, "1.5") and refused(stage, name, str(2**70))
        assert refused(stage, name, "-2") and refused(stage, name, "-1e9")
        if not refused(stage, name, "-1"):
            assert "-1:" in metadata["help"] or "0: " in metadata["help"], "the help says what -1 means"
        if not refused(stage, name, "0"):
            assert name in PLAIN_ZERO or "0: " in metadata["help"], "the help says what 0 means"
    elif kind is bool:
        for wrong in ("banana", "2", "-1", ""):
            assert refused(stage, name, wrong), wrong
    elif metadata["choices"]:
        for wrong in ("banana", "0", "-1", ""):
            assert refused(stage, name, wrong), wrong
    else:
        assert name in LOOKED_UP, "a text of few words has `choices`"


@pytest.mark.parametrize("stage", STAGES)
def test_a_recipe_is_held_to_the_same_rules(stage, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for one in fields(config_class(stage)):
        kind, is_list, metadata = parts_of(stage, one.name)
        wrong = ["{a: 1, b: 2}", "[[1]]", "2024-01-01"] + (
            [] if kind is bool else ["true"] if kind is not str else ["7"]
        )
        if kind is str and metadata["choices"]:
            wrong += ["banana"]
        for value in wrong:
            recipe.write_text(f"{stage}:\n  {one.name}: {value}\n")
            with pytest.raises(UserError) as said:
                settings.parse_stage(stage, config_class(stage), ["--config", str(recipe)])
            assert one.name in str(said.value) and "\n" not in str(said.value)


def test_paths_know_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = [(stage, name) for stage, name in SETTINGS if parts_of(stage, name)[2]["path"]]
    assert {name for _, name in found} >= {"output_dir", "model", "tokenizer", "run_dir", "core_bundle"}
    for stage, name in found:
        assert parse(stage, name, "~/x") == "/home/me/x"


def test_the_shared_settings_are_those_of_several_stages():
    from nanochat_hf.evals.runner import EvaluationConfig

    classes = [*(config_class(stage) for stage in STAGES), EvaluationConfig]
    count = Counter(one.name for config in classes for one in fields(config))
    several = {name for name, times in count.items() if times > 1}
    assert several == settings.SHARED_SETTINGS


def test_every_training_stage_saves_in_time():
    for stage in ("pretrain", "midtrain", "sft", "rl"):
        config = config_class(stage)()
        assert config.save_every > 0 and 0 < config.save_minutes <= 15


@pytest.mark.parametrize("stage", STAGES)
def test_a_wrong_setting_ends_the_script_before_torch_is_imported(stage):
    """The real command: exit status 2, one line, and none of the slow libraries."""
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print([name for name in ('torch', 'transformers', 'trl', 'datasets') if name in sys.modules])\n"
    )
    start = f"import sys; sys.argv = sys.argv[1:]\n{code}"
    for argv, status in ((["--no_such_option", "1"], 2), (["--help"], 0)):
        run = subprocess.run(
            [sys.executable, "-c", start, str(TRAINING / f"{stage}.py"), *argv], capture_output=True, text=True
        )
        assert run.returncode == status and run.stdout.splitlines()[-1] == "[]", run.stdout + run.stderr
        assert len(run.stderr.splitlines()) == (status == 2), run.stderr


@pytest.mark.parametrize("stage", ["pretrain", "midtrain", "sft", "rl", "tokenizer"])
def test_an_output_folder_that_is_a_file_is_found_before_training(stage, tmp_path):
    for name in ("tokenizer.json", "config.json", "file"):
        (tmp_path / name).write_text("{}")
    before = {"pretrain": "--tokenizer", "tokenizer": "--data"}.get(stage, "--model")
    argv = [before, str(tmp_path), "--output_dir", str(tmp_path / "file" / "run")]
    run = subprocess.run([sys.executable, str(TRAINING / f"{stage}.py"), *argv], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.splitlines() == [
        f"error: {tmp_path / 'file'} is a file, where a folder belongs; give another --output_dir or move the file"
    ]
