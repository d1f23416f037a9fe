"""Pretrains a base model on packed text; `--depth` sets everything else.

    nanochat-hf pretrain --config quickstart --tokenizer RUN/tokenizer --output_dir RUN/base
    nanochat-hf pretrain --depth 12 --data my_texts/ --tokenizer RUN/tokenizer --output_dir RUN/base \\
        --auto_device_batch
    nanochat-hf pretrain --depth 24 --tokenizer RUN/tokenizer --dry_run      # the plan and the schedules only

    # on 8 GPUs
    accelerate launch --num_processes 8 --mixed_precision bf16 -m nanochat_hf.stages.pretrain \\
        --config speedrun --tokenizer RUN/tokenizer --output_dir RUN/base

Run the same command again to resume an interrupted run from its newest intact checkpoint.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.settings import MAX_RATE, MAX_ROWS, MAX_STEPS, MAX_TOKENS, StageHelp, folder_lock, setting
from nanochat_hf.stages.option_groups import CHECKPOINTS
from nanochat_hf.trainers.stage_settings import COMPILE, check_pretraining


@dataclass
class PretrainConfig:
    tokenizer: str = setting("", "tokenizer folder, made by the stage tokenizer", path=True)
    output_dir: str = setting("", "folder that receives the checkpoint", path=True)
    data: list[str] = setting(
        ["karpathy/climbmix-400b-shuffle"],
        "text: Hub ids, folders, files or microworld; a:0.7 b:0.3 mixes several",
    )
    text_column: str | None = setting(None, "column that holds the text; default: found")
    on_bad_file: str = setting("stop", "what a file that cannot be read does", choices=("stop", "skip"))
    packing: str = setting(
        "auto",
        "how documents fill rows, see nanochat_hf/data/packing.py; auto: keep_tails up to 512 tokens per row",
        choices=("auto", "best_fit", "keep_tails"),
    )
    data_seed: int | None = setting(
        None,
        "shuffles the documents anew for each epoch; default: file order",
        at_least=0,
        at_most=2**32 - 1,
    )
    bigram_tokens: int | None = setting(
        None,
        "before training, fit embedding and head to the pairs of neighbouring tokens in the first N tokens of the "
        "text, and to the triples in 2^24 of them at most; 0: no fit; default: 2^24 in short runs with the preset "
        "small and enough text, else 0",
        at_least=0,
        at_most=2**30,
        off=0,
    )
    induction_heads: bool = setting(
        True,
        "after a fit to bigrams, begin with heads that look one token back, fitted to trigrams, and two heads that "
        "continue what was there before, where the model is large enough",
    )
    phases: list[str] = setting([], "parts of the data that follow each other, marked in the plots: name=first step …")
    num_threads: int | None = setting(None, "tokenizing threads; default: all cores", at_least=1, at_most=1024)
    # shape
    depth: int = setting(20, "number of layers; sets the rest", at_least=1, at_most=1024)
    preset: str = setting(
        "auto",
        "modern (July 2026), classic (October 2025), or small: modern with a short run's batch; auto: small for up to "
        "2^25 tokens where neither batch nor steps are given, else modern",
        choices=("auto", "modern", "classic", "small"),
    )
    aspect_ratio: int = setting(
        64, "width = depth · aspect_ratio, rounded up to whole heads", at_least=1, at_most=4096
    )
    head_dim: int = setting(128, "channels per attention head", at_least=2, at_most=4096)
    num_key_value_heads: int | None = setting(None, "default: as many as query heads", at_least=1, at_most=65536)
    sequence_length: int = setting(2048, "tokens per training row", at_least=1, at_most=MAX_TOKENS)
    context_length: int | None = setting(
        None, "longest input in tokens; default: sequence_length", at_least=1, at_most=MAX_TOKENS
    )
    window_pattern: str | None = setting(
        None, "attention window per layer, repeated: S quarter, L full context; default by preset"
    )
    # length of the run: the first that is given counts
    num_iterations: int = setting(
        -1, "optimizer steps; -1: as one of the next three says", at_least=1, at_most=MAX_STEPS, also=[-1]
    )
    total_tokens: int = setting(
        -1, "tokens of the whole run; -1: as one of the next two says", at_least=1, at_most=2**50, also=[-1]
    )
    target_flops: float = setting(
        -1.0,
        "floating point operations of the whole run; -1: as param_data_ratio says",
        above=0,
        at_most=1e30,
        also=[-1],
    )
    param_data_ratio: float | None = setting(
        None, "tokens per scaling parameter; default 12 (classic: 20 per parameter)", at_least=1e-6, at_most=1e6
    )
    # batch
    total_batch_size: int = setting(
        -1, "tokens per step over all processes; -1: by depth", at_least=1, at_most=2**40, also=[-1]
    )
    device_batch_size: int = setting(32, "largest number of rows per process at once", at_least=1, at_most=MAX_ROWS)
    auto_device_batch: bool = setting(False, "try out how many rows fit into memory")
    # optimizer; rates of embedding and head are for width 768, all for a batch of 2^19 tokens
    unembedding_lr: float | None = setting(
        None, "AdamW, head; default 0.008 (classic 0.004, from bigrams 0.0005)", at_least=0, at_most=MAX_RATE
    )
    embedding_lr: float | None = setting(
        None, "AdamW, embedding; default 0.3 (classic 0.2, from bigrams 0.015)", at_least=0, at_most=MAX_RATE
    )
    value_embedding_lr: float | None = setting(
        None,
        "AdamW, value embeddings; default half of embedding_lr (from bigrams 0.15, from trigrams 0.03)",
        at_least=0,
        at_most=MAX_RATE,
    )
    matrix_lr: float = setting(0.02, "Muon, matrices of the blocks", at_least=0, at_most=MAX_RATE)
    scalar_lr: float = setting(0.5, "AdamW, scalars of the residual stream", at_least=0, at_most=MAX_RATE)
    smear_lr: float = setting(0.2, "AdamW, smear; the same for every batch", at_least=0, at_most=MAX_RATE)
    backout_lr: float | None = setting(
        None, "AdamW, backout; the same for every batch; default 0.2, from bigrams 0.02", at_least=0, at_most=MAX_RATE
    )
    backout_max: float | None = setting(
        None,
        "largest value of backout's scalar; default 0.9 below 2^17 tokens per step, else no bound; 0: no bound",
        at_least=0,
        off=0,
    )
    weight_decay: float | None = setting(
        None, "Muon, at depth 12; default 0.28 (classic 0)", at_least=0, at_most=MAX_RATE
    )
    lr_scale: float | None = setting(
        None, "factor on the others; default √(max(batch, 2^17) / 2^19), classic 1", at_least=0, at_most=MAX_RATE
    )
    warmup_steps: int | None = setting(
        None, "steps; default 40 (classic 0), of small a fifth of the run at most", at_least=0, at_most=MAX_STEPS
    )
    warmdown_ratio: float | None = setting(None, "share of the run; default 0.65 (classic 0.2)", at_least=0, at_most=1)
    final_lr_frac: float | None = setting(
        None, "end of the warmdown; default 0.05 (classic 0)", at_least=0, at_most=MAX_RATE
    )
    momentum_warmup_steps: int | None = setting(
        None, "steps; default 400 (classic 300)", at_least=0, at_most=MAX_STEPS
    )
    # during the run
    eval_every: int = setting(
        250, "steps between measurements of bits per byte on validation text; 0: never", at_least=0, also=[-1], off=0
    )
    eval_tokens: int = setting(80 * 524288, "validation tokens per measurement", at_least=1)
    eval_documents: int = setting(
        100, "whole validation documents, each measured from its beginning, too; 0: none", at_least=0, off=0
    )
    core_every: int = setting(-1, "steps between CORE evaluations; 0: never", at_least=0, also=[-1], off=0)
    core_bundle: str | None = setting(None, "core: CORE's tasks, downloaded once; or a bundle's folder", path=True)
    core_max_per_task: int = setting(500, "examples per CORE task during the run; -1: all", at_least=1, also=[-1])
    sample_every: int = setting(-1, "steps between samples; 0: never", at_least=0, also=[-1], off=0)
    save_every: int = setting(
        1000, "steps between checkpoints; 0: only --save_minutes counts", at_least=0, also=[-1], off=0
    )
    save_minutes: float = setting(
        10.0, "longest time between two checkpoints; 0: only --save_every counts", at_least=0, off=0
    )
    save_total_limit: int = setting(2, "checkpoints kept", at_least=1)
    log_every: int = setting(10, "steps between rows of the history", at_least=1)
    log_norms: bool = setting(False, "record gradient and update norms by parameter group")
    spike_threshold: float = setting(
        2.0, "loss above the mean, in nats, that stops the run; 0: never", at_least=0, off=0
    )
    resume: bool = setting(True, "resume from the newest intact checkpoint in output_dir")
    report_to: str = setting(
        "none", "where curves are shown besides", choices=("none", "trackio", "wandb", "tensorboard")
    )
    seed: int = setting(42, "seed of the initial weights", at_least=0, at_most=2**32 - 1)
    dtype: str = setting(
        "auto", "bfloat16, float32 or auto: bf16 on GPUs that have it", choices=("auto", "bfloat16", "float32")
    )
    attention: str = setting(
        "auto",
        "auto: the fastest kernel here; blocks, varlen or flex for the layers with a window; for all layers: eager, "
        "flash_attention_3, a kernel of the Hub …",
    )
    fp8: bool = setting(False, "8-bit matrix products, on Ada, Hopper and newer GPUs")
    compile: str = setting(
        "auto",
        "true: block by block; model: as one graph, slow to compile; false; auto: true on GPUs only. On a CPU it is "
        "faster for runs above 1.4e13 FLOPs",
        choices=COMPILE,
    )
    dry_run: bool = setting(False, "print the plan, draw the schedules, train nothing")


HELP = StageHelp(
    "pretrain",
    __doc__,
    "tokenizer output_dir data depth sequence_length num_iterations total_tokens param_data_ratio total_batch_size "
    "device_batch_size auto_device_batch eval_every fp8 dry_run",
    {
        "data": "text_column on_bad_file packing data_seed bigram_tokens induction_heads phases num_threads",
        "shape": "preset aspect_ratio head_dim num_key_value_heads context_length window_pattern",
        "length of the run: num_iterations counts first, then total_tokens, then target_flops": "target_flops",
        "optimizer; rates of embedding and head are for width 768, all for a batch of 2^19 tokens": "unembedding_lr "
        "embedding_lr value_embedding_lr matrix_lr scalar_lr smear_lr backout_lr backout_max weight_decay lr_scale "
        "warmup_steps warmdown_ratio final_lr_frac momentum_warmup_steps",
        "measurements during the run": "eval_tokens eval_documents core_every core_bundle core_max_per_task "
        "sample_every log_every log_norms report_to spike_threshold",
        "checkpoints": f"{CHECKPOINTS} resume",
        "hardware": "dtype attention compile seed",
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    config = settings.parse_stage("pretrain", PretrainConfig, argv, HELP)
    started = time.time()
    check_pretraining(config)

    from transformers import set_seed

    from nanochat_hf.data import fingerprints
    from nanochat_hf.data.overview import is_on_disk, survey
    from nanochat_hf.data.packing import default_packing
    from nanochat_hf.report.plots import draw_schedules
    from nanochat_hf.trainers import disks, pretraining_setup, stage

    if config.packing == "auto":
        config.packing = default_packing(config.sequence_length)
    chosen = config.preset  # "auto" becomes another in `plan`
    arguments = pretraining_setup.training_arguments(config)  # joins the other processes, if there are any
    tokenizer = pretraining_setup.load_tokenizer(config.tokenizer)
    read = fingerprints.of_text(config.data)  # before the text itself, which may change meanwhile
    # Every process needs the length of the text. A dry run does not reach out for data that may not be here.
    unread = config.dry_run and not is_on_disk(config.data)
    names = ("sequence_length", "num_threads", "text_column", "on_bad_file", "packing")
    reading = {name: getattr(config, name) for name in names}
    text = None if unread else survey(config.data, tokenizer, **reading)
    dial, batch = pretraining_setup.plan(config, tokenizer, arguments, text and text.text_tokens)
    schedule = pretraining_setup.build_schedule(config, dial)
    if not config.dry_run:
        folder_lock.claim(config.output_dir)
        settings.check_output_dir(config.output_dir)  # another command may have finished it since the start
    before = stage.recorded_start(config.output_dir)
    start = pretraining_setup.bigram_start(config, tokenizer, dial, text and text.whole_tokens, before)
    leader = arguments.process_index == 0
    if leader:
        print_plan(config, chosen, dial, batch, start, text)
    if config.dry_run:
        if leader:
            path = Path(config.output_dir or ".") / "schedules.png"
            draw_schedules(schedule, dial.weight_decay, path)
            print(f"schedules drawn in {path}")
        return

    same = (text.text_tokens, text.sizes, fingerprints.contents(read))
    disks.check_same("text", same, "give the same --data on all machines")
    writes = arguments.local_process_index == 0
    notes = pretraining_setup.record_start(config, tokenizer, dial, start, read, before, writes)
    if leader:
        print("".join(f"{note}\n" for note in notes), end="")
    set_seed(config.seed)
    model = pretraining_setup.build_model(config, tokenizer, arguments.device)
    pretraining_setup.start_from_bigrams(config, model, tokenizer, start, verbose=leader)
    parts = (config, arguments, model, tokenizer, dial, batch, schedule)
    trainer = pretraining_setup.build_trainer(*parts, start)
    stage.train(trainer, resume=config.resume)
    measure = partial(pretraining_setup.final_metrics, trainer, dial)
    facts = {"dial": dial.as_dict(), "bigram_start": start.as_dict(), "fingerprint": read}
    stage.finish(trainer, "pretrain", config, started, measure, **facts)


def print_plan(config: PretrainConfig, asked_preset: str, dial: Any, batch: Any, start: Any, text: Any) -> None:
    """Prints what will be trained and on what.

    Args:
        asked_preset: the preset as the user gave it.
        text: the survey of the text; None where a dry run has not read it.
    """
    from nanochat_hf.trainers import pretraining_setup

    lines = [dial.describe(), batch.describe(), f"learning rates × {dial.lr_scale:.3f}", f"packing: {config.packing}"]
    lines.append(f"preset: {pretraining_setup.describe_preset(dial, asked=asked_preset)}")
    if largest := pretraining_setup.largest_backout(config, dial):
        lines.append(f"backout's scalar is at most {largest}")
    lines.append(start.describe())
    if dial.text_limited:
        lines.append(pretraining_setup.describe_limit(dial, text))
    if text:
        lines.append(text.describe(dial.total_tokens // config.sequence_length, validate=config.eval_every > 0))
    print("\n".join(filter(None, lines)), flush=True)


if __name__ == "__main__":
    settings.run_main(main)
