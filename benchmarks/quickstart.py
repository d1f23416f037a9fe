"""The quickstart with several seeds: scores after each stage as mean and range, time and memory of each run.

    python benchmarks/quickstart.py --output_dir runs/seeds                                   # seeds 42, 1 and 2
    python benchmarks/quickstart.py --output_dir runs/mine --recipe my_recipe.yaml --seeds 1 2 3
    python benchmarks/quickstart.py --output_dir runs/seeds --seeds 42 1 2 --tables_only      # of finished runs

Each seed is a whole run of `training/speedrun.py`, one after another, in a folder of its own. Finished stages are
kept, so the command can be repeated until the tables are complete. Seconds are those of the stages' own clocks. They
mean something where the machine does nothing else.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from benchmark_tools import HelpFormat

from nanochat_hf.report.markdown import markdown_table
from nanochat_hf.report.stages import Stage, load_stage
from nanochat_hf.settings import UserError, run_main
from nanochat_hf.settings.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("base", "mid", "sft", "rl")
METRICS = {"strangers": "stranger's list", "chatcore": "ChatCORE"}  # beside the tasks
MISSING = "–"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/seeds"), help="receives a folder for each seed")
    parser.add_argument("--recipe", default="quickstart", help="recipe file, or a name")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 1, 2], help="seed of every stage of a run")
    parser.add_argument("--tables_only", action="store_true", help="train nothing; show what is there")
    return parser.parse_args()


def run(recipe: str, seed: int, folder: Path) -> None:
    """Trains and evaluates the recipe with a seed, or goes on where it was interrupted.

    Raises:
        UserError: the recipe cannot be read, or a stage has failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections, _ = load_recipe(recipe, "speedrun")
    sections["common"] = {**(sections.get("common") or {}), "seed": seed}
    own = folder / "recipe.yaml"
    own.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    command = [sys.executable, str(ROOT / "training" / "speedrun.py"), "--config", str(own), "--run_dir", str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"the run with seed {seed} has failed; its last lines say why. Finished stages are kept")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"seed {seed}: {busy:,.0f} processor seconds, largest process so far {after.ru_maxrss / 2**20:.2f} GiB")


def scores_of(stage: Stage) -> dict[str, float]:
    """Scores of a stage between 0 and 1, by task or metric."""
    found = {task: row["accuracy"] for task, row in stage.tasks("chat").items()}
    return found | {title: stage.metrics[name] for name, title in METRICS.items() if name in stage.metrics}


def score_table(runs: Sequence[dict[str, Stage]]) -> list[list[str]]:
    """Mean over the runs in %, and in brackets the lowest and the highest."""
    scores = [{name: scores_of(stage) for name, stage in stages.items()} for stages in runs]
    titles = list(dict.fromkeys(title for run in scores for stage in run.values() for title in stage))
    table = [["score", *STAGES]]
    for title in titles:
        row = [title]
        for name in STAGES:
            found = [100 * run[name][title] for run in scores if title in run[name]]
            row.append(
                f"{sum(found) / len(found):.1f} [{min(found):.1f}, {max(found):.1f}]"
                if len(found) == len(runs)
                else MISSING
            )
        table.append(row)
    return table


def time_table(seeds: Sequence[int], runs: Sequence[dict[str, Stage]]) -> list[list[str]]:
    """Seconds of each stage and of the evaluations, by seed."""
    table = [["seed", *STAGES, "evaluations", "all"]]
    for seed, stages in zip(seeds, runs, strict=True):
        seconds = [(stages[name].run or {}).get("seconds") for name in STAGES]
        measured = sum(stage.evaluation_seconds for stage in stages.values())
        known = None not in seconds
        whole = f"{sum(seconds) + measured:,.0f}" if known else MISSING
        table.append([str(seed), *(MISSING if s is None else f"{s:,.0f}" for s in seconds), f"{measured:,.0f}", whole])
    return table


def main() -> None:
    options = parse_arguments()
    folders = [options.output_dir.resolve() / f"seed-{seed}" for seed in options.seeds]
    for seed, folder in zip(options.seeds, folders, strict=True):
        if not options.tables_only:
            run(options.recipe, seed, folder)
        elif not folder.is_dir():
            raise UserError(f"there is no run in {folder}; leave out --tables_only, or the seed {seed}")
    runs = [{name: load_stage(folder, name) for name in STAGES} for folder in folders]
    print(f"\nright answers in %, mean [lowest, highest] of {len(runs)} seeds\n")
    print(markdown_table(score_table(runs)))
    print("\nseconds\n")
    print(markdown_table(time_table(options.seeds, runs)))


if __name__ == "__main__":
    run_main(main)
