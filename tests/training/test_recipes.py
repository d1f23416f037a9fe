"""Every recipe names only settings that its stage has, and uses only the variables that its first comment names."""

import importlib.util
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from nanochat_hf import settings
from nanochat_hf.evals.runner import EvaluationConfig

TRAINING = Path(__file__).parents[2] / "training"
RECIPES = sorted((TRAINING / "recipes").glob("*.yaml"))
STAGES = {
    "tokenizer": "TokenizerConfig",
    "pretrain": "PretrainConfig",
    "midtrain": "MidtrainConfig",
    "sft": "SFTStageConfig",
    "rl": "RLConfig",
    "speedrun": "SpeedrunConfig",
}
VARIABLES = {name: name for name in ("pretrain", "chat", "gsm8k", "mmlu", "arc", "core")}


def config_class(stage: str) -> type:
    if stage == "evaluation":
        return EvaluationConfig
    name = f"training_script_{stage}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TRAINING / f"{stage}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return getattr(sys.modules[name], STAGES[stage])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", [*STAGES, "evaluation"])
def test_every_setting_of_a_recipe_exists(recipe, stage):
    known = {field.name for field in fields(config_class(stage)) if field.init}
    variables = VARIABLES if recipe.stem == "local" else {}
    assert set(settings.read_recipe(recipe, stage, known, variables)) <= known


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_sections_of_a_recipe_are_stages(recipe):
    import yaml

    sections = set(yaml.safe_load(recipe.read_text()))
    assert sections <= {*STAGES, "common", "evaluation", "report"}, (
        "a misspelt section would be passed over in silence"
    )
