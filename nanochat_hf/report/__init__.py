"""The report of a run: `stages` reads what a run wrote, `markdown` writes the page, `plots` draws the pictures.

`compare` puts several runs side by side, with paired tests.
"""

from nanochat_hf.report.compare import compare_runs
from nanochat_hf.report.markdown import write_report

__all__ = ["compare_runs", "write_report"]
