"""The report of a run: results, curves, samples, cost and settings on one page, `report.md`.

    python training/report.py --run_dir runs/quickstart

Reads the results of stages and evaluations in the run folder; a missing one is shown as "–".
"""

from dataclasses import dataclass

from nanochat_hf import settings
from nanochat_hf.settings import setting


@dataclass
class ReportConfig:
    run_dir: str = setting("runs/quickstart", "run folder", path=True)
    title: str | None = setting(None, "the report's title; default: the folder's name")


def main() -> None:
    config = settings.parse_stage("report", ReportConfig)

    from nanochat_hf import report

    path, table = report.write_report(config.run_dir, config.title)
    print(f"\n{table}\n\nreport: {path}")


if __name__ == "__main__":
    settings.run_main(main)
