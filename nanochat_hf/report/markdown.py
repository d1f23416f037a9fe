"""The report of a run: one Markdown page with scores per stage, curves, samples, cost and settings.

It reads only what the stages wrote: `<stage>/run.json` and `<stage>/eval/*.json`. Missing stages and evaluations show
as "–", so a report can be written at any time.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat_hf.evals.headlines import HEADLINE_TITLES
from nanochat_hf.report.plots import draw_plots
from nanochat_hf.report.stages import Stage, describe_machine, load_stage, run_of
from nanochat_hf.settings import MODEL_FOLDERS, STAGE_FOLDERS, UserError, without_paths
from nanochat_hf.tools.presentation import plain_text

MISSING = "–"
SAMPLES_PER_TASK = 2
# Names of training metrics in words; others are shown with spaces for underscores.
METRIC_NAMES = {
    "flops": "FLOPs",
    "val_bpb": "validation bits per byte",
    "document_bpb": "bits per byte of whole documents",
    "min_val_bpb": "lowest validation bits per byte",
    "val_loss_all_tokens": "validation loss, all tokens",
    "val_bpb_all_tokens": "validation bits per byte, all tokens",
    "val_loss_pairs": "validation loss, pairs",
    "val_accuracy_pairs": "held-out pairs in which the preferred answer has gained",
    "val_loss_assistant_tokens": "validation loss, assistant tokens",
    "val_bpb_assistant_tokens": "validation bits per byte, assistant tokens",
    "vocab_size": "vocabulary size",
    "train_seconds": "training seconds",
}

Table = list[list[str]]  # the first row holds the titles


def write_report(run_dir: str | os.PathLike, title: str | None = None) -> tuple[Path, str]:
    """Writes `report.md` and `plots/` into the run folder.

    Args:
        run_dir: the run folder, which holds one folder per stage; or one of these.
        title: heading of the page; default: the folder's name.

    Returns:
        The report's path, and its main table as aligned text for the terminal.

    Raises:
        UserError: the folder has no finished stage, or a file in it is damaged.
    """
    run_dir = run_of(run_dir)
    names = [name for name in MODEL_FOLDERS if name != "dpo" or (run_dir / name).exists()]  # DPO is no usual stage
    stages = [load_stage(run_dir, name) for name in ("tokenizer", *names)]
    if not any(stage.run for stage in stages):
        folders = ", ".join(STAGE_FOLDERS.values())
        raise UserError(f"{run_dir} has no finished stage in a folder {folders}; train first, or give another folder")
    tokenizer, models = stages[0], stages[1:]
    pictures = draw_plots(models, run_dir / "plots")
    table = summary_table(models)
    sections = [
        f"# {title or f'Report of {run_dir.resolve().name}'}",
        headline(stages),
        "## Results",
        markdown_table(table),
        "Tasks: right answers in %. In brackets: the 95 % interval over other items. – marks what was not run.",
        *(f"![{caption}](plots/{name})" for name, caption in pictures),
        *samples_section(models),
        *details_section(models),
        *tokenizer_section(tokenizer),
        *cost_section(stages),
        *environment_section(stages),
        *settings_section(stages),
    ]
    path = run_dir / "report.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path, text_table(table)


# ---- tables ------------------------------------------------------------------------


def summary_table(models: list[Stage]) -> Table:
    """Metrics × stages. The rows are all headline metrics and chat tasks that any stage has."""
    table = [["metric", *(stage.name.upper() for stage in models)]]
    chat_tasks = list(dict.fromkeys(task for stage in models for task in stage.tasks("chat")))
    for metric, title in HEADLINE_TITLES.items():
        if metric == "chatcore":  # after the tasks of which it is the mean
            for task in chat_tasks:
                rows = [stage.tasks("chat").get(task) for stage in models]
                table.append([task, *(task_cell(row) for row in rows)])
        if any(metric in stage.metrics for stage in models):
            table.append([title, *(score_cell(stage, metric) for stage in models)])
    return table


def task_cell(row: dict[str, Any] | None) -> str:
    """Right answers of a task in %, with their interval."""
    if row is None:
        return MISSING
    return f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_low']:.1f}, {100 * row['accuracy_high']:.1f}]"


def score_cell(stage: Stage, metric: str) -> str:
    """A headline metric of a stage, with its interval."""
    if metric not in stage.metrics:
        return MISSING
    low, high = (stage.metrics.get(f"{metric}_{side}") for side in ("low", "high"))
    interval = f" [{low:.4f}, {high:.4f}]" if low is not None and high is not None else ""
    return f"{stage.metrics[metric]:.4f}{interval}"


def markdown_table(table: Table) -> str:
    """A table in Markdown, its first column aligned left and the others right."""
    rule = ["---"] + ["---:"] * (len(table[0]) - 1)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
                     for row in [table[0], rule, *table[1:]])  # fmt: skip


def text_table(table: Table) -> str:
    """A table as aligned text for the terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for number, row in enumerate(table):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
        if number == 0:
            lines.append("  ".join("─" * width for width in widths))
    return "\n".join(lines)


# ---- sections ----------------------------------------------------------------------


def headline(stages: list[Stage]) -> str:
    """The finished stages and the time that everything took."""
    finished = [stage for stage in stages if stage.run]
    seconds = sum(stage.run.get("seconds") or 0 for stage in finished)
    seconds += sum(stage.evaluation_seconds for stage in stages)
    names = " → ".join(stage.name for stage in finished)
    return f"{names}; {_duration(seconds)} of training and evaluation."


def samples_section(models: list[Stage]) -> Iterator[str]:
    """The same questions to every stage, from the generative chat tasks."""
    asked: dict[tuple[str, int, str], list[tuple[str, dict]]] = {}
    for stage in models:
        for task, shown in stage.evaluations.get("chat", {}).get("details", {}).get("samples", {}).items():
            for sample in shown:
                lines = [f"[{message['role']}] {plain_text(message['content'])}" for message in sample["prompt"]]
                asked.setdefault((task, sample["index"], "\n".join(lines)), []).append((stage.name.upper(), sample))
    if not asked:
        return
    yield "## Samples"
    per_task: dict[str, list[str]] = {}
    for (task, _, question), answers in asked.items():
        stages_of: dict[tuple[str, bool], list[str]] = {}  # an answer that several stages gave stands here once
        for stage_name, sample in answers:
            stages_of.setdefault((answer_text(sample), sample["score"] > 0), []).append(stage_name)
        given = [
            f"{', '.join(names)} ({'right' if is_right else 'wrong'}): {answer}"
            for (answer, is_right), names in stages_of.items()
        ]
        per_task.setdefault(task, []).append(fenced("\n\n".join([question, *given])))
    for task, blocks in per_task.items():
        yield f"**{task}**"
        yield from blocks[:SAMPLES_PER_TASK]


def details_section(models: list[Stage]) -> Iterator[str]:
    """Every task with its 95 % interval, and pass@k of the chat tasks."""
    core_titles = [
        HEADLINE_TITLES[name] for name in HEADLINE_TITLES for stage in models if name in _core_metrics(stage)
    ]
    core_title = f"{core_titles[0] if core_titles else 'CORE'}, by task"
    for evaluation, title in (
        ("core", core_title[0].upper() + core_title[1:]),
        ("chat", "Chat tasks"),
        ("strangers", "The stranger's list"),
    ):
        names = list(dict.fromkeys(task for stage in models for task in stage.tasks(evaluation)))
        if not names:
            continue
        table = [["task", "items", "chance", *(stage.name.upper() for stage in models)]]
        for name in names:
            rows = [stage.tasks(evaluation).get(name) for stage in models]
            known = next(row for row in rows if row)
            chance = f"{100 * known['baseline']:.1f} %"
            if known.get("corrected_baseline", known["baseline"]) != known["baseline"]:
                chance += f" (corrected {100 * known['corrected_baseline']:.1f} %)"
            items = " / ".join(dict.fromkeys(f"{row['items']:,}" for row in rows if row))
            table.append([name, items, chance, *(task_cell(row) for row in rows)])
        yield f"## {title}\n\nRight answers in %, with the 95 % Wilson interval."
        yield markdown_table(table)
    for key in sorted({key for stage in models for key in stage.metrics if key.startswith("pass@")}):
        values = [f"{stage.name.upper()} {_pass_cell(stage, key)}" for stage in models if key in stage.metrics]
        yield f"{key.replace('/', ' ')}, in %: {', '.join(values)}"


def tokenizer_section(tokenizer: Stage) -> Iterator[str]:
    """What training the tokenizer gave, and the comparison of the tokenizer's evaluation."""
    metrics = (tokenizer.run or {}).get("metrics") or {}
    if metrics:
        yield "## Tokenizer"
        yield markdown_table(
            [["measure", "value"], *([_metric_name(name), _number(value)] for name, value in metrics.items())]
        )
    details = tokenizer.evaluations.get("tokenizer", {}).get("details", {})
    if details.get("table"):
        yield "## Bytes per token"
        yield markdown_table(without_paths(details["table"]))
        note = "In brackets: how many more (+) or fewer (−) tokens the other tokenizer needs for the same text."
        absent = details.get("absent") or []
        yield note + (f" Absent on the machine that measured: {', '.join(absent)}." if absent else "")


def cost_section(stages: list[Stage]) -> Iterator[str]:
    """Time, memory and last training metrics of every stage."""
    yield "## Time and memory"
    table = [["stage", "training", "evaluation", "peak memory", "last step", "metrics of training"]]
    for stage in stages:
        run = stage.run or {}
        steps = [row["step"] for row in stage.history if "step" in row]
        metrics = {name: value for name, value in (run.get("metrics") or {}).items() if stage.name != "tokenizer"}
        table.append(
            [
                stage.name,
                _duration(run["seconds"]) if run.get("seconds") is not None else MISSING,
                _duration(stage.evaluation_seconds) if stage.evaluations else MISSING,
                f"{run['peak_memory_mb']:,.0f} MiB" if run.get("peak_memory_mb") is not None else MISSING,
                f"{max(steps):,}" if steps else MISSING,
                "; ".join(f"{_metric_name(name)} {_number(value)}" for name, value in metrics.items()) or MISSING,
            ]
        )
    yield markdown_table(table)


def environment_section(stages: list[Stage]) -> Iterator[str]:
    """Machine and library versions, one line per different environment."""
    seen: dict[str, list[str]] = {}
    for stage in stages:
        if stage.run:
            seen.setdefault(_environment_line(stage.run.get("environment") or {}), []).append(stage.name)
    yield "## Environment"
    yield "\n".join(f"- {', '.join(names)}: {line}" for line, names in seen.items())


def settings_section(stages: list[Stage]) -> Iterator[str]:
    """The resolved settings of every stage, folded; a report may be published, so paths are cut to their last part."""
    yield "## Settings"
    for stage in stages:
        if stage.run and stage.run.get("config"):
            lines = json.dumps(without_paths(stage.run["config"]), indent=2, ensure_ascii=False, default=str)
            yield f"<details><summary>{stage.name}</summary>\n\n{fenced(lines, 'json')}\n\n</details>"


def answer_text(sample: dict[str, Any]) -> str:
    """The answer of a sample, as the terminal shows it; `parts` are there where the model called a tool."""
    return plain_text(sample["parts"] if "parts" in sample else sample["answer"])


# ---- text --------------------------------------------------------------------------


def _environment_line(found: dict[str, Any]) -> str:
    world = found.get("world_size", 1)
    versions = ", ".join(f"{name} {version}" for name, version in (found.get("versions") or {}).items())
    commit = f", commit {found['git_commit'][:12]}" if found.get("git_commit") else ""
    processes = f", {world} processes" if world > 1 else ""
    return f"{describe_machine(found)}{processes}, Python {found.get('python', '?')}, {versions}{commit}"


def _core_metrics(stage: Stage) -> dict[str, float]:
    return stage.evaluations.get("core", {}).get("metrics", {})


def _pass_cell(stage: Stage, key: str) -> str:
    """pass@k of a task in % with its interval; `key` is such as "pass@4/gsm8k"."""
    name, task = key.split("/", 1)
    interval = stage.tasks("chat").get(task, {}).get("intervals", {}).get(name)
    shown = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * stage.metrics[key]:.1f}{shown}"


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds % 60:02d} s" if minutes else f"{seconds} s"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and abs(value) >= 1e9:
        return f"{value:.3g}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _metric_name(name: str) -> str:
    return METRIC_NAMES.get(name, name.replace("_", " "))


def fenced(text: str, language: str = "text") -> str:
    """The text as a fenced block whose fence is longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
