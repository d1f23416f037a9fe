"""Encodes whole corpora in Rust, into flat buffers."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from nanochat_hf import _rustbpe
from nanochat_hf.progress import progress_bar

from .vocabulary import mergeable_ranks, merges_and_pattern, thread_count

Paths = str | os.PathLike | Sequence[str | os.PathLike]


class CorpusEncoder:
    """Turns documents into ids, on several threads; no text becomes a control token.

    Args:
        tokenizer: a byte-level BPE that splits by one regular expression, such as `nanochat_hf.tokenizer.train` makes.
        num_threads: default `RAYON_NUM_THREADS`, else all cores.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, num_threads: int | None = None):
        threads = thread_count(num_threads)
        merges, pattern = merges_and_pattern(tokenizer)
        tokens = list(mergeable_ranks(tokenizer).items())
        self._encoder = _rustbpe.Encoder(
            tokens, merges, pattern=pattern, first_id=tokenizer.bos_token_id, num_threads=threads
        )

    @property
    def merge_steps(self) -> int:
        """Steps taken so far in merging pieces of more than 48 bytes; they grow as the length of the text does."""
        return self._encoder.steps()

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids, int32 [tokens], and the offsets, int64 [documents + 1].

        Document i is `ids[offsets[i] : offsets[i + 1]]`, the document-start token first. Ctrl-C stops it.
        """
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be a list of strings, not one string: put it into a list")
        return _as_arrays(*self._encoder.encode_batch(list(texts)))

    def encode_column(self, column: Any) -> tuple[np.ndarray, np.ndarray]:
        """The same for a `pyarrow.LargeStringArray` without nulls, which is read where it lies."""
        _, offsets, data = column.buffers()
        offsets = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
        data = np.frombuffer(data or b"", dtype=np.uint8)
        return _as_arrays(*self._encoder.encode_column(data, offsets))

    def encode_files(
        self, paths: Paths, text_column: str | None = None, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes all documents of parquet, JSON lines or text files; folders stand for the files inside.

        The text is read group by group, the next group while this one is encoded; only the ids are held.

        Raises:
            UserError: a file is missing, damaged or has no such column.
        """
        from nanochat_hf.data.files import read_columns

        ids, offsets = [np.empty(0, np.int32)], [np.zeros(1, np.int64)]
        columns = (column for path in find_files(paths) for column in read_columns(path, text_column))
        with progress_bar(unit="B", unit_scale=True, desc="encoding", disable=not progress) as bar:
            for column in _read_ahead(columns):
                some, ends = self.encode_column(column)
                ids.append(some)
                offsets.append(ends[1:] + offsets[-1][-1])
                bar.update(column.nbytes)
        return np.concatenate(ids), np.concatenate(offsets)


def read_documents(paths: Paths, text_column: str | None = None) -> Iterator[str]:
    """Yields the documents of parquet, JSON lines or text files, without holding more than a group of them.

    `train(read_documents("shards/"), 32768)` learns from files.
    """
    from nanochat_hf.data.files import read_groups

    for path in find_files(paths):
        for _, _, texts in read_groups(path, text_column):
            yield from texts


def find_files(paths: Paths) -> list[Path]:
    """Returns the files named by `paths`; a folder stands for all text files inside it, in order of their names.

    Raises:
        UserError: a folder has no such file.
    """
    from nanochat_hf.data.files import FORMATS, file_format
    from nanochat_hf.settings import UserError

    found = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(path)
        inside = (
            sorted(one for one in path.rglob("*") if one.is_file() and file_format(one)) if path.is_dir() else [path]
        )
        if not inside:
            raise UserError(f"the folder {path} holds no {', '.join(FORMATS)} file; check the path of the data")
        found += inside
    return found


def _as_arrays(ids: bytearray, offsets: bytearray) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(ids, dtype=np.int32), np.frombuffer(offsets, dtype=np.int64)


def _read_ahead(columns: Iterable[Any]) -> Iterator[Any]:
    """Yields the columns, of which the next is read on another thread meanwhile."""
    columns = iter(columns)
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, columns, None)
        while (column := coming.result()) is not None:
            coming = reader.submit(next, columns, None)
            yield column
