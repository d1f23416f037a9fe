"""Reads what the stages of a run wrote: `<stage>/run.json` and `<stage>/eval/*.json`."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.settings import UserError


@dataclass(frozen=True)
class Stage:
    """What one stage wrote.

    Attributes:
        name: the stage's folder in the run, such as "base" or "sft".
        run: content of `run.json`; None where the stage has not finished.
        evaluations: name of an evaluation → content of its file.
    """

    name: str
    run: dict[str, Any] | None
    evaluations: dict[str, dict[str, Any]]

    @property
    def metrics(self) -> dict[str, float]:
        """The flat metrics of all evaluations."""
        return {name: value for result in self.evaluations.values() for name, value in result["metrics"].items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        """What training logged: one row per logged step, with its `step`."""
        return (self.run or {}).get("history") or []

    @property
    def evaluation_seconds(self) -> float:
        """Seconds that all evaluations took."""
        return sum(result.get("seconds") or 0 for result in self.evaluations.values())

    def tasks(self, evaluation: str) -> dict[str, dict[str, Any]]:
        """Rows of an evaluation ("core" or "chat") by task."""
        rows = self.evaluations.get(evaluation, {}).get("details", {}).get("tasks", [])
        return {row["task"]: row for row in rows}


def run_of(folder: str | os.PathLike) -> Path:
    """The run folder: `folder` itself, or the one above it where `folder` is that of a finished stage: `RUN/base`."""
    is_stage = Path(folder).absolute().name in settings.STAGE_FOLDERS.values() and settings.load_run(folder)
    return Path(os.path.normpath(Path(folder, ".."))) if is_stage else Path(folder)


def load_stage(run_dir: Path, name: str) -> Stage:
    """Reads the files of one stage. What is missing stays empty.

    Raises:
        UserError: a file is damaged.
    """
    evaluations = {}
    for path in sorted((run_dir / name / "eval").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # no JSON, or not UTF-8
            content = None
        if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
            raise UserError(f"{path} is damaged: delete it and evaluate again")
        evaluations[content.get("evaluation", path.stem)] = content
    return Stage(name, settings.load_run(run_dir / name), evaluations)


def describe_machine(environment: dict[str, Any]) -> str:
    """The machine of a stage's `environment`, such as "8 × NVIDIA H100" or "2 CPU cores"."""
    gpus = environment.get("gpus") or []
    return f"{len(gpus)} × {gpus[0]}" if gpus else f"{environment.get('cpu_cores', '?')} CPU cores"
