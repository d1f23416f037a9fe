"""The chat tasks and their mean, ChatCORE: exams by the letter's logit, problems by sampled answers.

ChatCORE is the mean centred score over the tasks that were run. It depends on which tasks those are (nanochat's own
number jumped when a spelling task was added), so the names stand beside it in every result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nanochat_hf.evals.scoring import (
    distributed_rank,
    gather_sum,
    last_logits,
    pad_right,
    plan_batches,
)
from nanochat_hf.evals.statistics import bootstrap_macro_mean, centered, pass_at_k, wilson_interval
from nanochat_hf.evals.subject import Subject
from nanochat_hf.generation import context_length_of
from nanochat_hf.settings import UserError


@dataclass
class ChatResult:
    """Scores of one task: `scores[item]` holds one score a sample (one only, for a choice task)."""

    name: str
    kind: str
    baseline: float
    scores: list[list[float]]
    samples: list[dict[str, Any]] = field(default_factory=list)  # a few prompts with answers, for the report

    @property
    def outcomes(self) -> list[float]:
        """Per item, the mean over its samples: the expected score of one sample."""
        return [sum(item) / len(item) for item in self.scores]

    @property
    def accuracy(self) -> float:
        return sum(self.outcomes) / len(self.outcomes)

    def row(self) -> dict[str, Any]:
        low, high = wilson_interval(sum(self.outcomes), len(self.outcomes))
        row = {
            "task": self.name,
            "kind": self.kind,
            "items": len(self.scores),
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "baseline": self.baseline,
            "centered": centered(self.accuracy, self.baseline),
        }
        num_samples = len(self.scores[0])
        for k in sorted({2**i for i in range(1, num_samples.bit_length())} | {num_samples}):
            if 1 < k <= num_samples:
                right = [sum(score > 0 for score in item) for item in self.scores]
                row[f"pass@{k}"] = sum(pass_at_k(num_samples, c, k) for c in right) / len(right)
        return row


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled. The defaults are nanochat's: greedy, at most 512 new tokens."""

    num_samples: int = 1
    temperature: float = 0.0
    top_k: int | None = 50
    max_new_tokens: int = 512
    batch_size: int = 32  # conversations × samples that are generated together
    seed: int = 0

    def __post_init__(self):
        if self.num_samples > 1 and self.temperature == 0:
            raise UserError("several samples of a greedy model are all the same: set --temperature above 0")


@torch.inference_mode()
def evaluate_choice(
    subject: Subject,
    task: Any,
    *,
    limit: int | None = None,
    max_tokens: int = 16384,
    max_length: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> ChatResult:
    """Scores an exam by which of the item's letters has the highest logit where the answer begins.

    Nothing is generated: a model that would chat instead of answering is still scored, so this is an upper bound on
    what a user sees. Prompts longer than `max_length` lose their beginning.
    """
    rank, world = distributed_rank()
    device = next(subject.model.parameters()).device
    count = len(task) if limit is None else min(limit, len(task))
    mine = list(range(rank, count, world))
    examples = [task[index] for index in mine]
    prompts = [subject.prompt(example["messages"][:-1])[-(max_length or 0) :] for example in examples]
    letter_ids = {letter: subject.letter_id(letter) for letter in sorted({x for e in examples for x in e["letters"]})}
    scores = torch.zeros(count, dtype=torch.float64)
    for batch in plan_batches([len(prompt) for prompt in prompts], max_tokens):
        rows = [prompts[index] for index in batch]
        lengths = torch.tensor([len(row) for row in rows])
        keep = int(lengths.max() - lengths.min()) + 1
        logits = last_logits(subject.model, pad_right(rows, 0, device), keep=keep)
        at_end = logits[torch.arange(len(rows)), lengths - lengths.max() + keep - 1].float().cpu()  # [rows, V]
        for row, index in enumerate(batch):
            letters = examples[index]["letters"]
            best = at_end[row, [letter_ids[letter] for letter in letters]].argmax().item()
            scores[mine[index]] = task.score(examples[index], letters[best])
        if progress:
            progress(len(batch))
    scores = gather_sum(scores.to(device)).tolist()
    return ChatResult(task.name, "choice", task.baseline, [[score] for score in scores])


def evaluate_generative(
    subject: Subject,
    task: Any,
    sampling: Sampling,
    *,
    limit: int | None = None,
    progress: Callable[[int], Any] | None = None,
    num_shown: int = 3,
) -> ChatResult:
    """Samples answers, with the calculator at work, and lets the task score them."""
    rank, world = distributed_rank()
    count = len(task) if limit is None else min(limit, len(task))
    mine = list(range(rank, count, world))
    examples = {index: task[index] for index in mine}
    prompts = {index: examples[index]["messages"][:-1] for index in mine}
    size = {index: sum(len(str(message["content"])) for message in prompts[index]) for index in mine}
    ordered = sorted(mine, key=lambda index: -size[index])
    scores = torch.zeros(count, sampling.num_samples, dtype=torch.float64)
    shown: list[dict[str, Any]] = []
    step = max(1, sampling.batch_size // sampling.num_samples)
    for at in range(0, len(ordered), step):
        batch = ordered[at : at + step]
        answers = _generate(subject, [prompts[index] for index in batch], sampling, seed=sampling.seed + at)
        for index, samples in zip(batch, answers, strict=True):
            scores[index] = torch.tensor([task.score(examples[index], text) for text in samples])
            if index < num_shown:
                shown.append(
                    {"index": index, "prompt": prompts[index], "answer": samples[0], "score": float(scores[index, 0])}
                )
        if progress:
            progress(len(batch))
    scores = gather_sum(scores.to(next(subject.model.parameters()).device)).tolist()
    shown.sort(key=lambda item: item["index"])
    return ChatResult(task.name, "generative", task.baseline, scores, shown)


def _generate(subject: Subject, conversations: list, sampling: Sampling, seed: int) -> list[list[str]]:
    """Answers of every conversation as text, tool calls and tool results included.

    A prompt that leaves no room in the context loses its beginning, so that one long item cannot end an evaluation.
    """
    prompts = [subject.prompt(messages) for messages in conversations]
    limit = context_length_of(subject.model)
    if limit:
        room = max(1, min(sampling.max_new_tokens, limit // 2))
        prompts = [prompt[-(limit - room) :] for prompt in prompts]
    if not subject.is_nanochat:
        return _generate_plain(subject, prompts, sampling, seed)
    from nanochat_hf.generation import generate_with_tools

    rollouts = generate_with_tools(
        subject.model,
        subject.tokenizer,
        prompts,
        num_samples=sampling.num_samples,
        seed=seed,
        batch_size=sampling.batch_size,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
    )
    return [[_answer_text(rollout.messages) for rollout in samples] for samples in rollouts]


def _answer_text(messages: Sequence[dict[str, Any]]) -> str:
    content = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@torch.inference_mode()
def _generate_plain(subject: Subject, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[str]]:
    """Answers of a model that does not know nanochat's tool tokens, through transformers' `generate`."""
    device = next(subject.model.parameters()).device
    longest = max(map(len, prompts))
    pad = subject.tokenizer.pad_token_id
    pad = subject.tokenizer.eos_token_id if pad is None else pad
    ids = torch.tensor([[pad or 0] * (longest - len(row)) + row for row in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    greedy = sampling.temperature == 0
    chance = {} if greedy else {"temperature": sampling.temperature, "top_k": sampling.top_k or 0}
    torch.manual_seed(seed)
    output = subject.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=not greedy,
        num_return_sequences=sampling.num_samples,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=pad,
        **chance,
    )
    texts = subject.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return [texts[at : at + sampling.num_samples] for at in range(0, len(texts), sampling.num_samples)]


def summarize(results: Sequence[ChatResult]) -> dict[str, float]:
    """ChatCORE with its 95 % interval, and every task's score."""
    metrics: dict[str, float] = {}
    baselines = [result.baseline for result in results]
    centred = [centered(result.accuracy, result.baseline) for result in results]
    metrics["chatcore"] = sum(centred) / len(centred)
    metrics["chatcore_low"], metrics["chatcore_high"] = bootstrap_macro_mean([r.outcomes for r in results], baselines)
    for result in results:
        row = result.row()
        metrics[f"accuracy/{result.name}"] = row["accuracy"]
        metrics |= {f"{key}/{result.name}": value for key, value in row.items() if key.startswith("pass@")}
    return metrics
