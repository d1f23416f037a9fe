"""SmolTalk (Ben Allal et al. 2025, arXiv:2502.02737): general conversations, in the version for small models."""

import os
from typing import Any

from nanochat_hf.settings import UserError
from nanochat_hf.tasks.base import Task
from nanochat_hf.tasks.formats import NotAConversation, to_conversation
from nanochat_hf.tasks.reading import load_rows


class SmolTalk(Task):
    """General conversations for training.

    Args:
        source: a folder with <split>*.jsonl or <split>*.parquet, a file, or a Hub id.
        split: `"train"` or `"test"`.
        limit: use only the file's first so many conversations; default: all, in upstream's order.
        shuffle: take the first so many of upstream's order instead.

    Raises:
        UserError: see `load_rows`; also where a row is not a conversation, when that row is read.
    """

    name = "smoltalk"
    has_score = False

    def __init__(
        self,
        source: str | os.PathLike = "HuggingFaceTB/smol-smoltalk",
        split: str = "train",
        limit: int | None = None,
        shuffle: bool = False,
    ):
        super().__init__(load_rows(source, f"{split}*.jsonl", split=split, limit=limit, shuffle=shuffle))

    def example(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            messages = to_conversation(row)
        except NotAConversation as error:
            raise UserError(f"a SmolTalk row is not a conversation: it {error}: {str(row)[:200]}") from None
        if messages is None:
            raise UserError(f"a SmolTalk row has no answer of the assistant; remove it: {str(row)[:200]}")
        return {"messages": messages}

    def score(self, example: dict[str, Any], completion: str) -> float:
        raise UserError("SmolTalk has no right answers to score; use it for training")
