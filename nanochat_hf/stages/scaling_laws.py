"""FLOP budgets × depths: which model is best at each budget, and how its size and number of tokens grow.

    nanochat-hf scaling_laws --budgets 1e18 2e18 5e18 --depths 8 10 12 14 --run_dir runs/scaling \\
        --tokenizer RUN/tokenizer
    nanochat-hf scaling_laws --budgets 1e11 2e11 --depths 1 2 3 --run_dir runs/tiny --tokenizer RUN/tokenizer \\
        -- --data microworld --sequence_length 128 --total_batch_size 1024

After Chinchilla (arXiv 2203.15556, approach 2). At each budget a parabola in log(parameters) is fitted to the scores;
its lowest point is the best size. Straight lines through these points in log-log space give the exponents of
parameters and tokens; the ratio of tokens to parameters is the value for `--param_data_ratio`. The stage pretrain
trains the models; its options follow after `--`. Finished models are not trained again; one of other settings or data
is refused.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_hf import settings
from nanochat_hf.settings import UserError, run_main
from nanochat_hf.stages.sweep import parse_sweep_arguments, summarize_run, sweep_parser, train_models

OWN = ("depth", "target_flops", "num_iterations", "total_tokens", "param_data_ratio")  # the budget sets the length


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = sweep_parser("scaling_laws", __doc__)
    parser.add_argument("--budgets", nargs="+", default=[1e18, 2.15e18, 4.64e18, 1e19], help="in FLOPs")
    return parse_sweep_arguments(parser, argv, own=OWN)


def score(one: dict[str, float]) -> float:
    return one.get("val_bpb", one["loss"])


def best_of_budget(rows: list[dict[str, float]]) -> dict[str, float] | None:
    """The lowest point of a parabola through score against log(parameters), or None where there is none.

    Needs three sizes, a parabola that opens upwards, and a lowest point within the trained sizes: beyond them the fit
    says nothing.
    """
    if len({one["params"] for one in rows}) < 3:
        return None
    sizes = np.log([one["params"] for one in rows])
    bend, slope, level = np.polyfit(sizes, [score(one) for one in rows], 2)
    lowest = -slope / (2 * bend) if bend > 0 else math.nan
    if not sizes.min() <= lowest <= sizes.max():
        return None
    tokens = np.polyfit(sizes, np.log([one["tokens"] for one in rows]), 1)
    found = {"params": math.exp(lowest), "tokens": math.exp(np.polyval(tokens, lowest))}
    return {"flops": rows[0]["budget"], **found, "score": level - slope**2 / (4 * bend)}


def power_law(bests: list[dict[str, float]], name: str) -> tuple[float, float] | None:
    """(exponent, factor) of `name` = factor · FLOPs^exponent; None with fewer than two points."""
    if len(bests) < 2:
        return None
    exponent, log_factor = np.polyfit(np.log([b["flops"] for b in bests]), np.log([b[name] for b in bests]), 1)
    return float(exponent), math.exp(log_factor)


def describe(bests: list[dict[str, float]], missing: list[float]) -> str:
    lines = ["| budget | best scaling parameters | tokens | tokens per parameter | score |", "|--:|--:|--:|--:|--:|"]
    for best in bests:
        cells = [f"{best['flops']:.3g}", f"{best['params']:,.0f}", f"{best['tokens']:,.0f}"]
        lines.append(f"| {' | '.join(cells)} | {best['tokens'] / best['params']:.1f} | {best['score']:.4f} |")
    for budget in missing:
        lines.append(f"\n{budget:.3g}: no lowest point within these depths; add smaller or larger ones")
    for name in ("params", "tokens"):
        law = power_law(bests, name)
        if law:
            lines.append(f"\nbest {name} ∝ FLOPs^{law[0]:.3f}")
    return "\n".join(lines)


def draw(rows: list[dict[str, float]], bests: list[dict[str, float]], path: Path) -> None:
    """Left: one curve per budget. Right: best parameters and tokens against the budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    curves, laws = figure.subplots(1, 2)
    for budget in sorted({one["budget"] for one in rows}):
        members = sorted((one for one in rows if one["budget"] == budget), key=lambda one: one["params"])
        curves.plot([one["params"] for one in members], [score(one) for one in members], "o-", label=f"{budget:.2g}")
    curves.plot([best["params"] for best in bests], [best["score"] for best in bests], "k*", markersize=10)
    curves.set(xscale="log", xlabel="scaling parameters", ylabel="val bpb" if "val_bpb" in rows[0] else "loss")
    curves.legend(title="FLOPs", frameon=False, fontsize=8)
    for name, colour in (("params", "#0072B2"), ("tokens", "#D55E00")):
        if bests:
            laws.plot(
                [best["flops"] for best in bests], [best[name] for best in bests], "o-", color=colour, label=name
            )
    laws.set(xscale="log", yscale="log", xlabel="FLOPs")
    if bests:
        laws.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def sweep(options: argparse.Namespace, passed: list[str]) -> list[dict[str, Any]]:
    whole = ["--num_iterations", "-1", "--total_tokens", "-1"]  # a recipe's would count before the budget
    sizes = [(budget, depth) for budget in options.budgets for depth in options.depths]
    models = {
        f"{budget:.3g}-d{depth}": ["--depth", str(depth), "--target_flops", str(budget), *whole, *passed]
        for budget, depth in sizes
    }
    runs = train_models(models, options)
    return [summarize_run(run) | {"budget": budget} for run, (budget, _) in zip(runs, sizes, strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    options, passed = parse_arguments(argv)
    if len({f"{budget:.3g}" for budget in options.budgets}) < len(options.budgets):
        raise UserError("two --budgets are the same in three digits, and folders are named by these; move them apart")
    rows = sweep(options, passed)
    found = {budget: best_of_budget([one for one in rows if one["budget"] == budget]) for budget in options.budgets}
    bests = [best for _, best in sorted(found.items()) if best]
    settings.write_json(options.run_dir / "scaling_laws.json", {"runs": rows, "bests": bests})
    draw(rows, bests, options.run_dir / "scaling_laws.png")
    print(f"\n{describe(bests, [budget for budget, best in found.items() if not best])}")
    print(f"\nplot: {options.run_dir / 'scaling_laws.png'}")


if __name__ == "__main__":
    run_main(main)
