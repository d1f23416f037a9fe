"""Pretrains a base model on packed text; `--depth` sets everything else.

    python training/pretrain.py --config training/recipes/quickstart.yaml --tokenizer RUN/tokenizer \
        --output_dir RUN/base
    python training/pretrain.py --depth 12 --tokenizer RUN/tokenizer --output_dir RUN/base --auto_device_batch true
    accelerate launch --config_file training/accelerate_cpu.yaml training/pretrain.py \
        --config training/recipes/smoke.yaml --tokenizer RUN/tokenizer --output_dir RUN/base
    accelerate launch --config_file accelerate_config.yaml training/pretrain.py \
        --config training/recipes/speedrun.yaml --tokenizer RUN/tokenizer --output_dir RUN/base

Run the same command again to resume an interrupted run from its newest intact checkpoint.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from nanochat_hf import settings


@dataclass
class PretrainConfig:
    tokenizer: str = field(default="", metadata={"help": "tokenizer folder, made by training/tokenizer.py"})
    output_dir: str = field(default="", metadata={"help": "folder that receives the checkpoint"})
    data: list[str] = field(
        default_factory=lambda: ["karpathy/climbmix-400b-shuffle"],
        metadata={"help": "text: Hub ids, folders, files or microworld; a:0.7 b:0.3 mixes several"},
    )
    text_column: str | None = field(default=None, metadata={"help": "column that holds the text; default: found"})
    on_bad_file: str = field(default="stop", metadata={"help": "what a file that cannot be read does: stop or skip"})
    packing: str = field(
        default="best_fit", metadata={"help": "how documents fill rows, see nanochat_hf/data/packing.py"}
    )
    data_seed: int | None = field(
        default=None, metadata={"help": "shuffles the documents anew for each epoch; default: file order"}
    )
    num_threads: int | None = field(default=None, metadata={"help": "tokenizing threads; default: all cores"})
    # shape
    depth: int = field(default=20, metadata={"help": "number of layers; sets the rest"})
    preset: str = field(default="modern", metadata={"help": "modern (July 2026) or classic (October 2025)"})
    aspect_ratio: int = field(default=64, metadata={"help": "width = depth · aspect_ratio, rounded up to whole heads"})
    head_dim: int = field(default=128, metadata={"help": "channels per attention head"})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "default: as many as query heads"})
    sequence_length: int = field(default=2048, metadata={"help": "tokens per training row"})
    context_length: int | None = field(
        default=None, metadata={"help": "longest input in tokens; default: sequence_length"}
    )
    window_pattern: str | None = field(
        default=None, metadata={"help": "attention window per layer, repeated: S quarter, L full context"}
    )
    # length of the run: the first that is given counts
    num_iterations: int = field(default=-1, metadata={"help": "optimizer steps"})
    target_flops: float = field(default=-1.0, metadata={"help": "floating point operations of the whole run"})
    param_data_ratio: float | None = field(
        default=None, metadata={"help": "tokens per scaling parameter; default 12 (classic: 20 per parameter)"}
    )
    # batch
    total_batch_size: int = field(default=-1, metadata={"help": "tokens per step over all processes; -1: by depth"})
    device_batch_size: int = field(default=32, metadata={"help": "largest number of rows per process at once"})
    auto_device_batch: bool = field(default=False, metadata={"help": "try out how many rows fit into memory"})
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
        metadata={"help": "factor on the others; default √(max(batch, 2^17) / 2^19), classic 1"},
    )
    warmup_steps: int | None = field(default=None, metadata={"help": "steps; default 40 (classic 0)"})
    warmdown_ratio: float | None = field(default=None, metadata={"help": "share of the run; 0.65 (classic 0.2)"})
    final_lr_frac: float | None = field(default=None, metadata={"help": "end of the warmdown; 0.05 (classic 0)"})
    momentum_warmup_steps: int | None = field(default=None, metadata={"help": "steps; default 400 (classic 300)"})
    # during the run
    eval_every: int = field(
        default=250, metadata={"help": "steps between measurements of bits per byte on validation text; -1: never"}
    )
    eval_tokens: int = field(default=80 * 524288, metadata={"help": "validation tokens per measurement"})
    core_every: int = field(default=-1, metadata={"help": "steps between CORE evaluations; -1: never"})
    core_bundle: str | None = field(default=None, metadata={"help": "folder of the CORE evaluation bundle"})
    core_max_per_task: int = field(default=500, metadata={"help": "examples per CORE task during the run; -1: all"})
    sample_every: int = field(default=-1, metadata={"help": "steps between samples; -1: never"})
    save_every: int = field(default=1000, metadata={"help": "steps between checkpoints; -1: none during the run"})
    save_total_limit: int = field(default=2, metadata={"help": "checkpoints kept"})
    log_every: int = field(default=10, metadata={"help": "steps between rows of the history"})
    log_norms: bool = field(default=False, metadata={"help": "record gradient and update norms by parameter group"})
    spike_threshold: float = field(
        default=2.0, metadata={"help": "loss above the mean, in nats, that stops the run; 0: never"}
    )
    resume: bool = field(default=True, metadata={"help": "resume from the newest intact checkpoint in output_dir"})
    report_to: str = field(default="none", metadata={"help": "none, trackio, wandb or tensorboard"})
    seed: int = field(default=42, metadata={"help": "seed of the initial weights"})
    dtype: str = field(default="auto", metadata={"help": "bfloat16, float32 or auto: bf16 on GPUs that have it"})
    attention: str = field(
        default="auto",
        metadata={
            "help": "auto: the fastest kernel here; blocks, varlen or flex for the layers with a window; for all "
            "layers: eager, flash_attention_3, a kernel of the Hub …"
        },
    )
    fp8: bool = field(default=False, metadata={"help": "8-bit matrix products, on Ada, Hopper and newer GPUs"})
    compile: str = field(
        default="auto",
        metadata={
            "help": "true: block by block; model: as one graph, slow to compile; false; auto: true on GPUs only. "
            "On a CPU it is faster for runs above 1.4e13 FLOPs"
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "print the plan, draw the schedules, train nothing"})


def main() -> None:
    config = settings.parse_stage("pretrain", PretrainConfig)
    started = time.time()

    from transformers import AutoTokenizer, set_seed

    from nanochat_hf.data.overview import describe_data
    from nanochat_hf.report.plots import draw_schedules
    from nanochat_hf.trainers import pretraining_setup, stage

    pretraining_setup.check(config)
    arguments = pretraining_setup.training_arguments(config)  # joins the other processes, if there are any
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    dial, batch = pretraining_setup.plan(config, tokenizer, arguments)
    schedule = pretraining_setup.build_schedule(config, dial)
    leader = arguments.process_index == 0
    if leader:
        rates = f"learning rates × {dial.lr_scale:.3f}"
        print(dial.describe(), batch.describe(), rates, sep="\n", flush=True)
    if config.dry_run:
        if leader:
            path = Path(config.output_dir or ".") / "schedules.png"
            draw_schedules(schedule, dial.weight_decay, path)
            print(f"schedules drawn in {path}")
        return

    if leader:
        rows = dial.total_tokens // config.sequence_length
        reading = {"text_column": config.text_column, "on_bad_file": config.on_bad_file, "packing": config.packing}
        reading |= {"sequence_length": config.sequence_length, "rows": rows, "validate": config.eval_every > 0}
        print(describe_data(config.data, tokenizer, **reading), flush=True)
    set_seed(config.seed)
    model = pretraining_setup.build_model(config, tokenizer)
    trainer = pretraining_setup.build_trainer(config, arguments, model, tokenizer, dial, batch, schedule)
    stage.train(trainer, resume=config.resume)
    metrics = pretraining_setup.final_metrics(trainer, dial)
    stage.finish(trainer, "pretrain", config, started, metrics, dial=dial.as_dict())


if __name__ == "__main__":
    settings.run_main(main)
