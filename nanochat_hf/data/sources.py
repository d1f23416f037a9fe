"""Where documents come from, and which process reads which. In: a source's name. Out: an iterator of documents.

A source is written as one string, the same in every recipe and on every command line:

- `microworld`: the built-in data;
- a file, a folder or a pattern (`data/*.txt`) of parquet, Arrow, JSON, csv or text; a folder may also be one that
  `Dataset.save_to_disk` wrote, or a copy of a data set of the Hub, then also `folder:config`;
- anything else of the form `owner/name` or `owner/name:config`: a data set of the Hub, fetched file by file as needed;
- any of these with the column of text, where it cannot be found: `my_texts#article`;
- several of these with weights, `"web:0.7,code:0.3"` or a list. The weights are shares of the rows in training, and
  of the characters elsewhere.

`open_documents` gives each process its own documents. No two processes read the same document and none is left out,
whatever the number of processes. The iterator's position can be saved and restored exactly.
"""

import hashlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nanochat_hf.data.found import DataFile, Split, SplitOfFile, find_data_files
from nanochat_hf.data.hub_files import DownloadError
from nanochat_hf.settings import UserError

DEFAULT_SOURCE = "karpathy/climbmix-400b-shuffle"  # its last shard, shard_06542, is the validation split
BATCH_CHARS = 1 << 23  # of a batch of documents; 128 ordinary documents never have so many

OnBadFile = Literal["stop", "skip"]
ON_BAD_FILE = ("stop", "skip")


class DocumentStream:
    """The documents of one source that one of `num_streams` readers gets, in order.

    A file with at least `num_streams` groups is divided by groups, so that each reader decodes only its own. Any other
    file is divided by documents. In each file the first share goes to the next reader, so that many small files are
    divided evenly too.

    Args:
        data_files: the files, see `find_data_files`.
        stream: which reader this is, from 0.
        num_streams: how many readers there are.
        repeat: begin again at the end (a new epoch).
        seed: shuffles files, groups and the documents within a group anew in each epoch; None keeps the order.
        on_bad_file: `"stop"` raises `UserError` at a bad file, `"skip"` warns once and goes on with the next one.
        called: what errors call the documents, such as "the validation split of my_texts".

    Raises:
        ValueError: `stream` is not below `num_streams`.
        UserError: while reading, where a file is bad, cannot be fetched, or no document is left for this reader.
    """

    def __init__(
        self,
        data_files: Sequence[DataFile],
        *,
        stream: int = 0,
        num_streams: int = 1,
        repeat: bool = False,
        seed: int | None = None,
        on_bad_file: OnBadFile = "stop",
        called: str = "the source",
    ):
        if not 0 <= stream < num_streams:
            raise ValueError(f"reader {stream} of {num_streams} readers does not exist")
        self.data_files, self.stream, self.num_streams = list(data_files), stream, num_streams
        self.repeat, self.seed, self.on_bad_file, self.called = repeat, seed, on_bad_file, called
        self._skipped: list[int] = []  # bad files, as indices
        names = hashlib.sha256(
            "\n".join(file.name for file in self.data_files).encode(errors="surrogateescape")
        ).hexdigest()
        self._identity = {"files": names, "seed": seed, "num_streams": num_streams}
        self._seek(epoch=0, file=0, group=0, offset=0)

    def _seek(self, epoch: int, file: int, group: int, offset: int) -> None:
        self._epoch, self._file, self._group, self._offset = epoch, file, group, offset
        self._texts: list[str] | None = None
        self._groups: Iterator[list[str]] | None = None
        self._found_in_epoch = epoch > 0 or file > 0 or group > 0  # an empty source must not repeat forever

    @property
    def epoch(self) -> int:
        """How many times the whole source has been read."""
        return self._epoch

    @property
    def position(self) -> dict[str, int]:
        """The place of the next document: epoch, file in the epoch's order, own group in it, document in the group."""
        return {"epoch": self._epoch, "file": self._file, "group": self._group, "offset": self._offset}

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the next document and what identifies the data: plain numbers and strings."""
        return {**self.position, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved position.

        Raises:
            UserError: the position belongs to other files, or to another order or number of readers.
        """
        if any(state[key] != value for key, value in self._identity.items()):
            raise UserError(
                "the saved position is one in other data files or in another order of them; "
                "resume with the same data and data seed, or start afresh"
            )
        self._seek(**{key: int(state[key]) for key in self.position})

    def next_batch(self, size: int = 128) -> list[str]:
        """Returns the next 1 to `size` documents, never across the end of a group; [] at the end of the source.

        They are fewer where they would have more than `BATCH_CHARS` characters.
        """
        while True:
            if self._texts is None and not self._load_group():
                return []
            assert self._texts is not None  # _load_group has read it
            batch = _of_bounded_size(self._texts[self._offset : self._offset + size])
            self._offset += len(batch)
            if self._offset >= len(self._texts):
                self._group, self._offset, self._texts = self._group + 1, 0, None
            if batch:
                self._found_in_epoch = True
                return batch

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        batch = self.next_batch(1)
        if not batch:
            raise StopIteration
        return batch[0]

    def _load_group(self) -> bool:
        """Reads this reader's next group into `self._texts`; returns False at the end of the source."""
        while True:
            if self._file >= len(self.data_files):
                if not self._found_in_epoch:
                    raise UserError(self._why_nothing())
                if not self.repeat:
                    return False
                self._seek(self._epoch + 1, 0, 0, 0)
                self._found_in_epoch = False
            try:
                if self._groups is None:
                    order = self._order()
                    self._groups = self._own_groups(order[self._file], self._group)
                    if self._file + 1 < len(order):
                        self.data_files[order[self._file + 1]].prefetch()
                self._texts = next(self._groups, None)
            except UserError as error:
                if self.on_bad_file == "stop" or isinstance(error, DownloadError):
                    raise
                file = int(self._order()[self._file])
                if file not in self._skipped:
                    self._skipped.append(file)
                    warnings.warn(f"skipped the rest of a file: {error}", stacklevel=2)
            if self._texts is not None:
                return True
            self._file, self._group, self._offset, self._groups = self._file + 1, 0, 0, None

    def _why_nothing(self) -> str:
        reader = "" if self.num_streams == 1 else f" for reader {self.stream} of {self.num_streams}"
        names = _some([file.name for file in self.data_files])
        if self._skipped:
            skipped = _some([self.data_files[file].name for file in self._skipped])
            return (
                f"{self.called} has no text{reader}, because bad files were skipped ({skipped}); mend them as the "
                "warnings say, or remove them"
            )
        if reader:
            return f"no documents{reader} in {names}; give more documents or use fewer processes"
        return f"there is no text in {names} ({self.called}); give files that hold some"

    def _order(self) -> np.ndarray:
        """Returns the order of the files in this epoch, as indices."""
        if self.seed is None:
            return np.arange(len(self.data_files))
        return np.random.default_rng((self.seed, self._epoch)).permutation(len(self.data_files))

    def _own_groups(self, file: int, start: int) -> Iterator[list[str]]:
        """Yields this reader's groups of a file, without the first `start` of them."""
        data_file, first = self.data_files[file], (self.stream - int(file)) % self.num_streams
        total = data_file.num_groups()
        if total is not None and total >= self.num_streams:
            own = range(first, total, self.num_streams)
            if self.seed is None:
                for _, _, texts in data_file.groups(own.start + start * self.num_streams, self.num_streams):
                    yield self._clean(texts, file, 0, 1)
            else:
                order = np.random.default_rng((self.seed, self._epoch, int(file))).permutation(own)
                for group in order[start:]:
                    _, _, texts = next(data_file.groups(int(group), total))
                    yield self._shuffle(self._clean(texts, file, 0, 1), file, int(group))
            return
        for group, _, texts in data_file.groups(start, 1):
            own_texts = self._clean(texts, file, (first - group) % self.num_streams, self.num_streams)
            yield own_texts if self.seed is None else self._shuffle(own_texts, file, group)

    def _clean(self, texts: list[str], file: int, start: int, step: int) -> list[str]:
        return [text for text in texts if text][start::step]

    def _shuffle(self, texts: list[str], file: int, group: int) -> list[str]:
        seed = 0 if self.seed is None else self.seed
        order = np.random.default_rng((seed, self._epoch, int(file), group)).permutation(len(texts))
        return [texts[index] for index in order]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of_bounded_size(texts: list[str]) -> list[str]:
    chars = 0
    for count, text in enumerate(texts):
        chars += len(text)
        if chars > BATCH_CHARS and count:
            return texts[:count]
    return texts


class MixedStream:
    """Several streams, read in given shares of the characters.

    The next batch comes from the stream that is furthest behind its share. This needs no random numbers, and the
    shares are exact to within a batch.

    Args:
        streams: one per source.
        weights: the weight of each stream; they need not sum to 1.
    """

    def __init__(self, streams: Sequence[DocumentStream], weights: Sequence[float]):
        self.streams = list(streams)
        self.weights = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self._chars = np.zeros(len(self.streams))
        self._ended = np.zeros(len(self.streams), dtype=bool)

    @property
    def epoch(self) -> int:
        """How many times the source with the most epochs has been read."""
        return max(stream.epoch for stream in self.streams)

    def state_dict(self) -> dict[str, Any]:
        """Returns the positions of all streams, and how many characters of each have been read."""
        return {
            "streams": [stream.state_dict() for stream in self.streams],
            "chars": self._chars.tolist(),
            "ended": self._ended.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved position.

        Raises:
            UserError: the position belongs to other sources.
        """
        if len(state["streams"]) != len(self.streams):
            raise UserError("the saved position is one in other sources; resume with the same data or start afresh")
        for stream, own in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(own)
        self._chars, self._ended = np.array(state["chars"], dtype=np.float64), np.array(state["ended"], dtype=bool)

    def next_batch(self, size: int = 128) -> list[str]:
        """Returns the next 1 to `size` documents, all of one source; [] when every source has ended."""
        while not self._ended.all():
            lag = np.where(self._ended, -np.inf, self.weights * self._chars.sum() - self._chars)
            choice = int(np.argmax(lag + 1e-9 * self.weights))  # at the very start: the heaviest
            batch = self.streams[choice].next_batch(min(size, 32))
            if batch:
                self._chars[choice] += sum(map(len, batch))
                return batch
            self._ended[choice] = True
        return []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        batch = self.next_batch(1)
        if not batch:
            raise StopIteration
        return batch[0]


def parse_sources(source: str | Path | Sequence[str | Path]) -> list[tuple[str, float]]:
    """Splits `"a:0.7,b:0.3"` or `["a:0.7", "b:0.3"]` into names and weights; a source without a weight has 1.

    A name that exists on disk is taken as it is, with the commas and colons in it. `~` is the home folder.

    Raises:
        UserError: a name is missing, or a weight is not above 0.
    """
    if isinstance(source, Path):
        return [(os.path.expanduser(str(source)), 1.0)]
    words = [source] if isinstance(source, str) else [str(word) for word in source]
    found = []
    for word in (part for given in words for part in _split_at_commas(given)):
        name, colon, weight = word.rpartition(":")
        try:
            found.append((name, float(weight)) if colon and not _exists(word) else (word, 1.0))
        except ValueError:
            found.append((word, 1.0))
    if not found or not all(name and 0 < weight < float("inf") for name, weight in found):
        raise UserError(f"cannot read the data sources {source!r}; write NAME or NAME:WEIGHT,NAME:WEIGHT")
    return [(os.path.expanduser(name), weight) for name, weight in found]


def _split_at_commas(word: str) -> list[str]:
    """Splits at commas, but not inside of a name that exists, such as `Shakespeare, W.txt`."""
    parts = word.split(",")
    found = []
    while parts:
        for count in range(len(parts), 0, -1):
            name = ",".join(parts[:count]).strip()
            if count == 1 or any(map(_exists, (name, name.rpartition(":")[0], name.rpartition("#")[0]))):
                found.append(name)
                parts = parts[count:]
                break
    return found


def _exists(name: str) -> bool:
    return bool(name) and os.path.exists(os.path.expanduser(name))


def open_documents(
    source: str | Path | Sequence[str] = DEFAULT_SOURCE,
    split: Split = "train",
    text_column: str | None = None,
    rank: int = 0,
    world_size: int = 1,
    *,
    repeat: bool = False,
    seed: int | None = None,
    on_bad_file: OnBadFile = "stop",
    keep_whole: bool = False,
) -> DocumentStream | MixedStream:
    """Opens a source and returns an iterator of this process's documents.

    Inside a worker of a torch `DataLoader`, the documents of the rank are divided among the workers as well.

    Args:
        source: one source or several, see the top of this module.
        split: `"train"` or `"validation"`; they share no document, see `found.find_source`.
        text_column: the column or key of the text; default: found.
        rank: this process, from 0.
        world_size: the number of processes.
        repeat, seed, on_bad_file: see `DocumentStream`.
        keep_whole: a file of fewer than `found.VALIDATION_EVERY` documents is not divided; it is in both splits.

    Raises:
        UserError: there is no such source, nothing in it can be read, or `on_bad_file` is another word.
    """
    check_on_bad_file(on_bad_file)
    worker, workers = _worker()
    streams, weights = [], []
    for name, weight in parse_sources(source):
        data_files = find_data_files(name, split, text_column)
        if keep_whole:
            data_files = [file.undivided_if_few() if isinstance(file, SplitOfFile) else file for file in data_files]
        stream = DocumentStream(
            data_files,
            stream=rank * workers + worker,
            num_streams=world_size * workers,
            repeat=repeat,
            seed=seed,
            on_bad_file=on_bad_file,
            called=f"the {split} split of {name}",
        )
        streams.append(stream)
        weights.append(weight)
    return streams[0] if len(streams) == 1 else MixedStream(streams, weights)


def check_on_bad_file(word: str) -> None:
    """Raises `UserError` where `word` is none of `ON_BAD_FILE`."""
    if word not in ON_BAD_FILE:
        raise UserError(f"--on_bad_file is {' or '.join(ON_BAD_FILE)}, not {word!r}")


def _worker() -> tuple[int, int]:
    """Returns which worker of a torch `DataLoader` this is and how many there are; (0, 1) outside of one."""
    torch_data = sys.modules.get("torch.utils.data")
    info = torch_data.get_worker_info() if torch_data is not None else None
    return (0, 1) if info is None else (info.id, info.num_workers)
