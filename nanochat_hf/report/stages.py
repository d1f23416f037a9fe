"""What the stages of a run left behind: `<stage>/run.json` and `<stage>/eval/*.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.settings import UserError


@dataclass(frozen=True)
class Stage:
    """What one stage left behind."""

    name: str
    run: dict[str, Any] | None
    evaluations: dict[str, dict[str, Any]]  # evaluation's name → content of its file

    @property
    def metrics(self) -> dict[str, float]:
        return {name: value for result in self.evaluations.values() for name, value in result["metrics"].items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        return (self.run or {}).get("history") or []

    def tasks(self, evaluation: str) -> dict[str, dict[str, Any]]:
        """Rows of an evaluation, by task."""
        rows = self.evaluations.get(evaluation, {}).get("details", {}).get("tasks", [])
        return {row["task"]: row for row in rows}


def load_stage(run_dir: Path, name: str) -> Stage:
    evaluations = {}
    for path in sorted((run_dir / name / "eval").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(f"{path} is damaged: delete it and evaluate again") from None
        evaluations[content.get("evaluation", path.stem)] = content
    return Stage(name, settings.load_run(run_dir / name), evaluations)
