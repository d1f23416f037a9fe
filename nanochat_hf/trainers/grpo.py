"""Reinforcement learning on top of TRL's `GRPOTrainer`: rollouts in which the model's tool calls are really executed.

What is optimised is plain REINFORCE with the group's mean as baseline, as upstream does it (TRL's names: loss_type
"dapo", scale_rewards "none", beta 0, num_iterations 1). The loss is −Σ advantage · log p(token) over the tokens that
the model itself chose, divided by the number of such tokens in the whole step. Tokens that a tool forced are seen by
the model but neither rewarded nor punished.
"""

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from nanochat_hf.evals.subject import Subject
from nanochat_hf.evals.tasks import Sampling, evaluate_generative
from nanochat_hf.generation import generate_with_tools
from nanochat_hf.settings import UserError
from nanochat_hf.tasks import check_code_execution, check_scorers
from nanochat_hf.tokenizer import render_prompt
from nanochat_hf.trainers.mixin import MuonAdamWMixin
from nanochat_hf.trainers.row_counts import report_left_over, report_share
from nanochat_hf.trainers.stage import (
    StageConfig,
    StageTrainerMixin,
    add_callbacks,
    distributed_state,
    load_tasks,
    trainer_arguments,
)


@dataclass
class RolloutConfig(StageConfig):
    prompts_per_step: int = field(default=16, metadata={"help": "prompts an optimizer step, over all processes"})
    num_generations: int = field(default=16, metadata={"help": "answers sampled for each prompt"})
    max_new_tokens: int = field(default=256, metadata={"help": "longest answer, tool results included"})
    rollout_batch_size: int = field(default=256, metadata={"help": "answers a process samples at the same time"})
    temperature: float = field(default=1.0, metadata={"help": "of sampling"})
    top_k: int = field(default=50, metadata={"help": "sample from the k likeliest tokens; 0: from all"})
    val_tasks: list[str] = field(
        default_factory=lambda: ["gsm8k/test@400"], metadata={"help": "held-out problems for pass@k; none: []"}
    )
    val_samples: int = field(default=8, metadata={"help": "answers to each held-out problem: the k of pass@k"})
    allow_code_execution: bool = field(
        default=False, metadata={"help": "practise tasks that run programs the model wrote, inside the sandbox"}
    )
    device_batch_size: int = field(default=8, metadata={"help": "most rows a process trains on at once"})
    init_lr_frac: float = field(default=0.05, metadata={"help": "factor on all learning rates"})
    warmdown_ratio: float = field(default=1.0, metadata={"help": "share of the steps in which the rates fall"})
    momentum_start: float = field(default=0.95, metadata={"help": "Muon's momentum at the first step"})
    momentum_warmup_steps: int = field(default=0, metadata={"help": "steps in which the momentum rises to its peak"})
    eval_every: int = field(default=60, metadata={"help": "steps between measurements on held-out data; 0: never"})
    save_every: int = field(default=60, metadata={"help": "steps between two checkpoints to resume from; 0: none"})


class RolloutTrainer(MuonAdamWMixin, StageTrainerMixin, GRPOTrainer):
    """`GRPOTrainer` whose completions come from `generate_with_tools` and are scored by tasks.

    Args:
        tasks: what the dataset's columns `task` and `index` point into.
        sampling: `temperature`, `top_k` and `max_new_tokens` of the rollouts.
    """

    def __init__(self, *args, tasks: Sequence[Any], sampling: Sampling, **kwargs):
        self.tasks, self.sampling = tasks, sampling

        def reward(task: list[int], index: list[int], answer: list[str], **_: Any) -> list[float]:
            return [tasks[t].score(tasks[t][i], text) for t, i, text in zip(task, index, answer, strict=True)]

        super().__init__(*args, rollout_func=_rollout, reward_funcs=reward, **kwargs)

    def _compute_loss(self, model, inputs):
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
        return super()._compute_loss(model, inputs | by_row)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        """Scores rows that begin at the left edge instead of TRL's left-padded ones.

        So the model sees exactly what it saw while generating (nothing stands before the first token, which matters
        for the smear), and no attention mask is needed: padding only follows.

        Returns:
            log-probabilities and entropies [B, logits_to_keep] in TRL's layout; values at padding have no meaning.
        """
        total = input_ids.size(1)
        pads = (attention_mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # [B, 1], before the prompt
        source = torch.arange(total, device=input_ids.device)[None] + pads  # [B, T]
        rows = input_ids.gather(1, source % total)[:, : int(attention_mask.sum(dim=1).max())]
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
            model, rows, torch.ones_like(rows), rows.size(1) - 1, batch_size, compute_entropy, **kwargs
        )
        # Column j of `logps` belongs to token j + 1 of the row.
        wanted = torch.arange(total - logits_to_keep - 1, total - 1, device=input_ids.device)[None] - pads
        wanted = wanted.clamp(0, rows.size(1) - 2)
        return logps.gather(1, wanted), None if entropies is None else entropies.gather(1, wanted), aux_loss


def _rollout(prompts: list[str], trainer: RolloutTrainer) -> dict[str, list]:
    """TRL's rollout function: `prompts` are conversations as JSON, each repeated for every sample of its group."""
    group = trainer.num_generations
    conversations = [json.loads(prompt) for prompt in prompts[::group]]
    if [prompt for prompt in prompts[::group] for _ in range(group)] != list(prompts):
        raise UserError(
            "samples of one prompt are spread over several processes: "
            "make prompts_per_step a multiple of the number of processes"
        )
    with trainer.compute_loss_context_manager():  # the precision of training
        rollouts = generate_with_tools(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            conversations,
            num_samples=group,
            seed=rollout_seed(trainer.args.seed, trainer.state.global_step, trainer.accelerator.process_index),
            temperature=trainer.sampling.temperature,
            batch_size=trainer.sampling.batch_size,
            top_k=trainer.sampling.top_k,
            max_new_tokens=trainer.sampling.max_new_tokens,
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
    """The sampling seed of one step on one process, so that a resumed run draws what it would have drawn."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF


def prompt_order(
    tasks: Sequence[tuple[Any, int]], tokenizer: Any, max_prompt_length: int, count: int | None, seed: int
) -> tuple[list[dict[str, Any]], int]:
    """Lays out the prompts of a run in the order in which they are used.

    Args:
        tasks: (task, repeat) pairs.
        max_prompt_length: longer prompts are left out, for their answer would not fit the context.
        count: how many prompts; every pass over the tasks has an order of its own. None means one pass.

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
            f"no prompt of the tasks fits into {max_prompt_length} tokens: lower max_new_tokens or take another task"
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
        limit: problems of each task.
        sampling: its `num_samples` is k; pass@1, pass@2 … pass@k are reported (the unbiased estimator).
    """

    def __init__(self, tasks: Sequence[Any], sampling: Sampling, every: int):
        self.tasks, self.sampling, self.every = tasks, sampling, every
        self.trainer: RolloutTrainer | None = None
        self.latest: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.measure(state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self.measure(state)

    def measure(self, state: Any) -> None:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        was_training = model.training
        subject = Subject("policy", model, self.trainer.processing_class)
        self.latest = {}
        for task in self.tasks:
            row = evaluate_generative(subject, task, self.sampling, num_shown=0).row()
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
    """Lays out the prompts and builds the trainer on them."""
    tasks = load_tasks(config.tasks, "train")
    val_tasks = [task for task, _ in load_tasks(config.val_tasks, "validation")] if config.eval_every > 0 else []
    check_scorers([*(task for task, _ in tasks), *val_tasks])
    check_code_execution([*(task for task, _ in tasks), *val_tasks], config.allow_code_execution)
    state = distributed_state()
    world = state.num_processes
    if config.prompts_per_step % world:
        raise UserError(
            f"prompts_per_step {config.prompts_per_step} cannot be shared by {world} processes: take a multiple"
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
    rows = config.prompts_per_step * config.num_generations // world  # a process and step
    micro = max(size for size in range(1, min(rows, config.device_batch_size) + 1) if rows % size == 0)
    how = {"temperature": config.temperature, "top_k": config.top_k, "max_new_tokens": config.max_new_tokens}
    how["batch_size"] = config.rollout_batch_size
    sampling = Sampling(num_samples=config.num_generations, **how)
    held_out = Sampling(num_samples=config.val_samples, **how)
    arguments = trainer_arguments(config, steps) | {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "num_generations": config.num_generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "shuffle_dataset": False,  # the prompts are in order already
        "loss_type": "dapo",
        "scale_rewards": "none",
        "beta": 0.0,
        "num_iterations": 1,
        "logging_steps": 1,
    }
    trainer = RolloutTrainer(
        model=model,
        args=GRPOConfig(**arguments),
        train_dataset=Dataset.from_list(prompts[: steps * config.prompts_per_step]),
        processing_class=tokenizer,
        tasks=[task for task, _ in tasks],
        sampling=sampling,
        hyper=config.hyper() | {"variant": getattr(model.config, "preset", "modern")},
        schedule=config.schedule(steps),
    )
    trainer.pass_at_k = PassAtK(val_tasks, held_out, max(1, config.eval_every))
    trainer.pass_at_k.trainer = trainer
    trainer.add_callback(trainer.pass_at_k)
    trainer.add_callback(EqualScores())
    add_callbacks(trainer)
    return trainer
