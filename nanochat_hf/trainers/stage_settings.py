"""The settings of midtraining, SFT, DPO and RL, and what every training stage checks first.

Nothing here imports torch, so `--help` and mistakes are said at once.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_hf.evals.bundle import check_bundle
from nanochat_hf.settings import (
    MAX_RATE,
    MAX_ROWS,
    MAX_SEED,
    MAX_STEPS,
    MAX_TOKENS,
    UserError,
    check_extra,
    check_output_dir,
    program,
    setting,
)

if TYPE_CHECKING:
    from nanochat_hf.optim.schedules import Schedule

DTYPES = ("auto", "bfloat16", "float32")
COMPILE = ("auto", "true", "layers", "model", "false")  # "true" is "layers"
TASKS_HELP = "what to train on: name[/split][=source][@limit][*repeat] …"
LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")
PREFERENCE_LOSSES = (
    *("sigmoid", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
PACKINGS = ("best_fit", "none")
REPORT_TO = ("none", "trackio", "wandb", "tensorboard")


@dataclass
class StageConfig:
    """The settings of every chat stage. Learning rates are those of pretraining; `init_lr_frac` scales all of them."""

    model: str = setting("", "checkpoint folder of the stage before; or any causal model: folder or Hub id", path=True)
    output_dir: str = setting("", "folder that receives the checkpoint", path=True)
    tasks: list[str] = setting([], TASKS_HELP)
    device_batch_size: int = setting(32, "largest number of rows per process at once", at_least=1, at_most=MAX_ROWS)
    num_iterations: int = setting(
        -1, "optimizer steps; -1: one pass over the tasks", at_least=1, at_most=MAX_STEPS, also=[-1]
    )
    embedding_lr: float = setting(0.2, "AdamW's rate for the embeddings, at width 768", at_least=0, at_most=MAX_RATE)
    unembedding_lr: float = setting(0.004, "AdamW's rate for the head, at width 768", at_least=0, at_most=MAX_RATE)
    matrix_lr: float = setting(0.02, "Muon's rate for the matrices of the blocks", at_least=0, at_most=MAX_RATE)
    scalar_lr: float = setting(
        0.5, "AdamW's rate for the scalars of the residual stream", at_least=0, at_most=MAX_RATE
    )
    weight_decay: float = setting(0.0, "Muon's weight decay", at_least=0, at_most=MAX_RATE)
    optimizer: str = setting(
        "muon", "muon: Muon for the matrices of the blocks; adamw: AdamW for everything", choices=("muon", "adamw")
    )
    learning_rate: float | None = setting(
        None,
        "AdamW's rate in place of the four above, for other models, LoRA and adamw; default 2e-5, with LoRA 2e-4",
        above=0,
        at_most=MAX_RATE,
    )
    lora_rank: int = setting(
        0, "train LoRA matrices of this rank, and merge them at the end; 0: train all", at_least=0, at_most=65536
    )
    lora_alpha: float | None = setting(
        None, "LoRA's scale, divided by the rank; default: twice the rank", above=0, at_most=MAX_RATE
    )
    lora_targets: list[str] = setting(
        ["all-linear"], "layers that LoRA changes: names such as q_proj v_proj, or all-linear"
    )
    init_lr_frac: float = setting(1.0, "factor on all learning rates", at_least=0, at_most=MAX_RATE)
    warmup_ratio: float = setting(0.0, "share of the steps in which the rates rise", at_least=0, at_most=1)
    warmdown_ratio: float = setting(0.2, "share of the steps in which the rates fall", at_least=0, at_most=1)
    final_lr_frac: float = setting(
        0.0, "rate after the last step, as a share of the peak", at_least=0, at_most=MAX_RATE
    )
    momentum_start: float = setting(0.85, "Muon's momentum at the first step", at_least=0, at_most=1)
    momentum_peak: float = setting(0.95, "Muon's momentum after its warmup", at_least=0, at_most=1)
    momentum_warmup_steps: int = setting(
        300, "steps in which the momentum rises to its peak", at_least=0, at_most=MAX_STEPS
    )
    eval_every: int = setting(
        150, "steps between measurements on held-out data; 0: never", at_least=0, also=[-1], off=0
    )
    save_every: int = setting(
        150,
        "steps between two checkpoints to resume from; 0: only --save_minutes counts",
        at_least=0,
        also=[-1],
        off=0,
    )
    save_minutes: float = setting(
        10.0, "longest time between two of these checkpoints; 0: only --save_every counts", at_least=0, off=0
    )
    save_total_limit: int = setting(1, "how many of these checkpoints are kept", at_least=1)
    default_sampling: list[str] = setting(
        [],
        "how chats, page and server sample the finished model by default, such as temperature=0.3 top_p=0.9",
    )
    seed: int = setting(42, "seed of data order and sampling", at_least=0, at_most=MAX_SEED)
    dtype: str = setting("auto", "bfloat16, float32 or auto: bf16 on GPUs that have it", choices=DTYPES)
    compile: str = setting("auto", "true: block by block; false; auto: true on GPUs, not in RL", choices=COMPILE)
    attention: str = setting("auto", "as in pretraining: auto is the fastest kernel for the layers with a window")
    gradient_checkpointing: bool = setting(False, "compute the blocks twice, to keep fewer activations in memory")
    report_to: str = setting("none", "where curves are shown besides", choices=REPORT_TO)
    num_threads: int = setting(0, "processes that render conversations; 0: one per CPU core", at_least=0, at_most=1024)

    def schedule(self, num_iterations: int) -> "Schedule":
        from nanochat_hf.optim.schedules import Schedule

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

    def hyper(self, ours: bool = True) -> dict[str, Any]:
        """The learning rates for `build_optimizer`.

        Args:
            ours: whether the model is one of this project, for which the rates of pretraining are made. Other models,
                LoRA matrices and `optimizer="adamw"` take `learning_rate`.
        """
        from nanochat_hf.optim.groups import FIXED_RATES

        if not ours or self.lora_rank or self.optimizer == "adamw":
            rate = self.learning_rate or (2e-4 if self.lora_rank else 2e-5)
            fine_tuning = {"learning_rate": rate * self.init_lr_frac, "muon": self.optimizer == "muon"}
            return {**fine_tuning, "weight_decay": self.weight_decay}

        names = ("embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr")
        rates = {name: getattr(self, name) for name in names} | FIXED_RATES
        return {name: rate * self.init_lr_frac for name, rate in rates.items()} | {"weight_decay": self.weight_decay}


@dataclass
class SupervisedConfig(StageConfig):
    """The settings of midtraining and SFT."""

    max_seq_len: int = setting(0, "tokens per row; 0: the model's context length", at_least=0, at_most=MAX_TOKENS)
    total_batch_size: int = setting(
        524288, "tokens per optimizer step, padding included, over all processes", at_least=1, at_most=2**40
    )
    packing: str = setting(
        "best_fit",
        "best_fit: several conversations per row; none: one per row, so that none sees another",
        choices=PACKINGS,
    )
    epochs: int = setting(1, "passes over the tasks, where num_iterations is not given", at_least=1, at_most=1_000_000)
    val_tasks: list[str] = setting([], "held-out tasks for the validation loss, written like tasks")


@dataclass
class AnsweringConfig(StageConfig):
    """What RL and DPO share: the model answers problems, and its weights move in small steps."""

    max_new_tokens: int = setting(256, "longest answer, tool results included", at_least=1, at_most=MAX_TOKENS)
    rollout_batch_size: int = setting(
        256, "answers that a process samples at the same time", at_least=1, at_most=MAX_ROWS
    )
    temperature: float = setting(1.0, "sampling temperature", at_least=0.01, at_most=100)
    top_k: int = setting(50, "sample from the k most likely tokens; 0: from all", at_least=0)
    allow_code_execution: bool = setting(False, "allow tasks that run programs the model wrote, inside the sandbox")
    init_lr_frac: float = setting(0.05, "factor on all learning rates", at_least=0, at_most=MAX_RATE)
    warmdown_ratio: float = setting(1.0, "share of the steps in which the rates fall", at_least=0, at_most=1)
    momentum_start: float = setting(0.95, "Muon's momentum at the first step", at_least=0, at_most=1)
    momentum_warmup_steps: int = setting(
        0, "steps in which the momentum rises to its peak", at_least=0, at_most=MAX_STEPS
    )


@dataclass
class RolloutConfig(AnsweringConfig):
    """The settings of RL."""

    prompts_per_step: int = setting(16, "prompts per optimizer step, over all processes", at_least=1, at_most=MAX_ROWS)
    num_generations: int = setting(16, "answers sampled per prompt", at_least=2, at_most=65536)
    val_tasks: list[str] = setting(["gsm8k/test@400"], "held-out problems for pass@k; []: none")
    val_samples: int = setting(8, "answers per held-out problem: the k of pass@k", at_least=1, at_most=65536)
    reward: list[str] = setting(
        ["task"], "what answers are worth: task, math-verify or module:function, each with *weight where that is not 1"
    )
    loss_type: str = setting("dapo", "TRL's loss", choices=LOSS_TYPES)
    log_completions: bool = setting(False, "print samples with rewards at every step, and write them to completions/")
    device_batch_size: int = setting(8, "largest number of rows per process at once", at_least=1, at_most=MAX_ROWS)
    eval_every: int = setting(
        60, "steps between measurements on held-out data; 0: never", at_least=0, also=[-1], off=0
    )
    save_every: int = setting(
        60, "steps between two checkpoints to resume from; 0: only --save_minutes counts", at_least=0, also=[-1], off=0
    )


@dataclass
class PreferenceConfig(AnsweringConfig):
    """The settings of DPO."""

    max_seq_len: int = setting(
        0, "longest conversation in tokens; 0: the model's context length", at_least=0, at_most=MAX_TOKENS
    )
    pairs_per_step: int = setting(32, "pairs per optimizer step, over all processes", at_least=1, at_most=MAX_ROWS)
    epochs: int = setting(1, "passes over the pairs", at_least=1, at_most=1_000_000)
    num_samples: int = setting(
        0,
        "make pairs of the model's own answers, so many per problem; 0: the tasks hold pairs",
        at_least=0,
        at_most=65536,
        off=0,
    )
    pairs_per_prompt: int = setting(
        1, "largest number of pairs made of the answers to one problem", at_least=1, at_most=65536
    )
    beta: float = setting(0.1, "how much a change of an answer's log-probability counts", above=0, at_most=MAX_RATE)
    loss_type: list[str] = setting(["sigmoid"], "TRL's losses, added up", choices=PREFERENCE_LOSSES)
    val_tasks: list[str] = setting([], "held-out pairs, written like tasks")
    device_batch_size: int = setting(8, "largest number of pairs per process at once", at_least=1, at_most=MAX_ROWS)


def check_stage(config: StageConfig) -> None:
    """Refuses what cannot work before anything slow is imported.

    Raises:
        UserError: a folder is not given, cannot be used or does not exist, a package is missing, or there are no
            tasks.
    """
    check_output_dir(config.output_dir)
    if not config.model:
        raise UserError("give --model, the checkpoint folder of the stage before, or a model of the Hub")
    check_model(config.model)
    if config.lora_rank:
        check_package("peft", "--lora_rank")
    check_report_to(config.report_to)
    if not config.tasks:
        raise UserError("give --tasks, what to train on, such as gsm8k or conversations=my_chats.jsonl")


def check_model(name: str) -> None:
    """Raises UserError where a name is neither a checkpoint folder nor the id OWNER/NAME of a Hub model."""
    owner, _, rest = name.partition("/")
    could_be_an_id = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(owner).is_dir()
    if Path(name).exists() or not could_be_an_id:
        if not Path(name, "config.json").exists():
            raise UserError(f"{name} is no checkpoint folder (it has no config.json); run the stage before first")


def check_pretraining(config: Any) -> None:
    """Refuses settings that cannot work before anything slow is imported. `config` is a `PretrainConfig`.

    Raises:
        UserError: names the setting and the remedy.
    """
    if not config.tokenizer or not Path(config.tokenizer, "tokenizer.json").exists():
        raise UserError(
            f"there is no tokenizer in {config.tokenizer or 'the empty path'!r}; make one with {program('tokenizer')} "
            "and give its folder as --tokenizer"
        )
    if config.output_dir or not config.dry_run:
        check_output_dir(config.output_dir)
    if not config.data:
        raise UserError("give --data, the text to train on, such as my_texts/ or microworld")
    for phase in config.phases:
        if not re.fullmatch(r".+=\d+", phase):
            raise UserError(f"--phases has {phase!r}; give name=first step, such as lists=0 documents=500")
    if config.context_length is not None and config.context_length < config.sequence_length:
        raise UserError(
            f"--context_length {config.context_length} is shorter than the rows of {config.sequence_length} tokens; "
            "raise it, or lower --sequence_length"
        )
    if config.core_every > 0:
        if not config.core_bundle:
            raise UserError("--core_every needs tasks; give --core_bundle core, which downloads CORE, or a folder")
        check_bundle(config.core_bundle)
    check_report_to(config.report_to)


def check_report_to(report_to: str) -> None:
    """Raises UserError where the package that draws the curves is missing."""
    if report_to != "none":
        check_package(report_to, f"--report_to {report_to}")


def check_package(module: str, option: str) -> None:
    """Raises UserError where an option's package is missing."""
    if importlib.util.find_spec(module) is None:
        check_extra(module)
        raise UserError(f"{option} needs its package: pip install {module.replace('_', '-')}")
