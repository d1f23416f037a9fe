"""The report of a run: one Markdown page with the table stage × metric, curves, settings, cost and samples.

Reads nothing but what the stages left behind: `<stage>/run.json` and `<stage>/eval/*.json`. Stages and evaluations
that are missing show as "–", so a report can be made at any time.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nanochat_hf.report.plots import draw_plots
from nanochat_hf.report.stages import Stage, load_stage
from nanochat_hf.settings import MODEL_FOLDERS, UserError

MISSING = "–"
# Metric → title and number format; chat tasks follow under their own names, as percentages.
HEADLINES = {
    "bits_per_byte": ("bits per byte (lower is better)", "{:.4f}"),
    "core": ("CORE", "{:.4f}"),
    "core_corrected": ("CORE, corrected chance", "{:.4f}"),
    "chatcore": ("ChatCORE", "{:.4f}"),
}


def write_report(run_dir: str | os.PathLike, title: str | None = None) -> tuple[Path, str]:
    """Writes `report.md` and `plots/` into the run folder.

    Returns:
        The report's path and its main table as aligned text for the terminal.
    """
    run_dir = Path(run_dir)
    stages = [load_stage(run_dir, name) for name in ("tokenizer", *MODEL_FOLDERS)]
    if not any(stage.run for stage in stages):
        raise UserError(f"{run_dir} holds no finished stage; train first, or give another --run_dir")
    tokenizer, models = stages[0], stages[1:]
    pictures = draw_plots(models, run_dir / "plots")
    table = summary_table(models)
    sections = [
        f"# {title or f'Report of {run_dir.name}'}",
        headline(stages),
        "## Results",
        markdown_table(table),
        "Shares are of the right answers; – marks what was not run. Intervals stand under Details.",
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

Table = list[list[str]]  # first row: titles


def summary_table(models: list[Stage]) -> Table:
    """Stage × metric; the rows are all metrics that any stage has."""
    table = [["metric", *(stage.name.upper() for stage in models)]]
    chat_tasks = list(dict.fromkeys(task for stage in models for task in stage.tasks("chat")))
    for metric in ("bits_per_byte", "core", "core_corrected"):
        table.append(_row(metric, models))
    for task in chat_tasks:
        found = [stage.tasks("chat").get(task) for stage in models]
        table.append([task, *(f"{100 * row['accuracy']:.1f} %" if row else MISSING for row in found)])
    table.append(_row("chatcore", models))
    return table


def _row(metric: str, models: list[Stage]) -> list[str]:
    title, form = HEADLINES[metric]
    return [title, *(form.format(s.metrics[metric]) if metric in s.metrics else MISSING for s in models)]


def markdown_table(table: Table) -> str:
    rule = ["---"] + ["---:"] * (len(table[0]) - 1)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
                     for row in [table[0], rule, *table[1:]])  # fmt: skip


def text_table(table: Table) -> str:
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
    finished = [stage for stage in stages if stage.run]
    seconds = sum(stage.run.get("seconds") or 0 for stage in finished) + sum(_evaluation_seconds(s) for s in stages)
    names = " → ".join(stage.name for stage in finished)
    return f"{names}; {_duration(seconds)} of training and evaluation."


def samples_section(models: list[Stage]) -> Iterator[str]:
    """The same question to every stage, from the generative chat tasks."""
    asked: dict[tuple[str, int], list[tuple[str, dict]]] = {}
    for stage in models:
        for task, shown in stage.evaluations.get("chat", {}).get("details", {}).get("samples", {}).items():
            for sample in shown:
                asked.setdefault((task, sample["index"]), []).append((stage.name, sample))
    if not asked:
        return
    yield "## Samples"
    tasks_seen: dict[str, int] = {}
    for (task, _), answers in asked.items():
        tasks_seen[task] = tasks_seen.get(task, 0) + 1
        if tasks_seen[task] > 2:
            continue
        question = "\n".join(f"[{message['role']}] {_text(message['content'])}" for message in answers[0][1]["prompt"])
        said = [
            f"{stage.upper()} ({'right' if sample['score'] > 0 else 'wrong'}): {sample['answer']}"
            for stage, sample in answers
        ]
        yield f"**{task}**\n\n{_fenced(question + chr(10) * 2 + (chr(10) * 2).join(said))}"


def details_section(models: list[Stage]) -> Iterator[str]:
    """Every task with its 95 % interval."""
    for evaluation, title in (("core", "CORE by task"), ("chat", "Chat tasks")):
        names = list(dict.fromkeys(task for stage in models for task in stage.tasks(evaluation)))
        if not names:
            continue
        table = [[title, "items", "chance", *(stage.name.upper() for stage in models)]]
        for name in names:
            rows = [stage.tasks(evaluation).get(name) for stage in models]
            known = next(row for row in rows if row)
            chance = f"{100 * known['baseline']:.1f} %"
            if known.get("corrected_baseline", known["baseline"]) != known["baseline"]:
                chance += f" (corrected {100 * known['corrected_baseline']:.1f} %)"
            table.append([name, str(known["items"]), chance, *(_with_interval(row) for row in rows)])
        yield f"## Details: {title}\n\nShare of right answers with its 95 % Wilson interval."
        yield markdown_table(table)
        for key in sorted({key for stage in models for key in stage.metrics if key.startswith("pass@")}):
            values = [f"{stage.name} {100 * stage.metrics[key]:.1f} %" for stage in models if key in stage.metrics]
            if evaluation == "chat":
                yield f"{key.replace('/', ' ')}: {', '.join(values)}"


def tokenizer_section(tokenizer: Stage) -> Iterator[str]:
    metrics = (tokenizer.run or {}).get("metrics") or {}
    if metrics:
        yield "## Tokenizer"
        yield markdown_table(
            [["measure", "value"], *([_plain(name), _number(value)] for name, value in metrics.items())]
        )
    details = tokenizer.evaluations.get("tokenizer", {}).get("details", {})
    if details.get("table"):
        yield "## Tokenizer: bytes per token"
        yield markdown_table(details["table"])
        note = "In brackets: how many more tokens (+) than this tokenizer the other needs for the same text."
        absent = details.get("absent") or []
        yield note + (f" Absent on the machine that measured: {', '.join(absent)}." if absent else "")


def cost_section(stages: list[Stage]) -> Iterator[str]:
    yield "## Time and memory"
    table = [["stage", "wall clock", "evaluation", "peak memory", "last step", "metrics"]]
    for stage in stages:
        run = stage.run or {}
        steps = [row["step"] for row in stage.history if "step" in row]
        metrics = {name: value for name, value in (run.get("metrics") or {}).items() if stage.name != "tokenizer"}
        table.append(
            [
                stage.name,
                _duration(run["seconds"]) if run.get("seconds") is not None else MISSING,
                _duration(_evaluation_seconds(stage)) if stage.evaluations else MISSING,
                f"{run['peak_memory_mb']:,.0f} MiB" if run.get("peak_memory_mb") is not None else MISSING,
                f"{max(steps):,}" if steps else MISSING,
                ", ".join(f"{_plain(name)} {_number(value)}" for name, value in metrics.items()) or MISSING,
            ]
        )
    yield markdown_table(table)


def environment_section(stages: list[Stage]) -> Iterator[str]:
    """Where it ran; stages that ran elsewhere get a line of their own."""
    seen: dict[str, list[str]] = {}
    for stage in stages:
        if stage.run:
            seen.setdefault(_environment_line(stage.run.get("environment") or {}), []).append(stage.name)
    yield "## Environment"
    yield "\n".join(f"- {', '.join(names)}: {line}" for line, names in seen.items())


def settings_section(stages: list[Stage]) -> Iterator[str]:
    yield "## Settings"
    for stage in stages:
        if stage.run and stage.run.get("config"):
            lines = json.dumps(stage.run["config"], indent=2, ensure_ascii=False, default=str)
            yield f"<details><summary>{stage.name}</summary>\n\n{_fenced(lines, 'json')}\n\n</details>"


# ---- words -------------------------------------------------------------------------


def _environment_line(found: dict[str, Any]) -> str:
    gpus = found.get("gpus") or []
    machine = f"{len(gpus)} × {gpus[0]}" if gpus else f"{found.get('cpu_cores', '?')} CPU cores"
    world = found.get("world_size", 1)
    versions = ", ".join(f"{name} {version}" for name, version in (found.get("versions") or {}).items())
    commit = f", commit {found['git_commit'][:12]}" if found.get("git_commit") else ""
    processes = f", {world} processes" if world > 1 else ""
    return f"{machine}{processes}, Python {found.get('python', '?')}, {versions}{commit}"


def _evaluation_seconds(stage: Stage) -> float:
    return sum(result.get("seconds") or 0 for result in stage.evaluations.values())


def _with_interval(row: dict[str, Any] | None) -> str:
    if row is None:
        return MISSING
    return f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_low']:.1f}, {100 * row['accuracy_high']:.1f}]"


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds % 60:02d} s" if minutes else f"{seconds} s"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _text(content: str | Iterable[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _fenced(text: str, language: str = "text") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
