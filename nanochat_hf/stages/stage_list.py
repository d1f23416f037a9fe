"""The training stages in the pipeline's order: what each is called, where it writes and what it starts from."""

import importlib
from dataclasses import dataclass
from typing import Any

from nanochat_hf.settings import STAGE_FOLDERS

CONFIGS = {
    "tokenizer": "TokenizerConfig",
    "pretrain": "PretrainConfig",
    "midtrain": "MidtrainConfig",
    "sft": "SFTStageConfig",
    "dpo": "DPOStageConfig",
    "rl": "RLConfig",
}


@dataclass(frozen=True)
class Stage:
    """One stage: it reads the recipe's section `name`, writes `folder`, and starts from an earlier stage's folder."""

    name: str
    folder: str

    @property
    def module(self) -> str:
        """What `python -m` and `accelerate launch -m` run."""
        return f"nanochat_hf.stages.{self.name}"

    @property
    def takes(self) -> str | None:
        """The option that names the earlier stage's folder."""
        return {"tokenizer": None, "pretrain": "tokenizer"}.get(self.name, "model")

    @property
    def config_class(self) -> Any:
        """The dataclass of its settings."""
        return getattr(importlib.import_module(self.module), CONFIGS[self.name])

    @property
    def distributed(self) -> bool:
        return self.name != "tokenizer"


STAGES = tuple(Stage(name, folder) for name, folder in STAGE_FOLDERS.items())
