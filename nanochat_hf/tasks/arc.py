"""ARC (Clark et al. 2018, arXiv:1803.05457): science exams for schools, in an easy and a challenge set."""

import os
from typing import Any, Literal

from nanochat_hf.tasks.common import ChoiceTask, choice_example, load_rows


class ARC(ChoiceTask):
    """Args: `source` a folder with ARC-Easy_<split>.jsonl and ARC-Challenge_<split>.jsonl, a file, or a Hub id.

    A few questions have three or five choices, or digits for letters: each example carries its own `letters`.
    """

    def __init__(
        self,
        subset: Literal["ARC-Easy", "ARC-Challenge"],
        source: str | os.PathLike = "allenai/ai2_arc",
        split: str = "test",
        limit: int | None = None,
    ):
        self.name = subset.lower()
        super().__init__(load_rows(source, f"{subset}_{split}.jsonl", subset=subset, split=split), limit)

    def example(self, row: dict[str, Any]) -> dict[str, Any]:
        choices = row["choices"]
        return choice_example(row["question"], choices["text"], choices["label"], row["answerKey"])
