"""MMLU (Hendrycks et al. 2020, arXiv:2009.03300): exams in 57 subjects, four choices each."""

import os
from typing import Any

from nanochat_hf.settings import UserError
from nanochat_hf.tasks.base import LETTERS, ChoiceTask, choice_example
from nanochat_hf.tasks.reading import load_rows

COLUMNS = {"question": str, "choices": list, "answer": int, "subject": str}


class MMLU(ChoiceTask):
    """Multiple-choice questions; each example also has its `subject`.

    Args:
        source: a folder with mmlu_<split>.jsonl, a file, or a Hub id.
        split: `"auxiliary_train"`, `"dev"`, `"validation"` or `"test"`. MMLU has no training split of its own:
            `"train"` means auxiliary_train, which is made of other exams.
        limit: use only the file's first so many questions; default: all, in upstream's order.
        shuffle: take the first so many of upstream's order instead.

    Raises:
        UserError: see `load_rows`.
    """

    name = "mmlu"

    def __init__(
        self,
        source: str | os.PathLike = "cais/mmlu",
        split: str = "test",
        limit: int | None = None,
        shuffle: bool = False,
    ):
        if split == "train":
            split = "auxiliary_train"
        rows = load_rows(
            source, f"mmlu_{split}.jsonl", subset="all", split=split, limit=limit, shuffle=shuffle, columns=COLUMNS
        )
        super().__init__(rows)

    def example(self, row: dict[str, Any]) -> dict[str, Any]:
        if len(row["choices"]) != len(LETTERS) or not 0 <= row["answer"] < len(LETTERS):
            raise UserError(
                f"a question of MMLU needs four choices and an answer from 0 to 3, and {row['question'][:60]!r} has "
                f"{len(row['choices'])} choices and the answer {row['answer']}; mend or remove it"
            )
        example = choice_example(row["question"], row["choices"], LETTERS, LETTERS[row["answer"]])
        return {**example, "subject": row["subject"]}
