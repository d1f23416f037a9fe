"""What all training stages share (arguments, callbacks, resuming, finishing), and what only the chat stages share.

A stage script parses its settings, loads what the stage before made, builds a trainer, calls `train` and `finish`.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nanochat_hf import settings, tasks
from nanochat_hf.generation import load_checkpoint, pick_device
from nanochat_hf.optim.groups import FIXED_RATES
from nanochat_hf.optim.schedules import Schedule
from nanochat_hf.settings import UserError
from nanochat_hf.tokenizer import stop_token_ids
from nanochat_hf.trainers import checkpoints
from nanochat_hf.trainers.callbacks import QuietGarbageCollector, StopOnSignal, TrainingProgress
from nanochat_hf.trainers.chat_rows import delete_rows

START_FILE = "started.json"  # the configuration that the checkpoints in a stage folder belong to
DTYPES = ("auto", "bfloat16", "float32")
MAY_CHANGE = {"model", "output_dir", "save_every", "save_total_limit", "eval_every", "num_threads"}  # on resuming


# -- every stage -----------------------------------------------------------------------------------------------------


def base_arguments(
    output_dir: str, *, save_every: int, save_total_limit: int, seed: int, dtype: str = "auto"
) -> dict[str, Any]:
    """The values of `TrainingArguments` that all stages share.

    Args:
        save_every: steps between two checkpoints; 0 or less writes none.
        dtype: "bfloat16", "float32", or "auto": bf16 on GPUs that have it.
    """
    device = pick_device()
    warn_of_idle_gpus()
    bf16 = dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return {
        "output_dir": output_dir,
        "use_cpu": device.type == "cpu",
        "bf16": bf16,
        "max_grad_norm": 0.0,  # upstream: never active where it was on, and not free
        "save_strategy": "steps" if save_every > 0 else "no",
        "save_steps": max(1, save_every),
        "save_total_limit": save_total_limit,
        "seed": seed,
        "report_to": "none",
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": device.type == "cuda",
    }


class OneDevice:
    """Put before `TrainingArguments` in the bases: one process uses one device, the first of the visible GPUs.

    transformers would otherwise wrap the model in `DataParallel`, without mixed precision and compilation.
    """

    @property
    def n_gpu(self) -> int:
        """Number of GPUs that this process trains on, 0 or 1."""
        return min(1, super().n_gpu)  # type: ignore[misc]


def warn_of_idle_gpus() -> None:
    """Says how all GPUs are used, where this is the only process and sees several."""
    count, world_size = torch.cuda.device_count(), int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and world_size == 1:
        print(
            f"training on the first of {count} GPUs; to use all of them, start the same script with `accelerate "
            f"launch --config_file accelerate_config.yaml --num_processes {count}`",
            file=sys.stderr,
        )


def check_dtype(dtype: str) -> None:
    """Raises UserError where `dtype` is none of `DTYPES`."""
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is not known; use {', '.join(DTYPES)}")


def check_output_dir(output_dir: str) -> None:
    """Raises UserError where no output folder is given, or the stage in it is finished."""
    if not output_dir:
        raise UserError("give --output_dir, the folder that receives the checkpoint")
    if settings.load_run(output_dir):
        raise UserError(f"{output_dir} is finished; delete that folder to train it again")


def add_callbacks(trainer: Any, *extra: Any) -> None:
    """Replaces the trainer's printing by a progress bar, and lets SIGTERM save a checkpoint before it ends the run."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.stop_on_signal = StopOnSignal(every=1 if trainer.args.device.type == "cpu" else 10)
    for callback in (TrainingProgress(), QuietGarbageCollector(), trainer.stop_on_signal, *extra):
        trainer.add_callback(callback)


def train(trainer: Any, resume: bool = True) -> None:
    """Trains to the last step, from the newest intact checkpoint in the output folder where `resume` is true.

    Where SIGTERM stops the run before its last step, the process ends with status 143; the checkpoint is written.
    """
    trainer.train(resume_from_checkpoint=resume)
    state = trainer.state
    if trainer.stop_on_signal.received and state.global_step < state.max_steps:
        if trainer.is_world_process_zero():
            print(
                f"stopped by SIGTERM after step {state.global_step}; run the same command again to continue",
                file=sys.stderr,
            )
        sys.exit(settings.STOPPED_BY_SIGTERM)


def finish(trainer: Any, stage: str, config: Any, started: float, metrics: dict[str, float], **facts: Any) -> None:
    """Writes the checkpoint folder and, last of all, `run.json`. Every process has to call it.

    Args:
        stage: the stage's name, as in recipes.
        config: the stage's settings, a dataclass with `output_dir`.
        started: time (`time.time()`) at which the stage began.
        metrics: results, flat name → number.
        facts: further entries of `run.json`.
    """
    trainer.save_model(config.output_dir)
    if trainer.is_world_process_zero():
        seconds, history = time.time() - started, trainer.history()
        settings.save_run(config.output_dir, stage, config, seconds=seconds, metrics=metrics, history=history, **facts)
        delete_rows(config.output_dir)
        shown = [f"{name} {value:.4f}" for name, value in metrics.items() if name == "loss" or name.startswith("val_")]
        print(f"{config.output_dir}: {', '.join([*shown, f'{seconds:.0f} s'])}", flush=True)
    trainer.accelerator.wait_for_everyone()


# -- midtraining, SFT and RL -----------------------------------------------------------------------------------------


@dataclass
class StageConfig:
    """The settings of every chat stage. Learning rates are those of pretraining; `init_lr_frac` scales all of them."""

    model: str = field(default="", metadata={"help": "checkpoint folder of the stage before"})
    output_dir: str = field(default="", metadata={"help": "folder that receives the checkpoint"})
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "what to train on: name[/split][=source][@limit][*repeat] …"}
    )
    device_batch_size: int = field(default=32, metadata={"help": "largest number of rows per process at once"})
    num_iterations: int = field(default=-1, metadata={"help": "optimizer steps; -1: one pass over the tasks"})
    embedding_lr: float = field(default=0.2, metadata={"help": "AdamW's rate for the embeddings, at width 768"})
    unembedding_lr: float = field(default=0.004, metadata={"help": "AdamW's rate for the head, at width 768"})
    matrix_lr: float = field(default=0.02, metadata={"help": "Muon's rate for the matrices of the blocks"})
    scalar_lr: float = field(default=0.5, metadata={"help": "AdamW's rate for the scalars of the residual stream"})
    weight_decay: float = field(default=0.0, metadata={"help": "Muon's weight decay"})
    init_lr_frac: float = field(default=1.0, metadata={"help": "factor on all learning rates"})
    warmup_ratio: float = field(default=0.0, metadata={"help": "share of the steps in which the rates rise"})
    warmdown_ratio: float = field(default=0.2, metadata={"help": "share of the steps in which the rates fall"})
    final_lr_frac: float = field(default=0.0, metadata={"help": "rate after the last step, as a share of the peak"})
    momentum_start: float = field(default=0.85, metadata={"help": "Muon's momentum at the first step"})
    momentum_peak: float = field(default=0.95, metadata={"help": "Muon's momentum after its warmup"})
    momentum_warmup_steps: int = field(default=300, metadata={"help": "steps in which the momentum rises to its peak"})
    eval_every: int = field(default=150, metadata={"help": "steps between measurements on held-out data; 0: never"})
    save_every: int = field(default=0, metadata={"help": "steps between two checkpoints to resume from; 0: none"})
    save_total_limit: int = field(default=1, metadata={"help": "how many of these checkpoints are kept"})
    seed: int = field(default=42, metadata={"help": "seed of data order and sampling"})
    dtype: str = field(default="auto", metadata={"help": "bfloat16, float32 or auto: bf16 on GPUs that have it"})
    num_threads: int = field(default=0, metadata={"help": "processes that render conversations; 0: one per CPU core"})

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


class ChatTrainerMixin:
    """Changes to TRL's trainers for all chat stages."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none during training: the card is made from `run.json` when a checkpoint is published."""


def open_stage(config: StageConfig) -> None:
    """Checks the settings before anything slow begins, and records them for a later resume.

    Raises:
        UserError: a folder is not given or does not exist, the dtype is unknown, or `output_dir` holds the
            checkpoints of another run.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports each run to its authors by default
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is announced as experimental each time
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # about names that TRL uses
    check_output_dir(config.output_dir)
    check_dtype(config.dtype)
    if not config.model:
        raise UserError("give --model, the checkpoint folder of the stage before")
    if not Path(config.model, "config.json").exists():
        raise UserError(f"{config.model} is no checkpoint folder (it has no config.json); run the stage before first")
    if not config.tasks:
        raise UserError("give --tasks, what to train on, such as gsm8k or conversations=my_chats.jsonl")
    asked = json.loads(json.dumps(asdict(config)))
    started = Path(config.output_dir, START_FILE)
    if started.exists():
        before = json.loads(started.read_text(encoding="utf-8"))
        # A setting that an older version of this program did not know has not changed.
        changed = sorted(name for name in asked.keys() & before.keys() - MAY_CHANGE if asked[name] != before[name])
        if changed and checkpoints.newest_intact(config.output_dir)[0]:
            raise UserError(
                f"{config.output_dir} holds the checkpoints of a run with another {', '.join(changed)}; "
                "continue with the settings of that run, or delete the folder"
            )
    settings.write_json(started, asked)


def load_tasks(specs: list[str], split: str) -> list[tuple[Any, int]]:
    """Makes the tasks that a recipe names: (task, repeat) pairs."""
    return [tasks.load(spec, split) for spec in specs]


def load_model(folder: str) -> tuple[Any, Any]:
    """Loads the stage before: (model with fp32 weights on the CPU, tokenizer)."""
    model, tokenizer = load_checkpoint(folder, device="cpu", dtype="float32")
    if "<|assistant_start|>" not in tokenizer.get_vocab():
        raise UserError(f"the tokenizer of {folder} has no chat tokens; start from a checkpoint of this project")
    model.generation_config.eos_token_id = stop_token_ids(tokenizer)
    return model, tokenizer


@torch.no_grad()
def initialize_control_tokens(model: Any, tokenizer: Any, pairs: Sequence[str]) -> None:
    """Copies embeddings of ordinary tokens to control tokens, which pretraining has never seen.

    From the first step on, the model then does at the control token what it does at that token in text (docs/log.md).

    Args:
        pairs: `token=text`; the last token of the text is copied, in all of the model's embeddings.
    """
    tables = [part.weight for part in model.modules() if isinstance(part, torch.nn.Embedding)]
    for token, _, text in (pair.partition("=") for pair in pairs):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if token not in tokenizer.all_special_tokens or not ids:
            raise UserError(
                f"initialize_control_tokens has {token}={text!r}; "
                "give a control token and a text, such as '<|assistant_start|>=.\\n'"
            )
        for table in tables:
            table[tokenizer.convert_tokens_to_ids(token)] = table[ids[-1]]


def chat_arguments(config: StageConfig, num_iterations: int) -> dict[str, Any]:
    """The values of TRL's `SFTConfig` and `GRPOConfig` that the chat stages share."""
    shared = base_arguments(
        config.output_dir,
        save_every=config.save_every,
        save_total_limit=config.save_total_limit,
        seed=config.seed,
        dtype=config.dtype,
    )
    own = {"max_steps": num_iterations, "logging_steps": max(1, num_iterations // 100)}
    return shared | own | {"gradient_checkpointing": False}  # TRL's default is True, which slows a small model down


def distributed_state() -> Any:
    """Starts the process group, if there are several processes: `num_processes`, `is_main_process` and a barrier."""
    from accelerate import PartialState

    return PartialState(cpu=pick_device().type == "cpu")
