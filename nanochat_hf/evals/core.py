"""CORE: the mean centred accuracy over the 22 in-context-learning tasks of DataComp-LM (arXiv:2406.11794, §3.5).

The items, few-shot draws, prompts and scored spans follow nanochat, so that its numbers can be checked: GPT-2 1.6B
stands at 0.256525 there. What differs is how they are computed: whole tasks are batched by length.

A bundle is a folder with `core.yaml` (the list of tasks), `eval_meta_data.csv` (chance accuracies in percent) and
`eval_data/` (JSON lines). The published chance accuracies are known to be wrong in places (mlfoundations/dclm#114):
BoolQ 62 %, CommonsenseQA 40.3 % with four options. CORE is therefore reported twice: as published, to compare with
others, and `corrected`, with chance taken from the number of options in the data.
"""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat_hf.evals.scoring import Span, SpanScore, distributed_rank, gather_sum, score_spans
from nanochat_hf.evals.statistics import bootstrap_macro_mean, centered, wilson_interval
from nanochat_hf.settings import UserError

SHUFFLE_SEED = 1337
FEWSHOT_SEED = 1234
KINDS = ("multiple_choice", "schema", "language_modeling")
MORE_OPTIONS = {"multiple_choice": "choices", "schema": "context_options"}

Item = dict[str, Any]
Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class CoreTask:
    """One task of a bundle, its items already shuffled and cropped as nanochat does it."""

    label: str
    kind: str
    num_fewshot: int
    delimiter: str
    published_baseline: float
    items: list[Item]

    @property
    def corrected_baseline(self) -> float:
        """Chance accuracy from the data itself: the mean of one over the number of options; 0 without options."""
        key = MORE_OPTIONS.get(self.kind)
        return sum(1 / len(item[key]) for item in self.items) / len(self.items) if key else 0.0


@dataclass
class CoreResult:
    """Outcomes of one task, one entry an item: 1.0 right, 0.0 wrong."""

    task: CoreTask
    outcomes: list[float]
    truncated: int = 0  # items of which a sequence was longer than the context and lost its beginning

    @property
    def accuracy(self) -> float:
        return sum(self.outcomes) / len(self.outcomes)

    def row(self) -> dict[str, Any]:
        low, high = wilson_interval(sum(self.outcomes), len(self.outcomes))
        return {
            "task": self.task.label,
            "kind": self.task.kind,
            "num_fewshot": self.task.num_fewshot,
            "items": len(self.outcomes),
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "baseline": self.task.published_baseline,
            "centered": centered(self.accuracy, self.task.published_baseline),
            "corrected_baseline": self.task.corrected_baseline,
            "corrected_centered": centered(self.accuracy, self.task.corrected_baseline),
            "truncated": self.truncated,
        }


# ---- the bundle ----------------------------------------


def load_bundle(folder: str | Path, *, max_per_task: int = -1, labels: Sequence[str] | None = None) -> list[CoreTask]:
    """Reads a bundle; `labels` selects tasks, `max_per_task` crops each after the fixed shuffle (-1: all)."""
    import yaml

    folder = Path(folder)
    if not (folder / "core.yaml").exists():
        raise UserError(
            f"{folder} is not a CORE bundle: it has no core.yaml; give the folder that nanochat's bundle has"
        )
    entries = yaml.safe_load((folder / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
    known = [entry["label"] for entry in entries]
    unknown = sorted(set(labels or []) - set(known))
    if unknown:
        raise UserError(f"{folder} has no task {', '.join(unknown)}; it has {', '.join(known)}")
    with open(folder / "eval_meta_data.csv", encoding="utf-8", newline="") as file:
        baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(file)}
    tasks = []
    for entry in entries:
        if labels and entry["label"] not in labels:
            continue
        if entry["label"] not in baselines:
            raise UserError(f"eval_meta_data.csv of {folder} has no chance accuracy for {entry['label']}")
        tasks.append(_load_task(folder, entry, baselines[entry["label"]], max_per_task))
    return tasks


def _load_task(folder: Path, entry: dict[str, Any], baseline: float, max_per_task: int) -> CoreTask:
    label, kind = entry["label"], entry["icl_task_type"]
    if kind not in KINDS:
        raise UserError(f"task {label} has the kind {kind!r}; known are {', '.join(KINDS)}")
    path = folder / "eval_data" / entry["dataset_uri"]
    try:
        with open(path, encoding="utf-8") as file:
            items = [json.loads(line) for line in file if line.strip()]
    except FileNotFoundError:
        raise UserError(f"task {label} needs {path}, which is missing from the bundle") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} holds a line that is not JSON ({error})") from None
    if not items:
        raise UserError(f"{path} is empty; task {label} needs at least one item")
    random.Random(SHUFFLE_SEED).shuffle(items)
    if max_per_task > 0:
        items = items[:max_per_task]
    delimiter = entry.get("continuation_delimiter", " ")
    return CoreTask(label, kind, entry["num_fewshot"][0], delimiter, baseline, items)


# ---- prompts -------------------------------------------


def fewshot_examples(task: CoreTask, index: int) -> list[Item]:
    """The examples shown before item `index`: drawn from the task's other items, by a seed of the item's own.

    Equal to sampling from the list of all other items. Where the pool is smaller than asked, all of it is shown.
    """
    others = len(task.items) - 1
    drawn = random.Random(FEWSHOT_SEED + index).sample(range(others), min(task.num_fewshot, others))
    return [task.items[i if i < index else i + 1] for i in drawn]


def render(task: CoreTask, item: Item, examples: Sequence[Item]) -> list[str]:
    """The texts of one item: one an option, or, for language modelling, without and with the continuation."""
    join = task.delimiter
    if task.kind == "multiple_choice":
        shots = "".join(f"{shot['query']}{join}{shot['choices'][shot['gold']]}\n\n" for shot in examples)
        return [f"{shots}{item['query']}{join}{choice}" for choice in item["choices"]]
    if task.kind == "schema":
        shots = "".join(
            f"{shot['context_options'][shot['gold']]}{join}{shot['continuation']}\n\n" for shot in examples
        )
        return [f"{shots}{context}{join}{item['continuation']}" for context in item["context_options"]]
    # Contexts are trimmed, and so is the text without continuation: a trailing blank would join the next token.
    shots = "".join(f"{str(shot['context']).strip()}{join}{shot['continuation']}\n\n" for shot in examples)
    without = f"{shots}{str(item['context']).strip()}{join}"
    return [without.strip(), f"{without}{item['continuation']}"]


def spans_of(task: CoreTask, rows: Sequence[list[int]]) -> list[Span]:
    """The scored spans of one item, from the token ids of its rendered texts."""
    if task.kind == "multiple_choice":
        start = _common_prefix(rows)
        return [Span(row, max(1, start), len(row)) for row in rows]
    if task.kind == "schema":
        shared = _common_prefix([row[::-1] for row in rows])
        return [Span(row, max(1, len(row) - shared), len(row)) for row in rows]
    without, full = rows
    # Byte-level tokenizers give a clean prefix. Others may merge across the border: score from the first difference.
    start = min(_common_prefix([without, full]), len(full) - 1)
    return [Span(full, max(1, start), len(full))]


def is_right(task: CoreTask, item: Item, scores: Sequence[SpanScore]) -> bool:
    """The decision of an item: lowest mean loss among the options, or every token of the continuation greedy."""
    if task.kind == "language_modeling":
        return scores[0].is_greedy
    losses = [score.mean_loss for score in scores]
    return losses.index(min(losses)) == item["gold"]


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    for position, column in enumerate(zip(*rows, strict=False)):
        if any(token != column[0] for token in column):
            return position
    return min(map(len, rows))


# ---- evaluation ----------------------------------------


def evaluate_task(
    model: torch.nn.Module,
    encode: Encode,
    task: CoreTask,
    *,
    max_length: int | None = None,
    max_tokens: int = 16384,
    progress: Callable[[int], Any] | None = None,
) -> CoreResult:
    """Evaluates one task; with several processes each takes every n-th item, and all get the whole result.

    Args:
        encode: texts → token ids with the begin-of-document token first.
        max_length: context; longer sequences keep their end, and are counted. None: no limit.
        max_tokens: padded tokens a forward pass.
        progress: called with the number of items finished.
    """
    rank, world = distributed_rank()
    mine = range(rank, len(task.items), world)
    texts = [render(task, task.items[index], fewshot_examples(task, index)) for index in mine]
    ids = iter(encode([text for group in texts for text in group]))
    groups = [spans_of(task, [next(ids) for _ in group]) for group in texts]
    cropped = [[span.crop(max_length) for span in group] for group in groups]
    owner = [number for number, group in enumerate(cropped) for _ in group]
    left = [len(group) for group in cropped]
    scores: list[SpanScore | None] = [None] * len(owner)
    for batch in score_spans(model, [span for group in cropped for span in group], max_tokens=max_tokens):
        for index, score in batch:
            scores[index] = score
            left[owner[index]] -= 1
        if progress:
            progress(sum(left[number] == 0 for number in {owner[index] for index, _ in batch}))

    outcomes = torch.zeros(len(task.items) + 1, dtype=torch.float64)
    flat = iter(scores)
    for index, group in zip(mine, cropped, strict=True):
        outcomes[index] = is_right(task, task.items[index], [next(flat) for _ in group])
    outcomes[-1] = sum(
        any(a is not b for a, b in zip(g, c, strict=True)) for g, c in zip(groups, cropped, strict=True)
    )
    outcomes = gather_sum(outcomes.to(next(model.parameters()).device)).tolist()
    return CoreResult(task, outcomes[:-1], truncated=int(outcomes[-1]))


def summarize(results: Sequence[CoreResult]) -> dict[str, float]:
    """CORE over the given tasks, as published and corrected, each with its 95 % interval; and each accuracy."""
    metrics: dict[str, float] = {}
    outcomes = [result.outcomes for result in results]
    for name, attribute in (("core", "published_baseline"), ("core_corrected", "corrected_baseline")):
        baselines = [getattr(result.task, attribute) for result in results]
        centred = [centered(r.accuracy, b) for r, b in zip(results, baselines, strict=True)]
        metrics[name] = sum(centred) / len(centred)
        metrics[f"{name}_low"], metrics[f"{name}_high"] = bootstrap_macro_mean(outcomes, baselines)
    return metrics | {f"accuracy/{result.task.label}": result.accuracy for result in results}
