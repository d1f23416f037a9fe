"""Learning from pairs of answers with TRL's `DPOTrainer`: one is preferred to the other.

The pairs come from a file (`preferences=my_pairs.jsonl`), or from the model itself: it answers each problem of a
scored task several times. Of these answers the best is preferred to the worst. Where several are as good, the shortest
of them comes first; where several are as bad, the longest.
"""

import contextlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from trl import DPOConfig, DPOTrainer

from nanochat_hf.generation import DEFAULT_CONTEXT_LENGTH, Rollout, context_length_of, generate_with_tools, pick_device
from nanochat_hf.generation.chat_format import ChatFormat
from nanochat_hf.progress import progress_bar
from nanochat_hf.settings import UserError
from nanochat_hf.tasks import check_code_execution, check_scorers
from nanochat_hf.tasks.base import score_of
from nanochat_hf.trainers import compilation, disks
from nanochat_hf.trainers.chat_rows import files_of, stored_rows
from nanochat_hf.trainers.mixin import MuonAdamWMixin
from nanochat_hf.trainers.row_counts import report_left_over, report_share
from nanochat_hf.trainers.stage import (
    ChatTrainerMixin,
    OneDevice,
    add_callbacks,
    chat_arguments,
    distributed_state,
    hash_of,
    load_tasks,
    training_method,
)
from nanochat_hf.trainers.stage_settings import PreferenceConfig
from nanochat_hf.trainers.supervised import WithoutMask

Pair = dict[str, list[int]]  # chosen_ids, chosen_mask, rejected_ids, rejected_mask; masks are 1 where a token counts


class PreferenceArguments(OneDevice, DPOConfig):
    """TRL's `DPOConfig` for one device per process."""


class PreferenceTrainer(MuonAdamWMixin, ChatTrainerMixin, DPOTrainer):
    """`DPOTrainer` on pairs that are token ids already, with masks.

    What the answers' log-probabilities are compared with, those of the model before training, is computed once before
    the first step. So no second model stays in memory.
    """

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """The pairs are rendered already: TRL would not keep tool results out of the loss."""
        return dataset

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's loss. Padding only follows, so the model needs no attention mask."""
        return super().compute_loss(WithoutMask(model), inputs, return_outputs, num_items_in_batch)

    def compute_ref_log_probs(self, model, inputs):
        """TRL's log-probabilities of the model before training, without an attention mask as well."""
        return super().compute_ref_log_probs(WithoutMask(model), inputs)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """TRL's. Its first process keeps them in a file beside the pairs; machines with own disks receive it."""
        if disks.world_size() > 1:
            folder = Path(dataset.cache_files[0]["filename"]).parent
            writes = disks.writes(disks.is_shared(folder))
            with contextlib.suppress(FileNotFoundError):  # where the file is not yet
                super()._precompute_ref_logps(dataset, name, batch_size)
            disks.spread(folder, writes)
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss on held-out pairs, the share of pairs in which the preferred answer has gained on the other, and by
        how much (in units of β · nats)."""
        found = super().evaluate(*args, **kwargs)
        logged = next(row for row in reversed(self.state.log_history) if "eval_rewards/accuracies" in row)
        metrics = {"val_loss_pairs": found["eval_loss"]}
        metrics |= {"val_accuracy_pairs": logged["eval_rewards/accuracies"]}
        metrics |= {"val_margin_pairs": logged["eval_rewards/margins"]}
        self.log(dict(metrics))
        return metrics


class PairCollator:
    """Makes a batch of pairs: the preferred answers first, then the others; padded on the right."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns `input_ids`, `attention_mask` and `completion_mask`, int64 [2 · pairs, T], and references."""
        ids = [torch.tensor(pair[f"{side}_ids"]) for side in ("chosen", "rejected") for pair in pairs]
        masks = [torch.tensor(pair[f"{side}_mask"]) for side in ("chosen", "rejected") for pair in pairs]
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {
            "input_ids": pad(ids, batch_first=True, padding_value=self.pad_token_id).long(),
            "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True).long(),
            "completion_mask": pad(masks, batch_first=True).long(),
        }
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in pairs[0]:
                batch[name] = torch.tensor([float(pair[name]) for pair in pairs])
        return batch


# -- pairs -----------------------------------------------------------------------------------------------------------


def written_pair(form: ChatFormat, example: dict[str, Any], max_length: int) -> Pair | None:
    """Renders an example with `messages` and a `rejected` answer; None where it is too long or not a pair."""
    *prompt, chosen = example["messages"]
    earlier = sum(form.conversation(prompt)[1])  # tokens of earlier answers, which both sides have
    pair: Pair = {}
    for side, answer in (("chosen", chosen), ("rejected", example["rejected"])):
        ids, mask = form.conversation([*prompt, answer])
        said = itertools.accumulate(mask)
        mask = [int(kept and count > earlier) for kept, count in zip(mask, said, strict=True)]
        if len(ids) > max_length or not any(mask):
            return None
        pair |= {f"{side}_ids": ids, f"{side}_mask": mask}
    return pair if pair["chosen_ids"] != pair["rejected_ids"] else None


def sampled_pairs(answers: Sequence[Rollout], scores: Sequence[float], most: int = 1) -> list[Pair]:
    """Makes up to `most` pairs of a model's own answers to one prompt; none where all score the same.

    The shortest of the best answers is preferred to the longest of the worst, the next one to the next, and so on. No
    answer is in two pairs. Tokens of a tool's result do not count.
    """
    best, worst = max(scores), min(scores)
    if best == worst:
        return []

    def different(score: float) -> list[Rollout]:
        found = {tuple(answer.token_ids): answer for answer, own in zip(answers, scores, strict=True) if own == score}
        return sorted(found.values(), key=lambda answer: len(answer.token_ids))

    pairs: list[Pair] = []
    for chosen, rejected in zip(different(best)[:most], different(worst)[::-1][:most], strict=False):
        pair: Pair = {}
        for side, rollout in (("chosen", chosen), ("rejected", rejected)):
            pair[f"{side}_ids"] = [*rollout.prompt_ids, *rollout.token_ids]
            pair[f"{side}_mask"] = [0] * len(rollout.prompt_ids) + [int(sampled) for sampled in rollout.sampled]
        pairs.append(pair)
    return pairs


def pairs_of_task(task: Any, config: PreferenceConfig, model: Any, form: ChatFormat, max_length: int) -> list[Pair]:
    """The pairs of one task, in its order. What is left out is printed.

    Raises:
        UserError: the task has no pairs and no scores.
    """
    if not len(task) or "rejected" in task[0]:
        pairs = [written_pair(form, task[index], max_length) for index in range(len(task))]
        why = f"pairs are longer than {max_length} tokens, or both answers are the same, and are left out"
        report_share("pairs", sum(pair is None for pair in pairs), len(task), why, "raise --max_seq_len")
        return [pair for pair in pairs if pair is not None]
    if not config.num_samples:
        raise UserError(
            f"{task.name} holds no pairs; give preferences=PATH, or --num_samples to make pairs of the model's answers"
        )
    model.to(pick_device())
    check_scorers([task])
    check_code_execution([task], config.allow_code_execution)
    examples = [task[index] for index in range(len(task))]
    encoded = [form.prompt(example["messages"][:-1]) for example in examples]
    fitting = [index for index, ids in enumerate(encoded) if len(ids) + config.max_new_tokens <= max_length]
    why = f"prompts leave no room for --max_new_tokens in {max_length} tokens, and are left out"
    report_share("pairs", len(task) - len(fitting), len(task), why, "lower --max_new_tokens")
    bar = progress_bar(total=len(fitting), desc=f"answers to {task.name}", unit=" prompts")
    answers = generate_with_tools(
        model,
        form.tokenizer,
        [encoded[index] for index in fitting],
        num_samples=config.num_samples,
        seed=config.seed,
        batch_size=config.rollout_batch_size,
        progress=bar.update,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
    )
    bar.close()
    found: list[Pair] = []
    right, total, used = 0.0, 0, 0
    for index, group in zip(fitting, answers, strict=True):
        scores = [score_of(task, examples[index], rollout.text) for rollout in group]
        right, total = right + sum(scores), total + len(scores)
        made = sampled_pairs(group, scores, config.pairs_per_prompt)
        found += made
        used += bool(made)
    print(
        f"{task.name}: {len(found):,} pairs of answers to {used:,} of {len(fitting):,} prompts; to each of the others "
        f"all scored the same (mean score {right / max(1, total):.3f})",
        flush=True,
    )
    return found


def make_pairs(
    specs: list[str],
    split: str,
    config: PreferenceConfig,
    model: Any,
    form: ChatFormat,
    length: int,
    epochs: int,
    wanted: int | None,
) -> dict[str, list]:
    """The pairs of several tasks as columns, shuffled anew for each pass.

    Args:
        epochs: passes over the pairs.
        wanted: number of pairs, in as many passes as it takes, whatever `epochs` says; None: there is no such number.

    Raises:
        UserError: there is none.
    """
    pairs: list[Pair] = []
    for task, repeat in load_tasks(specs, split):
        pairs += pairs_of_task(task, config, model, form, length) * repeat
    if not pairs:
        raise UserError(
            "the tasks yield no pairs: where all answers to a prompt score the same, take other problems, or raise "
            "--num_samples or --temperature"
        )
    order = random.Random(config.seed)
    passes = range(epochs) if wanted is None else itertools.count()
    rows = list(itertools.islice((pair for _ in passes for pair in order.sample(pairs, len(pairs))), wanted))
    return {name: [row[name] for row in rows] for name in rows[0]}


# -- the trainer -----------------------------------------------------------------------------------------------------


def make_trainer(config: PreferenceConfig, model: Any, tokenizer: Any) -> PreferenceTrainer:
    """Makes the pairs and builds the trainer on them."""
    longest = context_length_of(model) or DEFAULT_CONTEXT_LENGTH
    if config.max_seq_len > longest:
        raise UserError(f"max_seq_len {config.max_seq_len} is more than the {longest} tokens the model was built for")
    state = distributed_state()
    world = state.num_processes
    if config.pairs_per_step % world:
        raise UserError(
            f"pairs_per_step {config.pairs_per_step} cannot be divided among {world} processes; "
            f"take a multiple of {world}"
        )
    train_pairs, val_pairs = load_pairs(config, model, tokenizer, config.max_seq_len or longest)
    steps = len(train_pairs) // config.pairs_per_step
    if not steps:
        raise UserError(f"{len(train_pairs)} pairs are fewer than pairs_per_step {config.pairs_per_step}; lower it")
    rows = config.pairs_per_step // world  # per process and step
    micro = max(size for size in range(1, min(rows, config.device_batch_size) + 1) if rows % size == 0)
    if state.is_main_process:
        print(f"{steps:,} steps of {config.pairs_per_step} pairs", flush=True)
        report_left_over(len(train_pairs), steps * config.pairs_per_step, "pairs", "pairs_per_step")
    arguments = chat_arguments(config, steps) | {
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "train_sampling_strategy": "sequential",  # the pairs are shuffled already
        "beta": config.beta,
        "loss_type": config.loss_type,
        "precompute_ref_log_probs": True,
        "max_length": None,
        "disable_dropout": True,
        "eval_strategy": "steps" if val_pairs is not None and config.eval_every > 0 else "no",
        "eval_steps": config.eval_every or None,
    }
    args = PreferenceArguments(**arguments)
    compilation.set_attention(model, config.attention, args.device, args.bf16)
    trainer = PreferenceTrainer(
        model=model,
        args=args,
        # Batches of many lengths would compile again and again, so "auto" does not compile here.
        compile_layers=config.compile in ("true", "layers"),
        data_collator=PairCollator(tokenizer.pad_token_id),
        train_dataset=train_pairs.select(range(steps * config.pairs_per_step)),
        eval_dataset=val_pairs,
        processing_class=tokenizer,
        schedule=config.schedule(steps),
        **training_method(config, model),
    )
    add_callbacks(trainer, config.save_minutes)
    return trainer


def load_pairs(
    config: PreferenceConfig, model: Any, tokenizer: Any, length: int
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Makes or opens the pairs: those to train on, and the held-out ones or None."""
    form = ChatFormat(tokenizer)
    writes = disks.writes(disks.is_shared(config.output_dir))
    found: list[Any] = []
    names = "model num_samples pairs_per_prompt max_new_tokens temperature top_k seed".split()
    settings = {name: getattr(config, name) for name in names} | {"length": length, "tokenizer": hash_of(tokenizer)}
    wanted = config.num_iterations * config.pairs_per_step if config.num_iterations > 0 else None
    training, validation = (config.tasks, "train", config.epochs, wanted), (config.val_tasks, "validation", 1, None)
    for specs, split, epochs, number in (training, validation):
        if not specs:
            found.append(None)
            continue
        made = (specs, split, config, model, form, length, epochs, number)
        found.append(
            stored_rows(
                Path(config.output_dir),
                settings | {"tasks": specs, "epochs": epochs, "wanted": number} | files_of(specs),
                lambda made=made: make_pairs(*made),
                writes,
            )
        )
    return found[0], found[1]
