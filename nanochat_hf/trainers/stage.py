"""The settings and steps that midtraining, SFT and RL have in common."""

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nanochat_hf import settings, tasks
from nanochat_hf.generation import load_checkpoint
from nanochat_hf.optim.groups import FIXED_RATES
from nanochat_hf.optim.schedules import Schedule
from nanochat_hf.settings import UserError
from nanochat_hf.trainers import checkpoints
from nanochat_hf.trainers.callbacks import Progress, QuietGarbageCollector, StopOnSignal

START_FILE = "started.json"  # the configuration that the checkpoints in a stage folder belong to
MAY_CHANGE = {"model", "output_dir", "save_every", "save_total_limit", "eval_every", "num_threads"}  # on resuming


@dataclass
class StageConfig:
    """What every chat stage is asked. Learning rates are those of pretraining; `init_lr_frac` scales all of them."""

    model: str = field(default="", metadata={"help": "checkpoint folder of the stage before"})
    output_dir: str = field(default="", metadata={"help": "folder that receives the checkpoint"})
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "what to train on: name[/split][=source][@limit][*repeat] …"}
    )
    device_batch_size: int = field(default=32, metadata={"help": "most rows a process trains on at once"})
    num_iterations: int = field(default=-1, metadata={"help": "optimizer steps; -1 is one pass over the tasks"})
    embedding_lr: float = field(default=0.2, metadata={"help": "AdamW's rate for the embeddings, at width 768"})
    unembedding_lr: float = field(default=0.004, metadata={"help": "AdamW's rate for the head, at width 768"})
    matrix_lr: float = field(default=0.02, metadata={"help": "Muon's rate for the matrices of the blocks"})
    scalar_lr: float = field(default=0.5, metadata={"help": "AdamW's rate for the scalars of the residual stream"})
    weight_decay: float = field(default=0.0, metadata={"help": "Muon's weight decay"})
    init_lr_frac: float = field(default=1.0, metadata={"help": "factor on all learning rates"})
    warmup_ratio: float = field(default=0.0, metadata={"help": "share of the steps in which the rates rise"})
    warmdown_ratio: float = field(default=0.2, metadata={"help": "share of the steps in which the rates fall"})
    final_lr_frac: float = field(default=0.0, metadata={"help": "where that fall ends, as a share of the peak"})
    momentum_start: float = field(default=0.85, metadata={"help": "Muon's momentum at the first step"})
    momentum_peak: float = field(default=0.95, metadata={"help": "Muon's momentum after its rise"})
    momentum_warmup_steps: int = field(default=300, metadata={"help": "steps of that rise"})
    eval_every: int = field(default=150, metadata={"help": "steps between measurements on held-out data; 0: never"})
    save_every: int = field(default=0, metadata={"help": "steps between two checkpoints to resume from; 0: none"})
    save_total_limit: int = field(default=1, metadata={"help": "how many of them are kept"})
    seed: int = field(default=42, metadata={"help": "of data order and sampling"})
    num_threads: int = field(default=0, metadata={"help": "processes that render conversations; 0: one a CPU core"})

    def schedule(self, num_iterations: int) -> Schedule:
        return Schedule(
            num_iterations,
            warmup_steps=round(self.warmup_ratio * num_iterations),
            warmdown_ratio=self.warmdown_ratio,
            final_lr_frac=self.final_lr_frac,
            momentum_start=self.momentum_start,
            momentum_peak=self.momentum_peak,
            momentum_warmup_steps=self.momentum_warmup_steps,
            momentum_final=self.momentum_peak,
            decay_to_zero=False,
        )

    def hyper(self) -> dict[str, float]:
        """The learning rates for `build_optimizer`."""
        names = ("embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr")
        rates = {name: getattr(self, name) for name in names} | FIXED_RATES
        return {name: rate * self.init_lr_frac for name, rate in rates.items()} | {"weight_decay": self.weight_decay}


class StageTrainerMixin:
    """Small departures from TRL's trainers, for all chat stages."""

    def create_model_card(self, *args, **kwargs) -> None:
        """None is written while training: the card is made from `run.json` when a checkpoint is published."""


def open_stage(config: StageConfig) -> None:
    """Checks what was asked for before anything slow begins.

    Raises:
        UserError: a folder is not given or does not exist, or `output_dir` holds the checkpoints of another run.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports each run home unless told not to
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is announced as experimental each time
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of names TRL uses
    if not config.output_dir:
        raise UserError("give --output_dir, the folder that receives the checkpoint")
    if not config.model:
        raise UserError("give --model, the checkpoint folder of the stage before")
    if not Path(config.model, "config.json").exists():
        raise UserError(f"{config.model} is no checkpoint folder (it has no config.json); run the stage before first")
    if not config.tasks:
        raise UserError("give --tasks, what to train on, such as gsm8k or conversations=my_chats.jsonl")
    if settings.load_run(config.output_dir):
        raise UserError(f"{config.output_dir} is finished; delete that folder to train it again")
    asked = json.loads(json.dumps(asdict(config)))
    started = Path(config.output_dir, START_FILE)
    if started.exists():
        before = json.loads(started.read_text(encoding="utf-8"))
        changed = sorted(name for name in asked if asked[name] != before.get(name) and name not in MAY_CHANGE)
        if changed and last_checkpoint(config):
            raise UserError(
                f"{config.output_dir} holds the checkpoints of a run with another {', '.join(changed)}; "
                "go on with the settings of that run, or delete the folder"
            )
    settings.write_json(started, asked)


def load_tasks(specs: list[str], split: str) -> list[tuple[Any, int]]:
    """Makes the tasks that a recipe names: (task, repeat) pairs."""
    return [tasks.load(spec, split) for spec in specs]


def last_checkpoint(config: StageConfig) -> str | None:
    """The newest checkpoint to resume from that is intact, or None."""
    checkpoint, complaints = checkpoints.newest_intact(config.output_dir)
    for complaint in complaints:
        print(f"warning: {complaint}", file=sys.stderr)
    return str(checkpoint) if checkpoint else None


def load_model(folder: str) -> tuple[Any, Any]:
    """Loads the stage before: (model with fp32 weights on the CPU, tokenizer)."""
    model, tokenizer = load_checkpoint(folder, device="cpu", dtype="float32")
    if "<|assistant_start|>" not in tokenizer.get_vocab():
        raise UserError(f"the tokenizer of {folder} has no chat tokens; start from a checkpoint of this project")
    return model, tokenizer


@torch.no_grad()
def start_like(model: Any, tokenizer: Any, pairs: Sequence[str]) -> None:
    """Gives control tokens, which pretraining has never seen, the embeddings of tokens that do the like in plain text.

    What a base model does at that token in text, it does then at the control token from the first step (docs/log.md).

    Args:
        pairs: `token=text`; the last token of the text is copied, in all of the model's embeddings.
    """
    tables = [part.weight for part in model.modules() if isinstance(part, torch.nn.Embedding)]
    for token, _, text in (pair.partition("=") for pair in pairs):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if token not in tokenizer.all_special_tokens or not ids:
            raise UserError(
                f"start_like has {token}={text!r}; it takes a control token and a text, '<|assistant_start|>=.\\n' say"
            )
        for table in tables:
            table[tokenizer.convert_tokens_to_ids(token)] = table[ids[-1]]


def trainer_arguments(config: StageConfig, num_iterations: int) -> dict[str, Any]:
    """What SFTConfig and GRPOConfig are both given. Several of TRL's defaults would slow a small model down."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": config.output_dir,
        "max_steps": num_iterations,
        "bf16": cuda and torch.cuda.is_bf16_supported(),
        "use_cpu": not cuda and not torch.backends.mps.is_available(),
        "gradient_checkpointing": False,
        "max_grad_norm": 0.0,  # upstream: never active where it was on, and not free
        "logging_steps": max(1, num_iterations // 100),
        "report_to": "none",
        "save_strategy": "steps" if config.save_every > 0 else "no",
        "save_steps": config.save_every if config.save_every > 0 else num_iterations,
        "save_total_limit": config.save_total_limit,
        "seed": config.seed,
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,
        "dataloader_pin_memory": cuda,
    }


def distributed_state() -> Any:
    """Starts the process group, if there are several processes; `num_processes`, `is_main_process` and a barrier."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


class StageProgress(Progress):
    """One bar with what matters of TRL's many figures."""

    SHOWN = {"loss": "loss", "reward": "reward", "completions/mean_length": "length"}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None:
            return
        for name, value in (logs or {}).items():
            if name in self.SHOWN or name.startswith("val_"):
                self.shown[self.SHOWN.get(name, name.removesuffix("_tokens"))] = f"{value:.3f}"
        self.bar.set_postfix(self.shown)


def add_callbacks(trainer: Any) -> None:
    """Replaces the trainer's printing by a progress bar; SIGTERM saves a checkpoint before it ends the run."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.stop_on_signal = StopOnSignal()
    for callback in (StageProgress(), QuietGarbageCollector(), trainer.stop_on_signal):
        trainer.add_callback(callback)


def finish_stage(config: StageConfig, stage: str, trainer: Any, started: float, metrics: dict[str, float]) -> None:
    """Writes the checkpoint folder and, last of all, `run.json`; then what was only needed to resume goes.

    Raises:
        UserError: the run was asked to stop before its last step; its checkpoint is in `output_dir`.
    """
    if trainer.stop_on_signal.received and trainer.state.global_step < trainer.state.max_steps:
        raise UserError(
            f"stopped by SIGTERM after step {trainer.state.global_step}; the same command goes on from there"
        )
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(config.output_dir, state_dict=weights)
        trainer.processing_class.save_pretrained(config.output_dir)
        history = [
            {name: value for name, value in row.items() if isinstance(value, int | float)}
            for row in trainer.state.log_history
        ]
        settings.save_run(
            config.output_dir, stage, config, seconds=time.time() - started, metrics=metrics, history=history
        )
        for rows in Path(config.output_dir).glob("rows-*"):
            shutil.rmtree(rows, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
