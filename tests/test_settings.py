"""A stage's configuration: defaults, recipe, command line, and the record of what was resolved."""

import errno
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nanochat_hf import settings
from nanochat_hf.settings import UserError, setting


@dataclass
class StageConfig:
    output_dir: str = "runs/stage"
    depth: int = 3
    learning_rate: float = 0.1
    tasks: list[str] = field(default_factory=lambda: ["exam"])


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("common:\n  depth: 5\n  seed: 1\nstage:\n  learning_rate: 1e-3\n  tasks: ['gsm8k=${gsm8k}*2']\n")
    return str(path)


def test_the_recipe_overrides_defaults_and_the_command_line_overrides_the_recipe(recipe):
    config = settings.parse_stage("stage", StageConfig, ["--config", recipe, "--set", "gsm8k=/data", "--depth", "7"])
    assert config == StageConfig(depth=7, learning_rate=1e-3, tasks=["gsm8k=/data*2"])


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--bogus", "1"], "--bogus"),
        (["--config", "{recipe}"], "--set gsm8k=VALUE"),
        (["--config", "{recipe}", "--set", "gsm8k"], "NAME=VALUE"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(recipe, argv, named):
    with pytest.raises(UserError, match=named):
        settings.parse_stage("stage", StageConfig, [word.format(recipe=recipe) for word in argv])


def test_what_names_an_optional_variable_is_left_out_where_that_is_not_set(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("stage:\n  output_dir: ${folder?}/x\n  tasks: ['chats=${chats?}@5', 'exam=${exam}']\n")
    assert settings.variables_of(path) == {"folder": False, "chats": False, "exam": True}
    options = ["--config", str(path), "--set", "exam=/exam"]
    assert settings.parse_stage("stage", StageConfig, options) == StageConfig(tasks=["exam=/exam"])
    full = settings.parse_stage("stage", StageConfig, [*options, "chats=/chats", "folder=here"])
    assert full == StageConfig(output_dir="here/x", tasks=["chats=/chats@5", "exam=/exam"])
    with pytest.raises(UserError, match="--set exam=VALUE"):
        settings.parse_stage("stage", StageConfig, ["--config", str(path), "--set", "chats=/chats"])


def test_a_setting_that_the_stage_does_not_have_is_an_error(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("stage:\n  dept: 5\n")
    with pytest.raises(UserError, match="no setting named dept"):
        settings.parse_stage("stage", StageConfig, ["--config", str(path)])


def test_what_was_resolved_is_recorded_beside_the_weights(tmp_path):
    assert settings.load_run(tmp_path) is None
    settings.save_run(tmp_path, "stage", StageConfig(depth=9), seconds=1.5, metrics={"loss": 2.0})
    run = settings.load_run(tmp_path)
    assert run["config"]["depth"] == 9 and run["metrics"] == {"loss": 2.0} and run["stage"] == "stage"
    assert run["environment"]["versions"]["torch"]
    assert [path.name for path in tmp_path.iterdir()] == [settings.RUN_FILE], "no temporary file is left"


@dataclass
class Values:
    output_dir: str = setting("", "folder", path=True)
    depth: int = setting(2, "layers", at_least=1)
    steps: int = setting(-1, "steps; -1: all", at_least=1, also=[-1])
    eval_every: int = setting(10, "steps; 0: never", at_least=0, off=0)
    rate: float = setting(0.1, "share", at_least=0, at_most=1)
    column: str | None = setting("text", "column; default: found")
    compile: str = setting("auto", "how", choices=("auto", "true", "false"))
    resume: bool = setting(True, "go on")
    fp8: bool = setting(False, "8 bits")
    tasks: list[str] = setting(["exam"], "what to train on")


def from_recipe(tmp_path, text, *argv):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return settings.parse_stage("stage", Values, ["--config", str(path), *argv])


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("resume: false", "resume", False),
        ("resume: 'false'", "resume", False),
        ("fp8: on", "fp8", True),
        ("depth: '4'", "depth", 4),
        ("depth: 4.0", "depth", 4),
        ("depth: 1e3", "depth", 1000),
        ("rate: 1e-3", "rate", 0.001),
        ("rate: 1", "rate", 1.0),
        ("eval_every: no", "eval_every", 0),
        ("eval_every: off", "eval_every", 0),
        ("compile: false", "compile", "false"),
        ("column: null", "column", None),
        ("column:", "column", None),
        ("tasks: gsm8k", "tasks", ["gsm8k"]),
        ("tasks: []", "tasks", []),
        ("output_dir: ~/runs", "output_dir", "HOME/runs"),
    ],
)
def test_a_recipe_means_what_yaml_means(tmp_path, monkeypatch, line, name, value):
    monkeypatch.setenv("HOME", "HOME")
    found = getattr(from_recipe(tmp_path, f"stage:\n  {line}\n"), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Stage:\n  depth: 4\n", "no stage reads a section Stage: (did you mean stage?)"),
        ("pretrian:\n  depth: 4\n", "no stage reads a section pretrian: (did you mean pretrain?)"),
        ("stage:\n  dept: 4\n", "has no setting named dept (did you mean depth?)"),
        ("common:\n  sed: 4\n", "the section common: has sed"),
        ("stage: 4\n", "must hold sections"),
        ("- stage\n", "must hold sections"),
        ("stage:\n  depth: 4\n  depth: 5\n", "line 3: depth is given a second time"),
        ("stage:\n  depth: 4\nstage:\n  rate: 1\n", "line 3: stage is given a second time"),
        ("stage:\n\tdepth: 4\n", "line 2 is not valid YAML"),
        ("stage:\n  depth: four\n", "depth is a whole number of at least 1, not 'four'"),
        ("stage:\n  depth: true\n", "depth is a whole number of at least 1, not true"),
        ("stage:\n  depth: [4]\n", "depth is a whole number of at least 1, not a list"),
        ("stage:\n  depth: 1.5\n", "not 1.5"),
        ("stage:\n  depth: no\n", "depth is a whole number of at least 1, not false"),
        ("stage:\n  depth:\n", "depth has no value (null)"),
        ("stage:\n  rate: .nan\n", "rate is a number from 0 to 1, not nan"),
        ("stage:\n  resume: maybe\n", "resume is true or false, not 'maybe'"),
        ("stage:\n  resume: 2\n", "resume is true or false, not 2"),
        ("stage:\n  compile: sometimes\n", "compile sometimes is not known; use auto, true, false"),
        ("stage:\n  column: 7\n", "column is a text, not 7; put it into quotes"),
        ("stage:\n  tasks:\n    - conversations: good.jsonl\n", "write conversations=good.jsonl"),
        ("stage:\n  tasks:\n    a: 1\n    b: 2\n", "tasks is a text, not a section"),
        ("stage:\n  tasks: [[a]]\n", "tasks is a text, not a list"),
        ("stage:\n  tasks: [null]\n", "tasks has no value"),
        ("stage:\n  tasks: null\n", "write [] for none"),
        ("stage:\n  output_dir: 2024-01-01\n", "output_dir is a text, not 2024-01-01; put it into quotes"),
    ],
)
def test_what_a_recipe_cannot_mean_is_one_sentence(tmp_path, text, words):
    with pytest.raises(UserError) as refused:
        from_recipe(tmp_path, text)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_set_fills_variables_and_nothing_else(tmp_path):
    with pytest.raises(UserError, match=r"no variable \$\{depth\} for --set depth"):
        from_recipe(tmp_path, "stage:\n  depth: 4\n", "--set", "depth=5")
    with pytest.raises(UserError, match="give the recipe as --config"):
        settings.parse_stage("stage", Values, ["--set", "depth=5"])
    with pytest.raises(UserError, match="NAME=VALUE"):
        settings.parse_stage("stage", Values, ["--set", "=5"])


def test_the_command_line_takes_lists_switches_and_both_spellings():
    config = settings.parse_stage(
        "stage", Values, ["--output-dir", "x", "--no_resume", "--fp8", "--tasks", "a", "b", "--tasks", "c"]
    )
    assert config == Values(output_dir="x", resume=False, fp8=True, tasks=["a", "b", "c"])
    assert settings.parse_stage("stage", Values, ["--tasks", "[]"]).tasks == []
    with pytest.raises(UserError, match="--rate is a number from 0 to 1, not '-1e-3'"):
        settings.parse_stage("stage", Values, ["--rate", "-1e-3"])
    with pytest.raises(UserError, match="did you mean --depth"):
        settings.parse_stage("stage", Values, ["--dept", "3"])


def test_help_shows_defaults_and_set(capsys):
    with pytest.raises(SystemExit):
        settings.parse_stage("stage", Values, ["--help"])
    shown = capsys.readouterr().out
    for words in (
        "layers (default: 2)",
        "--set NAME=VALUE",
        "auto|true|false",
        "(default: exam)",
        "(default: true)",
    ):
        assert words in shown


def test_a_folder_that_cannot_be_written_to_is_found_at_once(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "run"):
        with pytest.raises(UserError, match=f"{file} is a file, where a folder belongs"):
            settings.check_output_dir(folder)
    for folder in ("/proc/nobody/run", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot write to"):
            settings.check_output_dir(folder)
    with pytest.raises(UserError, match="give --output_dir"):
        settings.check_output_dir("")
    settings.check_output_dir(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("called", "command", "typed"),
    [
        ("training/pretrain.py", "tokenizer", "python training/tokenizer.py"),
        ("/clone/evaluation/stages.py", "evaluate core", "python /clone/evaluation/core.py"),
        ("/my clone/training/rl.py", "space", "python '/my clone/space/app.py'"),
        ("training/rl.py", "space", "python space/app.py"),
        ("training/rl.py", "recipes", "nanochat-hf recipes"),
        ("/venv/bin/nanochat-hf", "tokenizer", "nanochat-hf tokenizer"),
        ("/site-packages/nanochat_hf/stages/pretrain.py", "tokenizer", "nanochat-hf tokenizer"),
    ],
)
def test_commands_are_named_as_this_user_types_them(monkeypatch, called, command, typed):
    monkeypatch.setattr(sys, "argv", [called])
    assert settings.program(command) == typed
    assert settings.as_typed(f"make one: nanochat-hf {command} --help") == f"make one: {typed} --help"


def test_each_script_of_a_clone_exists():
    root = Path(__file__).parents[1]
    scripts = {str(path.relative_to(root)) for name in settings.SCRIPT_FOLDERS for path in root.glob(f"{name}/*.py")}
    assert set(settings.SCRIPTS.values()) == scripts


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_too_little_memory_is_one_sentence_with_the_remedy(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        settings.run_main(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: not enough memory (") and "--device_batch_size" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), "a.png: Permission denied; make room"),
        (OSError(errno.EROFS, "Read-only file system", "/cdrom/a"), "/cdrom/a: Read-only file system; make room"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.txt/b"), "a.txt/b: Not a directory; "),
    ],
)
def test_a_path_that_fails_is_one_sentence_with_the_remedy(error, says, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        settings.run_main(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(f"error: {says}") and len(said.splitlines()) == 1
    error.errno = errno.ECONNRESET  # not about a path: the trace is shown
    with pytest.raises(OSError, match="Errno"):
        settings.run_main(main)


def test_large_bounds_are_written_as_people_write_them():
    with pytest.raises(UserError, match="is a whole number from 1 to 16,777,216, not '0'"):
        settings.convert("0", int, {"at_least": 1, "at_most": 2**24}, "--rows")


@pytest.mark.parametrize("content", [b"{half", b"[1]", b"null", b"\xff"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / settings.RUN_FILE).write_bytes(content)
    with pytest.raises(UserError, match="run.json is damaged: delete it and run that stage again"):
        settings.load_run(tmp_path)
