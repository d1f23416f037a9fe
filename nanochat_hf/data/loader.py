"""Text in, batches out: the pretraining loader.

A background thread reads documents, tokenizes them and packs them into rows while the model trains. The order of the
data does not depend on how many processes there are: row i of the run is row i // S of *stream* i % S, where each of
the S streams reads its own share of the source with its own packing buffer, and process r of W takes the rows i with
i % W == r. So one process that accumulates gradients and eight that do not see the same rows in the same step, and a
run that was stopped on three processes can go on with two. Where W divides S, as it does by default, no process does
the work of another.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_hf.data.packing import BUFFER_DOCUMENTS, IGNORED, REFILL_DOCUMENTS, Packing, pack_best_fit
from nanochat_hf.data.row_stream import Encoder, RowStream, StreamSnapshot, as_encoder
from nanochat_hf.data.sources import DocumentStream, MixedStream, OnBadFile, open_documents
from nanochat_hf.settings import UserError

Batch = dict[str, torch.Tensor]


def make_batch(rows: np.ndarray) -> Batch:
    """Turns rows of T+1 tokens into a batch for a causal language model.

    Args:
        rows: int64 [B, T+1]; a row that begins with a negative number is padding.

    Returns:
        `input_ids` [B, T]: the rows without their last token; `shift_labels` [B, T]: without their first, what the
        loss is taken of; `labels`: the inputs again, for code that counts labels. All int64, -100 = not scored.
    """
    rows_BT1 = torch.from_numpy(rows)
    padding = rows_BT1[:, :1] < 0
    inputs, targets = rows_BT1[:, :-1].contiguous(), rows_BT1[:, 1:].contiguous()
    if not padding.any():
        return {"input_ids": inputs, "shift_labels": targets, "labels": inputs}
    return {
        "input_ids": inputs.masked_fill(padding, 0),
        "shift_labels": targets.masked_fill(padding, IGNORED),
        "labels": inputs.masked_fill(padding, IGNORED),
    }


class PackedLoader:
    """An endless iterator of training batches, made in the background.

    Args:
        source: see `nanochat_hf.data.sources`.
        tokenizer: a tokenizer of `nanochat_hf.tokenizer`, or anything with `encode_batch`.
        batch_size: rows a batch (of this process).
        sequence_length: tokens a row that the model sees; a row has one more.
        rank, world_size: this process and how many there are.
        streams: how many streams the data is dealt into; default `world_size`, or what a loaded state says.
        packing: what becomes of a cropped document's rest, see `BestFitPacker`.
        seed: shuffles the documents anew in each epoch; None keeps their order.
        text_column, on_bad_file: see `open_documents`.
        buffer_documents: how many documents a stream packs from.
        num_threads: tokenizing threads; default all cores.
        prefetch: batches made ahead.
        pin_memory: put batches into page-locked memory, from which a GPU copies without waiting.

    Iterating yields batches as `make_batch` describes them. `state_dict` refers to the last batch that was yielded:
    whatever is made ahead is made again after a restart, identically.
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
        self.document_options = {"seed": seed, "text_column": text_column, "on_bad_file": on_bad_file}
        self.prefetch, self.pin_memory = prefetch, pin_memory and torch.cuda.is_available()
        self._worker: _Worker | None = None
        self._open(streams or world_size)

    def _open(self, num_streams: int) -> None:
        self.num_streams = num_streams
        rows = range(self.rank, num_streams * self.world_size, self.world_size)
        self._own = sorted({row % num_streams for row in rows})
        self._streams = {index: self._open_stream(index) for index in self._own}
        self._rows = 0  # rows of the whole run, of all processes, that the batches made so far have covered
        self._yielded = self._snapshot()

    def _open_stream(self, index: int) -> RowStream:
        documents = open_documents(
            self.source, rank=index, world_size=self.num_streams, repeat=True, **self.document_options
        )
        length = self.sequence_length + 1
        return RowStream(documents, self.encoder, length, self.packing, self.buffer_documents)

    @property
    def epoch(self) -> int:
        """How many times the source had been read when the last yielded batch was made."""
        return max(stream.epoch for stream in self._yielded.streams.values())

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._worker is None:
            self._worker = _Worker(self._make_batch, self.prefetch)
        batch, self._yielded = self._worker.next()
        return batch

    def close(self) -> None:
        """Stops the background thread. The loader can go on afterwards, from the last yielded batch."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
            self.load_state_dict(self.state_dict())

    def _make_batch(self) -> tuple[Batch, "_Snapshot"]:
        rows_BT1 = np.empty((self.batch_size, self.sequence_length + 1), dtype=np.int64)
        skipped = np.empty(self.sequence_length + 1, dtype=np.int64)
        end = self._rows + self.batch_size * self.world_size
        filled = 0
        for row in range(self._rows, end):
            stream = self._streams.get(row % self.num_streams)
            if row % self.world_size == self.rank:
                stream.next_row(rows_BT1[filled])
                filled += 1
            elif stream is not None:  # another process takes this row of a shared stream
                stream.next_row(skipped)
        self._rows = end
        batch = make_batch(rows_BT1)
        if self.pin_memory:
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch, self._snapshot()

    def _snapshot(self) -> "_Snapshot":
        return _Snapshot(self._rows, {index: stream.snapshot() for index, stream in self._streams.items()})

    def state_dict(self) -> dict[str, Any]:
        """The state after the last yielded batch: numbers, strings and tensors (safe for `weights_only` loading).

        It holds the streams of this process. A run goes on with any number of processes if `load_state_dict` gets the
        states of all of them.
        """
        return {
            "num_streams": self.num_streams,
            "rows": self._yielded.rows,
            "row_length": self.sequence_length + 1,
            "packing": self.packing,
            "streams": {index: stream.state_dict() for index, stream in self._yielded.streams.items()},
        }

    def load_state_dict(self, state: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Goes to a saved state: that of this process, or those of all processes of the interrupted run.

        Raises:
            UserError: a stream that this process needs is in none of the states, or rows or data are others now.
        """
        states = [state] if isinstance(state, dict) else list(state)
        first = states[0]
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        for name, now in (("row_length", self.sequence_length + 1), ("packing", self.packing)):
            if first[name] != now:
                raise UserError(f"the run was made with {name} {first[name]}, not {now}; resume it with the same one")
        saved = {int(index): stream for each in states for index, stream in each["streams"].items()}
        self._open(first["num_streams"])
        missing = [index for index in self._own if index not in saved]
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
    rows: int
    streams: dict[int, StreamSnapshot]


class _Worker:
    """A thread that calls `make` ahead of time; an exception in it is raised where the item is taken."""

    def __init__(self, make: Any, ahead: int):
        self._items: queue.Queue[Any] = queue.Queue(maxsize=max(1, ahead))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make,), name="data-loader", daemon=True)
        self._thread.start()

    def _run(self, make: Any) -> None:
        while not self._stopping.is_set():
            try:
                item = make()
            except BaseException as error:  # noqa: BLE001 (handed to the consumer)
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
            self._items.put(item)  # whoever asks again gets the same answer, not a wait without end
            raise item
        return item

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


class ValidationBatches:
    """Batches of the validation split: a fixed number of tokens, the same rows for any number of processes.

    Rows are packed by upstream's rule whatever training uses, so that bits per byte stay comparable. They are made on
    first use and kept, so that each evaluation only pays for the model. Can be iterated any number of times.

    Args:
        tokens: how many tokens to score, of all processes together; fewer where the split has fewer.
        The others: see `PackedLoader`.
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
        self.document_options = {"text_column": text_column, "on_bad_file": on_bad_file}
        self.num_threads = num_threads
        self._rows: np.ndarray | None = None

    def _make_rows(self) -> np.ndarray:
        """This process's rows, int32 [rows, T+1], the same number everywhere; missing ones are filled with -1."""
        encoder = as_encoder(self.tokenizer, self.num_threads)
        documents = open_documents(self.source, "validation", **self.document_options)
        wanted = max(1, -(-self.tokens // self.sequence_length))
        rows: list[np.ndarray] = []
        total = 0
        for row in pack_best_fit(_encoded(documents, encoder), self.sequence_length + 1):
            if total % self.world_size == self.rank:
                rows.append(row.astype(np.int32))
            total += 1
            if total == wanted:
                break
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
        """The rows of this process."""
        if self._rows is None:
            self._rows = self._make_rows()
        return self._rows

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.rows), self.batch_size):
            yield make_batch(self.rows[start : start + self.batch_size].astype(np.int64))


def _encoded(documents: DocumentStream | MixedStream, encoder: Encoder) -> Iterator[np.ndarray]:
    while texts := documents.next_batch(REFILL_DOCUMENTS):
        ids, offsets = encoder.encode_batch(texts)
        for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            yield ids[start:end]
