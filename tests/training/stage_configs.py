"""The dataclass of each stage's settings, taken from its script."""

import importlib.util
import sys
from pathlib import Path

TRAINING = Path(__file__).parents[2] / "training"
STAGES = {
    "tokenizer": "TokenizerConfig",
    "pretrain": "PretrainConfig",
    "midtrain": "MidtrainConfig",
    "sft": "SFTStageConfig",
    "rl": "RLConfig",
    "speedrun": "SpeedrunConfig",
    "report": "ReportConfig",
}


def config_class(stage: str) -> type:
    name = f"training_script_{stage}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TRAINING / f"{stage}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return getattr(sys.modules[name], STAGES[stage])
