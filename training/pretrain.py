"""Pretrains a base model on packed text; `--depth` decides everything else.

    python training/pretrain.py --config training/recipes/quickstart.yaml --tokenizer RUN/tokenizer \
        --output_dir RUN/base
    python training/pretrain.py --depth 12 --tokenizer RUN/tokenizer --output_dir RUN/base --device_batch_size 8
    accelerate launch --config_file accelerate_config.yaml training/pretrain.py \
        --config training/recipes/speedrun.yaml --tokenizer RUN/tokenizer --output_dir RUN/base

An interrupted run goes on from its newest intact checkpoint when the same command is given again.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.settings import UserError


@dataclass
class PretrainConfig:
    tokenizer: str = field(default="", metadata={"help": "tokenizer folder, made by training/tokenizer.py"})
    output_dir: str = field(default="", metadata={"help": "folder that receives the checkpoint"})
    data: list[str] = field(
        default_factory=lambda: ["karpathy/climbmix-400b-shuffle"],
        metadata={"help": "text: Hub ids, folders, files or microworld, each with :WEIGHT if wanted"},
    )
    text_column: str | None = field(default=None, metadata={"help": "column that holds the text; default: found"})
    on_bad_file: str = field(default="stop", metadata={"help": "stop or skip, at a file that cannot be read"})
    packing: str = field(default="best_fit", metadata={"help": "how documents fill rows: nanochat_hf.data.packing"})
    data_seed: int | None = field(default=None, metadata={"help": "shuffles documents by epoch; default: file order"})
    num_threads: int | None = field(default=None, metadata={"help": "tokenizing threads; default: all cores"})
    # shape
    depth: int = field(default=20, metadata={"help": "number of layers, the one dial"})
    preset: str = field(default="modern", metadata={"help": "modern (July 2026) or classic (October 2025)"})
    aspect_ratio: int = field(default=64, metadata={"help": "width = depth · aspect_ratio, rounded up to whole heads"})
    head_dim: int = field(default=128, metadata={"help": "channels of an attention head"})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "default: as many as query heads"})
    sequence_length: int = field(default=2048, metadata={"help": "context in tokens"})
    window_pattern: str | None = field(default=None, metadata={"help": "S: quarter, L: full context, over the layers"})
    # horizon: the first that is given counts
    num_iterations: int = field(default=-1, metadata={"help": "optimizer steps"})
    target_flops: float = field(default=-1.0, metadata={"help": "floating point operations of the whole run"})
    param_data_ratio: float | None = field(
        default=None, metadata={"help": "tokens per scaling parameter; default 12 (classic: 20 per parameter)"}
    )
    # batch
    total_batch_size: int = field(default=-1, metadata={"help": "tokens a step over all processes; -1 chooses"})
    device_batch_size: int = field(default=32, metadata={"help": "most rows a process takes at once"})
    auto_device_batch: bool = field(default=False, metadata={"help": "find the most rows that fit into memory"})
    # optimizer; rates of embedding and head are for width 768, all for a batch of 2^19 tokens
    unembedding_lr: float | None = field(default=None, metadata={"help": "AdamW, head; default 0.008 (classic 0.004)"})
    embedding_lr: float | None = field(default=None, metadata={"help": "AdamW, embeddings; 0.3 (classic 0.2)"})
    matrix_lr: float = field(default=0.02, metadata={"help": "Muon, matrices of the blocks"})
    scalar_lr: float = field(default=0.5, metadata={"help": "AdamW, scalars of the residual stream"})
    smear_lr: float = field(default=0.2, metadata={"help": "AdamW, smear and backout; not scaled with the batch"})
    weight_decay: float | None = field(default=None, metadata={"help": "Muon, at depth 12; 0.28 (classic 0)"})
    lr_scale: float | None = field(default=None, metadata={"help": "factor on all rates; default √(batch / 2^19)"})
    warmup_steps: int | None = field(default=None, metadata={"help": "steps; default 40 (classic 0)"})
    warmdown_ratio: float | None = field(default=None, metadata={"help": "share of the run; 0.65 (classic 0.2)"})
    final_lr_frac: float | None = field(default=None, metadata={"help": "end of the warmdown; 0.05 (classic 0)"})
    momentum_warmup_steps: int | None = field(default=None, metadata={"help": "steps; default 400 (classic 300)"})
    # on the way
    eval_every: int = field(default=250, metadata={"help": "steps between bits per byte on validation; -1: never"})
    eval_tokens: int = field(default=80 * 524288, metadata={"help": "validation tokens scored each time"})
    core_every: int = field(default=-1, metadata={"help": "steps between CORE evaluations; -1: never"})
    core_bundle: str | None = field(default=None, metadata={"help": "folder of the CORE evaluation bundle"})
    sample_every: int = field(default=-1, metadata={"help": "steps between samples; -1: never"})
    save_every: int = field(default=1000, metadata={"help": "steps between checkpoints; -1: none on the way"})
    save_total_limit: int = field(default=2, metadata={"help": "checkpoints kept"})
    log_every: int = field(default=10, metadata={"help": "steps between rows of the history"})
    log_norms: bool = field(default=False, metadata={"help": "record gradient and update norms by parameter group"})
    spike_threshold: float = field(default=2.0, metadata={"help": "nats above the mean that stop the run; 0: never"})
    resume: bool = field(default=True, metadata={"help": "go on from the newest intact checkpoint in output_dir"})
    report_to: str = field(default="none", metadata={"help": "none, trackio, wandb or tensorboard"})
    seed: int = field(default=42, metadata={"help": "of the initial weights"})
    dtype: str = field(default="auto", metadata={"help": "bfloat16, float32 or auto: bf16 on GPUs that have it"})
    compile: str = field(default="auto", metadata={"help": "true, false or auto: on GPUs only"})
    dry_run: bool = field(default=False, metadata={"help": "print the plan, draw the schedules, train nothing"})


def main() -> None:
    config = settings.parse_stage("pretrain", PretrainConfig)
    check(config)
    started = time.time()

    import torch
    from transformers import AutoTokenizer, TrainingArguments, set_seed

    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    cuda = torch.cuda.is_available()
    world = max(1, int(os.environ.get("WORLD_SIZE", "1")))
    if config.auto_device_batch and not config.dry_run:
        config.device_batch_size = largest_device_batch(config, tokenizer, world)
    dial, plan = turn_dial(config, len(tokenizer), world)
    steps = dial.num_iterations
    leader = int(os.environ.get("RANK", "0")) == 0
    if leader:
        describe(config, dial, plan)
    schedule = make_schedule(config, steps)
    if config.dry_run:
        if leader:
            draw(schedule, dial, config)
        return

    bf16 = config.dtype == "bfloat16" or (config.dtype == "auto" and cuda and torch.cuda.is_bf16_supported())
    arguments = TrainingArguments(
        output_dir=config.output_dir,
        max_steps=steps,
        per_device_train_batch_size=plan.device_batch_size,
        gradient_accumulation_steps=plan.accumulation_steps,
        max_grad_norm=0.0,
        bf16=bf16,
        use_cpu=not cuda,
        torch_compile=config.compile == "true" or (config.compile == "auto" and cuda),
        logging_steps=config.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if config.eval_every > 0 else "no",
        eval_steps=config.eval_every if config.eval_every > 0 else None,
        save_strategy="steps" if config.save_every > 0 else "no",
        save_steps=config.save_every if config.save_every > 0 else steps,
        save_total_limit=config.save_total_limit,
        ignore_data_skip=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=config.report_to,
        seed=config.seed,
    )
    world, rank = arguments.world_size, arguments.process_index
    if world != plan.world_size:
        dial, plan = turn_dial(config, len(tokenizer), world)
    set_seed(config.seed)
    model = build_model(config, tokenizer)
    trainer = build_trainer(config, arguments, model, tokenizer, dial, schedule, rank, world)
    checkpoint = find_checkpoint(config, leader) if config.resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.stop_on_signal.received:
        if leader:
            print(f"stopped by SIGTERM at step {trainer.state.global_step}; the same command goes on", file=sys.stderr)
        sys.exit(143)
    finish(config, trainer, tokenizer, dial, started)


def check(config: PretrainConfig) -> None:
    """Refuses what cannot work before anything slow begins."""
    if not config.tokenizer or not Path(config.tokenizer, "tokenizer.json").exists():
        raise UserError(
            f"there is no tokenizer in {config.tokenizer or 'the empty path'!r}; make one with training/tokenizer.py "
            "and give its folder as --tokenizer"
        )
    if not config.output_dir and not config.dry_run:
        raise UserError("give --output_dir, the folder that receives the checkpoint")
    if config.output_dir and settings.load_run(config.output_dir):
        raise UserError(f"{config.output_dir} is finished; delete that folder to train it again")
    for name, allowed in (("dtype", ("auto", "bfloat16", "float32")), ("compile", ("auto", "true", "false"))):
        if getattr(config, name) not in allowed:
            raise UserError(f"--{name} {getattr(config, name)} is not known; use {', '.join(allowed)}")


def turn_dial(config: PretrainConfig, vocab_size: int, world_size: int) -> tuple[Any, Any]:
    """The depth dial, with the batch that this many processes can make: (dial, batch plan)."""
    from nanochat_hf.scaling import depth_dial, fit_batch

    pattern = {"window_pattern": config.window_pattern} if config.window_pattern else {}
    try:
        dial = depth_dial(
            config.depth,
            preset=config.preset,
            param_data_ratio=config.param_data_ratio,
            vocab_size=vocab_size,
            sequence_length=config.sequence_length,
            aspect_ratio=config.aspect_ratio,
            head_dim=config.head_dim,
            key_value_heads=config.num_key_value_heads,
            num_iterations=config.num_iterations,
            target_flops=config.target_flops,
            total_batch_size=config.total_batch_size,
            base_weight_decay=config.weight_decay,
            **pattern,
        )
        plan = fit_batch(dial.total_batch_size, config.sequence_length, world_size, config.device_batch_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    fitted = dial.with_batch(plan.total_batch_size)
    if config.num_iterations > 0 and fitted.num_iterations != config.num_iterations:
        from dataclasses import replace

        fitted = replace(fitted, num_iterations=config.num_iterations)
    return fitted, plan


def largest_device_batch(config: PretrainConfig, tokenizer: Any, world_size: int) -> int:
    """The most rows of which forward and backward fit beside weights, gradients and optimizer state.

    On a GPU it is tried out, doubling until memory is exhausted; on a CPU it is worked out from the free memory.
    """
    import torch

    from nanochat_hf.plan import memory_plan

    dial, _ = turn_dial(config, len(tokenizer), world_size)
    needed = max(1, dial.total_batch_size // (config.sequence_length * world_size))  # more would not be used
    parts = memory_plan(dial, world_size, 1)
    state = parts["optimizer state"]
    if not torch.cuda.is_available():
        import psutil

        per_row = 2 * (parts["activations"] + parts["logits"])  # fp32 instead of bf16
        free = psutil.virtual_memory().available / world_size - sum(parts.values())
        return int(max(1, min(needed, free * 0.8 // per_row)))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    model = build_model(config, tokenizer).to(device)
    held = torch.empty(int(state), dtype=torch.uint8, device=device)
    rows, fits = 1, 1
    while rows <= needed:
        try:
            ids = torch.zeros(rows, config.sequence_length, dtype=torch.long, device=device)
            with torch.autocast("cuda", torch.bfloat16, enabled=config.dtype != "float32"):
                model(input_ids=ids, shift_labels=ids, use_cache=False).loss.backward()
            fits, rows = rows, rows * 2
        except torch.OutOfMemoryError:
            break
    del model, held
    torch.cuda.empty_cache()
    print(f"the largest device batch that fits is {fits}", flush=True)
    return fits


def describe(config: PretrainConfig, dial: Any, plan: Any) -> None:
    print(
        f"d{dial.depth}: width {dial.hidden_size}, {dial.heads} heads, {dial.params:,} parameters "
        f"({dial.scaling_params:,} scaling), {dial.flops_per_token:.3g} FLOPs a token\n{plan.describe()}\n"
        f"{dial.num_iterations:,} steps, {dial.total_tokens:,} tokens, {dial.total_flops:.3g} FLOPs; rates × "
        f"{lr_scale(config, dial):.3f}, Muon weight decay {dial.weight_decay:.4f}",
        flush=True,
    )


def lr_scale(config: PretrainConfig, dial: Any) -> float:
    return dial.lr_scale if config.lr_scale is None else config.lr_scale


def make_schedule(config: PretrainConfig, steps: int) -> Any:
    from nanochat_hf.optim import Schedule

    names = ("warmup_steps", "warmdown_ratio", "final_lr_frac", "momentum_warmup_steps")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return Schedule.classic(steps, **given) if config.preset == "classic" else Schedule(steps, **given)


def hyper(config: PretrainConfig, dial: Any) -> dict[str, Any]:
    """Arguments of `build_optimizer`."""
    classic, scale = config.preset == "classic", lr_scale(config, dial)
    unembedding = config.unembedding_lr if config.unembedding_lr is not None else (0.004 if classic else 0.008)
    embedding = config.embedding_lr if config.embedding_lr is not None else (0.2 if classic else 0.3)
    return {
        "unembedding_lr": unembedding * scale,
        "embedding_lr": embedding * scale,
        "matrix_lr": config.matrix_lr * scale,
        "scalar_lr": config.scalar_lr * scale,
        "smear_lr": config.smear_lr,
        "weight_decay": dial.weight_decay,
        "variant": config.preset,
    }


def build_model(config: PretrainConfig, tokenizer: Any) -> Any:
    """A freshly initialised model whose control tokens are the tokenizer's."""
    from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM

    vocab = -(-len(tokenizer) // 64) * 64
    model_config = NanochatHFConfig.from_depth(
        config.depth,
        vocab_size=vocab,
        preset=config.preset,
        sequence_length=config.sequence_length,
        aspect_ratio=config.aspect_ratio,
        head_dim=config.head_dim,
        num_key_value_heads=config.num_key_value_heads,
        window_pattern=config.window_pattern,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return NanochatHFForCausalLM(model_config)


def build_trainer(config, arguments, model, tokenizer, dial, schedule, rank: int, world: int) -> Any:
    import numpy as np
    import torch

    from nanochat_hf import callbacks
    from nanochat_hf.data.loader import PackedLoader, ValidationBatches
    from nanochat_hf.plan import peak_flops
    from nanochat_hf.tokenizer import token_byte_lengths
    from nanochat_hf.trainer import NanochatTrainer

    place = {"rank": rank, "world_size": world, "num_threads": config.num_threads}
    rows = {"batch_size": arguments.per_device_train_batch_size, "sequence_length": config.sequence_length}
    files = {"text_column": config.text_column, "on_bad_file": config.on_bad_file}
    order = {"packing": config.packing, "seed": config.data_seed}
    loader = PackedLoader(config.data, tokenizer, **rows, **place, **files, **order, pin_memory=True)
    validation, byte_lengths = None, None
    if config.eval_every > 0:
        validation = ValidationBatches(config.data, tokenizer, tokens=config.eval_tokens, **rows, **place, **files)
        lengths = np.asarray(token_byte_lengths(tokenizer))
        byte_lengths = np.zeros(model.config.vocab_size, dtype=np.int64)  # rows beyond the vocabulary are padding
        byte_lengths[: len(lengths)] = lengths
    stop = callbacks.StopOnSignal(every=1 if arguments.device.type == "cpu" else 10)
    extras = [callbacks.Progress(), callbacks.QuietGarbageCollector(), stop]
    if config.sample_every > 0:
        extras.append(callbacks.Samples(tokenizer, config.sample_every))
    if config.core_every > 0:
        extras.append(callbacks.CoreMetric(tokenizer, config.core_bundle, config.core_every))
    trainer = NanochatTrainer(
        model=model,
        args=arguments,
        loader=loader,
        validation=validation,
        byte_lengths=byte_lengths,
        flops_per_token=dial.flops_per_token,
        peak_flops=peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else 0.0,
        spike_threshold=config.spike_threshold,
        hyper=hyper(config, dial),
        schedule=schedule,
        callbacks=extras,
        processing_class=tokenizer,
    )
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.stop_on_signal, trainer.log_norms = stop, config.log_norms
    return trainer


def find_checkpoint(config: PretrainConfig, leader: bool) -> str | None:
    from nanochat_hf.checkpoints import newest_intact

    checkpoint, complaints = newest_intact(config.output_dir)
    if leader:
        for complaint in complaints:
            print(f"warning: {complaint}", file=sys.stderr)
        if checkpoint:
            print(f"going on from {checkpoint}", flush=True)
    return str(checkpoint) if checkpoint else None


def finish(config: PretrainConfig, trainer: Any, tokenizer: Any, dial: Any, started: float) -> None:
    """Last evaluation, the checkpoint folder, and `run.json` at the very end."""
    history = trainer.state.log_history
    measured = [row["step"] for row in history if "val_bpb" in row]
    if config.eval_every > 0 and dial.num_iterations not in measured:
        trainer.evaluate()
    trainer.loader.close()
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.generation_config.update(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(config.output_dir, state_dict=weights)
        tokenizer.save_pretrained(config.output_dir)
        rows = [
            {name: value for name, value in row.items() if isinstance(value, int | float)}
            for row in trainer.state.log_history
        ]
        metrics = {"parameters": dial.params, "tokens": dial.total_tokens, "flops": dial.total_flops}
        scores = [row["val_bpb"] for row in rows if "val_bpb" in row]
        if scores:
            metrics |= {"val_bpb": scores[-1], "min_val_bpb": min(scores)}
        losses = [row["loss"] for row in rows if "loss" in row]
        metrics |= {"loss": losses[-1]} if losses else {}
        speeds = sorted(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)
        metrics |= {"tokens_per_second": speeds[len(speeds) // 2]} if speeds else {}
        seconds = time.time() - started
        settings.save_run(
            config.output_dir, "pretrain", config, seconds=seconds, metrics=metrics, history=rows, dial=dial.as_dict()
        )
        summary = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("loss", "val_bpb") if name in metrics)
        print(f"{config.output_dir}: {summary}, {seconds:.0f} s", flush=True)
    trainer.accelerator.wait_for_everyone()


def draw(schedule: Any, dial: Any, config: PretrainConfig) -> None:
    """Draws learning rate, momentum and decay over the run into output_dir/schedules.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = range(0, dial.num_iterations, max(1, dial.num_iterations // 1000))
    curves = {
        "learning rate (factor)": [schedule.lr_factor(step) for step in steps],
        "Muon momentum": [schedule.momentum(step) for step in steps],
        "Muon weight decay": [dial.weight_decay * schedule.decay_factor(step) for step in steps],
    }
    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(7, 7))
    for axis, (title, values) in zip(axes, curves.items(), strict=True):
        axis.plot(list(steps), values)
        axis.set_ylabel(title)
    axes[-1].set_xlabel("step")
    folder = Path(config.output_dir or ".")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "schedules.png", dpi=120)
    print(f"schedules drawn in {folder / 'schedules.png'}")


if __name__ == "__main__":
    settings.run_main(main)
