"""Reads the rows of a benchmark from files or from the Hub."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_hf.settings import UserError

SHUFFLE_SEED = 42  # upstream's: with the same seed a limited evaluation looks at the same first examples


def load_rows(source: str | os.PathLike, pattern: str, *, subset: str | None = None, split: str) -> list[dict]:
    """Reads the rows of one split, shuffled as `datasets.Dataset.shuffle(seed=42)` shuffles them.

    Args:
        source: a file (.jsonl or .parquet), a folder, or the Hub id of a data set. A single file is read whole.
        pattern: which files of a folder to read, such as `"test.jsonl"` or `"train*.jsonl"`. Where none matches, the
            same name with `.parquet` is tried.
        subset: the configuration of the data set on the Hub.
        split: the split of the data set on the Hub.

    Raises:
        UserError: the source is missing, has no rows for the split, or has a line that is not JSON.
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
    """Returns whether `source` has the form `owner/name`. Paths that begin with `/`, `~` or `.` do not."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(source)) is not None


def read_file(path: Path) -> list[Any]:
    """Reads the rows of a .jsonl or .parquet file.

    Raises:
        UserError: a line is not JSON; the message names file, line and column.
    """
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
                detail = f"{error.msg} at column {error.colno}"
                raise UserError(f"{path}, line {number}: not valid JSON ({detail})") from None
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
