"""Reads documents from one file: parquet, JSON lines or plain text, the latter two also compressed (.gz, .zst).

In: a path. Out: groups of documents (`Group`), the units in which files are divided among readers and in which a run
resumes. A parquet file has its own row groups; of any other file 1,024 documents are a group. Whatever is wrong with a
file is raised as `UserError`, with one sentence that names the file.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from nanochat_hf.settings import UserError

GROUP_SIZE = 1024  # documents per group where the file has no groups of its own; also upstream's row group size
TEXT_COLUMNS = ("text", "content", "document", "raw_content", "body")  # tried in this order
COMPRESSIONS = (".gz", ".zst")
FORMATS = (".parquet", ".jsonl", ".json", ".txt", ".md")
END_OF_TEXT = "<|endoftext|>"  # the line that separates documents in text corpora such as TinyStories
TEXT_DOCUMENT_CHARS = 4000  # about the mean length of a web document, for text files that mark no documents

T = TypeVar("T")
Paths = str | os.PathLike | Sequence[str | os.PathLike]
Group = tuple[int, int, list[str]]  # index of the group, index of its first document in the file, its documents


def file_format(path: str | os.PathLike) -> str | None:
    """Returns the suffix in `FORMATS` that says how to read `path`; None where the format is not known."""
    name = Path(path).name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = Path(name).suffix
    compressed_parquet = suffix == ".parquet" and name != Path(path).name.lower()
    return suffix if suffix in FORMATS and not compressed_parquet else None


def num_groups(path: str | os.PathLike) -> int | None:
    """Returns how many groups a parquet file has; None for other formats, which would have to be read for it.

    Raises:
        UserError: the file is missing or damaged.
    """
    if file_format(path) != ".parquet":
        return None
    with _errors_as_sentences(path):
        return _parquet(path).num_row_groups


def read_groups(
    path: str | os.PathLike, text_column: str | None = None, start: int = 0, step: int = 1
) -> Iterator[Group]:
    """Yields the groups `start`, `start + step`, ... of the file.

    Args:
        path: a file of one of the `FORMATS`.
        text_column: the column (parquet) or key (JSON lines) of the text; default: found, see `TEXT_COLUMNS`.
        start: index of the first group to yield.
        step: distance between the groups to yield.

    Raises:
        UserError: the file is missing, empty, truncated, of another format, or has no such column.
    """
    suffix = file_format(path)
    if suffix is None:
        raise UserError(f"{path} is not a file of text that can be read; give {', '.join(FORMATS)} (.gz, .zst)")
    with _errors_as_sentences(path):
        if os.path.getsize(path) == 0:
            raise UserError(f"{path} is empty; remove it or fetch it again")
        if suffix == ".parquet":
            yield from _parquet_groups(path, text_column, start, step)
            return
        with _open_text(path) as lines:
            if suffix in (".txt", ".md"):
                yield from group_documents(_text_documents(lines), start, step)
                return
            for index, first, rows in group_documents(_jsonl_lines(lines, path), start, step):
                yield index, first, _jsonl_texts(rows, path, text_column)


def read_documents(paths: Paths, text_column: str | None = None) -> Iterator[str]:
    """Yields the documents of files and folders; no more than one group of them is held in memory.

    Args:
        paths: a file or folder, or several; see `find_files`.
        text_column: the column (parquet) or key (JSON lines) of the text; default: found.

    Raises:
        UserError: as `find_files` and `read_groups`.
    """
    for path in find_files(paths):
        for _, _, texts in read_groups(path, text_column):
            yield from texts


def find_files(paths: Paths) -> list[Path]:
    """Returns the files named by `paths`; a folder stands for all text files inside it, in order of their names.

    Raises:
        UserError: a folder has no such file.
    """
    found = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(path)
        found += text_files(path) if path.is_dir() else [path]
    return found


def text_files(folder: Path, hidden: bool = True) -> list[Path]:
    """Returns the files of the `FORMATS` in `folder` and below it, in order of their names.

    Args:
        folder: an existing folder.
        hidden: also take files whose name, or whose folder's name below `folder`, begins with `.` or `_`.

    Raises:
        UserError: there is no such file.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file() and file_format(path))
    if not hidden:
        found = [path for path in found if not _is_hidden(path.relative_to(folder))]
    if not found:
        raise UserError(f"the folder {folder} holds no {', '.join(FORMATS)} file; check the path of the data")
    return found


def _is_hidden(path: Path) -> bool:
    return any(name.startswith((".", "_")) for name in path.parts)


def _parquet(path: str | os.PathLike) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)


def _parquet_groups(path: str | os.PathLike, text_column: str | None, start: int, step: int) -> Iterator[Group]:
    with _parquet(path) as file:
        column = _parquet_column(path, file, text_column)
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        for index in range(start, len(sizes), step):
            group = file.read_row_group(index, columns=[column]).column(column).to_pylist()
            yield index, sum(sizes[:index]), [text or "" for text in group]


def _parquet_column(path: str | os.PathLike, file: Any, text_column: str | None) -> str:
    texts = [field.name for field in file.schema_arrow if str(field.type) in ("string", "large_string")]
    return _find_column(path, file.schema_arrow.names, texts, text_column)


def _find_column(path: Any, columns: Iterable[str], texts: list[str], wanted: str | None) -> str:
    """Chooses the column of text: the one asked for, else one of `TEXT_COLUMNS`, else the only one that holds text.

    Args:
        path: the place to name in errors.
        columns: the names of all columns.
        texts: the names of the columns that hold text.
        wanted: the column asked for.
    """
    names = ", ".join(columns) or "none"
    if wanted is not None:
        if wanted in texts:
            return wanted
        raise UserError(f"{path} has no text column {wanted!r} (it has: {names}); name the right one as text_column")
    for name in TEXT_COLUMNS:
        if name in texts:
            return name
    if len(texts) == 1:
        return texts[0]
    raise UserError(f"{path}: cannot tell which column is the text (it has: {names}); name it as text_column")


def group_documents(documents: Iterator[T], start: int, step: int) -> Iterator[tuple[int, int, list[T]]]:
    """Yields the groups `start`, `start + step`, ... of `GROUP_SIZE` documents, each as a `Group`."""
    index = 0
    while group := list(islice(documents, GROUP_SIZE)):
        if index >= start and (index - start) % step == 0:
            yield index, index * GROUP_SIZE, group
        index += 1


def _jsonl_lines(lines: Iterable[str], path: Any) -> Iterator[tuple[int, str]]:
    """Yields the lines that are not blank, with their numbers from 1."""
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.lstrip().startswith("["):
            raise UserError(f"{path} holds one JSON array; write it as JSON lines, one object per line")
        if line.strip():
            yield number, line


def _jsonl_texts(lines: list[tuple[int, str]], path: Any, text_column: str | None) -> list[str]:
    """Parses numbered lines and returns the text of each; null becomes an empty text."""
    texts = []
    for number, line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error.msg}); is the file whole?") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number} is not an object such as {{"text": "..."}}')
        if text_column not in row:
            strings = [key for key, value in row.items() if isinstance(value, str)]
            text_column = _find_column(f"{path}, line {number}", row, strings, text_column)
        text = row[text_column]
        if text is not None and not isinstance(text, str):
            raise UserError(f"{path}, line {number}: {text_column!r} is not text but {type(text).__name__}")
        texts.append(text or "")
    return texts


def _text_documents(lines: Iterable[str]) -> Iterator[str]:
    """Splits plain text into documents at each `END_OF_TEXT`; where there is none, at blank lines.

    In the second case paragraphs are joined until a document has at least `TEXT_DOCUMENT_CHARS` characters.
    """
    document: list[str] = []
    chars, marked = 0, False
    for line in lines:
        before, mark, after = line.partition(END_OF_TEXT)
        paragraph_ends = not line.strip()
        if mark or (paragraph_ends and not marked and chars >= TEXT_DOCUMENT_CHARS):
            marked = marked or bool(mark)
            document.append(before)
            if text := "".join(document).strip():
                yield text
            document, chars = [after], len(after)
        else:
            document.append(line)
            chars += len(line)
    if text := "".join(document).strip():
        yield text


@contextmanager
def _open_text(path: str | os.PathLike) -> Iterator[io.TextIOBase]:
    import pyarrow as pa  # its decompressors report a truncated file; zstandard's do not

    codecs = {".gz": "gzip", ".zst": "zstd"}
    raw = pa.input_stream(str(path), compression=codecs.get(Path(path).suffix.lower()))
    with io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as text:
        yield text


@contextmanager
def _errors_as_sentences(path: str | os.PathLike) -> Iterator[None]:
    """Turns whatever a reader raises on a bad file into a `UserError` of one sentence that names the file."""
    try:
        yield
    except (UserError, GeneratorExit):
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are these
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"{path} cannot be read ({reason}); is it whole? Fetch or make it again") from None
