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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from nanochat_hf import settings
from nanochat_hf.data.packing import IGNORED
from nanochat_hf.evals.evaluated_model import EvaluatedModel
from nanochat_hf.evals.tasks import AnswerSampling, evaluate_generative
from nanochat_hf.generation import DEFAULT_CONTEXT_LENGTH, Sampling, context_length_of, generate_with_tools
from nanochat_hf.generation.chat_format import ChatFormat
from nanochat_hf.generation.own_tools import generate_with_own_tools
from nanochat_hf.settings import UserError
from nanochat_hf.tasks import check_code_execution, check_scorers, leave_out_unrunnable
from nanochat_hf.trainers import compilation, disks
from nanochat_hf.trainers.lora import merged_for_decoding
from nanochat_hf.trainers.mixin import MuonAdamWMixin
from nanochat_hf.trainers.rewards import TASK, Reward, check_rewards, read_rewards
from nanochat_hf.trainers.row_counts import report_left_over, report_share
from nanochat_hf.trainers.stage import (
    ChatTrainerMixin,
    OneDevice,
    add_callbacks,
    chat_arguments,
    distributed_state,
    load_tasks,
    training_method,
)
from nanochat_hf.trainers.stage_settings import RolloutConfig

BEST, BEST_FILE = "best", "best.json"  # folder of the best policy; how good it is, and when it was
SUMMED_LOSSES = ("dapo", "cispo", "vespo")  # TRL's losses that are a sum over tokens, divided by a number for the step


class RolloutArguments(OneDevice, GRPOConfig):
    """TRL's `GRPOConfig` for one device per process."""


class RolloutTrainer(MuonAdamWMixin, ChatTrainerMixin, GRPOTrainer):
    """`GRPOTrainer` whose completions come from `generate_with_tools` and are scored by tasks.

    Args:
        rewards: what answers are worth.
        sampling: how the rollouts' tokens are drawn, and the longest answer in tokens.
        rollout_batch_size: answers that a process samples at the same time.
    """

    def __init__(self, *args, rewards: Sequence[Reward], sampling: Sampling, rollout_batch_size: int, **kwargs):
        self.sampling, self.rollout_batch_size = sampling, rollout_batch_size
        self.form = ChatFormat(kwargs["processing_class"])
        functions = [reward.function for reward in rewards]
        super().__init__(*args, rollout_func=_rollout, reward_funcs=functions, **kwargs)

    @contextmanager
    def decoding_model(self) -> Iterator[Any]:
        """The policy as it generates, in the precision of training: LoRA's matrices are merged into a copy."""
        model = self.accelerator.unwrap_model(self.model)
        if not hasattr(model, "peft_config"):
            yield model  # the forward that accelerate wrapped decides the precision
            return
        with self.accelerator.autocast():
            yield merged_for_decoding(model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Leaves out rollouts without an advantage: all samples of their prompt scored the same, their gradient is 0.

        The divisor (`num_items_in_batch`) was counted before, so the loss does not change. Losses with another divisor
        keep all rows. All processes keep the same number of rows, since TRL gathers statistics by row.
        """
        idle = inputs["advantages"] == 0
        if self.loss_type not in SUMMED_LOSSES:
            idle = torch.zeros_like(idle)
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
    form = trainer.form
    options = {
        "num_samples": group,
        "seed": rollout_seed(trainer.args.seed, trainer.state.global_step, trainer.accelerator.process_index),
        "batch_size": trainer.rollout_batch_size,
        **asdict(trainer.sampling),
    }
    encoded = [form.prompt(messages, tools=form.reads_calls) for messages in conversations]
    with trainer.decoding_model() as model:
        if form.reads_calls:
            rollouts = generate_with_own_tools(model, form, encoded, **options)
        else:
            rollouts = generate_with_tools(model, trainer.processing_class, encoded, **options)
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
    rows, too_long, form = [], 0, ChatFormat(tokenizer)
    for number, (task, repeat) in enumerate(tasks):
        for index in range(len(task)):
            messages = task[index]["messages"][:-1]
            if len(form.prompt(messages, tools=form.reads_calls)) > max_prompt_length:
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
        self.best: dict[str, float] = {}  # step and mean pass@1 of the best policy so far

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.measure(state)
            return
        path = Path(args.output_dir, BEST_FILE)
        found = disks.gather(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
        self.best = next(filter(None, found), {})
        disks.spread(Path(args.output_dir, BEST), writes=args.should_save)  # a machine may have lost its disk
        if self.best and args.should_save:
            settings.write_json(path, self.best)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self.measure(state)

    def measure(self, state: Any) -> None:
        if not self.tasks:
            return
        was_training = self.trainer.model.training
        self.latest = {}
        with self.trainer.decoding_model() as model:
            policy = EvaluatedModel("policy", model, self.trainer.processing_class)
            policy.own_tools = self.trainer.form if self.trainer.form.reads_calls else None
            for task in self.tasks:
                row = evaluate_generative(policy, task, self.answers, num_shown=0).row()
                self.latest[f"val_pass@1/{task.name}"] = row["accuracy"]
                self.latest |= {f"val_{key}/{task.name}": row[key] for key in row if key.startswith("pass@")}
        self.trainer.model.train(was_training)
        state.log_history.append({"step": state.global_step, **self.latest})
        if state.is_world_process_zero:
            shown = ", ".join(f"{name} {value:.1%}" for name, value in self.latest.items())
            print(f"step {state.global_step}: {shown}", flush=True)
        self.keep_best(state)

    def keep_best(self, state: Any) -> None:
        """Writes the policy to `best/` where it passes more held-out problems than the start and every one before."""
        passed = [value for name, value in self.latest.items() if name.startswith("val_pass@1/")]
        score, folder = sum(passed) / len(passed), Path(self.trainer.args.output_dir, BEST)
        if self.best and score <= self.best["val_pass@1"]:
            return
        if self.best:  # not the policy that training started from
            self.trainer.save_model(str(folder))
        self.best = {"step": state.global_step, "val_pass@1": score}
        if self.trainer.args.should_save:
            settings.write_json(folder.with_name(BEST_FILE), self.best)


class CollapseGuard(TrainerCallback):
    """Says when a run has stopped learning or learns the wrong thing, and what to change.

    It watches what TRL logs at every step, and compares with the first steps:

    - all answers to each prompt score the same, so nothing is learned;
    - the entropy has fallen to almost nothing, so that all samples are alike;
    - most answers reach `max_new_tokens`, or have shrunk to almost nothing, while the reward has not risen.

    Args:
        patience: steps in a row after which something is said; it is said again after four times as many.
    """

    def __init__(self, patience: int = 5):
        self.patience, self.rows = patience, list[dict[str, float]]()
        self.lasting, self.wait = dict[str, int](), dict[str, int]()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "frac_reward_zero_std" not in (logs or {}):
            return
        names = ("reward", "entropy", "completions/mean_length")
        self.rows.append({name: logs.get(name) or 0.0 for name in names})
        for kind, sentence in self._findings(logs).items():
            self.lasting[kind] = self.lasting.get(kind, 0) + 1 if sentence else 0
            if self.lasting[kind] == self.wait.setdefault(kind, self.patience):
                self.wait[kind] *= 4  # said again only where it lasts
                if state.is_world_process_zero:
                    print(f"warning: for {self.lasting[kind]} steps {sentence}", file=sys.stderr, flush=True)

    def _findings(self, logs: dict[str, float]) -> dict[str, str]:
        """A sentence for each kind of collapse that this step shows, else an empty text."""
        start = {name: sum(row[name] for row in self.rows[:5]) / len(self.rows[:5]) for name in self.rows[0]}
        now, score = self.rows[-1], self.rows[-1]["reward"]
        risen = score > start["reward"] + 0.05
        found = dict.fromkeys(("equal", "entropy", "long", "short"), "")
        if logs["frac_reward_zero_std"] >= 1.0:
            if score <= 0.0:
                cause = "no answer is right: take easier tasks, train SFT longer, or raise --num_generations"
            elif score >= 1.0:
                cause = "every answer is right: take harder tasks, or stop here"
            else:
                cause = "the answers to a prompt are too alike: raise --temperature or --num_generations"
            found["equal"] = (
                f"all answers to each prompt have had the same score (mean {score:.2f}), so nothing is learned from "
                f"them; {cause}"
            )
        elif 0 < now["entropy"] < min(0.02, 0.1 * start["entropy"]) and not risen:
            found["entropy"] = (
                f"the entropy of the answers has been below {now['entropy'] + 0.001:.3f} nats per token (at first "
                f"{start['entropy']:.2f}), so the samples are alike; lower --init_lr_frac, or raise --temperature"
            )
        if (logs.get("completions/clipped_ratio") or 0.0) > 0.5 and not risen and score < 1.0:
            found["long"] = (
                "more than half of the answers have reached --max_new_tokens without an end; raise it, or add a "
                "reward for an end in time"
            )
        elif now["completions/mean_length"] < 0.25 * start["completions/mean_length"] and not risen:
            found["short"] = (
                f"answers have had less than a quarter of their first length ({now['completions/mean_length']:.0f} "
                "tokens) at no higher reward; see what the reward prefers with --log_completions, and lower "
                "--init_lr_frac"
            )
        return found


def make_trainer(config: RolloutConfig, model: Any, tokenizer: Any) -> RolloutTrainer:
    """Makes the prompts' order and builds the trainer on it."""
    tasks = load_tasks(config.tasks, "train")
    val_tasks = [task for task, _ in load_tasks(config.val_tasks, "validation")] if config.eval_every > 0 else []
    scored = [task for task, _ in tasks] if TASK in dict(check_rewards(config.reward)) else []
    check_scorers([*scored, *val_tasks])
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
    room = (context_length_of(model) or DEFAULT_CONTEXT_LENGTH) - config.max_new_tokens
    wanted = config.num_iterations * config.prompts_per_step if config.num_iterations > 0 else None
    prompts, too_long = prompt_order(tasks, tokenizer, room, wanted, config.seed)
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    disks.check_same("list of prompts", digest, "give the same --tasks on all machines")
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
    rewards = read_rewards(config.reward, [task for task, _ in tasks])
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_k)
    held_out = AnswerSampling(sampling, num_samples=config.val_samples, batch_size=config.rollout_batch_size)
    arguments = chat_arguments(config, steps) | {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "num_generations": config.num_generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "shuffle_dataset": False,  # the prompts are shuffled already
        "loss_type": config.loss_type,
        "importance_sampling_level": "sequence" if config.loss_type == "luspo" else "token",  # as its paper has it
        "reward_weights": [reward.weight for reward in rewards],
        "log_completions": config.log_completions,
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
        rewards=rewards,
        sampling=sampling,
        rollout_batch_size=config.rollout_batch_size,
        schedule=config.schedule(steps),
        **training_method(config, model),
    )
    trainer.pass_at_k = PassAtK(val_tasks, held_out, max(1, config.eval_every))
    trainer.pass_at_k.trainer = trainer
    add_callbacks(trainer, config.save_minutes, trainer.pass_at_k, CollapseGuard())
    return trainer
