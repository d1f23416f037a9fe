"""Every setting of every stage: bad input ends in exit status 2 and one sentence, before anything slow is imported."""

import socket
import subprocess
import sys
import typing
from collections import Counter
from dataclasses import fields

import pytest
from stage_configs import EVALUATIONS, STAGES, TRAINING, config_class

from nanochat_hf import settings
from nanochat_hf.settings import UserError

CONFIGURED = [*STAGES, *EVALUATIONS]
SETTINGS = [(stage, one.name) for stage in CONFIGURED for one in fields(config_class(stage))]
# Settings for which 0 needs no explanation in the help.
PLAIN_ZERO = {
    *("embedding_lr", "value_embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr", "smear_lr", "backout_lr"),
    "lr_scale",
    *("weight_decay", "init_lr_frac", "final_lr_frac", "warmup_ratio", "warmdown_ratio", "warmup_steps"),
    *("momentum_start", "momentum_peak", "momentum_warmup_steps", "seed", "data_seed"),
}
# Texts that the stage itself has to look up: names of files, tasks, columns and kernels.
LOOKED_UP = {
    *(
        "model",
        "output_dir",
        "lora_targets",
        "reward",
        "tokenizer",
        "data",
        "text_column",
        "tasks",
        "val_tasks",
        "core_bundle",
        "run_dir",
    ),
    *(
        "window_pattern",
        "attention",
        "initialize_control_tokens",
        "default_sampling",
        "stranger_sampling",
        "phases",
        "accelerate_config",
        "first_words",
        "title",
    ),
    *("facts", "output", "url"),
    *("checkpoints", "core_tasks", "split", "device", "revision", "compare", "files"),
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
        if metadata["at_most"] is not None:
            assert refused(stage, name, str(2**60) if kind is int else "1e31")
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


@pytest.mark.parametrize("stage", CONFIGURED)
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
        assert parse(stage, name, "~/x") in ("/home/me/x", ["/home/me/x"])


def test_the_shared_settings_are_those_of_several_stages():
    classes = [config_class(stage) for stage in (*STAGES, "evaluation")]
    count = Counter(one.name for config in classes for one in fields(config))
    several = {name for name, times in count.items() if times > 1}
    assert several == settings.SHARED_SETTINGS


def test_every_training_stage_saves_in_time():
    for stage in ("pretrain", "midtrain", "sft", "dpo", "rl"):
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


@pytest.mark.parametrize("stage", ["pretrain", "midtrain", "sft", "dpo", "rl", "tokenizer"])
def test_an_output_folder_that_is_a_file_is_found_before_training(stage, tmp_path):
    for name in ("tokenizer.json", "config.json", "file"):
        (tmp_path / name).write_text("{}")
    before = {"pretrain": "--tokenizer", "tokenizer": "--data"}.get(stage, "--model")
    argv = [before, str(tmp_path), "--output_dir", str(tmp_path / "file" / "run")]
    run = subprocess.run([sys.executable, str(TRAINING / f"{stage}.py"), *argv], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.splitlines() == [
        f"error: {tmp_path / 'file'} is a file, where a folder belongs; give another --output_dir or move the file"
    ]


# Options of commands that are no stage: the words before the option, the option, and the type of its number.
NUMBERS = [
    *((["plan"], name, int) for name in ("--depth",)),
    *((["plan", "4"], name, int) for name in ("--gpus", "--device_batch_size", "--vocab_size")),
    *((["plan", "4"], name, float) for name in ("--mfu", "--param_data_ratio")),
    (["convert", "from", "to"], "--step", int),
    *((["serve", "model"], name, int) for name in ("--port", "--max-batch", "--shutdown-seconds")),
    *((["chat", "model"], name, int) for name in ("--top-k", "--max-new-tokens", "--seed")),
    *((["chat", "model"], name, float) for name in ("--temperature", "--top-p")),
    *((["space", "model"], f"--{name}", int) for name in ("characters", "messages", "per_minute", "queue", "at_once")),
    (["space", "model"], "--seconds", float),
    (["space", "model"], "--port", int),
    *(
        (["data", "shards", "from", "to"], f"--{name}", int)
        for name in ("shard_chars", "max_chars", "buckets", "seed")
    ),
    (["data", "shards", "from", "to"], "--validation_fraction", float),
    (["miniseries", "--tokenizer", "none"], "--depths", int),
    (["scaling_laws", "--tokenizer", "none"], "--depths", int),
    (["scaling_laws", "--tokenizer", "none"], "--budgets", float),
]
MAY_BE_ZERO = {"--step", "--port", "--shutdown-seconds", "--top-k", "--seed", "--per_minute", "--temperature"}
WORDS = [
    (["serve", "model", "--device"], "there is no device 'banana'; use auto, cpu, cuda"),
    (["chat", "model", "--device"], "there is no device 'banana'; use auto, cpu, cuda"),
    (["space", "model", "--device"], "there is no device 'banana'; use auto, cpu, cuda"),
    (["serve", "model", "--dtype"], "--dtype: invalid choice: 'banana'"),
    (["chat", "model", "--dtype"], "--dtype: invalid choice: 'banana'"),
    (["space", "model", "--protocol"], "--protocol: invalid choice: 'banana'"),
    (["data", "show", "from", "--on_bad_file"], "--on_bad_file: invalid choice: 'banana'"),
    (["data", "shards", "from", "to", "--on_bad_file"], "--on_bad_file: invalid choice: 'banana'"),
    (["plan", "4", "--preset"], "--preset: invalid choice: 'banana'"),
    (["plan", "4", "--gpu"], "no figures for the device 'banana'"),
    (["miniseries", "--tokenizer", "none", "--accelerate_config"], "there is no file banana"),
    (["miniseries", "--tokenizer", "none", "--", "--depth"], "--depth after -- is set by the sweep itself"),
    (["evaluate", "core", "--checkpoints", "a/b", "--dtype"], "--dtype banana is not known; use auto, float32"),
    (
        ["evaluate", "core", "--core_bundle", "text", "--data", "a", "--on_bad_file"],
        "--on_bad_file banana is not known",
    ),
    (["evaluate", "core", "--checkpoints", "a/b", "--device"], "there is no device 'banana'"),
    (["evaluate", "core", "--checkpoints", "a/b", "--core_bundle"], "banana is not a CORE bundle"),
    (["evaluate", "--evaluations"], "--evaluations banana is not known; use bits_per_byte, core, chat"),
    (["evaluate", "chat", "--checkpoints", "a/b", "--tasks"], "there is no task 'banana'; known are smoltalk"),
    (["sft", "--model", "none", "--output_dir", "x", "--tasks"], "none is no checkpoint folder"),
]


def command_error(capsys, words):
    """The line with which a command refuses its options, before anything slow is imported."""
    from nanochat_hf.cli import main as cli

    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.err.startswith("error: ") and len(said.err.splitlines()) == 1, said
    return said.err


@pytest.mark.parametrize(("before", "option", "kind"), NUMBERS, ids=lambda value: str(value))
def test_numbers_of_every_command_are_refused_in_one_sentence(before, option, kind, capsys):
    wrong = ["banana", "", "true", "1,5", "nan", "inf", "1e999", "[]", "-2", "-0.5", str(-(2**60))]
    if option in ("--depths", "--budgets"):
        wrong.remove("1,5")  # two numbers
    wrong += ["1.5", str(2**70)] if kind is int else ["1e40"]
    wrong += [] if option in MAY_BE_ZERO else ["0"]
    for value in wrong:
        said = command_error(capsys, [*before, f"{option}={value}"])
        assert option in said or "error: DEPTH: " in said, (value, said)


@pytest.mark.parametrize(("words", "says"), WORDS, ids=lambda value: str(value))
def test_words_that_no_command_knows_are_refused_in_one_sentence(words, says, capsys):
    assert says in command_error(capsys, [*words, "banana"])


def test_an_evaluation_of_nothing_is_refused_before_torch_is_imported(tmp_path):
    """The real command, with mistakes that only show when the settings are seen together."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    code = "import sys; from nanochat_hf.settings import run_main; from nanochat_hf.stages import evaluate\n"
    code += "try:\n    run_main(evaluate.main)\nfinally:\n    print('torch' in sys.modules)"
    for words, says in (
        (["chat"], "nothing to evaluate: give --checkpoints FOLDER"),
        (["chat", "--checkpoints", tmp_path], "such as --tasks gsm8k=DIR arc-easy=DIR\n"),
        (["--checkpoints", tmp_path], "arc-easy=DIR, or leave them out with --evaluations bits_per_byte core\n"),
        (["chat", "--checkpoints", tmp_path, "--tasks", "gsm8k@0"], "the task 'gsm8k@0' uses no example"),
        (["chat", "--checkpoints", tmp_path, "--tasks", "gsm8k", "--num_samples", "2"], "set --temperature above 0"),
        (["chat", "--checkpoints", tmp_path / "file"], "is not a checkpoint folder"),
        (["core", "--checkpoints", tmp_path, "--output_dir", tmp_path / "file"], "is a file, where a folder belongs"),
        (["--evaluations", "[]", "--checkpoints", tmp_path], "no evaluation is named; give --evaluations"),
    ):
        run = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
        assert run.returncode == 2 and run.stdout.split() == ["False"], run.stdout + run.stderr
        assert says in run.stderr and len(run.stderr.splitlines()) == 1, run.stderr


def test_lists_of_words_may_be_joined_by_commas():
    from nanochat_hf.evals.evaluation_config import EvaluationConfig

    config = settings.parse_stage("evaluation", EvaluationConfig, ["--stages", "base,sft", "--core_tasks=a, b"])
    assert config.stages == ["base", "sft"] and config.core_tasks == ["a", "b"]


@pytest.mark.parametrize("command", ["serve", "space"])
def test_an_address_in_use_is_named_before_anything_is_loaded(command, capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [command, str(tmp_path), "--host", "127.0.0.1", "--port", str(port)]
        assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in command_error(capsys, words)
