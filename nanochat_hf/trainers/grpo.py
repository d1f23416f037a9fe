"""Reinforcement learning with TRL's `GRPOTrainer`: during rollouts the model's tool calls are executed.

The objective is REINFORCE with the group's mean as baseline, as upstream has it (TRL's names: loss_type "dapo",
scale_rewards "none", beta 0, num_iterations 1). The loss is −Σ advantage · log p(token) over the tokens that the model
itself chose, divided by the number of such tokens in the whole step. The tokens of a tool's result are context for the
model, but not part of the loss.
"""

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from nanochat_hf.data.packing import IGNORED
from nanochat_hf.evals.evaluated_model import EvaluatedModel
from nanochat_hf.evals.tasks import AnswerSampling, evaluate_generative
from nanochat_hf.generation import Sampling, generate_with_tools
from nanochat_hf.settings import UserError
from nanochat_hf.tasks import check_code_execution, check_scorers, leave_out_unrunnable
from nanochat_hf.tokenizer import render_prompt
from nanochat_hf.trainers import compilation
from nanochat_hf.trainers.mixin import MuonAdamWMixin
from nanochat_hf.trainers.row_counts import report_left_over, report_share
from nanochat_hf.trainers.stage import (
    ChatTrainerMixin,
    OneDevice,
    add_callbacks,
    chat_arguments,
    distributed_state,
    load_tasks,
)
from nanochat_hf.trainers.stage_settings import RolloutConfig


class RolloutArguments(OneDevice, GRPOConfig):
    """TRL's `GRPOConfig` for one device per process."""


class RolloutTrainer(MuonAdamWMixin, ChatTrainerMixin, GRPOTrainer):
    """`GRPOTrainer` whose completions come from `generate_with_tools` and are scored by tasks.

    Args:
        tasks: what the dataset's columns `task` and `index` point into.
        sampling: how the rollouts' tokens are drawn, and the longest answer in tokens.
        rollout_batch_size: answers that a process samples at the same time.
    """

    def __init__(self, *args, tasks: Sequence[Any], sampling: Sampling, rollout_batch_size: int, **kwargs):
        self.tasks, self.sampling, self.rollout_batch_size = tasks, sampling, rollout_batch_size

        def reward(task: list[int], index: list[int], answer: list[str], **_: Any) -> list[float]:
            return [tasks[t].score(tasks[t][i], text) for t, i, text in zip(task, index, answer, strict=True)]

        super().__init__(*args, rollout_func=_rollout, reward_funcs=reward, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Leaves out rollouts without an advantage: all samples of their prompt scored the same, their gradient is 0.

        The divisor (`num_items_in_batch`) was counted before, so the loss does not change. All processes keep the same
        number of rows, since TRL gathers statistics by row.
        """
        idle = inputs["advantages"] == 0
        busiest = self.accelerator.gather((~idle).sum()).max().clamp(min=1)
        rows = torch.argsort(idle, stable=True)[:busiest]
        by_row = {name: value[rows] for name, value in inputs.items() if torch.is_tensor(value) and value.dim() > 0}
        longest = by_row["completion_mask"].sum(dim=1).max()
        for name in ("completion_ids", "completion_mask", "tool_mask"):
            if name in by_row:
                by_row[name] = by_row[name][:, :longest]
        return super().compute_loss(LeftAligned(model), inputs | by_row, return_outputs, num_items_in_batch)


class LeftAligned:
    """Calls the model on rows that begin at the left edge, where TRL pads prompts on the left.

    So the model sees exactly what it saw while generating: nothing is before the first token, which matters for the
    smear. No attention mask is needed, because padding only follows.
    """

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **options: Any) -> SimpleNamespace:
        """Scores the tokens of rows with padding on both sides.

        Args:
            input_ids, attention_mask, labels: int64 [B, T], as TRL makes them.

        Returns:
            `log_probs` and `entropy` [B, T] at TRL's positions; values at padding have no meaning.
        """
        total = input_ids.size(1)
        pads = (attention_mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # [B, 1], before the prompt
        source = torch.arange(total, device=input_ids.device)[None] + pads  # [B, T]
        rows = input_ids.gather(1, source % total)[:, : int(attention_mask.sum(dim=1).max())]
        row_labels = rows.clone()
        row_labels[:, 0] = IGNORED
        outputs = self.model(input_ids=rows, labels=row_labels, **options)
        # Value j, the last ones of the row, belongs to token j + 1.
        last = rows.size(1) - 1
        wanted = (torch.arange(-1, total - 1, device=input_ids.device)[None] - pads).clamp(0, last - 1)
        return SimpleNamespace(
            log_probs=outputs.log_probs[:, -last:].gather(1, wanted),
            entropy=outputs.entropy[:, -last:].gather(1, wanted),
        )


def _rollout(prompts: list[str], trainer: RolloutTrainer) -> dict[str, list | None]:
    """TRL's rollout function. `prompts` are conversations as JSON, each repeated once per sample of its group."""
    group = trainer.num_generations
    conversations = [json.loads(prompt) for prompt in prompts[::group]]
    if [prompt for prompt in prompts[::group] for _ in range(group)] != list(prompts):
        raise UserError(
            "the samples of one prompt are on several processes; "
            "make prompts_per_step a multiple of the number of processes"
        )
    # The forward that accelerate wrapped decides the precision: rollouts are sampled in that of training.
    rollouts = generate_with_tools(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        conversations,
        num_samples=group,
        seed=rollout_seed(trainer.args.seed, trainer.state.global_step, trainer.accelerator.process_index),
        batch_size=trainer.rollout_batch_size,
        **asdict(trainer.sampling),
    )
    samples = [rollout for samples in rollouts for rollout in samples]
    return {
        "prompt_ids": [list(rollout.prompt_ids) for rollout in samples],
        "completion_ids": [list(rollout.token_ids) for rollout in samples],
        "logprobs": None,
        "env_mask": [[int(chosen) for chosen in rollout.sampled] for rollout in samples],
        "answer": [rollout.text for rollout in samples],
    }


def rollout_seed(seed: int, step: int, rank: int) -> int:
    """The sampling seed of one step on one process, so that a resumed run samples what it would have sampled."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF


def prompt_order(
    tasks: Sequence[tuple[Any, int]], tokenizer: Any, max_prompt_length: int, count: int | None, seed: int
) -> tuple[list[dict[str, Any]], int]:
    """The prompts of a run in the order in which they are used.

    Args:
        tasks: (task, repeat) pairs.
        max_prompt_length: in tokens; longer prompts are left out, their answer would not fit into the context.
        count: how many prompts; every pass over the tasks has its own order. None: one pass.

    Returns:
        Rows `{"prompt": conversation as JSON, "task": int, "index": int}`, and how many prompts were left out.
    """
    rows, too_long = [], 0
    for number, (task, repeat) in enumerate(tasks):
        for index in range(len(task)):
            messages = task[index]["messages"][:-1]
            if len(render_prompt(tokenizer, messages)) > max_prompt_length:
                too_long += 1
                continue
            prompt = json.dumps(messages, ensure_ascii=False)
            rows += [{"prompt": prompt, "task": number, "index": index}] * repeat
    if not rows:
        raise UserError(
            f"no prompt of the tasks fits into {max_prompt_length} tokens; lower max_new_tokens or take another task"
        )
    ordered: list[dict[str, Any]] = []
    passes = random.Random(seed)
    while count is None or len(ordered) < count:
        ordered += passes.sample(rows, len(rows))
        if count is None:
            break
    return ordered[:count], too_long


class PassAtK(TrainerCallback):
    """Scores the policy on held-out problems every `every` steps, before the first one and after the last one.

    Args:
        tasks: the held-out problems.
        answers: its `num_samples` is k; pass@1, pass@2 … pass@k are reported (the unbiased estimator).
        every: steps between two measurements.
    """

    def __init__(self, tasks: Sequence[Any], answers: AnswerSampling, every: int):
        self.tasks, self.answers, self.every = tasks, answers, every
        self.trainer: Any = None  # the RolloutTrainer, set once it is built
        self.latest: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.measure(state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self.measure(state)

    def measure(self, state: Any) -> None:
        if not self.tasks:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        was_training = model.training
        policy = EvaluatedModel("policy", model, self.trainer.processing_class)
        self.latest = {}
        for task in self.tasks:
            row = evaluate_generative(policy, task, self.answers, num_shown=0).row()
            self.latest[f"val_pass@1/{task.name}"] = row["accuracy"]
            self.latest |= {f"val_{key}/{task.name}": row[key] for key in row if key.startswith("pass@")}
        model.train(was_training)
        state.log_history.append({"step": state.global_step, **self.latest})
        if state.is_world_process_zero:
            shown = ", ".join(f"{name} {value:.1%}" for name, value in self.latest.items())
            print(f"step {state.global_step}: {shown}", flush=True)


class EqualScores(TrainerCallback):
    """Says what it means when in every group all answers score the same, for several steps in a row."""

    def __init__(self, patience: int = 5):
        self.patience, self.steps = patience, 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        equal = (logs or {}).get("frac_reward_zero_std")  # share of the groups, from TRL
        if equal is None:
            return
        self.steps = self.steps + 1 if equal >= 1.0 else 0
        if self.steps == self.patience and state.is_world_process_zero:
            self.patience *= 4  # said again only where it lasts
            score = logs.get("reward", 0.0)
            if score <= 0.0:
                cause = "no answer is right: take easier tasks, train SFT longer, or raise --num_generations"
            elif score >= 1.0:
                cause = "every answer is right: take harder tasks, or stop here"
            else:
                cause = "the answers to a prompt are too alike: raise --temperature or --num_generations"
            print(
                f"warning: for {self.steps} steps all answers to each prompt have had the same score (mean "
                f"{score:.2f}), so nothing is learned from them; {cause}",
                file=sys.stderr,
                flush=True,
            )


def make_trainer(config: RolloutConfig, model: Any, tokenizer: Any) -> RolloutTrainer:
    """Makes the prompts' order and builds the trainer on it."""
    tasks = load_tasks(config.tasks, "train")
    val_tasks = [task for task, _ in load_tasks(config.val_tasks, "validation")] if config.eval_every > 0 else []
    check_scorers([*(task for task, _ in tasks), *val_tasks])
    check_code_execution([*(task for task, _ in tasks), *val_tasks], config.allow_code_execution)
    runnable = leave_out_unrunnable([task for task, _ in tasks], "rl")
    if len(runnable) < len(tasks):
        tasks = [(task, repeat) for task, repeat in tasks if task in runnable]
        val_tasks = [task for task in val_tasks if not task.runs_code]
    state = distributed_state()
    world = state.num_processes
    if config.prompts_per_step % world:
        raise UserError(
            f"prompts_per_step {config.prompts_per_step} cannot be divided among {world} processes; "
            f"take a multiple of {world}"
        )
    room = model.config.max_position_embeddings - config.max_new_tokens
    wanted = config.num_iterations * config.prompts_per_step if config.num_iterations > 0 else None
    prompts, too_long = prompt_order(tasks, tokenizer, room, wanted, config.seed)
    steps = len(prompts) // config.prompts_per_step
    if not steps:
        raise UserError(f"{len(prompts)} prompts are fewer than prompts_per_step {config.prompts_per_step}; lower it")
    if state.is_main_process:
        print(f"{steps:,} steps of {config.prompts_per_step} prompts × {config.num_generations} answers")
        total = sum(len(task) for task, _ in tasks)
        why = f"prompts are longer than {room} tokens, the context less max_new_tokens, and are left out"
        report_share("rl", too_long, total, why, "lower --max_new_tokens")
        report_left_over(len(prompts), steps * config.prompts_per_step, "prompts", "prompts_per_step")
    rows = config.prompts_per_step * config.num_generations // world  # per process and step
    micro = max(size for size in range(1, min(rows, config.device_batch_size) + 1) if rows % size == 0)
    if config.num_generations > 1 and config.temperature == 0:
        raise UserError("several samples of a greedy model are all the same: set --temperature above 0")
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_k)
    held_out = AnswerSampling(sampling, num_samples=config.val_samples, batch_size=config.rollout_batch_size)
    arguments = chat_arguments(config, steps) | {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "num_generations": config.num_generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "shuffle_dataset": False,  # the prompts are shuffled already
        "loss_type": "dapo",
        "scale_rewards": "none",
        "beta": 0.0,
        "num_iterations": 1,
        "logging_steps": 1,
    }
    args = RolloutArguments(**arguments)
    compilation.set_attention(model, config.attention, args.device, args.bf16)
    trainer = RolloutTrainer(
        model=model,
        args=args,
        # Rows of many lengths would compile again and again, so "auto" does not compile here.
        compile_layers=config.compile in ("true", "layers"),
        train_dataset=Dataset.from_list(prompts[: steps * config.prompts_per_step]),
        processing_class=tokenizer,
        tasks=[task for task, _ in tasks],
        sampling=sampling,
        rollout_batch_size=config.rollout_batch_size,
        hyper=config.hyper() | {"variant": getattr(model.config, "preset", "modern")},
        schedule=config.schedule(steps),
    )
    trainer.pass_at_k = PassAtK(val_tasks, held_out, max(1, config.eval_every))
    trainer.pass_at_k.trainer = trainer
    add_callbacks(trainer, config.save_minutes, trainer.pass_at_k, EqualScores())
    return trainer
