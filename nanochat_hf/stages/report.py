"""The report of a run: results, curves, samples, cost and settings on one page, `report.md`.

    python -m nanochat_hf.stages.report --run_dir runs/quickstart

`nanochat-hf report` does the same for a folder named as its argument.

Reads the results of stages and evaluations in the run folder; a missing one is shown as "–".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_hf import settings
from nanochat_hf.settings import StageHelp, setting


@dataclass
class ReportConfig:
    run_dir: str = setting("runs/quickstart", "run folder", path=True)
    title: str | None = setting(None, "the report's title; default: the folder's name")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    config = settings.parse_stage("report", ReportConfig, argv, StageHelp("report", __doc__, "run_dir title"))

    from nanochat_hf import report

    path, table = report.write_report(config.run_dir, config.title)
    print(f"\n{table}\n\nreport: {path}")


if __name__ == "__main__":
    settings.run_main(main)
