"""The chat stages beside stock TRL: sampling of an RL step, a whole RL step, TRL's own tools, a supervised step.

    python benchmarks/rollouts.py --model runs/quickstart/sft                    # all tables
    python benchmarks/rollouts.py --model runs/quickstart/sft --tables sampling tools
    python benchmarks/rollouts.py --model runs/d12/sft --tasks gsm8k --max_new_tokens 256 --device_batch_size 8

1. sampling: tokens per second of one step's rollouts; `GRPOTrainer`'s default generation with transformers is beside
   ours. Both have the same model, prompts, number of answers, longest answer and sampling settings. Stock generation
   runs no tools, so its answers go on after a call without a result.
2. tools: the same with TRL's `tools=` and `environment_factory=`, which run the calculator, too. An answer with a call
   is shown with both masks: the model's tokens are 1, the tool's are 0.
3. step: whole RL steps of ours, and the share of them that sampling takes.
4. supervised: a step of our SFT beside stock `SFTTrainer`: the same packed rows, AdamW on all weights in both.

Rounds alternate between the methods, so that other load on the machine slows all of them. Tables have medians.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmark_tools import HelpFormat
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from nanochat_hf.settings import UserError, run_main

TABLES = ("sampling", "tools", "step", "supervised")


class StepTimes(TrainerCallback):
    """Notes how long each optimizer step takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.started)


class CalculatorEnvironment:
    """The calculator as an environment of TRL, whose methods are its tools."""

    def reset(self, **_: Any) -> None:
        """Begins an episode; there is nothing to remember."""

    def calculator(self, expression: str) -> str:
        """Computes arithmetic exactly, or counts a letter in a word.

        Args:
            expression: arithmetic such as "12 * (3 + 4)", or "'banana'.count('a')".
        """
        from nanochat_hf.tools.registry import run_tool

        return run_tool("calculator", {"expression": expression}) or "error"


def quiet(trainer: Any) -> Any:
    """Returns the trainer without its progress lines, which would be printed between the tables."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


# -- trainers --------------------------------------------------------------------------------------------------------


def our_rl(options: argparse.Namespace, folder: str, steps: int = 1) -> Any:
    """Our trainer of the stage rl, as `nanochat-hf rl` builds it."""
    from nanochat_hf.trainers.grpo import make_trainer
    from nanochat_hf.trainers.stage import load_model
    from nanochat_hf.trainers.stage_settings import RolloutConfig

    config = RolloutConfig(
        model=options.model,
        output_dir=folder,
        tasks=options.tasks,
        val_tasks=[],
        num_iterations=steps,
        prompts_per_step=options.prompts,
        num_generations=options.answers,
        max_new_tokens=options.max_new_tokens,
        device_batch_size=options.device_batch_size,
        temperature=1.0,
        top_k=50,
        eval_every=0,
        save_every=0,
        allow_code_execution=True,
    )
    return make_trainer(config, *load_model(options.model))


def stock_rl(options: argparse.Namespace, folder: str, conversations: list[Any], **tools: Any) -> Any:
    """TRL's `GRPOTrainer` on the same checkpoint and settings."""
    from trl import GRPOConfig, GRPOTrainer

    from nanochat_hf.trainers.stage import load_model

    model, tokenizer = load_model(options.model)
    if not tools:  # nobody answers a call, so a call does not end an answer
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return GRPOTrainer(
        model=model,
        args=GRPOConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            per_device_train_batch_size=options.prompts * options.answers,
            num_generations=options.answers,
            max_completion_length=options.max_new_tokens,
            temperature=1.0,
            top_k=50,
            gradient_checkpointing=False,
            report_to="none",
        ),
        reward_funcs=_no_reward,
        train_dataset=Dataset.from_list([{"prompt": messages} for messages in conversations]),
        processing_class=tokenizer,
        **tools,
    )


def _no_reward(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


# -- tables 1 and 2: one step's answers ------------------------------------------------------------------------------


class Sampler:
    """One method of making a step's answers: what a trainer does before the loss, of which the sampling is timed.

    Args:
        trainer: ours or TRL's.
        rows: rows of its data set, one per answer.
    """

    def __init__(self, trainer: Any, rows: list[dict[str, Any]]):
        self.trainer, self.rows = trainer, rows
        self.generate, trainer._generate = trainer._generate, self._timed
        self.seconds, self.answers, self.masks = 0.0, list[list[int]](), list[list[int]]()
        trainer.model.train()

    def __call__(self) -> float:
        """Makes the answers; returns the seconds of the sampling. Token ids and masks are in `answers` and `masks`."""
        self.trainer._generate_and_score_completions([dict(row) for row in self.rows])
        return self.seconds

    def _timed(self, prompts: list[Any]) -> Any:
        started = time.perf_counter()
        generated = self.generate(prompts)
        self.seconds = time.perf_counter() - started
        self.answers = generated[1]
        self.masks = generated[2] or [[1] * len(ids) for ids in generated[1]]
        return generated


def samplers(options: argparse.Namespace, tables: list[str], folder: str) -> dict[str, Sampler]:
    """The methods of the tables `sampling` and `tools`, ours first."""
    from nanochat_hf.tools.registry import TOOLS

    ours = our_rl(options, folder)
    chosen = [ours.train_dataset[index] for index in range(options.prompts)]
    conversations = [json.loads(row["prompt"]) for row in chosen]

    def repeated(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows for _ in range(options.answers)]

    prompts = repeated([{"prompt": conversation} for conversation in conversations])
    found = {"ours": Sampler(ours, repeated(chosen))}
    if "sampling" in tables:
        found["GRPOTrainer"] = Sampler(stock_rl(options, folder, conversations), prompts)
    if "tools" in tables:
        declared = stock_rl(options, folder, conversations, tools=[TOOLS["calculator"]])
        found["GRPOTrainer, tools="] = Sampler(declared, prompts)
        made = stock_rl(options, folder, conversations, environment_factory=CalculatorEnvironment)
        found["GRPOTrainer, environment_factory="] = Sampler(made, prompts)
    return found


def compare_sampling(options: argparse.Namespace, tables: list[str], folder: str) -> None:
    """Prints tables 1 and 2."""
    methods = samplers(options, tables, folder)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    speeds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(options.rounds + 1):  # the first round warms up
        for name, method in methods.items():
            passed = method()
            if number:
                seconds[name].append(passed)
                speeds[name].append(sum(map(len, method.answers)) / passed)
    print(
        f"\n| {options.prompts} prompts × {options.answers} answers | tokens per answer | seconds | tokens/s | ours |"
    )
    print("|---|--:|--:|--:|--:|")
    for name, method in methods.items():
        length = statistics.mean(map(len, method.answers))
        times = statistics.median(mine / other for mine, other in zip(speeds["ours"], speeds[name], strict=True))
        middle = statistics.median(speeds[name])
        print(f"| {name} | {length:.1f} | {statistics.median(seconds[name]):.2f} | {middle:,.0f} | {times:.2f} × |")
    if "tools" in tables:
        for name, method in methods.items():
            if name != "GRPOTrainer":
                tokenizer = method.trainer.processing_class
                print(f"\n{name}: {describe_masks(tokenizer, method.answers, method.masks)}")


def describe_masks(tokenizer: Any, answers: list[list[int]], masks: list[list[int]]) -> str:
    """How many answers have a tool's tokens, and the first of them with its mask."""
    used = [index for index, mask in enumerate(masks) if not all(mask)]
    forced = sum(mask.count(0) for mask in masks)
    text = f"{len(used)} of {len(answers)} answers have a tool's tokens, {forced} in all, masked with 0"
    if not used:
        return text
    ids, mask = answers[used[0]], masks[used[0]]
    pieces = [f"{tokenizer.decode([token])!r}:{kept}" for token, kept in zip(ids, mask, strict=True)]
    return f"{text}; the first:\n    {' '.join(pieces)}"


# -- table 3: a whole step -------------------------------------------------------------------------------------------


def measure_rl_step(options: argparse.Namespace, folder: str) -> None:
    """Prints table 3."""
    trainer, times = quiet(our_rl(options, folder, options.rounds + 1)), StepTimes()
    trainer.add_callback(times)
    sampling, generate = [], trainer.rollout_func

    def timed(prompts: list[str], trainer: Any) -> Any:
        started = time.perf_counter()
        found = generate(prompts, trainer)
        sampling.append(time.perf_counter() - started)
        return found

    trainer.rollout_func = timed
    trainer.final_weights.written = True  # nothing of this run is kept
    trainer.train()
    whole, part = statistics.median(times.seconds[1:]), statistics.median(sampling[1:])
    share = statistics.median(one / all_ for one, all_ in zip(sampling[1:], times.seconds[1:], strict=True))
    print("\n| RL step, ours | seconds | share |\n|---|--:|--:|")
    print(f"| sampling | {part:.2f} | {share:.0%} |")
    print(f"| rewards, loss and update | {whole - part:.2f} | {1 - share:.0%} |")
    print(f"| whole step | {whole:.2f} | 100% |")


# -- table 4: a supervised step --------------------------------------------------------------------------------------


def supervised_trainers(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Our trainer and stock `SFTTrainer` on the same packed rows, both with AdamW on all weights."""
    from trl import SFTConfig, SFTTrainer

    from nanochat_hf.trainers.chat_rows import make_rows
    from nanochat_hf.trainers.stage import StageConfig, chat_arguments, load_model, load_tasks
    from nanochat_hf.trainers.supervised import PackedRowsTrainer

    steps, per_step = options.rounds + 1, options.device_batch_size
    model, tokenizer = load_model(options.model)
    length = options.row_length or model.config.max_position_embeddings
    rows = make_rows(
        load_tasks(options.sft_tasks, "train"),
        tokenizer,
        length + 1,
        train_on="assistant",
        epochs=None,
        num_rows=steps * per_step,
        num_workers=1,
    )
    config = StageConfig(output_dir=folder, optimizer="adamw", learning_rate=1e-5, save_every=0, compile="false")
    shared = chat_arguments(config, steps) | {
        "per_device_train_batch_size": per_step,
        "train_sampling_strategy": "sequential",
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
    }
    ours = PackedRowsTrainer(
        model=model,
        args=SFTConfig(**shared),
        train_dataset=Dataset.from_dict(rows).with_format("numpy"),
        processing_class=tokenizer,
        hyper=config.hyper(ours=False),
        schedule=config.schedule(steps),
        mask_name="assistant_tokens",
    )
    stock_model, _ = load_model(options.model)
    cut = {name: [row[:-1].tolist() for row in values] for name, values in rows.items()}
    stock = SFTTrainer(
        model=stock_model,
        args=SFTConfig(**shared | {"learning_rate": 1e-5, "optim": "adamw_torch_fused", "max_grad_norm": 0.0}),
        train_dataset=Dataset.from_dict(cut),
        processing_class=tokenizer,
    )
    return {"ours": quiet(ours), "SFTTrainer": quiet(stock)}


def compare_supervised(options: argparse.Namespace, folder: str) -> None:
    """Prints table 4. The trainers cannot alternate step by step, so each runs its steps in one go, twice in turn."""
    seconds: dict[str, list[float]] = {"ours": [], "SFTTrainer": []}
    losses: dict[str, float] = {}
    for _ in range(2):
        for name, trainer in supervised_trainers(options, folder).items():
            times = StepTimes()
            trainer.add_callback(times)
            trainer.train()
            losses[name] = trainer.state.log_history[-1].get("train_loss", float("nan"))
            seconds[name] += times.seconds[1:]
    print(f"\n| supervised step, {options.device_batch_size} rows, AdamW | seconds | ours | mean loss |")
    print("|---|--:|--:|--:|")
    mine = statistics.median(seconds["ours"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.3f} | {middle / mine:.2f} × | {losses[name]:.4f} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--model", default="runs/quickstart/sft", help="checkpoint folder of a chat model")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="which tables to print")
    parser.add_argument("--tasks", nargs="+", default=["microworld-problems@200"], help="problems of the RL tables")
    parser.add_argument("--sft_tasks", nargs="+", default=["microworld-problems@500"], help="rows of the last table")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per RL step")
    parser.add_argument("--answers", type=int, default=8, help="answers per prompt")
    parser.add_argument("--max_new_tokens", type=int, default=96, help="longest answer in tokens")
    parser.add_argument("--device_batch_size", type=int, default=8, help="rows per forward pass in training")
    parser.add_argument("--row_length", type=int, help="tokens per row of the last table; default: the context")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds or steps, after one to warm up")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    if not Path(options.model, "config.json").exists():
        raise UserError(f"{options.model} is no checkpoint folder (no config.json); give one with --model")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if wanted := [table for table in ("sampling", "tools") if table in options.tables]:
            compare_sampling(options, wanted, folder)
        if "step" in options.tables:
            measure_rl_step(options, folder)
        if "supervised" in options.tables:
            compare_supervised(options, folder)


if __name__ == "__main__":
    run_main(main)
