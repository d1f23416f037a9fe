"""Reads the rows of a benchmark or of one's own data: from files, folders or the Hub.

A row is what one line, one array item or one table row holds: a dict, or for a bare conversation a list. Files are
decoded, and splits are told by names, as for pretraining (`nanochat_hf.data`).
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_hf.data import files, splits, table_files
from nanochat_hf.data.decoding import text_chunks, text_lines
from nanochat_hf.data.found import looks_like_hub_id
from nanochat_hf.settings import UserError

SHUFFLE_SEED = 42  # upstream's
SUFFIXES = tuple(suffix for suffix, kind in files.KINDS.items() if kind != "text")
Numbered = tuple[str, Any]  # where the row is, such as "line 3", and the row


def load_rows(
    source: str | os.PathLike,
    pattern: str,
    *,
    subset: str | None = None,
    split: str,
    limit: int | None = None,
    shuffle: bool = False,
    columns: Mapping[str, type] | None = None,
) -> list[dict]:
    """Reads the rows of one split.

    The first `limit` rows are those of the file, in the file's order, as other harnesses take them. A whole split is
    in upstream's order, that of `datasets.Dataset.shuffle(seed=42)`.

    Args:
        source: a file (see `read_file`), a folder, or the Hub id of a data set. A single file is read whole.
        pattern: which files of a folder to read, such as `"test.jsonl"` or `"train*.jsonl"`. Where none matches, the
            same name with `.parquet` is tried.
        subset: the configuration of the data set on the Hub.
        split: the split of the data set on the Hub.
        limit: number of rows; None takes all.
        shuffle: takes the first `limit` rows of upstream's order, as upstream does, instead of the file's.
        columns: what each row must have: name → type of the value.

    Raises:
        UserError: the source is missing, has no rows for the split, has a file that cannot be read, or a row of
            another form.
    """
    path = Path(source).expanduser()
    if path.exists():
        rows = [row for file in _files(path, pattern) for row in read_file(file)]
    elif looks_like_hub_id(source):
        rows = _hub_rows(str(source), subset, split)
    else:
        raise UserError(f"there is no file or folder {source}; give a path that exists or a Hub id such as owner/name")
    if not rows:
        raise UserError(f"{source} holds no rows for the split '{split}'")
    for row in rows if columns else ():
        check_row(row, columns, str(source))
    return rows[:limit] if limit is not None and not shuffle else shuffled(rows)[:limit]


def check_row(row: Any, columns: Mapping[str, type], source: str) -> None:
    """Checks that a row has the columns of its benchmark.

    Args:
        columns: name → type of the value.
        source: where the row is from, for the message.

    Raises:
        UserError: a column is missing or holds something else.
    """
    wrong = [
        name for name, kind in columns.items() if not isinstance(row, dict) or not isinstance(row.get(name), kind)
    ]
    if wrong:
        kinds = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
        needed = ", ".join(f"{name} ({kinds[kind]})" for name, kind in columns.items())
        raise UserError(
            f"{source} has another form than this task reads: each row needs {needed}, and {str(row)[:80]} has no "
            f"such {wrong[0]}; conversations=PATH reads chats of many forms"
        )


def shuffled(rows: Sequence[Any]) -> list[Any]:
    """The rows in upstream's order, that of `datasets.Dataset.shuffle(seed=42)`."""
    return [rows[index] for index in np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))]


def read_file(path: Path) -> list[Any]:
    """Reads the rows of one file; see `read_numbered`."""
    return [row for _, row in read_numbered(path)]


def read_numbered(path: Path) -> Iterator[Numbered]:
    """Yields the rows of one file, each with its place in the file.

    Files: JSON lines, a JSON array or object, CSV and TSV, parquet, Arrow; text files also compressed; see
    `nanochat_hf.data.decoding`. Blank lines are skipped.

    Raises:
        UserError: the file is missing or damaged, is not in one of these formats or encodings, or a line is not JSON.
            The message names the file, the place and the remedy.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file in it")
    with files.errors_as_sentences(path):
        kind = files.file_format(path)
        if kind is None and files.has_no_ending(path):
            kind = files.format_by_content(path)
        if kind in ("parquet", "arrow"):
            for number, row in enumerate(table_files.whole_rows(path, kind), 1):
                yield f"row {number}", row
            return
        found = False
        for place, row in _csv_rows(path) if kind == "csv" else _json_rows(path):
            found = True
            yield place, row
        if not found and not any(line.strip() for line in text_lines(path)):
            raise UserError(f"{path} is empty; remove it or make it again")


def _csv_rows(path: Path) -> Iterator[Numbered]:
    columns, rows = table_files.csv_table(text_lines(path), path)
    for number, fields in rows:
        yield f"line {number}", dict.fromkeys(columns) | dict(zip(columns, fields, strict=False))


def _json_rows(path: Path) -> Iterator[Numbered]:
    """Yields the rows of JSON lines. A file that is one JSON value over several lines is one row."""
    first = True
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            fault: Exception = error
            if first:
                try:
                    yield "the file's value", json.loads("".join(text_chunks(path)))
                    return
                except (json.JSONDecodeError, RecursionError) as whole:
                    if ".json" in path.suffixes and isinstance(whole, json.JSONDecodeError):
                        fault, number = whole, whole.lineno
            if first and files.file_format(path) not in ("json", None):
                raise UserError(
                    f"{path}, line {number} is not JSON, as rows of data are; give {', '.join(SUFFIXES)} files"
                ) from None
            nested = "it is nested too deeply"
            detail = f"{fault.msg} at column {fault.colno}" if isinstance(fault, json.JSONDecodeError) else nested
            raise UserError(f"{path}, line {number}: not valid JSON ({detail}); mend or remove it") from None
        yield f"line {number}", row
        first = False


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


# ---- folders and the Hub: all files, or those of a split ----------------------------


def read_source(source: str | os.PathLike, split: str) -> tuple[list[tuple[str, Iterator[Numbered]]], str]:
    """Finds one's own data: a file, a folder or a data set of the Hub.

    A single file is read whole. A folder in which the file names say two or more splits (see `files_of_split`) is read
    by split; another folder is read whole. A folder that `datasets` saved and a data set of the Hub have named splits.

    Args:
        source: path, perhaps followed by `:config` where it is a folder; or `owner/name` or `owner/name:config`.
        split: `"train"`, `"validation"`, `"test"` or the name of a data set's split.

    Returns:
        (name, rows) of each file in order of their names, and a note on what was left out by name, else "".

    Raises:
        UserError: there is nothing at `source`, or it has no such split.
    """
    path, config = Path(source).expanduser(), ""
    folder, _, last = str(source).rpartition(":")
    if not path.exists() and folder and Path(folder).expanduser().is_dir():
        path, config = Path(folder).expanduser(), last
    if path.is_file():
        return [(str(path), read_numbered(path))], ""
    if path.is_dir():
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return [(str(path), _saved_rows(path, split))], ""
        chosen, note = files_of_split(path, split, config)
        return [(str(file), read_numbered(file)) for file in chosen], note
    if looks_like_hub_id(source) and files.file_format(path) is None:
        name, _, config = str(source).partition(":")
        return [(str(source), hub_split(name, config or None, split))], ""
    raise _nothing_at(source, ", or a data set of the Hub such as owner/name")


def _nothing_at(source: Any, more: str = "") -> UserError:
    return UserError(
        f"there are no conversations at {source}: give a file ({', '.join(SUFFIXES)}), a folder with such files{more}"
    )


def files_of_split(folder: Path, split: str, config: str = "") -> tuple[list[Path], str]:
    """Returns the readable files in a folder and below it that belong to a split.

    The rules are those of `nanochat_hf.data.splits`: a README.md with `configs:`, then the names of files and folders.
    A word that stands in a title alone chooses nothing. Other than for text, names that say one split alone divide
    nothing, files that name no split belong to `"train"`, and validation and test files stand in for each other.

    Args:
        folder: an existing folder.
        split: see `read_source`.
        config: a config of the folder's README.md; "" for the default one.

    Returns:
        The files, and a note that names the files left out, else "".

    Raises:
        UserError: there is no readable file, or none of the split.
    """
    listed, _ = files.list_folder(folder)
    paths = {file.relative_to(folder).as_posix(): file for file in listed if files.file_format(file) != "text"}
    if not paths:
        raise _nothing_at(folder)
    names, said = splits.files_of_config(str(folder), splits.read_card(folder), list(paths), config)
    if all(name.endswith(word) for name, word in zip(names, said, strict=True)):  # no splits of a card, but names
        told = splits.splits_of(said)
        said = [word or "train" for word in told] if len(set(told) - {None}) > 1 else [split] * len(names)
    wanted = _choose_split(folder, sorted(set(said)), split)
    chosen = [paths[name] for name, word in zip(names, said, strict=True) if word == wanted]
    left = sorted(name for name, file in paths.items() if file not in chosen)
    shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
    return chosen, f"{len(chosen)} files of the split {wanted}; not read: {shown}" if left else ""


def _choose_split(source: Any, splits: list[str], split: str) -> str:
    """Returns the split to read: the one asked for; validation and test stand in for each other.

    Raises:
        UserError: there is none; the message names those that there are.
    """
    stands_in = {"validation": "test", "test": "validation"}.get(split)
    for name in (split, stands_in):
        if name in splits:
            return name
    raise UserError(
        f"{source} has no split '{split}' (it has: {', '.join(splits)}); name one, as in "
        f"conversations/{splits[0] if splits else 'NAME'}={source}"
    )


def _saved_rows(folder: Path, split: str) -> Iterator[Numbered]:
    """Yields the rows of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} cannot be read ({_first_line(error)}); save it again") from None
    if isinstance(saved, datasets.DatasetDict):
        saved = saved[_choose_split(folder, list(saved), split)]
    for number, row in enumerate(saved, 1):
        yield f"row {number}", row


def hub_split(name: str, config: str | None, split: str) -> Iterator[Numbered]:
    """Yields the rows of one split of a data set, through `datasets.load_dataset`.

    Args:
        name: a Hub id (or any folder that `datasets.load_dataset` reads).
        config: the data set's configuration; None: its default.
        split: as in `read_source`.

    Raises:
        UserError: the data set cannot be loaded, or has no such split.
    """
    import datasets

    try:
        known = datasets.get_dataset_split_names(name, config)
        chosen = _choose_split(name, [str(one) for one in known], split)
        rows = datasets.load_dataset(name, config, split=chosen)
    except UserError:
        raise
    except Exception as error:  # of the network, of the Hub, of pyarrow
        raise UserError(
            f"there is no file or folder {name}, and as a data set of the Hub it cannot be loaded "
            f"({_first_line(error)}); check the name and the connection"
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _files(path: Path, pattern: str) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.glob(pattern)) or sorted(path.glob(str(Path(pattern).with_suffix(".parquet"))))
    files = files or sorted(path.glob(pattern + ".gz"))
    if not files:
        raise UserError(f"{path} has no {pattern}; the folder must hold that file, or give the file itself")
    return files


def _hub_rows(name: str, subset: str | None, split: str) -> list[dict]:
    import datasets

    try:
        name, _, config = name.partition(":")
        return datasets.load_dataset(name, config or subset, split=split).to_list()
    except (datasets.exceptions.DatasetNotFoundError, ValueError, ConnectionError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot load {name} ({split}) from the Hub: {reason}; give a local folder instead") from None
