"""ARC (Clark et al. 2018, arXiv:1803.05457): school science questions, an easy and a challenge set."""

import os
from typing import Any, Literal

from nanochat_hf.settings import UserError
from nanochat_hf.tasks.base import ChoiceTask, choice_example
from nanochat_hf.tasks.reading import load_rows

COLUMNS = {"question": str, "choices": dict, "answerKey": str}


class ARC(ChoiceTask):
    """Multiple-choice questions. Some have three or five choices, or digits as letters: see `example["letters"]`.

    Args:
        subset: `"ARC-Easy"` or `"ARC-Challenge"`.
        source: a folder with ARC-Easy_<split>.jsonl and ARC-Challenge_<split>.jsonl, a file, or a Hub id.
        split: `"train"`, `"validation"` or `"test"`.
        limit: use only the file's first so many questions; default: all, in upstream's order.
        shuffle: take the first so many of upstream's order instead.

    Raises:
        UserError: see `load_rows`.
    """

    def __init__(
        self,
        subset: Literal["ARC-Easy", "ARC-Challenge"],
        source: str | os.PathLike = "allenai/ai2_arc",
        split: str = "test",
        limit: int | None = None,
        shuffle: bool = False,
    ):
        self.name = subset.lower()
        rows = load_rows(
            source,
            f"{subset}_{split}.jsonl",
            subset=subset,
            split=split,
            limit=limit,
            shuffle=shuffle,
            columns=COLUMNS,
        )
        super().__init__(rows)

    def example(self, row: dict[str, Any]) -> dict[str, Any]:
        texts, letters = (list(row["choices"].get(name) or []) for name in ("text", "label"))
        if len(texts) != len(letters) or len(set(letters)) < len(letters) or row["answerKey"] not in letters:
            raise UserError(
                "a question of ARC needs as many texts as labels under 'choices', no label twice, and its answerKey "
                f"among the labels; {row['question'][:60]!r} has {texts}, {letters} and {row['answerKey']!r}; mend or "
                "remove it"
            )
        return choice_example(row["question"], texts, letters, row["answerKey"])
