"""CORE: the mean centered accuracy over the 22 in-context-learning tasks of DataComp-LM (arXiv:2406.11794, §3.5).

Items, few-shot draws, prompts and scored spans follow nanochat, so that its numbers can be checked: GPT-2 XL (1.6 B
parameters) scores 0.256525 there. Only the computation differs: what the options of an item share is read once, and
items are batched by length (`scoring`).

`bundle` reads the tasks. Some published chance accuracies are wrong (mlfoundations/dclm#114): BoolQ has 62 %,
CommonsenseQA 40.3 %. CORE is therefore reported twice. `core` uses the published values, to compare with others.
`core_corrected` takes chance from the number of options in the data.

The bundles about the microworld and about text of one's own have the same format and are scored by the same code, but
they are not CORE. Their means have names of their own, see `headline_metric`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nanochat_hf.evals.bundle import CoreTask, Item
from nanochat_hf.evals.items import digest_of
from nanochat_hf.evals.metrics.formulas import accuracy_with_interval, centered, mean, mean_centered_of_items
from nanochat_hf.evals.scoring import Span, SpanScore, common_prefix, distributed_rank, gather_sum, score_groups

FEWSHOT_SEED = 1234
# Beginning of the labels in the bundles that are made here → metric key of their mean.
OWN_HEADLINES = {"microworld_": "microworld_completion", "text_": "text_completion"}

Encode = Callable[[list[str]], list[list[int]]]


@dataclass
class CoreResult:
    """Outcomes of one task.

    Attributes:
        task: the task.
        outcomes: one entry per item, 1.0 where it was answered correctly, else 0.0.
        truncated: number of items with a sequence longer than the context, which lost its beginning.
    """

    task: CoreTask
    outcomes: list[float]
    truncated: int = 0

    @property
    def accuracy(self) -> float:
        """Share of correct items, 0 to 1."""
        return mean(self.outcomes)

    @property
    def digest(self) -> int:
        """Tells whether two results are about the same items, see `evals.items`."""
        return digest_of(enumerate([[self.task.num_fewshot, self.task.delimiter], *self.task.items]))

    def row(self) -> dict[str, Any]:
        """The task's row for tables: accuracy with its 95 % Wilson interval, both baselines, centered accuracies."""
        return {
            "task": self.task.label,
            "kind": self.task.kind,
            "num_fewshot": self.task.num_fewshot,
            "items": len(self.outcomes),
            **accuracy_with_interval(self.outcomes),
            "baseline": self.task.published_baseline,
            "centered": centered(self.accuracy, self.task.published_baseline),
            "corrected_baseline": self.task.corrected_baseline,
            "corrected_centered": centered(self.accuracy, self.task.corrected_baseline),
            "truncated": self.truncated,
        }


# ---- prompts -------------------------------------------


def fewshot_examples(task: CoreTask, index: int) -> list[Item]:
    """The examples shown before item `index`, drawn from the task's other items with a seed per item.

    The draw equals `random.sample` over the list of all other items, as in nanochat. Where fewer other items exist
    than `num_fewshot`, all of them are shown.
    """
    others = len(task.items) - 1
    drawn = random.Random(FEWSHOT_SEED + index).sample(range(others), min(task.num_fewshot, others))
    return [task.items[i if i < index else i + 1] for i in drawn]


def render(task: CoreTask, item: Item, examples: Sequence[Item]) -> list[str]:
    """The texts of one item: one per option; for language modelling, one without and one with the continuation."""
    join = task.delimiter
    if task.kind == "multiple_choice":
        shots = "".join(f"{shot['query']}{join}{shot['choices'][shot['gold']]}\n\n" for shot in examples)
        return [f"{shots}{item['query']}{join}{choice}" for choice in item["choices"]]
    if task.kind == "schema":
        shots = "".join(
            f"{shot['context_options'][shot['gold']]}{join}{shot['continuation']}\n\n" for shot in examples
        )
        return [f"{shots}{context}{join}{item['continuation']}" for context in item["context_options"]]
    # Contexts are trimmed, and so is the text without continuation: a trailing space would join the next token.
    shots = "".join(f"{str(shot['context']).strip()}{join}{shot['continuation']}\n\n" for shot in examples)
    without = f"{shots}{str(item['context']).strip()}{join}"
    return [without.strip(), f"{without}{item['continuation']}"]


def spans_of(task: CoreTask, rows: Sequence[list[int]]) -> list[Span]:
    """The scored spans of one item, from the token ids of its rendered texts.

    Options of a multiple-choice item are scored after their common beginning, those of a schema item on their common
    end, and a language-modelling item on its continuation.
    """
    if task.kind == "multiple_choice":
        start = common_prefix(rows)
        return [Span(row, max(1, start), len(row)) for row in rows]
    if task.kind == "schema":
        shared = common_prefix([row[::-1] for row in rows])
        return [Span(row, max(1, len(row) - shared), len(row)) for row in rows]
    without, full = rows
    # Byte-level tokenizers give a clean prefix. Others may merge across the border: score from the first difference.
    start = min(common_prefix([without, full]), len(full) - 1)
    return [Span(full, max(1, start), len(full))]


def is_correct(task: CoreTask, item: Item, scores: Sequence[SpanScore]) -> bool:
    """The verdict on an item.

    With options, the right one must have the lowest mean loss. Without, every token of the continuation must be the
    model's most likely one.
    """
    if task.kind == "language_modeling":
        return scores[0].is_greedy
    losses = [score.mean_loss for score in scores]
    return losses.index(min(losses)) == item["gold"]


# ---- evaluation ----------------------------------------


def spans_of_items(encode: Encode, task: CoreTask, indices: Sequence[int]) -> list[list[Span]]:
    """The scored spans of these items of a task, few-shot examples included. `encode` is that of `evaluate_task`."""
    texts = [render(task, task.items[index], fewshot_examples(task, index)) for index in indices]
    ids = iter(encode([text for group in texts for text in group]))
    return [spans_of(task, [next(ids) for _ in group]) for group in texts]


def evaluate_task(
    model: torch.nn.Module,
    encode: Encode,
    task: CoreTask,
    *,
    max_length: int | None = None,
    max_tokens: int = 16384,
    progress: Callable[[int], Any] | None = None,
) -> CoreResult:
    """Evaluates one task. Several processes share the items, and each of them returns the whole result.

    Args:
        model: a causal language model, in evaluation mode.
        encode: texts → token ids with the begin-of-document token first.
        max_length: context in tokens; longer sequences keep their end and are counted. None: no limit.
        max_tokens: padded tokens per forward pass, cached ones included.
        progress: called with the number of items finished after each batch.
    """
    rank, world = distributed_rank()
    own_indices = range(rank, len(task.items), world)
    groups = spans_of_items(encode, task, own_indices)
    cropped = [[span.crop(max_length) for span in group] for group in groups]
    outcomes = torch.zeros(len(task.items) + 1, dtype=torch.float64)  # the last entry counts truncated items
    for batch in score_groups(model, cropped, max_tokens=max_tokens):
        for number, scores in batch:
            outcomes[own_indices[number]] = is_correct(task, task.items[own_indices[number]], scores)
        if progress:
            progress(len(batch))
    outcomes[-1] = sum(
        any(a is not b for a, b in zip(g, c, strict=True)) for g, c in zip(groups, cropped, strict=True)
    )
    outcomes = gather_sum(outcomes.to(next(model.parameters()).device)).tolist()
    return CoreResult(task, outcomes[:-1], truncated=int(outcomes[-1]))


def headline_metric(results: Sequence[CoreResult]) -> str:
    """Metric key of the mean over these results: "core", or that of a bundle that is made here."""
    labels = [result.task.label for result in results]
    own = (name for begin, name in OWN_HEADLINES.items() if any(label.startswith(begin) for label in labels))
    return next(own, "core")


def summarize(results: Sequence[CoreResult]) -> dict[str, float]:
    """Flat metrics: the mean centered accuracy with its 95 % interval, and `accuracy/TASK` of every task.

    The mean is called `core` with the published chance accuracies and `core_corrected` with chance from the data. For
    the bundles that are made here, where the two are the same, it is called `microworld_completion` or
    `text_completion`.
    """
    headline = headline_metric(results)
    means = {headline: "published_baseline"}
    if headline == "core":
        means["core_corrected"] = "corrected_baseline"
    metrics: dict[str, float] = {}
    outcomes = [result.outcomes for result in results]
    for name, attribute in means.items():
        baselines = [getattr(result.task, attribute) for result in results]
        metrics |= mean_centered_of_items(name, outcomes, baselines)
    return metrics | {f"accuracy/{result.task.label}": result.accuracy for result in results}
