"""A source's name → its files of each split. In: a name as it is given to `--data`. Out: files that can be read.

`sources` says how a source is written, `splits` which files are for training and which for validation.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from nanochat_hf.data import files, splits
from nanochat_hf.data.documents import TEXT_DOCUMENT_CHARS, cut_point
from nanochat_hf.data.hub_files import find_hub_files
from nanochat_hf.settings import UserError

MICROWORLD = "microworld"
VALIDATION_EVERY = 20  # where a source is one file, every 20th document is for validation
MIN_HELD_OUT_CHARS = TEXT_DOCUMENT_CHARS  # of a file of few documents, so that validation fills a row
MIN_CUT_CHARS = 1000  # of a file of few documents, only a longer one is cut to hold out its end

Split = Literal["train", "validation"]


class DataFile(Protocol):
    """One file of a source: on disk, on the Hub or generated."""

    @property
    def name(self) -> str:
        """The file's name; a saved position is valid only for files with the same names."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes, None where that is not known."""
        return None

    def num_groups(self) -> int | None:
        """Returns how many groups of documents the file has, None where that is not known without reading it."""
        ...

    def groups(self, start: int, step: int) -> Iterator[files.Group]:
        """Yields the groups `start`, `start + step`, ..."""
        ...

    def prefetch(self) -> None:
        """Starts to fetch the file in the background; local files have nothing to fetch."""
        return None


@dataclass(frozen=True)
class LocalFile(DataFile):
    """A file on disk; `text_column` is the column or key of the text, None to find it."""

    path: Path
    text_column: str | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> int | None:
        try:
            return self.path.stat().st_size
        except OSError:
            return None

    def num_groups(self) -> int | None:
        return files.num_groups(self.path, self.text_column)

    def groups(self, start: int, step: int) -> Iterator[files.Group]:
        return files.read_groups(self.path, self.text_column, start, step)


@dataclass(frozen=True)
class MicroworldFile(DataFile):
    """The built-in data, generated while it is read."""

    split: Split

    @property
    def name(self) -> str:
        return MICROWORLD

    def num_groups(self) -> int | None:
        return None

    def groups(self, start: int, step: int) -> Iterator[files.Group]:
        from nanochat_hf.data import microworld

        return files.group_documents(iter(microworld.documents(self.split)), start, step)


class SplitOfFile(DataFile):
    """The training or the validation documents of a single file.

    Every `VALIDATION_EVERY`-th document is for validation. Where the file has fewer documents, the end of its text is:
    a share of 1 / `VALIDATION_EVERY`, or up to a fifth where that is less than `MIN_HELD_OUT_CHARS`. It is cut off a
    long document at a line end or a sentence end.
    """

    def __init__(self, file: DataFile, split: Split):
        self.file, self.split = file, split
        self._few: list[str] | None = None  # all documents, where they are few
        self._counted = False

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def size(self) -> int | None:
        """Bytes of the whole file."""
        return self.file.size

    def num_groups(self) -> int | None:
        return 1 if self.few_documents() is not None else self.file.num_groups()

    def prefetch(self) -> None:
        self.file.prefetch()

    def few_documents(self) -> list[str] | None:
        """Returns all documents of this split where the file has fewer than `VALIDATION_EVERY`, else None."""
        if not self._counted:
            documents: list[str] = []
            for _, _, texts in self.file.groups(0, 1):
                documents += [text for text in texts if text]
                if len(documents) >= VALIDATION_EVERY:
                    break
            else:
                self._few = hold_out_end(documents)[self.split == "validation"]
            self._counted = True
        return self._few

    def undivided_if_few(self) -> DataFile:
        """Returns the file itself where it has fewer than `VALIDATION_EVERY` documents, else this split of it."""
        return self if self.few_documents() is None else self.file

    def groups(self, start: int, step: int) -> Iterator[files.Group]:
        few = self.few_documents()
        if few is not None:
            if start == 0:
                yield 0, 0, list(few)
            return
        held_out = self.split == "validation"
        for index, first, texts in self.file.groups(start, step):
            numbered = enumerate(texts, start=first)
            yield index, first, [text for i, text in numbered if (i % VALIDATION_EVERY == 0) == held_out]


def local_path(file: DataFile) -> Path | None:
    """Where a file lies on disk, or the file that it is a part of; None where it is not on disk."""
    whole = file.file if isinstance(file, SplitOfFile) else file
    return whole.path if isinstance(whole, LocalFile) else None


def hold_out_end(documents: list[str]) -> tuple[list[str], list[str]]:
    """Divides a few documents into those for training and those for validation; see `SplitOfFile`."""
    chars = sum(map(len, documents))
    wanted = max(1, chars // VALIDATION_EVERY, min(MIN_HELD_OUT_CHARS, chars // 5))
    training: list[str] = list(documents)
    validation: list[str] = []
    while training and wanted > 0:
        last = training.pop()
        if len(last) > max(2 * wanted, MIN_CUT_CHARS) or (not training and len(last) > 1):
            end = cut_point(last, max(0, len(last) - 2 * wanted), min(wanted, len(last) - wanted))
            training.append(last[:end])
            last = last[end:]
        validation.insert(0, last)
        wanted -= len(last)
    return training, validation


@dataclass(frozen=True)
class FoundSource:
    """What a source consists of.

    Attributes:
        name: the source as it was given.
        train, validation: the files of each split, in reading order.
        left_out: the files in neither: name, and why.
    """

    name: str
    train: list[DataFile]
    validation: list[DataFile]
    left_out: list[tuple[str, str]]


def find_source(source: str | Path, text_column: str | None = None) -> FoundSource:
    """Finds the files of one source and divides them into training and validation; `splits` has the rules.

    Args:
        source: a file, a folder, a pattern such as `data/*.txt`, a Hub data set or `microworld`; a folder and a data
            set may be followed by `:config`, and all by `#column`. What exists on disk is never taken for anything
            else.
        text_column: the column or key of the text, of a source that names none; default: found.

    Raises:
        UserError: there is no such source, or it has no file that can be read.
    """
    name, own_column = split_column(str(source))
    text_column = own_column or text_column
    if name == MICROWORLD:
        return FoundSource(name, [MicroworldFile("train")], [MicroworldFile("validation")], [])
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return _find_folder(name, path, "", text_column)
    if os.path.exists(path):
        return _divide(name, [LocalFile(path, text_column)], [path.name], [])
    folder, _, config = name.rpartition(":")
    if folder and os.path.isdir(Path(os.path.expanduser(folder))):
        return _find_folder(folder, Path(os.path.expanduser(folder)), config, text_column)
    if glob.has_magic(name):
        found, left_out = files.divide_by_format(files.matching_files(str(path)))
        if not found:
            raise UserError(
                f"no file that matches {name} is text ({left_out[0][0]}: {left_out[0][1]}); check the path"
            )
        root = os.path.commonpath([one.parent for one in found])
        names = [one.relative_to(root).as_posix() for one in found]
        return _divide(name, [LocalFile(one, text_column) for one in found], names, left_out)
    if looks_like_hub_id(name):
        hub_files, names, left_out = find_hub_files(name, text_column)
        return _divide(name, hub_files, names, left_out)
    raise UserError(f"no data at {source}; give a file, a folder, a Hub data set such as owner/name, or {MICROWORLD}")


def _find_folder(name: str, folder: Path, config: str, text_column: str | None) -> FoundSource:
    found, left_out = files.list_folder(folder)
    paths = {path.relative_to(folder).as_posix(): path for path in found}
    chosen, split_names = splits.files_of_config(name, splits.read_card(folder), list(paths), config)
    left_out += [(other, "not in the config") for other in paths if other not in set(chosen)]
    return _divide(name, [LocalFile(paths[inside], text_column) for inside in chosen], split_names, left_out)


def _divide(
    name: str, data_files: Sequence[DataFile], split_names: Sequence[str], left_out: list[tuple[str, str]]
) -> FoundSource:
    notes = [isinstance(one, LocalFile) and files.file_format(one.path) == "text" for one in data_files]
    sizes = [one.size if is_note else None for one, is_note in zip(data_files, notes, strict=True)]
    division = splits.divide(split_names, sizes)
    train: list[DataFile] = [data_files[i] for i in division.train]
    validation: list[DataFile] = [data_files[i] for i in division.validation]
    if division.is_divided_file:
        train, validation = [SplitOfFile(data_files[0], "train")], [SplitOfFile(data_files[0], "validation")]
    others = [(data_files[i].name, why) for i, why in division.left_out.items()]
    return FoundSource(name, train, validation, left_out + others)


def find_data_files(source: str | Path, split: Split = "train", text_column: str | None = None) -> list[DataFile]:
    """Returns the files of one source that belong to `split`, in reading order; see `find_source`.

    Raises:
        UserError: there is no such split or source, or the source has no file that can be read.
    """
    if split not in ("train", "validation"):
        raise UserError(f"there is no split {split!r}; choose train or validation")
    found = find_source(source, text_column)
    return found.train if split == "train" else found.validation


def split_column(source: str) -> tuple[str, str | None]:
    """Divides `my_texts#article` into the source and its column. What exists on disk keeps its `#`."""
    name, _, column = source.rpartition("#")
    return (name, column) if name and column and not _matches(source) else (source, None)


def is_local(name: str) -> bool:
    """Whether a source, without its column, is a file or folder, perhaps with `:config`, or a pattern that matches."""
    folder = os.path.expanduser(name).rpartition(":")[0]
    return _matches(name) or (bool(folder) and os.path.isdir(folder))


def _matches(name: str) -> bool:
    path = os.path.expanduser(name)
    return os.path.exists(path) or any(glob.iglob(path, recursive=True))


def looks_like_hub_id(source: str | os.PathLike) -> bool:
    """Returns whether `source` has the form `owner/name` or `owner/name:config`; `/`, `~` and `.` begin a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:.+)?", str(source)) is not None
