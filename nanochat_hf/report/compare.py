"""Compares runs: `nanochat-hf report RUN1 RUN2`. Scores side by side, with paired tests on items that both have.

Two results are paired if their items have the same digest. Then the difference is computed item by item: that is much
sharper than two intervals, because hard items are hard for both models.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nanochat_hf.evals.headlines import HEADLINE_TITLES
from nanochat_hf.evals.items import unpack
from nanochat_hf.evals.metrics.formulas import (
    bits_per_byte_interval,
    centered,
    difference_with_test,
    mean,
    mean_centered_interval,
)
from nanochat_hf.report.markdown import markdown_table, score_cell, task_cell, text_table
from nanochat_hf.report.stages import Stage, load_stage, run_of
from nanochat_hf.settings import MODEL_FOLDERS, UserError

NOTES = """\
Differences are the later run minus the first one, with 95 % intervals, item by item where both runs have the same
items. p is that of the exact sign test over the items on which the two differ (McNemar's test for right and wrong
answers). Of twenty tests without any true difference, one has p < 0.05 by chance. Intervals and tests cover other
items of the same kind. They do not cover other training seeds: two seeds of one recipe differ as well."""

Items = dict[str, Any]  # task → digest and scores; for bits per byte: digest, nats and bytes


def compare_runs(run_dirs: Sequence[str | os.PathLike]) -> tuple[str, str]:
    """Compares the stages that runs have in common; each later run with the first one.

    Args:
        run_dirs: run folders, or folders of a stage in them; at least two.

    Returns:
        The comparison as a Markdown page, and as text for the terminal.

    Raises:
        UserError: two folders are of one run, a folder has no evaluated stage, no stage is in all runs, or a file is
            damaged.
    """
    folders = [run_of(folder) for folder in run_dirs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(
            f"{' and '.join(str(folder) for folder in run_dirs)} are of one run; the report of that run shows its "
            "stages side by side"
        )
    names = _short_names(folders)
    runs = []
    for folder in folders:
        stages = {name: load_stage(folder, name) for name in MODEL_FOLDERS}
        runs.append({name: stage for name, stage in stages.items() if stage.evaluations})
        if not runs[-1]:
            raise UserError(f"{folder} has no evaluated stage; give a run folder, and evaluate it first")
    common = [name for name in MODEL_FOLDERS if all(name in run for run in runs)]
    if not common:
        listed = "; ".join(f"{folder} has {', '.join(run)}" for folder, run in zip(folders, runs, strict=True))
        raise UserError(f"the runs have no evaluated stage in common: {listed}")
    page, text = [f"# {' and '.join(names)}"], []
    for name in common:
        table = list(comparison_table(names, [run[name] for run in runs]))
        page += [f"## {name.upper()}", markdown_table(table)]
        text += [name.upper(), text_table(table), ""]
    page.append(NOTES)
    return "\n\n".join(page) + "\n", "\n".join([*text, NOTES])


def comparison_table(names: Sequence[str], stages: Sequence[Stage]) -> Iterator[list[str]]:
    """The rows of one stage's table, its titles first."""
    yield [
        "metric",
        names[0],
        *(cell for name in names[1:] for cell in (name, f"{name} − {names[0]}", "p")),
    ]
    for metric, title in HEADLINE_TITLES.items():
        if any(metric in stage.metrics for stage in stages):
            row = [title, score_cell(stages[0], metric)]
            for stage in stages[1:]:
                row += [score_cell(stage, metric), _headline_difference(metric, stages[0], stage), ""]
            yield row
    for evaluation in ("core", "chat"):
        tasks = dict.fromkeys(task for stage in stages for task in stage.tasks(evaluation))
        for task in tasks:
            row = [task, task_cell(stages[0].tasks(evaluation).get(task))]
            for stage in stages[1:]:
                row.append(task_cell(stage.tasks(evaluation).get(task)))
                row += _task_difference(_items(stages[0], evaluation), _items(stage, evaluation), task)
            yield row


def _task_difference(first: Items, second: Items, task: str) -> list[str]:
    """The cells "difference" and "p" of a task; empty ones where the items are not the same."""
    pair = _paired(first, second, task)
    if pair is None:
        return ["", ""]
    found = difference_with_test(*pair)
    points, low, high = (100 * found[name] for name in ("difference", "low", "high"))
    return [f"{points:+.1f} [{low:+.1f}, {high:+.1f}]", "< 0.001" if found["p"] < 0.001 else f"{found['p']:.3f}"]


def _headline_difference(metric: str, first: Stage, second: Stage) -> str:
    """The cell "difference" of a headline metric; "" where its items are not all the same."""
    if metric == "bits_per_byte":
        one, other = _items(first, metric), _items(second, metric)
        if not one or one["digest"] != other.get("digest"):
            return ""
        nats = [b - a for a, b in zip(unpack(one["nats"]), unpack(other["nats"]), strict=True)]
        low, high = bits_per_byte_interval(nats, unpack(one["bytes"]))
    elif metric == "strangers":
        return ""  # its result keeps no scores of single items
    else:
        evaluation = "chat" if metric == "chatcore" else "core"
        baseline = "corrected_baseline" if metric == "core_corrected" else "baseline"
        tasks, others = first.tasks(evaluation), second.tasks(evaluation)
        pairs = [_paired(_items(first, evaluation), _items(second, evaluation), task) for task in tasks]
        if set(tasks) != set(others) or not tasks or None in pairs:
            return ""
        chance = [row[baseline] for row in tasks.values()]
        scaled = [
            [centered(b, c) - centered(a, c) for a, b in zip(*pair, strict=True)]
            for pair, c in zip(pairs, chance, strict=True)
            if pair
        ]
        low, high = mean_centered_interval(scaled, [0.0] * len(scaled))
        return f"{mean([mean(items) for items in scaled]):+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"{second.metrics[metric] - first.metrics[metric]:+.4f} [{low:+.4f}, {high:+.4f}]"


def _items(stage: Stage, evaluation: str) -> Items:
    return stage.evaluations.get(evaluation, {}).get("details", {}).get("items", {})


def _paired(first: Items, second: Items, task: str) -> tuple[list[float], list[float]] | None:
    one, other = first.get(task), second.get(task)
    if not one or not other or one["digest"] != other["digest"]:
        return None
    return unpack(one["scores"]), unpack(other["scores"])


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or the whole paths where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
