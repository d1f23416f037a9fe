"""Reads the rows of a benchmark or of one's own data: from files, folders or the Hub.

A row is what one line, one array item or one table row holds: a dict, or for a bare conversation a list.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_hf.settings import UserError

SHUFFLE_SEED = 42  # upstream's
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"
)
BYTE_ORDER_MARKS = (  # UTF-32's first: the little-endian one begins like UTF-16's
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
Numbered = tuple[str, Any]  # where the row is, such as "line 3", and the row


def load_rows(
    source: str | os.PathLike,
    pattern: str,
    *,
    subset: str | None = None,
    split: str,
    limit: int | None = None,
    shuffle: bool = False,
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

    Raises:
        UserError: the source is missing, has no rows for the split, or has a file that cannot be read.
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
    return rows[:limit] if limit is not None and not shuffle else shuffled(rows)[:limit]


def shuffled(rows: Sequence[Any]) -> list[Any]:
    """The rows in upstream's order, that of `datasets.Dataset.shuffle(seed=42)`."""
    return [rows[index] for index in np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))]


def looks_like_hub_id(source: str | os.PathLike) -> bool:
    """Returns whether `source` has the form `owner/name` or `owner/name:config`; `/`, `~` and `.` begin a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?", str(source)) is not None


def file_suffix(path: Path) -> str | None:
    """Returns the suffix in `SUFFIXES` that says what a file is, a compression's left out; None for other files."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = Path(name).suffix
    return suffix if suffix in SUFFIXES else None


def read_file(path: Path) -> list[Any]:
    """Reads the rows of one file; see `read_numbered`."""
    return [row for _, row in read_numbered(path)]


def read_numbered(path: Path) -> Iterator[Numbered]:
    """Yields the rows of one file, each with its place in the file.

    Files: JSON lines, a JSON array or object, CSV and TSV, parquet, Arrow; text files also compressed (.gz, .bz2, .xz,
    .zst). Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark. Blank lines are skipped.

    Raises:
        UserError: the file is missing or damaged, is not in one of these formats or encodings, or a line is not JSON.
            The message names the file, the place and the remedy.
    """
    try:
        content = _decompressed(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give a file in it") from None
    except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:  # pyarrow's errors are these, too
        raise UserError(f"{path} cannot be read ({_first_line(error)}); is it whole? Fetch or make it again") from None
    if content[:4] == b"PAR1" or content[:6] == b"ARROW1" or file_suffix(path) in (".parquet", ".arrow"):
        yield from _table_rows(path, content)
        return
    if content[:2] == b"PK":
        raise UserError(f"{path} is a zip archive or a spreadsheet; unpack it, or save it as CSV")
    text = _decoded(path, content)
    if not text.strip():
        raise UserError(f"{path} is empty; remove it or make it again")
    if file_suffix(path) in (".csv", ".tsv"):
        yield from _csv_rows(path, text)
    else:
        yield from _json_rows(path, text)


def _decompressed(path: Path) -> bytes:
    """Reads a file whole and unpacks it; its first bytes say how, not its name."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        return gzip.decompress(content)
    if content[:3] == b"BZh":
        return bz2.decompress(content)
    if content[:6] == b"\xfd7zXZ\x00":
        return lzma.decompress(content)
    if content[:4] == b"\x28\xb5\x2f\xfd":
        import pyarrow

        return pyarrow.input_stream(io.BytesIO(content), compression="zstd").read()
    return content


def _decoded(path: Path, content: bytes) -> str:
    """Decodes a text file.

    Raises:
        UserError: it is in another encoding; the message names the first byte that is wrong.
    """
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and b"\0" in content:
        raise UserError(
            f"{path} has a zero byte at offset {content.index(0)}, perhaps it is UTF-16 without a byte order mark; "
            + _convert(path, "utf-16be" if content[0] == 0 else "utf-16le")
        )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding in ("utf-16", "utf-32"):
            raise UserError(
                f"{path} is {encoding.upper()} by its first bytes, but byte {error.start} cannot be read "
                f"({error.reason}); save it as UTF-8"
            ) from None
        offset = error.start + (3 if encoding == "utf-8-sig" else 0)
        line = content[:offset].count(b"\n") + 1
        raise UserError(
            f"{path} is not UTF-8: byte 0x{content[offset]:02x} at offset {offset} (line {line}), perhaps Latin-1; "
            + _convert(path, "latin1")
        ) from None


def _convert(path: Path, encoding: str) -> str:
    """Returns the remedy for a file in another encoding."""
    if path.suffix.lower() in COMPRESSIONS:
        return f"unpack it and convert it, for example with: iconv -f {encoding} -t utf-8"
    return f"convert it, for example with: iconv -f {encoding} -t utf-8 {path.name} > utf8-{path.name}"


def _table_rows(path: Path, content: bytes) -> Iterator[Numbered]:
    import pyarrow
    import pyarrow.parquet

    try:
        source = pyarrow.BufferReader(content)
        if content[:4] == b"PAR1":
            table = pyarrow.parquet.read_table(source)
        elif content[:6] == b"ARROW1":
            table = pyarrow.ipc.open_file(source).read_all()
        else:
            table = pyarrow.ipc.open_stream(source).read_all()  # what `datasets` writes
        rows = table.to_pylist()
    except (OSError, ValueError, EOFError) as error:  # pyarrow's errors are these
        raise UserError(f"{path} cannot be read ({_first_line(error)}); is it whole? Fetch or make it again") from None
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _csv_rows(path: Path, text: str) -> Iterator[Numbered]:
    """Yields the rows of a table whose first line names the columns; the separator is `,`, `;` or a tab."""
    first = text.lstrip().split("\n", 1)[0]
    separator = "\t" if file_suffix(path) == ".tsv" else max(",;\t", key=first.count)
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for row in reader:
            if None in row:
                raise UserError(
                    f"{path}, line {reader.line_num}: there are more fields than the first line names columns; "
                    "put quotes around text that holds the separator"
                )
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}, after line {reader.line_num}: not valid CSV ({error}); mend the quotes") from None


def _json_rows(path: Path, text: str) -> Iterator[Numbered]:
    """Yields the rows of JSON lines. A file that is one JSON value over several lines is one row."""
    lines = enumerate(io.StringIO(text, newline=None), 1)  # newline=None: LF, CR LF and CR end a line
    first = True
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            fault: Exception = error
            if first:
                try:
                    yield "the file's value", json.loads(text)
                    return
                except (json.JSONDecodeError, RecursionError) as whole:
                    if file_suffix(path) == ".json" and isinstance(whole, json.JSONDecodeError):
                        fault, number = whole, whole.lineno
            detail = f"{fault.msg} at column {fault.colno}" if isinstance(fault, json.JSONDecodeError) else str(fault)
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
        source: path, or `owner/name` or `owner/name:config`.
        split: `"train"`, `"validation"`, `"test"` or the name of a data set's split.

    Returns:
        (name, rows) of each file in order of their names, and a note on what was left out by name, else "".

    Raises:
        UserError: there is nothing at `source`, or it has no such split.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [(str(path), read_numbered(path))], ""
    if path.is_dir():
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return [(str(path), _saved_rows(path, split))], ""
        files, note = files_of_split(path, split)
        return [(str(file), read_numbered(file)) for file in files], note
    if looks_like_hub_id(source) and file_suffix(path) is None:
        name, _, config = str(source).partition(":")
        return [(str(source), hub_split(name, config or None, split))], ""
    raise UserError(
        f"there are no conversations at {source}: give a file ({', '.join(SUFFIXES)}), a folder with such files, "
        "or a data set of the Hub such as owner/name"
    )


def files_of_split(folder: Path, split: str) -> tuple[list[Path], str]:
    """Returns the readable files in a folder and below it that belong to a split.

    Two files name splits where their names differ only in the split's word, which stands at the beginning or the end
    (`train-00000-of-00003.parquet` and `test-00000-of-00001.parquet`, `my_train.jsonl` and `my_val.jsonl`), or where
    their folders do (`train/a.jsonl`, `test/b.jsonl`). A word that stands in a title alone chooses nothing. Files that
    name no split belong to `"train"`. Where there is no validation split the test split is read for it, and the other
    way round. A README.md with `configs:` is read as `datasets` reads it.

    Returns:
        The files, and a note that names the files left out, else "".

    Raises:
        UserError: there is no readable file, or none of the split.
    """
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and file_suffix(file)
        and file.name not in ("dataset_infos.json", "dataset_info.json", "state.json")
        and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    )
    if not found:
        raise UserError(f"there are no conversations at {folder}: give a file or folder with {', '.join(SUFFIXES)}")
    card = _splits_of_card(folder)
    of_file = {file: card.get(file, "") for file in found} if card else _splits_of_names(folder, found)
    if not of_file:
        return found, ""
    wanted = _choose_split(folder, sorted(set(of_file.values()) - {""}), split)
    chosen = [file for file in found if of_file[file] == wanted]
    left = [str(file.relative_to(folder)) for file in found if file not in chosen]
    shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
    return chosen, f"{len(chosen)} files of the split {wanted}" + (f"; not read: {shown}" if left else "")


def _splits_of_card(folder: Path) -> dict[Path, str]:
    """Returns the split of each file that the folder's README.md names under `configs:`; {} where there is none."""
    if not (folder / "README.md").is_file():
        return {}
    from datasets.data_files import DataFilesDict, sanitize_patterns
    from huggingface_hub import DatasetCard

    try:
        configs = DatasetCard.load(folder / "README.md").data.to_dict().get("configs") or []
    except (ValueError, OSError):  # no front matter that can be read
        return {}
    if not configs:
        return {}
    config = next((one for one in configs if one.get("default") or one.get("config_name") == "default"), configs[0])
    if not config.get("data_files"):
        return {}
    try:
        found = DataFilesDict.from_patterns(sanitize_patterns(config["data_files"]), base_path=str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{folder / 'README.md'} names files that are not there ({_first_line(error)})") from None
    return {Path(file): str(split) for split, files in found.items() for file in files}


def _splits_of_names(folder: Path, files: list[Path]) -> dict[Path, str]:
    """Returns the split of each file by its name; {} where no two names differ in the split's word alone."""
    words: dict[Path, tuple[str, str]] = {}
    for file in files:
        if found := _split_word(file.relative_to(folder)):
            words[file] = found
    splits_of: dict[str, set[str]] = {}
    for word, rest in words.values():
        splits_of.setdefault(rest, set()).add(word)
    of_file = {file: word for file, (word, rest) in words.items() if len(splits_of[rest]) > 1}
    return {file: of_file.get(file, "train") for file in files} if of_file else {}


def _split_word(path: Path) -> tuple[str, str] | None:
    """Returns the split that a path below a folder names and the path without that word; None where it names none."""
    stem = path.name.lower().split(".", 1)[0]
    stem = re.sub(r"[-_]\d+([-_]of[-_]\d+)?$", "", stem)  # the number of a shard
    pieces = re.split(r"[-_ ]", stem)
    parent = path.parent.as_posix()
    for place in (0, -1):
        if pieces[place] in SPLIT_WORDS:
            return SPLIT_WORDS[pieces.pop(place)], f"{parent}/{'-'.join(pieces)}"
    folders = list(path.parts[:-1])
    for place in reversed(range(len(folders))):
        if folders[place].lower() in SPLIT_WORDS:
            return SPLIT_WORDS[folders.pop(place).lower()], "/".join(folders) + "/*"
    return None


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
        splits = datasets.get_dataset_split_names(name, config)
        chosen = _choose_split(name, [str(one) for one in splits], split)
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
