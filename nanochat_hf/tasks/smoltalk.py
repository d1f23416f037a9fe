"""SmolTalk (Ben Allal et al. 2025, arXiv:2502.02737): general conversations, in the version for small models."""

import os
from typing import Any

from nanochat_hf.settings import UserError
from nanochat_hf.tasks.common import Task, load_rows
from nanochat_hf.tasks.custom_json import conversation_fault


class SmolTalk(Task):
    """Args: `source` a folder with <split>*.jsonl or <split>*.parquet, a file, or a Hub id; `split` train or test."""

    name = "smoltalk"

    def __init__(
        self, source: str | os.PathLike = "HuggingFaceTB/smol-smoltalk", split: str = "train", limit: int | None = None
    ):
        super().__init__(load_rows(source, f"{split}*.jsonl", split=split), limit)

    def example(self, row: dict[str, Any]) -> dict[str, Any]:
        fault = conversation_fault(row.get("messages"))
        if fault:
            raise UserError(f"a SmolTalk row {fault}: {str(row)[:200]}")
        return {"messages": row["messages"]}

    def score(self, example: dict[str, Any], completion: str) -> float:
        raise UserError("SmolTalk has no right answers to score; use it for training")
