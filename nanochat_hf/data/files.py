"""Reads documents from one file: parquet, Arrow, JSON, csv or plain text, the last three also compressed.

In: a path. Out: groups of documents (`Group`), the units in which files are divided among readers and in which a run
resumes. A parquet file has its own row groups; of any other file 1,024 documents are a group, fewer where they are
long. Whatever is wrong with a file is raised as `UserError`, with one sentence that names the file.
"""

import glob
import os
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from nanochat_hf.data import table_files
from nanochat_hf.data.decoding import NOT_TEXT, text_chunks, text_lines
from nanochat_hf.data.documents import END_OF_TEXT, cut_documents, split_lines
from nanochat_hf.settings import UserError

GROUP_SIZE = 1024  # documents per group where the file has no groups of its own; also upstream's row group size
BLANK_BYTES = 4096  # a larger file is not read to see whether it is blank
GROUP_CHARS = 1 << 26  # a group ends where it has so many characters, which 1,024 ordinary documents never have
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz", ".lz4")
ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".tbz2", ".txz", *(f".tar{end}" for end in COMPRESSIONS))
# How a file is read, by the end of its name.
KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst", ".tokens", ".raw"), "text"),
}
FORMATS = (".parquet", ".arrow", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".md")  # named in errors
# Files that describe a data set: those that `datasets` ignores, and those that it and the Hub's client write beside.
DESCRIPTIONS = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
ENDING = re.compile(r"\.[a-z][a-z0-9_]*")

T = TypeVar("T")
Paths = str | os.PathLike | Sequence[str | os.PathLike]
Group = tuple[int, int, list[str]]  # index of the group, index of its first document in the file, its documents


def file_format(path: str | os.PathLike) -> str | None:
    """Returns how to read `path`, one of the values of `KINDS`, by its name; None where the format is not known."""
    name, compressed = _without_compression(path)
    kind = KINDS.get(Path(name).suffix)
    return None if compressed and kind in ("parquet", "arrow") else kind


def has_no_ending(path: str | os.PathLike) -> bool:
    """Returns whether the name of a file says nothing about its format, as in `corpus`, `corpus.gz` or `part.0001`."""
    return not ENDING.fullmatch(Path(_without_compression(path)[0]).suffix)


def is_archive(path: str | os.PathLike) -> bool:
    """Returns whether the name is that of a file that holds other files."""
    return Path(path).name.lower().endswith(ARCHIVES)


def is_plain_text(path: str | os.PathLike) -> bool:
    """Returns whether the name is that of a text file that is not compressed."""
    return KINDS.get(Path(path).suffix.lower()) == "text"


def is_blank(path: str | os.PathLike) -> bool:
    """Returns whether a file of plain text holds nothing or only white space, which in a folder of notes is no damage.

    An empty table or compressed file is damaged, so it is not called blank.
    """
    try:
        small = is_plain_text(path) and os.path.getsize(path) <= BLANK_BYTES
        return small and not Path(path).read_bytes().removeprefix(BOM_UTF8).strip()
    except OSError:  # said where it is read
        return False


def _why_unknown(path: Path) -> str:
    return "an archive: unpack it" if is_archive(path) else "no known format"


def _without_compression(path: str | os.PathLike) -> tuple[str, bool]:
    name = whole = Path(path).name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return name, name != whole


def format_by_content(path: str | os.PathLike) -> str | None:
    """Returns how to read a file whose name does not say it; None where it is not text either."""
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if any(head.startswith(magic) for magic in NOT_TEXT):
        return None
    beginning = next(text_chunks(path), "").lstrip()
    return "json" if beginning.startswith(('{"', "[{", "{\n")) else "text"


def num_groups(path: str | os.PathLike, text_column: str | None = None) -> int | None:
    """Returns how many groups a parquet file has; None for other formats, which would have to be read for it.

    Raises:
        UserError: the file is missing or damaged, or has no such column.
    """
    if file_format(path) != "parquet":
        return None
    with errors_as_sentences(path), table_files.open_parquet(path) as file:
        return len(table_files.parquet_parts(file, table_files.arrow_column(path, file.schema_arrow, text_column)))


def read_groups(
    path: str | os.PathLike, text_column: str | None = None, start: int = 0, step: int = 1
) -> Iterator[Group]:
    """Yields the groups `start`, `start + step`, ... of the file. Long documents are in pieces; see `cut_documents`.

    Args:
        path: a file of one of the `KINDS`; its content decides where its name has no ending.
        text_column: the column or key of the text; default: found, see `table_files.find_column`.
        start: index of the first group to yield.
        step: distance between the groups to yield.

    Raises:
        UserError: the file is missing, empty, truncated, of another format, or has no such column.
    """
    with errors_as_sentences(path):
        if is_archive(path):
            raise UserError(f"{path} is an archive; unpack it, and give the folder")
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path} is not a regular file; write its text into a file first")
        kind = file_format(path)
        if kind is None and has_no_ending(path):
            kind = format_by_content(path)
        if kind is None:
            raise UserError(
                f"{path} is not a file of text that can be read; give {', '.join(FORMATS)} (all but the first two "
                "also compressed), or save its text as .txt"
            )
        if os.path.getsize(path) == 0:
            raise UserError(f"{path} is empty; remove it or fetch it again")
        for index, first, texts in _groups(path, kind, text_column, start, step):
            yield index, first, cut_documents(texts)


def _groups(path: Any, kind: str, text_column: str | None, start: int, step: int) -> Iterator[Group]:
    if kind == "parquet":
        return table_files.parquet_groups(path, text_column, start, step)
    if kind == "arrow":
        return group_documents(table_files.arrow_rows(path, text_column), start, step)
    if kind == "json":
        return _json_groups(path, text_column, start, step)
    if kind == "csv":
        return group_documents(table_files.csv_rows(text_lines(path), path, text_column), start, step)
    marked = END_OF_TEXT in next(text_chunks(path), "")
    return group_documents(split_lines(text_lines(path, whole=False), marked), start, step)


def _json_groups(path: Any, text_column: str | None, start: int, step: int) -> Iterator[Group]:
    """Parses only the groups to yield, and those that come before the column of text is known."""
    is_array = next(text_chunks(path), "").lstrip().startswith("[")  # which may be one long line
    lines = text_lines(path, whole=not is_array)
    called, numbered = table_files.json_rows(lines, path, may_span_lines=".json" in Path(path).suffixes)
    column = None
    for index, first, group in group_documents(numbered, 0, 1, size=lambda row: len(row[1])):
        wanted = index >= start and (index - start) % step == 0
        if column is None or wanted:
            parsed, fault = _before_fault(table_files.parse_json(group, path, called))
            if column is None and parsed:
                column = table_files.json_column(parsed, f"{path}, {called} {group[0][0]}", text_column)
            if wanted:
                numbers = [number for number, _ in group[: len(parsed)]]
                texts, earlier = _before_fault(table_files.json_texts(parsed, numbers, path, called, column))
                if texts:
                    yield index, first, texts
                fault = earlier or fault
            if fault:
                raise fault


def _before_fault(rows: Iterable[T]) -> tuple[list[T], UserError | None]:
    """Returns the rows before the first one that cannot be read, and its error; None where all can be read."""
    read: list[T] = []
    try:
        read.extend(rows)  # keeps what came before an error
    except UserError as error:
        return read, error
    return read, None


def read_documents(paths: Paths, text_column: str | None = None) -> Iterator[str]:
    """Yields the documents of files and folders; no more than one group of them is held in memory.

    Args:
        paths: a file or folder, or several; see `find_files`.
        text_column: the column or key of the text; default: found.

    Raises:
        UserError: as `find_files` and `read_groups`.
    """
    for path in find_files(paths):
        for _, _, texts in read_groups(path, text_column):
            yield from texts


def find_files(paths: Paths) -> list[Path]:
    """Returns the files named by `paths`.

    A folder stands for all text files inside it, in order of their names; so does a pattern such as `data/*.txt`.
    Blank files in them are left out, see `is_blank`. `~` is the home folder.

    Raises:
        UserError: a folder or a pattern has no such file.
    """
    found = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(os.path.expanduser(path))
        if path.is_dir():
            found += text_files(path)
        elif not path.exists() and glob.has_magic(str(path)):
            found += [match for match in matching_files(str(path)) if not is_blank(match)]
        else:
            found.append(path)
    return found


def matching_files(pattern: str) -> list[Path]:
    """Returns the files that match a pattern such as `data/**/*.txt`, in order of their names.

    Raises:
        UserError: there is none.
    """
    found = sorted(path for name in glob.glob(pattern, recursive=True) if (path := Path(name)).is_file())
    if not found:
        raise UserError(f"no file matches {pattern}; check the path of the data")
    return found


def divide_by_format(paths: list[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Returns the files that may be text by their names, and the others, each with the reason."""
    why = {path: description(path.name) or ("empty" if is_blank(path) else None) for path in paths}
    for path in paths:
        if not why[path] and not file_format(path) and not has_no_ending(path):
            why[path] = _why_unknown(path)
    return [path for path in paths if not why[path]], [(path.name, reason) for path, reason in why.items() if reason]


def text_files(folder: Path) -> list[Path]:
    """Returns the files of text in `folder` and below it, in order of their names; see `list_folder`.

    Raises:
        UserError: there is no such file.
    """
    found, _ = list_folder(folder)
    return found


def list_folder(folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """Finds the files of text in `folder` and below it. Links to files and folders are followed.

    Args:
        folder: an existing folder.

    Returns:
        The files in order of their names; and what else is there: name below `folder`, why it is left out. Names that
        begin with `.` or `_` are left out. So are files that describe a data set, and blank ones, see `is_blank`. A
        file without an ending is text where no file has an ending that is known.

    Raises:
        UserError: there is no such file, or a link leads nowhere.
    """
    known: list[Path] = []
    unknown: list[Path] = []
    left_out: list[tuple[str, str]] = []
    for path in sorted(_walk(folder)):
        inside = path.relative_to(folder)
        why = _why_left_out(path, inside)
        if why:
            left_out.append((inside.as_posix(), why))
        elif file_format(path):
            known.append(path)
        elif has_no_ending(path):
            unknown.append(path)
        else:
            left_out.append((inside.as_posix(), _why_unknown(path)))
    if not known:
        with_content = [path for path in unknown if os.path.getsize(path) and format_by_content(path)]
        known, unknown = with_content, [path for path in unknown if path not in with_content]
    left_out += [(path.relative_to(folder).as_posix(), "no ending") for path in unknown]
    if not known:
        others = f" (but {left_out[0][0]}: {left_out[0][1]})" if left_out else ""
        raise UserError(f"the folder {folder} holds no {', '.join(FORMATS)} file{others}; check the path of the data")
    return known, left_out


def _walk(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder. A folder that a link leads back to is not entered again."""
    entered = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        folders[:] = [name for name in folders if not _is_entered(os.path.join(place, name), entered)]
        yield from (Path(place, name) for name in names)


def _unreadable(error: OSError) -> None:
    raise UserError(
        f"the folder {error.filename} cannot be read ({error.strerror}); change its permissions or move it"
    )


def _is_entered(folder: str, entered: set[str]) -> bool:
    if not os.path.islink(folder):
        return False
    target = os.path.realpath(folder)
    inside_one = any(target == place or place.startswith(target + os.sep) for place in entered)
    entered.add(target)
    return inside_one


def _why_left_out(path: Path, inside: Path) -> str | None:
    if any(name.startswith((".", "_")) for name in inside.parts):
        return "hidden"
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which does not exist; fetch that file or remove it")
    if not path.is_file():
        return "not a file"
    return description(path.name) or _not_in_saved_dataset(path) or ("empty" if is_blank(path) else None)


def description(name: str) -> str | None:
    """Returns why a file is no data by its name: it describes the data set; None for any other file."""
    name = Path(name).name.lower()
    if name in DESCRIPTIONS or Path(name).stem in ("readme", "license", "licence", "citation") or name == "readme":
        return "describes the data"
    return None


def _not_in_saved_dataset(path: Path) -> str | None:
    """In a folder of `Dataset.save_to_disk`, only the files that its `state.json` lists are data."""
    import json

    state = path.parent / "state.json"
    if path.suffix != ".arrow" or not state.is_file():
        return None
    try:
        listed = {entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]}
    except (ValueError, KeyError, TypeError):
        return None
    return None if path.name in listed else "a cache of datasets"


def group_documents(
    documents: Iterable[T], start: int, step: int, size: Callable[[Any], int] = len
) -> Iterator[tuple[int, int, list[T]]]:
    """Yields the groups `start`, `start + step`, ..., each as a `Group`.

    A group ends with `GROUP_SIZE` documents, or where they have `GROUP_CHARS` characters, as `size` counts them. Where
    reading fails, the documents before that place come first, then the error.
    """
    group: list[T] = []
    index = first = chars = 0
    fault: Exception | None = None
    try:
        for document in documents:
            group.append(document)
            chars += size(document)
            if len(group) == GROUP_SIZE or chars >= GROUP_CHARS:
                if index >= start and (index - start) % step == 0:
                    yield index, first, group
                index, first, group, chars = index + 1, first + len(group), [], 0
    except Exception as error:
        fault = error
    if group and index >= start and (index - start) % step == 0:
        yield index, first, group
    if fault:
        raise fault


@contextmanager
def errors_as_sentences(path: str | os.PathLike) -> Iterator[None]:
    """Turns whatever a reader raises on a bad file into a `UserError` of one sentence that names the file."""
    import lzma

    try:
        yield
    except (UserError, GeneratorExit):
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except PermissionError:
        raise UserError(f"{path} may not be read by you; change its permissions or remove it") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read; remove it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} holds text that is not UTF-8 ({error.reason}); write it again as UTF-8") from None
    except (OSError, ValueError, EOFError, lzma.LZMAError, MemoryError) as error:  # pyarrow's errors are among these
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); is it whole? Fetch or make it again") from None
