"""The report of a run: results, curves, samples, cost and settings on one page, `report.md`.

    python training/report.py --run_dir runs/quickstart

Reads the results of stages and evaluations in the run folder; a missing one is shown as "–".
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.report import main

if __name__ == "__main__":
    run_main(main)
