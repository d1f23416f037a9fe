"""MMLU (Hendrycks et al. 2020, arXiv:2009.03300): exams in 57 subjects, four choices each."""

import os
from typing import Any

from nanochat_hf.tasks.common import LETTERS, ChoiceTask, choice_example, load_rows


class MMLU(ChoiceTask):
    """Args: `source` a folder with mmlu_<split>.jsonl, a file, or a Hub id; `split` auxiliary_train, dev, validation
    or test (MMLU has no training split of its own: auxiliary_train is made of other exams)."""

    name = "mmlu"

    def __init__(self, source: str | os.PathLike = "cais/mmlu", split: str = "test", limit: int | None = None):
        super().__init__(load_rows(source, f"mmlu_{split}.jsonl", subset="all", split=split), limit)

    def example(self, row: dict[str, Any]) -> dict[str, Any]:
        example = choice_example(row["question"], row["choices"], LETTERS, LETTERS[row["answer"]])
        return {**example, "subject": row["subject"]}
