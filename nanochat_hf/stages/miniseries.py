"""A sweep over depths: one base model per depth with the depth's own settings, compared in a table and a plot.

    nanochat-hf miniseries --depths 8 10 12 14 --run_dir runs/miniseries --tokenizer RUN/tokenizer
    nanochat-hf miniseries --depths 2 4 --run_dir runs/mini --tokenizer RUN/tokenizer -- --data microworld

The stage pretrain trains each model; its options follow after `--`. Finished models are not trained again; one of
other settings or data is refused. The table and the plot show loss, bits per byte and CORE against the FLOPs of each
run. With good settings the curve is smooth. A model above it was trained with settings that do not fit its depth.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nanochat_hf import settings
from nanochat_hf.settings import run_main
from nanochat_hf.stages.sweep import parse_sweep_arguments, summarize_run, sweep_parser, train_models


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    return parse_sweep_arguments(sweep_parser("miniseries", __doc__), argv)


def table(rows: list[dict[str, float]]) -> str:
    lines = [
        "| depth | scaling parameters | tokens | FLOPs | loss | val bpb | CORE |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in rows:
        scores = " | ".join(f"{one[name]:.4f}" if name in one else "" for name in ("loss", "val_bpb", "core"))
        lines.append(f"| {one['depth']} | {one['params']:,} | {one['tokens']:,} | {one['flops']:.3g} | {scores} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Each score against FLOPs, one panel per score."""
    from matplotlib.figure import Figure

    names = [name for name in ("loss", "val_bpb", "core") if all(name in one for one in rows)]
    figure = Figure(figsize=(4.0 * len(names), 3.4), layout="constrained")
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), number)
        axes.plot([one["flops"] for one in rows], [one[name] for one in rows], marker="o", color="#0072B2")
        for one in rows:
            axes.annotate(f"d{one['depth']}", (one["flops"], one[name]), xytext=(4, 4), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_xlabel("FLOPs")
        axes.set_title(name)
        axes.grid(color="#dddddd", linewidth=0.6)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    options, passed = parse_arguments(argv)
    models = {f"d{depth}": ["--depth", str(depth), *passed] for depth in options.depths}
    rows = [summarize_run(run) for run in train_models(models, options)]
    settings.write_json(options.run_dir / "miniseries.json", rows)
    draw(rows, options.run_dir / "miniseries.png")
    print(f"\n{table(rows)}\n\nplot: {options.run_dir / 'miniseries.png'}")


if __name__ == "__main__":
    run_main(main)
