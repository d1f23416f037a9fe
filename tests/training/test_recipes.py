"""Every recipe names only settings that its stage has, and uses only the variables that its first comment names."""

import importlib
import json
import re
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


SMALL = {
    "tokenizer": {"vocab_size": 400, "sequence_length": 256, "max_chars": 200_000},
    "pretrain": {"depth": 2, "aspect_ratio": 16, "head_dim": 16, "sequence_length": 256, "total_tokens": 4096},
    "midtrain": {"num_iterations": 2, "total_batch_size": 512, "device_batch_size": 2},
    "sft": {"num_iterations": 2, "total_batch_size": 512, "device_batch_size": 2},
    "rl": {"num_iterations": 1, "prompts_per_step": 2, "num_generations": 2, "max_new_tokens": 8},
    "evaluation": {"max_documents": 4, "max_per_task": 3, "max_new_tokens": 4},
}


def in_miniature(recipe: dict) -> dict:
    """The recipe with the same stages, sources and tasks, but two steps per stage and few examples."""
    for stage, small in SMALL.items():
        recipe[stage] |= small
        for name in ("tasks", "val_tasks"):
            if name in recipe[stage]:
                recipe[stage][name] = [re.sub(r"@(~?)\d+", r"@\g<1>6", task) for task in recipe[stage][name]]
        if "eval_tokens" in recipe[stage]:
            recipe[stage]["eval_tokens"] = 512
    return recipe


@pytest.mark.parametrize("name", ["local", "overnight"])
def test_the_recipe_for_ones_own_text_runs_from_one_path(name, tmp_path, monkeypatch, capsys):
    """All stages, the evaluation and the report, in this process; with chats for `overnight`, without for `local`."""
    import yaml

    from nanochat_hf.data.sources import open_documents
    from nanochat_hf.stages import speedrun

    words = " ".join(open_documents("microworld").next_batch(1000)).split()
    documents = [" ".join(words[start : start + 150]) for start in range(0, 4500, 150)]
    for part, texts in (("a", documents[:24]), ("b", documents[24:])):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    (tmp_path / "chats").mkdir()
    (tmp_path / "chats" / "mine.jsonl").write_text((json.dumps(chat) + "\n") * 8)
    small = in_miniature(yaml.safe_load((TRAINING / "recipes" / f"{name}.yaml").read_text()))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))

    def run_here(command: list[str], title: str) -> None:
        main = importlib.import_module(command[2].replace("nanochat_hf.cli", "nanochat_hf.cli.main")).main
        main(command[3:])

    monkeypatch.setattr(speedrun, "run", run_here)
    given = [f"text={tmp_path}/[ab].jsonl", *([f"chat={tmp_path}/chats"] if name == "overnight" else [])]
    speedrun.main([str(tmp_path / "small.yaml"), "--run_dir", str(tmp_path / "run"), "--set", *given])
    said = capsys.readouterr().out
    assert ("what needs chat is left out" in said) == (name == "local")
    assert ("chats: 8 conversations" in said) == (name == "overnight"), said
    assert "preset: small" in said
    for stage in ("tokenizer", "base", "mid", "sft", "rl"):
        assert settings.load_run(tmp_path / "run" / stage), stage
    report = (tmp_path / "run" / "report.md").read_text()
    assert "text completion tasks" in report and "microworld-problems" in report
