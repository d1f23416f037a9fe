"""A stage's configuration: defaults, recipe, command line, and the record of what was resolved."""

import json
from dataclasses import dataclass, field

import pytest

from nanochat_hf import settings
from nanochat_hf.settings import UserError


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


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / settings.RUN_FILE).write_text(json.dumps({"stage": "x"})[:-3])
    with pytest.raises(UserError, match="damaged"):
        settings.load_run(tmp_path)
