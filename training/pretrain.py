"""Pretrains a base model on packed text; `--depth` decides everything else.

    python training/pretrain.py --config training/recipes/quickstart.yaml --tokenizer RUN/tokenizer \
        --output_dir RUN/base
    python training/pretrain.py --depth 12 --tokenizer RUN/tokenizer --output_dir RUN/base --auto_device_batch true
    accelerate launch --config_file training/accelerate_cpu.yaml training/pretrain.py \
        --config training/recipes/smoke.yaml --tokenizer RUN/tokenizer --output_dir RUN/base
    accelerate launch --config_file accelerate_config.yaml training/pretrain.py \
        --config training/recipes/speedrun.yaml --tokenizer RUN/tokenizer --output_dir RUN/base

An interrupted run goes on from its newest intact checkpoint when the same command is given again.
"""

import sys
import time
from dataclasses import dataclass, field
from functools import partial
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
    sequence_length: int = field(default=2048, metadata={"help": "tokens of a training row"})
    context_length: int | None = field(
        default=None, metadata={"help": "positions the model is built for; default: sequence_length"}
    )
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
    smear_lr: float = field(default=0.2, metadata={"help": "AdamW, smear; the same for every batch"})
    backout_lr: float = field(default=0.2, metadata={"help": "AdamW, backout; the same for every batch"})
    weight_decay: float | None = field(default=None, metadata={"help": "Muon, at depth 12; 0.28 (classic 0)"})
    lr_scale: float | None = field(
        default=None,
        metadata={"help": "factor on the others; √(batch / 2^19), or 0.5 where less than 2^17 tokens are asked for"},
    )
    warmup_steps: int | None = field(default=None, metadata={"help": "steps; default 40 (classic 0)"})
    warmdown_ratio: float | None = field(default=None, metadata={"help": "share of the run; 0.65 (classic 0.2)"})
    final_lr_frac: float | None = field(default=None, metadata={"help": "end of the warmdown; 0.05 (classic 0)"})
    momentum_warmup_steps: int | None = field(default=None, metadata={"help": "steps; default 400 (classic 300)"})
    # on the way
    eval_every: int = field(default=250, metadata={"help": "steps between bits per byte on validation; -1: never"})
    eval_tokens: int = field(default=80 * 524288, metadata={"help": "validation tokens scored each time"})
    core_every: int = field(default=-1, metadata={"help": "steps between CORE evaluations; -1: never"})
    core_bundle: str | None = field(default=None, metadata={"help": "folder of the CORE evaluation bundle"})
    core_max_per_task: int = field(default=500, metadata={"help": "examples of each CORE task on the way; -1: all"})
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
    attention: str = field(
        default="sdpa", metadata={"help": "sdpa, eager, flex_attention, flash_attention_3, a kernel of the Hub …"}
    )
    fp8: bool = field(default=False, metadata={"help": "8-bit matrix products, on GPUs from Ada and Hopper on"})
    compile: str = field(
        default="auto", metadata={"help": "true, false or auto: on GPUs; on a CPU it pays from 1.4e13 FLOPs"}
    )
    dry_run: bool = field(default=False, metadata={"help": "print the plan, draw the schedules, train nothing"})


def main() -> None:
    config = settings.parse_stage("pretrain", PretrainConfig)
    check(config)
    started = time.time()

    from transformers import AutoTokenizer, set_seed

    from nanochat_hf.data.overview import describe_data
    from nanochat_hf.optim import Schedule
    from nanochat_hf.report.plots import draw_schedules
    from nanochat_hf.scaling.plan import largest_device_batch
    from nanochat_hf.trainers import fp8
    from nanochat_hf.trainers.checkpoints import to_resume

    arguments = training_arguments(config)  # joins the other processes, if there are any
    if config.fp8 and not config.dry_run:
        fp8.require_hardware(arguments.device.type)
    world, leader = arguments.world_size, arguments.process_index == 0
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)

    dial, batch = turn_dial(config, len(tokenizer), world)
    if config.auto_device_batch and not config.dry_run:
        make_model = partial(build_model, config, tokenizer)
        config.device_batch_size = largest_device_batch(dial, world, arguments.device, make_model, arguments.bf16)
        dial, batch = turn_dial(config, len(tokenizer), world)
    names = ("warmup_steps", "warmdown_ratio", "final_lr_frac", "momentum_warmup_steps")
    schedule = Schedule.of(config.preset, dial.num_iterations, **{name: getattr(config, name) for name in names})
    if leader:
        rates = f"learning rates × {lr_scale(config, dial):.3f} (upstream's rule: {dial.lr_scale:.3f})"
        print(dial.describe(), batch.describe(), rates, sep="\n", flush=True)
    if config.dry_run:
        if leader:
            path = Path(config.output_dir or ".") / "schedules.png"
            draw_schedules(schedule, dial.weight_decay, path)
            print(f"schedules drawn in {path}")
        return

    if leader:
        rows = dial.num_iterations * world * batch.device_batch_size * batch.accumulation_steps
        reading = {"text_column": config.text_column, "on_bad_file": config.on_bad_file, "packing": config.packing}
        reading |= {"sequence_length": config.sequence_length, "rows": rows, "validate": config.eval_every > 0}
        print(describe_data(config.data, tokenizer, **reading), flush=True)
    arguments.max_steps = dial.num_iterations
    arguments.per_device_train_batch_size = batch.device_batch_size
    arguments.gradient_accumulation_steps = batch.accumulation_steps
    if config.fp8:
        fp8.check_rows(batch.device_batch_size, config.sequence_length)
    set_seed(config.seed)
    model = build_model(config, tokenizer)
    trainer = build_trainer(config, arguments, model, tokenizer, dial, schedule)
    trainer.train(resume_from_checkpoint=to_resume(config.output_dir, verbose=leader) if config.resume else None)
    if trainer.stop_on_signal.received:
        if leader:
            print(f"stopped by SIGTERM at step {trainer.state.global_step}; the same command goes on", file=sys.stderr)
        sys.exit(143)
    finish(config, trainer, dial, started)


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
    if config.core_every > 0 and not Path(config.core_bundle or "", "core.yaml").exists():
        raise UserError(
            f"--core_every needs the CORE evaluation bundle, and there is no core.yaml in {config.core_bundle!r}; "
            "unpack upstream's eval_bundle.zip and give its folder as --core_bundle"
        )
    for name, allowed in (("dtype", ("auto", "bfloat16", "float32")), ("compile", ("auto", "true", "false"))):
        if getattr(config, name) not in allowed:
            raise UserError(f"--{name} {getattr(config, name)} is not known; use {', '.join(allowed)}")


def training_arguments(config: PretrainConfig) -> Any:
    """transformers' arguments; the steps and the shape of the batch are filled in when the dial has been turned."""
    import torch
    from transformers import TrainingArguments

    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported()
    return TrainingArguments(
        output_dir=config.output_dir or "unused",
        max_grad_norm=0.0,
        bf16=config.dtype == "bfloat16" or (config.dtype == "auto" and bf16),
        use_cpu=not cuda,
        torch_compile=config.compile == "true" or (config.compile == "auto" and cuda),
        logging_steps=config.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if config.eval_every > 0 else "no",
        eval_steps=config.eval_every if config.eval_every > 0 else None,
        save_strategy="steps" if config.save_every > 0 else "no",
        save_steps=max(1, config.save_every),
        save_total_limit=config.save_total_limit,
        ignore_data_skip=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=config.report_to,
        seed=config.seed,
    )


def turn_dial(config: PretrainConfig, vocab_size: int, world_size: int) -> tuple[Any, Any]:
    """The depth dial, with the batch that this many processes can make: (dial, batch plan)."""
    from nanochat_hf.scaling import depth_dial, fit_dial

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
        return fit_dial(dial, world_size, config.device_batch_size, keep_steps=config.num_iterations > 0)
    except ValueError as error:
        raise UserError(str(error)) from None


def lr_scale(config: PretrainConfig, dial: Any) -> float:
    """The factor on the rates that follow the batch: as asked for, or upstream's √(batch / 2^19).

    Where a batch of less than 2^17 tokens is asked for, that rule makes the rates too small; the model gets those of
    2^17 tokens. At 2^13 tokens, depths 2 and 4, that gained 0.11 bits per byte, and twice as much was worse again
    (docs/log.md).
    """
    if config.lr_scale is not None:
        return config.lr_scale
    return max(0.5, dial.lr_scale) if config.total_batch_size > 0 else dial.lr_scale


def build_model(config: PretrainConfig, tokenizer: Any) -> Any:
    """A freshly initialised model whose control tokens are the tokenizer's."""
    from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
    from nanochat_hf.trainers import fp8

    model_config = NanochatHFConfig.from_depth(
        config.depth,
        vocab_size=-(-len(tokenizer) // 64) * 64,
        preset=config.preset,
        sequence_length=config.context_length or config.sequence_length,
        aspect_ratio=config.aspect_ratio,
        head_dim=config.head_dim,
        num_key_value_heads=config.num_key_value_heads,
        window_pattern=config.window_pattern,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = NanochatHFForCausalLM(model_config)
    try:
        model.set_attn_implementation(config.attention)
    except (ImportError, ValueError) as error:
        raise UserError(f"--attention {config.attention} cannot be used here, sdpa can: {error}") from None
    if config.fp8:
        fp8.convert(model)
    return model


def build_trainer(config: PretrainConfig, arguments: Any, model: Any, tokenizer: Any, dial: Any, schedule: Any) -> Any:
    """Data, optimizer and everything that happens beside training, put together."""
    import torch

    from nanochat_hf.data.loader import PackedLoader, ValidationBatches
    from nanochat_hf.optim import peak_rates
    from nanochat_hf.scaling.plan import peak_flops
    from nanochat_hf.tokenizer import token_byte_lengths
    from nanochat_hf.trainers import callbacks
    from nanochat_hf.trainers.pretraining import NanochatTrainer

    shared = {"rank": arguments.process_index, "world_size": arguments.world_size, "num_threads": config.num_threads}
    shared |= {"batch_size": arguments.per_device_train_batch_size, "sequence_length": config.sequence_length}
    shared |= {"text_column": config.text_column, "on_bad_file": config.on_bad_file}
    order = {"packing": config.packing, "seed": config.data_seed}
    loader = PackedLoader(config.data, tokenizer, **shared, **order, pin_memory=True)
    validation = None
    if config.eval_every > 0:
        validation = ValidationBatches(config.data, tokenizer, tokens=config.eval_tokens, **shared)
    rates = ("unembedding_lr", "embedding_lr", "matrix_lr", "scalar_lr", "smear_lr", "backout_lr")
    rates = peak_rates(config.preset, lr_scale(config, dial), **{name: getattr(config, name) for name in rates})
    stop = callbacks.StopOnSignal(every=1 if arguments.device.type == "cpu" else 10)
    extras = [callbacks.Progress(), callbacks.QuietGarbageCollector(), stop]
    if config.sample_every > 0:
        extras.append(callbacks.Samples(tokenizer, config.sample_every))
    if config.core_every > 0:
        extras.append(callbacks.CoreMetric(tokenizer, config.core_bundle, config.core_every, config.core_max_per_task))
    trainer = NanochatTrainer(
        model=model,
        args=arguments,
        loader=loader,
        validation=validation,
        byte_lengths=token_byte_lengths(tokenizer),
        flops_per_token=dial.flops_per_token,
        peak_flops=peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else 0.0,
        spike_threshold=config.spike_threshold,
        hyper={**rates, "weight_decay": dial.weight_decay, "variant": config.preset},
        schedule=schedule,
        callbacks=extras,
        processing_class=tokenizer,
    )
    trainer.stop_on_signal, trainer.log_norms = stop, config.log_norms
    return trainer


def finish(config: PretrainConfig, trainer: Any, dial: Any, started: float) -> None:
    """Last evaluation, the checkpoint folder, and `run.json` at the very end."""
    measured = [row["step"] for row in trainer.state.log_history if "val_bpb" in row]
    if config.eval_every > 0 and dial.num_iterations not in measured:
        trainer.evaluate()
    trainer.loader.close()
    trainer.save_checkpoint_folder(config.output_dir)
    if trainer.accelerator.is_main_process:
        scores, seconds = trainer.scores(), time.time() - started
        metrics = {"parameters": dial.params, "tokens": dial.total_tokens, "flops": dial.total_flops, **scores}
        facts = {"seconds": seconds, "metrics": metrics, "history": trainer.history(), "dial": dial.as_dict()}
        settings.save_run(config.output_dir, "pretrain", config, **facts)
        summary = ", ".join(f"{name} {scores[name]:.4f}" for name in ("loss", "val_bpb") if name in scores)
        print(f"{config.output_dir}: {summary}, {seconds:.0f} s", flush=True)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    settings.run_main(main)
