"""The report of a run: `stages` reads what a run left behind, `markdown` writes the page, `plots` draws."""

from nanochat_hf.report.markdown import write_report

__all__ = ["write_report"]
