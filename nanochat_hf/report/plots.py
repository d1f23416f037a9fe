"""Curves of a run as PNG: loss, bits per byte, reward, and the chat scores of the stages side by side."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nanochat_hf.optim import Schedule
    from nanochat_hf.report.stages import Stage

# The palette of Okabe and Ito (2008), safe for colour-blind readers. A stage has the same colour in all pictures.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
STAGE_COLOURS = {"base": "#0072B2", "mid": "#E69F00", "sft": "#009E73", "dpo": "#56B4E9", "rl": "#CC79A7"}
MARKERS = "osD^vP*X"
# Bits per byte over different tokens cannot be compared, so a panel's title says which tokens were scored.
SCORED_TOKENS = {"val_bpb_all_tokens": ", all tokens", "val_bpb_assistant_tokens": ", assistant tokens"}


def draw_plots(models: "list[Stage]", folder: Path) -> list[tuple[str, str]]:
    """Draws the pictures for which there is data, and removes those of an earlier report for which there is none.

    Args:
        models: the stages that trained a model.
        folder: for the pictures; it is made where it is missing.

    Returns:
        (file name, caption) of each picture.
    """
    drawn = []
    for name, caption, draw in (
        ("loss.png", "Training loss of each stage", _draw_losses),
        (
            "bits_per_byte.png",
            "Validation bits per byte of each stage; every stage has validation data of its own",
            _draw_bits_per_byte,
        ),
        ("reward.png", "Mean reward per answer during reinforcement learning", _draw_rewards),
        (
            "pass_at_k.png",
            "Held-out problems passed by one of k answers during reinforcement learning",
            _draw_pass_at_k,
        ),
        ("scores.png", "Accuracy on the chat tasks after each stage, with 95 % intervals", _draw_scores),
    ):
        figure = draw(models)
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / name, dpi=130)
            drawn.append((name, caption))
        else:
            (folder / name).unlink(missing_ok=True)
    return drawn


def _curve(stage: "Stage", *keys: str) -> tuple[str, list[float], list[float]]:
    """Key, steps and values of the first of `keys` that the stage's history has; ("", [], []) if it has none."""
    for key in keys:
        rows = [row for row in stage.history if isinstance(row.get(key), int | float) and "step" in row]
        if rows:
            return key, [row["step"] for row in rows], [row[key] for row in rows]
    return "", [], []


def _draw_curves(models: "list[Stage]", label: str, *keys: str) -> Any:
    """One panel per stage that has the curve, side by side; None if no stage has it."""
    curves = [(stage, *_curve(stage, *keys)) for stage in models]
    curves = [curve for curve in curves if curve[2]]
    if not curves:
        return None
    figure = _figure(width=0.8 + 3.2 * len(curves), height=3.0)
    for number, (stage, key, steps, values) in enumerate(curves, start=1):
        axes = figure.add_subplot(1, len(curves), number)
        colour = STAGE_COLOURS[stage.name]
        if len(steps) > 60:  # shows the trend above the noise of single batches
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(values, len(values) // 30), color=colour, linewidth=1.6)
        else:
            axes.plot(steps, values, color=colour, linewidth=1.6, marker="." if len(steps) < 30 else None)
        axes.set_title(stage.name.upper() + SCORED_TOKENS.get(key, ""), fontsize=10)
        axes.set_xlabel("step")
        if number == 1:
            axes.set_ylabel(label)
        for name, first in _phases(stage):
            axes.axvline(first, color="0.6", linewidth=0.8, linestyle=":")
            axes.annotate(
                name,
                (first, 1),
                xycoords=("data", "axes fraction"),
                xytext=(2, -2),
                textcoords="offset points",
                fontsize=7,
                color="0.4",
                rotation=90,
                va="top",
            )
        _plain_axes(axes)
    return figure


def _phases(stage: "Stage") -> list[tuple[str, float]]:
    """Parts of the data that follow each other, with the first step of each: the setting `phases` of pretraining."""
    pairs = [phase.rpartition("=") for phase in ((stage.run or {}).get("config") or {}).get("phases") or []]
    return [(name, float(first)) for name, _, first in pairs if first.strip().isdigit()]


def _draw_losses(models: "list[Stage]") -> Any:
    return _draw_curves(
        [stage for stage in models if stage.name not in ("dpo", "rl")], "loss (nats per token)", "loss", "train_loss"
    )


def _draw_bits_per_byte(models: "list[Stage]") -> Any:
    keys = ("val_bpb", "eval_bits_per_byte", *SCORED_TOKENS)
    return _draw_curves(models, "validation bits per byte", *keys)


def _draw_rewards(models: "list[Stage]") -> Any:
    return _draw_curves([stage for stage in models if stage.name == "rl"], "mean reward", "reward", "mean_reward")


def _draw_pass_at_k(models: "list[Stage]") -> Any:
    """One panel per held-out task of RL, with a curve for each k; None where pass@k was measured once or never."""
    rows = [row for stage in models if stage.name == "rl" for row in stage.history]
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for row in rows:
        for key, value in row.items():
            if match := re.fullmatch(r"val_pass@(\d+)/(.+)", key):
                found.setdefault(match[2], {}).setdefault(int(match[1]), []).append((row["step"], value))
    found = {task: curves for task, curves in found.items() if max(map(len, curves.values())) > 1}
    if not found:
        return None
    figure = _figure(width=0.8 + 3.2 * len(found), height=3.0)
    for number, (task, curves) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(1, len(found), number)
        for at, (k, points) in enumerate(sorted(curves.items())):
            steps, values = zip(*points, strict=True)
            shares = [100 * value for value in values]
            axes.plot(steps, shares, color=PALETTE[at % len(PALETTE)], linewidth=1.6, marker=".", label=f"pass@{k}")
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel("passed (%)")
        axes.legend(fontsize=8, frameon=False)
        _plain_axes(axes)
    return figure


def _draw_scores(models: "list[Stage]") -> Any:
    """Accuracy by stage: one line per task, with its interval as a bar."""
    stages = [stage for stage in models if stage.tasks("chat")]
    names = list(dict.fromkeys(task for stage in stages for task in stage.tasks("chat")))
    if not names:
        return None
    figure = _figure(width=7.2, height=3.8)
    axes = figure.add_subplot()
    for number, name in enumerate(names):
        points = [(at, stage.tasks("chat")[name]) for at, stage in enumerate(stages) if name in stage.tasks("chat")]
        shift = (number - (len(names) - 1) / 2) * 0.03  # so that intervals do not cover each other
        values = [100 * row["accuracy"] for _, row in points]
        below = [max(0.0, value - 100 * row["accuracy_low"]) for value, (_, row) in zip(values, points, strict=True)]
        above = [max(0.0, 100 * row["accuracy_high"] - value) for value, (_, row) in zip(values, points, strict=True)]
        axes.errorbar(
            [at + shift for at, _ in points],
            values,
            yerr=[below, above],
            label=name,
            color=PALETTE[number % len(PALETTE)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
        )
    axes.set_xticks(range(len(stages)), [stage.name.upper() for stage in stages])
    axes.set_xlim(-0.3, len(stages) - 0.7)
    axes.set_ylim(-3, 103)
    axes.set_ylabel("accuracy (%)")
    _plain_axes(axes)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def draw_schedules(schedule: "Schedule", weight_decay: float, path: Path) -> None:
    """Draws the schedules of a run: learning rate, Muon's momentum and Muon's weight decay over the steps.

    Args:
        schedule: the run's schedule.
        weight_decay: Muon's weight decay at its peak.
        path: the PNG file.
    """
    steps = range(0, schedule.num_iterations, max(1, schedule.num_iterations // 1000))
    curves = {
        "learning rate\n(fraction of the peak)": schedule.lr_factor,
        "Muon momentum": schedule.momentum,
        "Muon weight decay": lambda step: weight_decay * schedule.decay_factor(step),
    }
    figure = _figure(width=6.4, height=6.4)
    for number, (title, curve) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(len(curves), 1, number)
        axes.plot(steps, [curve(step) for step in steps], color=STAGE_COLOURS["base"], linewidth=1.6)
        axes.set_ylabel(title)
        _plain_axes(axes)
    axes.set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def _plain_axes(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _smooth(values: list[float], window: int) -> list[float]:
    """Centered moving average over at most `window` values on each side; fewer near the ends, so nothing shifts."""
    smoothed = []
    for index in range(len(values)):
        reach = min(max(1, window), index, len(values) - 1 - index)
        near = values[index - reach : index + reach + 1]
        smoothed.append(sum(near) / len(near))
    return smoothed
