"""Builds what pretraining needs from its settings: arguments, depth dial, model and trainer.

`config` is always that script's `PretrainConfig`.
"""

import hashlib
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from transformers import AutoTokenizer, TrainingArguments

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.data.fingerprints import Fingerprint
from nanochat_hf.data.loader import PackedLoader, ValidationBatches, ValidationDocuments
from nanochat_hf.data.overview import Survey
from nanochat_hf.optim import Schedule, peak_rates
from nanochat_hf.scaling import architecture, backout_bound, depth_dial, fit_dial
from nanochat_hf.scaling.depth import MIN_STEPS, padded_vocab
from nanochat_hf.scaling.plan import largest_device_batch, peak_flops
from nanochat_hf.settings import UserError, program, reason_of
from nanochat_hf.tokenizer import CorpusEncoder, stop_token_ids, token_byte_lengths
from nanochat_hf.trainers import (
    bigrams,
    callbacks,
    checkpoints,
    compilation,
    disks,
    fp8,
    induction,
    stage,
    trigrams,
)
from nanochat_hf.trainers.bigrams import BigramStart
from nanochat_hf.trainers.pretraining import NanochatTrainer

# What a resumed run may have otherwise than the run that wrote its checkpoints: where things are, how they are
# measured, saved and computed. `record_start` compares text, tokenizer and the length of the run by content.
MAY_CHANGE = {
    *("output_dir", "num_threads", "on_bad_file", "device_batch_size", "auto_device_batch"),
    *("eval_every", "eval_tokens", "eval_documents", "core_every", "core_bundle", "core_max_per_task", "sample_every"),
    *("save_every", "save_minutes", "save_total_limit", "log_every", "log_norms", "spike_threshold", "report_to"),
    "phases",
    *("dtype", "attention", "fp8", "compile"),
}
CHANGES_NUMBERS = {
    "dtype",
    "attention",
    "fp8",
    "compile",
    "eval_tokens",
    "eval_documents",
    "core_max_per_task",
    "on_bad_file",
}


def record_start(
    config: Any,
    tokenizer: Any,
    dial: Any,
    start: BigramStart,
    read: list[Fingerprint],
    before: dict[str, Any] | None,
    write: bool,
) -> list[str]:
    """Compares the run with the checkpoints in its folder, and records it; see `stage.record_start`.

    Text and tokenizer are compared by their content. Of the length of the run, the batch and the rates, what counts is
    what the depth dial made of them.

    Returns:
        A sentence for each change that has an effect on the numbers.
    """
    if not config.resume and checkpoints.newest_intact(config.output_dir)[0]:
        raise UserError(
            f"--resume false would start over among the checkpoints in {config.output_dir}; delete that folder, or "
            "give another --output_dir"
        )
    asked = asdict(config)
    for name in ("param_data_ratio", "target_flops", "total_tokens", "resume", "dry_run"):
        del asked[name]
    asked["tokenizer"] = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]
    for name in ("num_iterations", "total_batch_size", "lr_scale", "weight_decay"):
        asked[name] = getattr(dial, name)
    asked["bigram_start"] = start.as_dict()
    notes = stage.record_start(config.output_dir, asked, read, MAY_CHANGE, before, write)
    return [note for name, note in notes.items() if name in CHANGES_NUMBERS]


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder.

    Raises:
        UserError: it cannot be loaded, has no token that begins a document, or is none that the corpus encoder takes.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise UserError(f"the tokenizer in {folder} cannot be loaded ({reason_of(error)}); make it again") from None
    if tokenizer.bos_token_id is None:
        raise UserError(
            f"the tokenizer in {folder} has no token that begins a document; make one with {program('tokenizer')}"
        )
    try:
        CorpusEncoder(tokenizer)
    except ValueError as error:
        raise UserError(
            f"the tokenizer in {folder} is of another kind ({error}); make one with {program('tokenizer')}"
        ) from None
    return tokenizer


class PretrainingArguments(stage.OneDevice, TrainingArguments):
    """`TrainingArguments` for one device per process."""


def training_arguments(config: Any) -> TrainingArguments:
    """transformers' arguments. The number of steps and the batch follow in `build_trainer`, when they are known.

    With several processes, this joins them.

    Raises:
        UserError: the settings ask for fp8, and the hardware does not have it.
    """
    shared = stage.base_arguments(
        config.output_dir or "unused",
        save_every=config.save_every,
        save_total_limit=config.save_total_limit,
        seed=config.seed,
        dtype=config.dtype,
    )
    own: dict[str, Any] = {
        "torch_compile": config.compile == "model",
        "logging_steps": config.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if config.eval_every > 0 else "no",
        "eval_steps": config.eval_every if config.eval_every > 0 else None,
        "ignore_data_skip": True,  # the loader resumes by itself
        "report_to": config.report_to,
    }
    arguments = PretrainingArguments(**(shared | own))
    if config.fp8 and not config.dry_run:
        fp8.require_hardware(arguments.device.type)
    return arguments


def plan(config: Any, tokenizer: Any, arguments: TrainingArguments, text_tokens: int | None = None) -> tuple[Any, Any]:
    """The depth dial, with the batch that this many processes can make: (dial, batch plan).

    `text_tokens` as in `depth_dial`. In the settings, a preset "auto" becomes "modern" or "small". With
    `auto_device_batch` the largest batch is tried out first and written there, too.
    """
    world = arguments.world_size
    dial, batch = _dial_and_batch(config, len(tokenizer), world, text_tokens)
    config.preset = dial.preset
    if config.auto_device_batch and not config.dry_run:
        make_model = partial(build_model, config, tokenizer, arguments.device)
        config.device_batch_size = largest_device_batch(dial, world, arguments.device, make_model, arguments.bf16)
        dial, batch = _dial_and_batch(config, len(tokenizer), world, text_tokens)
    if config.fp8 and not config.dry_run:
        fp8.check_rows(batch.device_batch_size, config.sequence_length)
    return dial, batch


def _dial_and_batch(config: Any, vocab_size: int, world_size: int, text_tokens: int | None) -> tuple[Any, Any]:
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
            total_tokens=config.total_tokens,
            target_flops=config.target_flops,
            total_batch_size=config.total_batch_size,
            base_weight_decay=config.weight_decay,
            window_pattern=config.window_pattern or None,
            context_length=config.context_length,
            text_tokens=text_tokens,
        )
        dial, batch = fit_dial(dial, world_size, config.device_batch_size, keep_steps=config.num_iterations > 0)
    except ValueError as error:
        raise UserError(str(error)) from None
    return (dial if config.lr_scale is None else replace(dial, lr_scale=config.lr_scale)), batch


def describe_preset(dial: Any, asked: str) -> str:
    """The preset of a run; where it was chosen for the user, also why, and the option that chooses another."""
    if asked != "auto" or dial.preset != "small":
        return dial.preset
    other = "" if dial.text_limited else " (--preset modern has upstream's batch)"
    return f"small, for {dial.total_tokens:,} tokens{other}"


def describe_limit(dial: Any, text: Survey) -> str:
    """A sentence that says why a run is shorter than its depth asks for, and what can be done."""
    wanted, tokens = int(dial.ratio * dial.scaling_params), text.text_tokens or 1
    what, ways = "the text", ["more text"]
    if len(text.sources) > 1 and text.shortest:
        what = f"until {text.shortest.found.name} with its share of {text.shortest.share:.0%} begins again, the text"
        ways = ["that source more text or a smaller share"]
    if dial.num_iterations < MIN_STEPS and dial.total_batch_size <= text.sequence_length:
        ways.append(f"a shorter --sequence_length for more than {dial.num_iterations} steps")
    all_times, times = f"{wanted / tokens:,.0f} times", f"{dial.total_tokens / tokens:.1f} times"
    return (
        f"{what} fills {tokens:,} tokens of rows; depth {dial.depth} asks for {wanted:,}, which reads it {all_times}. "
        f"The run reads it {times}. Give {', '.join(ways)}, or a smaller --depth, or ask for all {all_times} with "
        f"--param_data_ratio {dial.ratio:g}"
    )


def largest_backout(config: Any, dial: Any) -> float | None:
    """The bound on backout's scalar: as asked for, else by batch; None: no bound."""
    if config.backout_max is not None:
        return config.backout_max or None
    return backout_bound(dial.total_batch_size, config.preset)


def build_schedule(config: Any, dial: Any) -> Schedule:
    """The schedule as asked for. A run of the preset "small" warms up for a fifth of its steps at most."""
    names = ("warmup_steps", "warmdown_ratio", "final_lr_frac", "momentum_warmup_steps")
    schedule = Schedule.of(config.preset, dial.num_iterations, **{name: getattr(config, name) for name in names})
    if config.preset != "small" or config.warmup_steps is not None:
        return schedule
    return replace(schedule, warmup_steps=min(schedule.warmup_steps, max(1, dial.num_iterations // 5)))


def build_model(config: Any, tokenizer: Any, device: torch.device) -> NanochatHFForCausalLM:
    """A newly initialised model whose control tokens are the tokenizer's.

    It is made on its device: several processes per machine would otherwise each need its memory on the CPU. The same
    seed gives the same weights in every process, on the same kind of device.
    """
    model_config = _model_config(config, tokenizer)
    try:
        with device:
            model = NanochatHFForCausalLM(model_config)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        raise UserError(
            f"a model of depth {config.depth} and width {model_config.hidden_size} does not fit into memory; lower "
            "--depth or --aspect_ratio"
        ) from None
    model.generation_config.eos_token_id = stop_token_ids(tokenizer)
    if config.fp8:
        fp8.convert(model)
    return model


def bigram_start(
    config: Any, tokenizer: Any, dial: Any, text_tokens: int | None, before: dict[str, Any] | None
) -> BigramStart:
    """Whether the run starts from bigrams. Every process has to call it.

    A run that goes on from a checkpoint keeps what it began with, because its learning rates depend on it.

    Args:
        text_tokens: of the whole training text; None where it is not known. It is then taken to be enough.
        before: what `stage.recorded_start` returns.
    """
    own = _new_start(config, tokenizer, dial, text_tokens) if before is None else _known_start(before)
    return max(disks.gather(own), key=lambda start: start.resumed)  # a new machine may have no checkpoint yet


def _known_start(before: dict[str, Any]) -> BigramStart:
    return BigramStart(**before.get("bigram_start", {}), resumed=True)


def _new_start(config: Any, tokenizer: Any, dial: Any, text_tokens: int | None) -> BigramStart:
    asked, vocab, width = config.bigram_tokens, padded_vocab(len(tokenizer)), dial.hidden_size
    if asked == 0 or (asked is None and dial.preset != "small"):
        return BigramStart()
    tokens, parameters = min(bigrams.TOKENS if asked is None else asked, text_tokens or sys.maxsize), 2 * vocab * width
    if asked is None and parameters > bigrams.TOKENS:
        reason = f"embedding and head have more than {bigrams.TOKENS:,} parameters (--bigram_tokens counts more)"
        return BigramStart(reason=reason)
    if asked is None and tokens < parameters:  # the pairs would be known by heart
        return BigramStart(reason="bigrams need as many tokens of text as embedding and head have parameters")
    if asked is None and dial.total_tokens > bigrams.LONGEST_RUN:
        return BigramStart(reason=f"bigrams are for runs of up to {bigrams.LONGEST_RUN:,} tokens")
    if not (steps := bigrams.fit_steps(vocab, width, dial.total_flops)):
        return BigramStart(reason="a start from bigrams would be more than half of so short a run")
    fits = config.induction_heads and trigrams.layer_of_table(_model_config(config, tokenizer)) is not None
    return BigramStart(tokens, steps, trigrams.fit_steps(vocab, width, dial.total_flops) if fits else 0)


def start_from_bigrams(config: Any, model: Any, tokenizer: Any, start: BigramStart, verbose: bool) -> None:
    """Fits a new model to the text's bigrams and trigrams and writes its induction heads, where the run starts so.

    Every process does it, rather than wait for one: a fit can take longer than processes wait for each other.
    """
    if start.resumed or not start.steps:
        return
    started = time.time()
    reading = {"text_column": config.text_column, "on_bad_file": config.on_bad_file}
    pairs = bigrams.count_pairs(config.data, tokenizer, start.tokens, config.num_threads, **reading)
    heads = induction.number_of_heads(model.config) if config.induction_heads else 0
    loss = bigrams.fit_bigrams(model, pairs, start.steps, verbose, free=induction.FREE if heads else 0)
    found = f"bigrams of {pairs.tokens:,} tokens: {loss:.3f} nats"
    if heads:
        if start.trigram_steps:
            tokens = min(start.tokens, bigrams.TOKENS)
            triples = trigrams.count_triples(config.data, tokenizer, tokens, config.num_threads, **reading)
            loss = trigrams.fit_trigrams(model, pairs, triples, start.trigram_steps, verbose)
            found += f", trigrams: {loss:.3f} nats"
        vocab = model.config.vocab_size
        induction.write_heads(model, torch.bincount(pairs.second, pairs.count, minlength=vocab), heads)
        found += f"; {heads} induction head{'s' * (heads > 1)}"
    if verbose:
        print(f"{found}; {time.time() - started:.1f} s", flush=True)


def _model_config(config: Any, tokenizer: Any) -> NanochatHFConfig:
    try:
        return NanochatHFConfig.from_depth(
            config.depth,
            vocab_size=padded_vocab(len(tokenizer)),
            preset=architecture(config.preset),
            sequence_length=config.context_length or config.sequence_length,
            aspect_ratio=config.aspect_ratio,
            head_dim=config.head_dim,
            num_key_value_heads=config.num_key_value_heads,
            window_pattern=config.window_pattern,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def build_trainer(
    config: Any,
    arguments: TrainingArguments,
    model: Any,
    tokenizer: Any,
    dial: Any,
    batch: Any,
    schedule: Schedule,
    start: BigramStart,
) -> NanochatTrainer:
    """The trainer with its data, its optimizer's rates and its callbacks; `start`: what it began with."""
    compilation.set_attention(model, config.attention, arguments.device, arguments.bf16)
    arguments.max_steps = dial.num_iterations
    arguments.per_device_train_batch_size = batch.device_batch_size
    arguments.gradient_accumulation_steps = batch.accumulation_steps
    shared: dict[str, Any] = {
        "rank": arguments.process_index,
        "world_size": arguments.world_size,
        "num_threads": config.num_threads,
        "batch_size": batch.device_batch_size,
        "sequence_length": config.sequence_length,
        "text_column": config.text_column,
        "on_bad_file": config.on_bad_file,
    }
    loader = PackedLoader(
        config.data, tokenizer, **shared, packing=config.packing, seed=config.data_seed, pin_memory=True
    )
    validation = whole = None
    if config.eval_every > 0:
        validation = ValidationBatches(config.data, tokenizer, tokens=config.eval_tokens, **shared)
        if config.eval_documents > 0:
            whole = ValidationDocuments(config.data, tokenizer, documents=config.eval_documents, **shared)
    given = {name: value for name, value in asdict(config).items() if name.endswith("_lr")}
    rates = peak_rates(config.preset, dial.lr_scale, fitted=start.steps > 0, trigrams=start.trigram_steps > 0, **given)
    trainer = NanochatTrainer(
        model=model,
        args=arguments,
        loader=loader,
        validation=validation,
        validation_documents=whole,
        byte_lengths=token_byte_lengths(tokenizer),
        flops_per_token=dial.flops_per_token,
        peak_flops=peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else 0.0,
        spike_threshold=config.spike_threshold,
        hyper={
            **rates,
            "weight_decay": dial.weight_decay,
            "backout_max": largest_backout(config, dial),
            "variant": architecture(config.preset),
        },
        schedule=schedule,
        compile_layers=compilation.compiles_layers(config.compile, arguments.device),
        processing_class=tokenizer,
    )
    trainer.log_norms = config.log_norms
    evaluations: list[callbacks.PeriodicEvaluation] = []
    if config.sample_every > 0:
        evaluations.append(callbacks.Samples(tokenizer, config.sample_every))
    if config.core_every > 0:
        core = (config.core_bundle, config.core_every, config.core_max_per_task)
        evaluations.append(callbacks.CoreMetric(tokenizer, *core))
    stage.add_callbacks(trainer, config.save_minutes, *evaluations)
    return trainer


def final_metrics(trainer: NanochatTrainer, dial: Any) -> dict[str, float]:
    """The run's size and results for `run.json`; evaluates first if the last step was not evaluated."""
    evaluated = [row["step"] for row in trainer.state.log_history if "val_bpb" in row]
    if trainer.validation is not None and dial.num_iterations not in evaluated:
        trainer.evaluate()
    trainer.loader.close()
    size = {"parameters": dial.params, "tokens": dial.total_tokens, "flops": dial.total_flops}
    return size | trainer.scores()
