"""The dataclass of each stage's settings."""

import importlib
from pathlib import Path

from nanochat_hf.stages.stage_list import CONFIGS

TRAINING = Path(__file__).parents[2] / "training"
STAGES = CONFIGS | {
    "speedrun": "SpeedrunConfig",
    "report": "ReportConfig",
    "make_identity": "IdentityConfig",
}

# What is no training stage: the section of a recipe → module and dataclass.
EVALUATIONS = {
    "evaluation": ("nanochat_hf.evals.evaluation_config", "EvaluationConfig"),
    "tokenizer_evaluation": ("nanochat_hf.stages.evaluate_tokenizer", "TokenizerEvaluationConfig"),
}


def config_class(stage: str) -> type:
    module, name = EVALUATIONS.get(stage) or (f"nanochat_hf.stages.{stage}", STAGES[stage])
    return getattr(importlib.import_module(module), name)
