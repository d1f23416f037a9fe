"""Every recipe names only settings that its stage has, and uses only the variables that its first comment names."""

from dataclasses import fields

import pytest
from stage_configs import STAGES as ALL_STAGES
from stage_configs import TRAINING
from stage_configs import config_class as stage_config

from nanochat_hf import settings
from nanochat_hf.evals.runner import EvaluationConfig

RECIPES = sorted((TRAINING / "recipes").glob("*.yaml"))
STAGES = {stage: name for stage, name in ALL_STAGES.items() if stage != "report"}
VARIABLES = {"local": {"text": True, "chat": False}, "overnight": {"text": True, "chat": False}}  # name → required


def config_class(stage: str) -> type:
    return EvaluationConfig if stage == "evaluation" else stage_config(stage)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", [*STAGES, "evaluation"])
def test_every_setting_of_a_recipe_exists(recipe, stage):
    known = {field.name for field in fields(config_class(stage)) if field.init}
    named = VARIABLES.get(recipe.stem, {})
    assert settings.variables_of(recipe) == named
    for given in (named, [name for name, required in named.items() if required]):
        assert set(settings.read_recipe(recipe, stage, known, dict.fromkeys(given, "somewhere"))) <= known


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_sections_of_a_recipe_are_stages(recipe):
    import yaml

    sections = set(yaml.safe_load(recipe.read_text()))
    assert sections <= {*STAGES, "common", "evaluation", "report"}, (
        "a misspelt section would be passed over in silence"
    )
