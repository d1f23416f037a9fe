"""The dataclass of each stage's settings."""

import importlib
from pathlib import Path

TRAINING = Path(__file__).parents[2] / "training"
STAGES = {
    "tokenizer": "TokenizerConfig",
    "pretrain": "PretrainConfig",
    "midtrain": "MidtrainConfig",
    "sft": "SFTStageConfig",
    "dpo": "DPOStageConfig",
    "rl": "RLConfig",
    "speedrun": "SpeedrunConfig",
    "report": "ReportConfig",
}


def config_class(stage: str) -> type:
    return getattr(importlib.import_module(f"nanochat_hf.stages.{stage}"), STAGES[stage])
