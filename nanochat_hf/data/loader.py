"""The pretraining loader. In: a source's name and a tokenizer. Out: batches of packed rows.

A background thread reads documents, tokenizes them and packs them into rows while the model trains.

The order of the data does not depend on the number of processes W. The data is divided into S *streams*; each reads
its own share of the source and has its own packing buffer. Row i of the run is row i // S of stream i % S, and process
r takes the rows with i % W == r. So one process that accumulates gradients sees the same rows in the same step as
eight processes that do not. A run that was stopped on three processes can go on with two. Where W divides S, as it
does by default, no row is made by two processes.
"""

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_hf.data.packing import BUFFER_DOCUMENTS, IGNORED, PADDING, REFILL_DOCUMENTS, Packing, pack_best_fit
from nanochat_hf.data.row_stream import Encoder, MixedRows, MixedSnapshot, RowStream, StreamSnapshot, as_encoder
from nanochat_hf.data.sources import DocumentStream, MixedStream, OnBadFile, open_documents
from nanochat_hf.settings import UserError

Batch = dict[str, torch.Tensor]


def make_batch(rows: np.ndarray) -> Batch:
    """Turns rows of T+1 tokens into a batch for a causal language model.

    Args:
        rows: int64 [B, T+1]; a negative number is padding.

    Returns:
        A dict of int64 tensors [B, T]; in labels -100 means "not scored":

        - `input_ids`: the rows without their last token;
        - `shift_labels`: the rows without their first token, the targets of the loss;
        - `labels`: the inputs again, for code that counts labels.
    """
    rows_BT1 = torch.from_numpy(rows)
    padding = rows_BT1 < 0
    inputs, targets = rows_BT1[:, :-1].contiguous(), rows_BT1[:, 1:].contiguous()
    if not padding.any():
        return {"input_ids": inputs, "shift_labels": targets, "labels": inputs}
    return {
        "input_ids": inputs.masked_fill(padding[:, :-1], 0),
        "shift_labels": targets.masked_fill(padding[:, 1:], IGNORED),
        "labels": inputs.masked_fill(padding[:, :-1], IGNORED),
    }


class PackedLoader:
    """An endless iterator of training batches, made in the background.

    Iterating yields batches as `make_batch` returns them. `state_dict` describes the moment after the last batch that
    was yielded. Batches that were made ahead are made again after a restart, identically.

    Args:
        source: see `nanochat_hf.data.sources`.
        tokenizer: a tokenizer of `nanochat_hf.tokenizer`, or anything with its `CorpusEncoder.encode_batch`.
        batch_size: rows per batch of this process.
        sequence_length: tokens per row that the model sees (T); rows have T+1.
        rank: this process, from 0.
        world_size: the number of processes.
        streams: the number of streams; default `world_size`, or the number in a loaded state.
        packing: what becomes of a cropped document's rest, see `BestFitPacker`.
        seed: shuffles the documents anew in each epoch; None keeps their order. A small corpus is always shuffled, by
            seed 0 where there is none; see `row_stream`.
        text_column, on_bad_file: see `open_documents`.
        buffer_documents: how many documents each stream's packing buffer holds.
        num_threads: tokenizing threads; default: all cores.
        prefetch: the number of batches made ahead.
        pin_memory: put batches into page-locked memory, so that the copy to a GPU does not block.

    Raises:
        ValueError: `rank` is not below `world_size`.
        UserError: there is no such source; or, while iterating, a file cannot be read.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str],
        tokenizer: Any,
        *,
        batch_size: int,
        sequence_length: int,
        rank: int = 0,
        world_size: int = 1,
        streams: int | None = None,
        packing: Packing = "best_fit",
        seed: int | None = None,
        text_column: str | None = None,
        on_bad_file: OnBadFile = "stop",
        buffer_documents: int = BUFFER_DOCUMENTS,
        num_threads: int | None = None,
        prefetch: int = 8,
        pin_memory: bool = False,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"process {rank} of {world_size} does not exist")
        self.source, self.encoder = source, as_encoder(tokenizer, num_threads)
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.rank, self.world_size = rank, world_size
        self.packing, self.buffer_documents = packing, buffer_documents
        self.document_options: dict[str, Any] = {
            "seed": seed,
            "text_column": text_column,
            "on_bad_file": on_bad_file,
        }
        self.prefetch, self.pin_memory = prefetch, pin_memory and torch.cuda.is_available()
        self._background: _BackgroundMaker | None = None
        self._open(streams or world_size)

    def _open(self, num_streams: int) -> None:
        self.num_streams = num_streams
        rows = range(self.rank, num_streams * self.world_size, self.world_size)
        self._own_streams = sorted({row % num_streams for row in rows})
        self._streams = {index: self._open_stream(index) for index in self._own_streams}
        self._rows = 0  # rows of all processes that the batches made so far have covered
        self._ahead = False  # whether batches may have been made that were not yielded
        self._yielded = self._snapshot()

    def _open_stream(self, index: int) -> RowStream | MixedRows:
        documents = open_documents(
            self.source, rank=index, world_size=self.num_streams, repeat=True, **self.document_options
        )
        if isinstance(documents, DocumentStream):
            return self._rows_of(documents, index, 0)
        streams = [self._rows_of(stream, index, source) for source, stream in enumerate(documents.streams)]
        return MixedRows(streams, documents.weights.tolist())

    def _rows_of(self, documents: DocumentStream, stream: int, source: int) -> RowStream:
        length, seed = self.sequence_length + 1, self.document_options["seed"] or 0
        own_seed = (seed, stream, source)
        return RowStream(documents, self.encoder, length, self.packing, self.buffer_documents, own_seed)

    @property
    def epoch(self) -> int:
        """How many times the source had been read completely when the last yielded batch was made."""
        return max(stream.epoch for stream in self._yielded.streams.values())

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._background is None:
            if self._ahead:
                self.load_state_dict(self.state_dict())
            self._background, self._ahead = _BackgroundMaker(self._make_batch, self.prefetch), True
        batch, self._yielded = self._background.next()
        return batch

    def close(self) -> None:
        """Stops the background thread. Iterating again opens the source and goes on after the last yielded batch."""
        if self._background is not None:
            self._background.stop()
            self._background = None

    def _make_batch(self) -> tuple[Batch, "_Snapshot"]:
        rows_BT1 = np.empty((self.batch_size, self.sequence_length + 1), dtype=np.int64)
        skipped = np.empty(self.sequence_length + 1, dtype=np.int64)
        end = self._rows + self.batch_size * self.world_size
        filled = 0
        for row in range(self._rows, end):
            index = row % self.num_streams
            if row % self.world_size == self.rank:
                self._streams[index].next_row(rows_BT1[filled])
                filled += 1
            elif index in self._streams:  # another process takes this row of a shared stream
                self._streams[index].next_row(skipped)
        self._rows = end
        batch = make_batch(rows_BT1)
        if self.pin_memory:
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch, self._snapshot()

    def _snapshot(self) -> "_Snapshot":
        return _Snapshot(self._rows, {index: stream.snapshot() for index, stream in self._streams.items()})

    def state_dict(self) -> dict[str, Any]:
        """Returns the state after the last yielded batch.

        It consists of numbers, strings and tensors, so that `torch.load(weights_only=True)` reads it. It holds this
        process's streams. To go on with another number of processes, give `load_state_dict` the states of all.
        """
        return {
            "num_streams": self.num_streams,
            "rows": self._yielded.rows,
            "row_length": self.sequence_length + 1,
            "packing": self.packing,
            "streams": {index: stream.state_dict() for index, stream in self._yielded.streams.items()},
        }

    def load_state_dict(self, state: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Goes to a saved state.

        Args:
            state: the state of this process, or a list with those of all processes of the interrupted run.

        Raises:
            UserError: a stream that this process needs is in none of the states; or row length, packing or data differ
                from those of the saved run.
        """
        states = [state] if isinstance(state, dict) else list(state)
        first = states[0]
        if self._background is not None:
            self._background.stop()
            self._background = None
        for name, now in (("row_length", self.sequence_length + 1), ("packing", self.packing)):
            if first[name] != now:
                raise UserError(f"the run was made with {name} {first[name]}, not {now}; resume it with the same one")
        saved = {int(index): stream_state for each in states for index, stream_state in each["streams"].items()}
        self._open(first["num_streams"])
        missing = [index for index in self._own_streams if index not in saved]
        if missing:
            raise UserError(
                f"the state of data streams {missing} is missing; to resume on another number of processes give the "
                "loader states of all processes of the interrupted run"
            )
        for index, stream in self._streams.items():
            stream.restore(saved[index])
        self._rows = first["rows"]
        self._yielded = self._snapshot()


@dataclass(frozen=True)
class _Snapshot:
    """The loader's state after a batch, not yet written out."""

    rows: int
    streams: dict[int, StreamSnapshot | MixedSnapshot]


class _BackgroundMaker:
    """A thread that calls `make` ahead of time. An exception in it is raised where the item is taken."""

    def __init__(self, make: Any, ahead: int):
        self._items: queue.Queue[Any] = queue.Queue(maxsize=max(1, ahead))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make,), name="data-loader", daemon=True)
        self._thread.start()

    def _run(self, make: Any) -> None:
        while not self._stopping.is_set():
            try:
                item = make()
            except BaseException as error:  # noqa: BLE001 (raised by the consumer)
                item = error
            while not self._stopping.is_set():
                try:
                    self._items.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    def next(self) -> Any:
        item = self._items.get()
        if isinstance(item, BaseException):
            self._items.put(item)  # the next call raises it again instead of waiting forever
            raise item
        return item

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


class ValidationBatches:
    """Batches of the validation split: a fixed number of tokens, the same rows for any number of processes.

    Rows are always packed by upstream's rule, whatever training uses, so that bits per byte stay comparable. They are
    made on first use and kept. They can be iterated any number of times.

    Args:
        source, tokenizer, batch_size, sequence_length, rank, world_size: see `PackedLoader`.
        text_column, on_bad_file, num_threads: see `PackedLoader`.
        tokens: how many tokens all processes together score; fewer where the split has fewer.

    Raises:
        UserError: on first use, where the split does not fill one row or cannot be read.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str],
        tokenizer: Any,
        *,
        batch_size: int,
        sequence_length: int,
        tokens: int,
        rank: int = 0,
        world_size: int = 1,
        text_column: str | None = None,
        on_bad_file: OnBadFile = "stop",
        num_threads: int | None = None,
    ):
        self.source, self.tokenizer = source, tokenizer
        self.batch_size, self.sequence_length, self.tokens = batch_size, sequence_length, tokens
        self.rank, self.world_size = rank, world_size
        self.document_options: dict[str, Any] = {"text_column": text_column, "on_bad_file": on_bad_file}
        self.num_threads = num_threads
        self._rows: np.ndarray | None = None

    def _make_rows(self) -> np.ndarray:
        """Returns this process's rows, int32 [rows, T+1]. All processes have as many; missing rows hold -1."""
        encoder = as_encoder(self.tokenizer, self.num_threads)
        documents = open_documents(self.source, "validation", **self.document_options)
        wanted = max(1, -(-self.tokens // self.sequence_length))
        packed = pack_best_fit(_encoded(documents, encoder), self.sequence_length + 1)
        return self._own(islice(packed, wanted))

    def _own(self, everything: Iterable[np.ndarray]) -> np.ndarray:
        """Returns this process's rows of all of them, with as many on each process."""
        rows: list[np.ndarray] = []
        total = 0
        for row in everything:
            if total % self.world_size == self.rank:
                rows.append(row.astype(np.int32))
            total += 1
        if not total:
            raise UserError(
                f"the validation split of {self.source} does not fill one row of {self.sequence_length + 1} tokens; "
                "give more validation documents or a shorter sequence length"
            )
        per_batch = self.batch_size * self.world_size
        own = -(-total // per_batch) * self.batch_size
        rows += [np.full(self.sequence_length + 1, -1, dtype=np.int32)] * (own - len(rows))
        return np.stack(rows)

    @property
    def rows(self) -> np.ndarray:
        """The rows of this process, int32 [rows, T+1]."""
        if self._rows is None:
            self._rows = self._make_rows()
        return self._rows

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.rows), self.batch_size):
            yield make_batch(self.rows[start : start + self.batch_size].astype(np.int64))


class ValidationDocuments(ValidationBatches):
    """Whole documents of the validation split, in batches of one shape.

    Every token is scored once, from its document's beginning. A document longer than a row is cut into windows of
    `sequence_length` targets, as in `evals.bits_per_byte.bits_per_byte`; the rest of its last window is padding. So
    these batches measure what a reader of whole documents gets, whatever training packs.

    Args:
        documents: how many documents all processes together score; fewer where the split has fewer.
        others: see `ValidationBatches`.

    Raises:
        UserError: on first use, where the split cannot be read or is empty.
    """

    def __init__(self, source: str | Path | Sequence[str], tokenizer: Any, *, documents: int, **others: Any):
        super().__init__(source, tokenizer, tokens=0, **others)
        self.documents = documents

    def _make_rows(self) -> np.ndarray:
        encoder = as_encoder(self.tokenizer, self.num_threads)
        documents = open_documents(self.source, "validation", **self.document_options)
        return self._own(self._windows(islice(_encoded(documents, encoder), self.documents)))

    def _windows(self, documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        length = self.sequence_length
        for ids in documents:
            for start in range(0, max(1, len(ids) - 1), length):
                row = np.full(length + 1, PADDING, dtype=np.int64)
                window = ids[start : start + length + 1]
                row[: len(window)] = window
                yield row


def _encoded(documents: DocumentStream | MixedStream, encoder: Encoder) -> Iterator[np.ndarray]:
    """Yields the token ids of each document."""
    while texts := documents.next_batch(REFILL_DOCUMENTS):
        ids, offsets = encoder.encode_batch(texts)
        for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            yield ids[start:end]
