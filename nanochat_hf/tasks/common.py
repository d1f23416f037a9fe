"""What all tasks share: the base class, reading rows from disk or from the Hub, and the exam layout.

A task is a list of conversations, each with the reference answer as its last assistant message, and a way to score
what a model says instead of that answer. A training split is a task whose score nobody asks for.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nanochat_hf.settings import UserError

LETTERS = ("A", "B", "C", "D")
SHUFFLE_SEED = 42  # upstream's: with the same seed a capped evaluation looks at the same first items
FINAL_NUMBER = re.compile(r"#### (-?[0-9.,]+)")


class Task:
    """A list of examples that a model can be trained on or scored with.

    An example is a conversation `{"messages": [...]}` that ends with the reference answer; it may carry more keys that
    `score` or an evaluation needs (`letters` and `answer` in a choice task, `entry_point` and `test` in a code task).

    Attributes:
        name: under which scores are reported.
        kind: `"choice"` where an evaluation compares the logits of `example["letters"]`, `"generative"` where it
            samples an answer.
        baseline: the score of a guess.
        runs_code: True where `score` runs what the model wrote.
    """

    name: str = ""
    kind: Literal["choice", "generative"] = "generative"
    baseline: float = 0.0
    runs_code: bool = False

    def __init__(self, rows: Sequence[Any], limit: int | None = None):
        self.rows = rows if limit is None else rows[:limit]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.example(self.rows[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def example(self, row: Any) -> dict[str, Any]:
        """Turns one row of the source into an example."""
        raise NotImplementedError

    def score(self, example: dict[str, Any], completion: str) -> float:
        """Returns 1.0 for a right and 0.0 for a wrong completion; `completion` is the assistant's text."""
        raise NotImplementedError


class ChoiceTask(Task):
    """An exam: the answer is one letter."""

    kind = "choice"
    baseline = 0.25

    def score(self, example: dict[str, Any], completion: str) -> float:
        return float(completion.strip() == example["answer"])


def choice_example(question: str, choices: Sequence[str], letters: Sequence[str], answer: str) -> dict[str, Any]:
    """Renders an exam question as a conversation, in the words that upstream's models were trained on.

    The letter stands right behind its choice: small models bind a letter more easily to what they have just read, most
    easily where `=A` is one token (docs/log.md).
    """
    options = "".join(f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=True))
    prompt = f"Multiple Choice question: {question}\n{options}\nRespond only with the letter of the correct answer."
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "letters": list(letters), "answer": answer}


def final_number(text: str) -> str | None:
    """Returns the number after the first `#### `, without thousands separators, or None."""
    found = FINAL_NUMBER.search(text)
    return found.group(1).replace(",", "") if found else None


def message_text(message: dict[str, Any]) -> str:
    """Returns a message's text; of a list of parts, all parts joined."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def load_rows(source: str | os.PathLike, pattern: str, *, subset: str | None = None, split: str) -> list[dict]:
    """Reads the rows of one split, shuffled as `datasets.Dataset.shuffle(seed=42)` shuffles them.

    Args:
        source: a file (.jsonl or .parquet), a folder, or the id of a dataset on the Hub.
        pattern: in a folder, which file or files to read, such as `"test.jsonl"` or `"train*.jsonl"`.
        subset: on the Hub, the dataset's configuration.
        split: on the Hub, the split. A single file is taken as it is.

    Raises:
        UserError: the source is missing, holds no such split or has a broken line.
    """
    path = Path(source)
    if path.exists():
        rows = [row for file in _files(path, pattern) for row in read_file(file)]
    elif looks_like_hub_id(source):
        rows = _hub_rows(str(source), subset, split)
    else:
        raise UserError(f"there is no file or folder {source}; give a path that exists or a Hub id such as owner/name")
    if not rows:
        raise UserError(f"{source} holds no rows for the split '{split}'")
    return [rows[index] for index in np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))]


def looks_like_hub_id(source: str | os.PathLike) -> bool:
    """True for `owner/name`, which no absolute, home or dotted path is."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(source)) is not None


def read_file(path: Path) -> list[Any]:
    """Reads a .jsonl or .parquet file; a broken line is named."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    rows = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                fault = f"{error.msg} at column {error.colno}"
                raise UserError(f"{path}, line {number}: not valid JSON ({fault})") from None
    return rows


def _files(path: Path, pattern: str) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.glob(pattern)) or sorted(path.glob(str(Path(pattern).with_suffix(".parquet"))))
    if not files:
        raise UserError(f"{path} has no {pattern}; the folder must hold that file, or give the file itself")
    return files


def _hub_rows(name: str, subset: str | None, split: str) -> list[dict]:
    import datasets

    try:
        return datasets.load_dataset(name, subset, split=split).to_list()
    except (datasets.exceptions.DatasetNotFoundError, ValueError, ConnectionError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot load {name} ({split}) from the Hub: {reason}; give a local folder instead") from None
