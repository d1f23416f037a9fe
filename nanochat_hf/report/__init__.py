"""The report of a run: `stages` reads what a run wrote, `markdown` writes the page, `plots` draws the pictures."""

from nanochat_hf.report.markdown import write_report

__all__ = ["write_report"]
