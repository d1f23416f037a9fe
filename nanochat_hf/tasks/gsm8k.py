"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): school word problems whose solutions mark each calculation.

    Natalia sold 48/2 = <<48/2=24>>24 clips in May. ... #### 72

Each mark becomes a call of the calculator and its output, so that the model learns to leave arithmetic to the tool.
"""

import os
import re
from typing import Any

from nanochat_hf.settings import UserError
from nanochat_hf.tasks.base import Task, final_number, message_text
from nanochat_hf.tasks.reading import load_rows
from nanochat_hf.tools.calculator import calculate

COLUMNS = {"question": str, "answer": str}
CALCULATOR_MARK = re.compile(r"<<([^<>]+)>>")


class GSM8K(Task):
    """Word problems with a number as the answer.

    Args:
        source: a folder with train.jsonl and test.jsonl, a file, or a Hub id.
        split: `"train"` or `"test"`.
        limit: use only the file's first so many problems; default: all, in upstream's order.
        shuffle: take the first so many of upstream's order instead.

    Raises:
        UserError: see `load_rows`.
    """

    name = "gsm8k"

    def __init__(
        self,
        source: str | os.PathLike = "openai/gsm8k",
        split: str = "test",
        limit: int | None = None,
        shuffle: bool = False,
    ):
        rows = load_rows(
            source, f"{split}.jsonl", subset="main", split=split, limit=limit, shuffle=shuffle, columns=COLUMNS
        )
        super().__init__(rows)

    def example(self, row: dict[str, str]) -> dict[str, Any]:
        example = word_problem(row["question"], row["answer"])
        if example["answer"] is None:
            raise UserError(
                f"a problem of GSM8K needs the answer as a number after ####, and {row['question'][:60]!r} has none; "
                "mend or remove it, or read the file as conversations=PATH"
            )
        return example

    def score(self, example: dict[str, Any], completion: str) -> float:
        return score_final_number(example, completion)


def word_problem(question: str, solution: str) -> dict[str, Any]:
    """Makes an example of a question and a solution with calculator marks; `answer` is the number after `####`."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": solution_parts(solution)}]
    return {"messages": messages, "answer": final_number(solution)}


def solution_parts(solution: str) -> list[dict[str, str]]:
    """Splits a solution at its `<<expression=result>>` marks into parts of type text, python and python_output.

    The output is what our calculator returns, not what the mark says: training must show what inference will show. A
    mark that the calculator refuses is left out, because inference would never answer such a call.

    Returns:
        The content of the assistant's message: a list of `{"type": ..., "text": ...}`.
    """
    parts: list[dict[str, str]] = []
    pieces = CALCULATOR_MARK.split(solution)  # text, mark, text, mark, ..., text
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            if piece:
                parts.append({"type": "text", "text": piece})
            continue
        expression = piece.rsplit("=", 1)[0]
        output = calculate(expression)
        if output is not None:
            parts.append({"type": "python", "text": expression})
            parts.append({"type": "python_output", "text": output})
    return parts


def score_final_number(example: dict[str, Any], completion: str) -> float:
    """Returns 1.0 where the number after the first `#### ` equals the reference's, as in the official evaluation."""
    reference = final_number(message_text(example["messages"][-1]))
    return float(reference is not None and final_number(completion) == reference)
