"""What all training stages share (arguments, callbacks, resuming, finishing), and what only the chat stages share.

A stage script parses its settings, loads what the stage before made, builds a trainer, calls `train` and `finish`.
"""

import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nanochat_hf import settings, tasks
from nanochat_hf.data import fingerprints
from nanochat_hf.data.fingerprints import Fingerprint
from nanochat_hf.generation import Sampling, load_checkpoint, pick_device
from nanochat_hf.generation.chat_format import prepare_for_chat
from nanochat_hf.generation.sampling import LEAST_TEMPERATURE, read_sampling
from nanochat_hf.settings import UserError, folder_lock, job_size
from nanochat_hf.trainers import checkpoints, disks
from nanochat_hf.trainers.callbacks import FinalWeights, QuietGarbageCollector, StopOnSignal, TrainingProgress
from nanochat_hf.trainers.chat_rows import delete_rows
from nanochat_hf.trainers.stage_settings import StageConfig, check_stage

START_FILE = "started.json"  # the configuration that the checkpoints in a stage folder belong to
FINGERPRINT = "fingerprint"  # its entry that says which data was read
# What a resumed run may have otherwise than the run that wrote its checkpoints.
MAY_CHANGE = {
    "model",
    "output_dir",
    "save_every",
    "save_minutes",
    "save_total_limit",
    "eval_every",
    "num_threads",
    "report_to",
}


# -- every stage -----------------------------------------------------------------------------------------------------


def base_arguments(
    output_dir: str, *, save_every: int, save_total_limit: int, seed: int, dtype: str = "auto"
) -> dict[str, Any]:
    """The values of `TrainingArguments` that all stages share.

    Args:
        save_every: steps between two checkpoints; 0 or less writes none.
        dtype: "bfloat16", "float32", or "auto": bf16 on GPUs that have it.
    """
    # Before CUDA is used; rows of several lengths would otherwise leave gaps in the GPU's memory.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
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
    count = torch.cuda.device_count()
    if count > 1 and job_size() == 1:
        print(
            f"training on the first of {count} GPUs; to use all of them, start the same script with `accelerate "
            f"launch --config_file accelerate_config.yaml --num_processes {count}`",
            file=sys.stderr,
        )


def record_start(
    output_dir: str,
    asked: dict[str, Any],
    read: list[Fingerprint],
    may_change: Set[str],
    before: dict[str, Any] | None,
    write: bool = True,
) -> dict[str, str]:
    """Compares a run with the one that wrote the checkpoints in its folder, and records it for a later resume.

    Args:
        asked: what the run is made with, name → JSON value.
        read: fingerprints of its data. Text is compared by them; only by name where an older version of this program
            wrote the record.
        may_change: the names of what may differ; other differences cannot be continued.
        before: what `recorded_start` returns for the folder.
        write: whether this process writes the record.

    Returns:
        A sentence for each difference of `may_change`, by its name; {} where there is no checkpoint.

    Raises:
        UserError: anything else differs; the message names it, with both values where there is only one. Of other
            data, it names only that: length, batch and rates may follow from it.
    """
    asked = json.loads(json.dumps(asked))
    notes: dict[str, str] = {}
    if before:
        # A setting that an older version of this program did not know has not changed.
        changed = sorted(name for name in asked.keys() & before.keys() if asked[name] != before[name])
        if known := before.get(FINGERPRINT):
            difference = fingerprints.difference(known, read)
            if difference and not {"data", "tasks", "val_tasks"} & set(changed):
                raise UserError(
                    f"{difference} since the run in {output_dir} began; put the data back as it was, delete that "
                    "folder, or give another --output_dir"
                )
            if not difference and "data" in changed:  # the same text in another place
                changed.remove("data")
        refused = [name for name in changed if name not in may_change]
        refused = ["data"] if "data" in refused else refused
        if refused:
            values = f" ({before[refused[0]]}, not {asked[refused[0]]})" if len(refused) == 1 else ""
            raise UserError(
                f"{output_dir} holds the checkpoints of a run with another {', '.join(refused)}{values}; "
                "continue with the settings of that run, delete the folder, or give another --output_dir"
            )
        notes = {name: f"going on with another {name}: {asked[name]}, not {before[name]}" for name in changed}
    if write:
        settings.write_json(Path(output_dir, START_FILE), asked | {FINGERPRINT: read})
    return notes


def recorded_start(output_dir: str | None) -> dict[str, Any] | None:
    """What the run of the checkpoints in a folder was made with, as `record_start` wrote it; None without checkpoints.

    It reads the newest checkpoint whole, to see whether it is intact.

    Raises:
        UserError: the record is damaged.
    """
    if not output_dir or not checkpoints.newest_intact(output_dir)[0]:
        return None
    record = Path(output_dir, START_FILE)
    if not record.exists():
        return {}
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{record} is damaged: delete {output_dir} and train it again")
    return before


def hash_of(tokenizer: Any) -> str:
    """A hash of what a tokenizer does: vocabulary, merges, rules and chat template."""
    text = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return hashlib.sha256(text.encode()).hexdigest()


def add_callbacks(trainer: Any, save_minutes: float, *extra: Any) -> None:
    """Replaces the trainer's printing by a progress bar, and adds what saves a run.

    SIGTERM saves a checkpoint before it ends the run; so does time, without ending it. After the last step the weights
    are written first of all, so that nothing is lost in an evaluation.

    Args:
        save_minutes: the longest time between two checkpoints; 0: there is none.
        extra: further callbacks, called after these.
    """
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.stop_on_signal = StopOnSignal(every=1 if trainer.args.device.type == "cpu" else 10, minutes=save_minutes)
    trainer.final_weights = FinalWeights(trainer)
    own = (TrainingProgress(), QuietGarbageCollector(), trainer.stop_on_signal, trainer.final_weights)
    for callback in (*own, *extra):
        trainer.add_callback(callback)


def train(trainer: Any, resume: bool = True) -> None:
    """Trains to the last step, from the newest intact checkpoint in the output folder where `resume` is true.

    Where SIGTERM stops the run before its last step, the process ends with status 143; the checkpoint is written.
    """
    remedy = "copy its folder from one machine to the others"
    disks.check_same("tokenizer", hash_of(trainer.processing_class), remedy)
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:  # after an error too: the process may live on, in a notebook
        trainer.stop_on_signal.restore()
    state = trainer.state
    if trainer.stop_on_signal.received and state.global_step < state.max_steps:
        if trainer.is_world_process_zero():
            print(
                f"stopped by SIGTERM after step {state.global_step}; run the same command again to continue",
                file=sys.stderr,
            )
        sys.exit(settings.STOPPED_BY_SIGTERM)


def finish(
    trainer: Any, stage: str, config: Any, started: float, measure: Callable[[], dict[str, float]], **facts: Any
) -> None:
    """Writes the checkpoint folder, then measures, then writes `run.json`. Every process has to call it.

    Args:
        stage: the stage's name, as in recipes.
        config: the stage's settings, a dataclass with `output_dir`.
        started: time (`time.time()`) at which the stage began.
        measure: returns the results, flat name → number. The weights are written before it is called.
        facts: further entries of `run.json`.
    """
    trainer.final_weights.write()
    metrics = measure()
    seconds, history = time.time() - started, trainer.history()
    if trainer.args.should_save:
        settings.save_run(config.output_dir, stage, config, seconds=seconds, metrics=metrics, history=history, **facts)
        delete_rows(config.output_dir)
    if trainer.is_world_process_zero():
        shown = [f"{name} {value:.4f}" for name, value in metrics.items() if name == "loss" or name.startswith("val_")]
        print(f"{config.output_dir}: {', '.join([*shown, f'{seconds:.0f} s'])}", flush=True)
    trainer.accelerator.wait_for_everyone()


# -- midtraining, SFT and RL -----------------------------------------------------------------------------------------


class ChatTrainerMixin:
    """Changes to TRL's trainers for all chat stages."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none during training: the card is made from `run.json` when a checkpoint is published."""


def open_stage(config: StageConfig) -> list[Fingerprint]:
    """Checks the settings before anything slow begins, and records them for a later resume.

    Returns:
        The fingerprints of the files that tasks name, for `finish`.

    Raises:
        UserError: a folder is not given or does not exist, the dtype is unknown, or `output_dir` holds the
            checkpoints of another run, or another command writes there.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports each run to its authors by default
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is announced as experimental each time
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # about names that TRL uses
    check_stage(config)
    folder_lock.claim(config.output_dir)
    distributed_state().wait_for_everyone()  # where process 0 was refused, no other one writes
    read = tasks.fingerprints_of([*config.tasks, *getattr(config, "val_tasks", [])])
    record_start(config.output_dir, asdict(config), read, MAY_CHANGE, recorded_start(config.output_dir))
    return read


def load_tasks(specs: list[str], split: str) -> list[tuple[Any, int]]:
    """Makes the tasks that a recipe names: (task, repeat) pairs."""
    return [tasks.load(spec, split) for spec in tasks.separate(specs)]


def load_model(folder: str, lora: bool = False) -> tuple[Any, Any]:
    """Loads the stage before, or any causal model, ready for conversations.

    Args:
        folder: a checkpoint folder or a Hub id.
        lora: whether only LoRA matrices will be trained.

    Returns:
        The model with fp32 weights on the CPU, and the tokenizer.

    Raises:
        UserError: it cannot be loaded, or not be trained so.
    """
    model, tokenizer = load_checkpoint(folder, device="cpu", dtype="float32")
    prepare_for_chat(model, tokenizer, lora)
    return model, tokenizer


def set_default_sampling(model: Any, pairs: Sequence[str]) -> None:
    """Writes how a model is sampled into its generation configuration, which `generation_config.json` keeps.

    Chats, the page and servers take it from there, where their users do not choose.

    Args:
        pairs: `name=value` of temperature, top_k, top_p or min_p; none changes nothing.

    Raises:
        UserError: a name or a value is wrong.
    """
    if not pairs:
        return
    off: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": None, "min_p": None}
    values = off | read_sampling(pairs, "default_sampling")
    try:
        Sampling(**values)
    except ValueError as error:
        raise UserError(f"default_sampling: {error}") from None
    if values["temperature"] < LEAST_TEMPERATURE:
        raise UserError(
            f"default_sampling: temperature must be at least {LEAST_TEMPERATURE}; take top_k=1 for the likeliest token"
        )
    model.generation_config.update(do_sample=True, **values)


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


@torch.no_grad()
def initialize_control_head(model: Any, tokenizer: Any) -> None:
    """Gives the head's rows of control tokens the mean of all other rows.

    Pretraining never sees these tokens and so learns that they never come: each costs many nats in the first steps of
    a chat stage. With the mean row a new token begins as likely as an average one (Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    head = model.get_output_embeddings().weight  # [V, D]
    unseen = sorted(set(tokenizer.all_special_ids) - {tokenizer.bos_token_id})
    others = [token for token in range(len(tokenizer)) if token not in unseen]
    head[unseen] = head[others].mean(dim=0)


def chat_arguments(config: StageConfig, num_iterations: int) -> dict[str, Any]:
    """The values of TRL's `SFTConfig` and `GRPOConfig` that the chat stages share."""
    shared = base_arguments(
        config.output_dir,
        save_every=config.save_every,
        save_total_limit=config.save_total_limit,
        seed=config.seed,
        dtype=config.dtype,
    )
    own: dict[str, Any] = {"max_steps": num_iterations, "logging_steps": max(1, num_iterations // 100)}
    own["torch_compile"] = config.compile == "model"
    own["gradient_checkpointing"] = config.gradient_checkpointing  # TRL's default is True, which slows training down
    return shared | own | {"report_to": config.report_to}


def training_method(config: StageConfig, model: Any) -> dict[str, Any]:
    """What is trained and how, as the chat stages' trainers take it: LoRA, the optimizer's settings, compilation."""
    from nanochat_hf import NanochatHFConfig

    ours = isinstance(model.config, NanochatHFConfig)
    method: dict[str, Any] = {"hyper": config.hyper(ours) | {"variant": getattr(model.config, "preset", "modern")}}
    if config.lora_rank:
        from peft import LoraConfig

        everything = config.lora_targets == ["all-linear"]
        if not everything:
            check_lora_targets(config.lora_targets, model)
        method["peft_config"] = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            target_modules="all-linear" if everything else config.lora_targets,
            exclude_modules=["smear_gate", "ve_gate"] if everything and ours else None,  # a few numbers per token
            task_type="CAUSAL_LM",
        )
    return method


def check_lora_targets(targets: Sequence[str], model: Any) -> None:
    """Refuses names that LoRA would leave out, or cannot train.

    Raises:
        UserError: a name is that of no matrix of the model, or of its head; the message has the names that there are.
    """
    matrices = {
        name: part for name, part in model.named_modules() if getattr(getattr(part, "weight", None), "ndim", 0) == 2
    }
    for target in targets:
        found = [part for name, part in matrices.items() if name == target or name.endswith(f".{target}")]
        if not found or model.get_output_embeddings() in found:
            linear = (name for name, part in matrices.items() if part is not model.get_output_embeddings())
            names = sorted({name.rpartition(".")[2] for name in linear} - {""})
            known = ", ".join(name for name in names if not name.isdigit())
            why = "is the head, which LoRA does not train here" if found else "is the name of no matrix of this model"
            raise UserError(f"--lora_targets {target} {why}; take all-linear, or some of {known}")


def distributed_state() -> Any:
    """Starts the process group, if there are several processes: `num_processes`, `is_main_process` and a barrier.

    Raises:
        UserError: the launcher's environment variables describe no job.
    """
    from accelerate import PartialState

    job_size()  # refuses half of a launcher's variables
    return PartialState(cpu=pick_device().type == "cpu")
