"""The rows of one stream. In: documents and an encoder. Out: tokenized, packed rows, and a state exact to the row.

A corpus is read in passes (epochs), and no row holds documents of two passes. So a row never holds a document twice,
unless the corpus itself does. There are two rules:

- A *large* corpus is packed by upstream's rule from an endless buffer. At the end of a pass, the buffer is used up
  before it gets the next pass.
- A *small* one, with fewer documents than a buffer holds, is kept in memory. Each pass is shuffled and packed anew by
  `packing.pack_pass`. In one buffer, upstream's rule would sort it by length: the longest documents would always come
  last, one after the other.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from nanochat_hf.data.packing import (
    BUFFER_DOCUMENTS,
    BUFFER_TOKENS,
    REFILL_DOCUMENTS,
    BestFitPacker,
    Packing,
    pack_pass,
)
from nanochat_hf.data.sources import DocumentStream
from nanochat_hf.settings import UserError

REFILLS_AT_ONCE = 8  # refills of the packing buffer that one call tokenizes; faster than one by one
CHARS_AT_ONCE = 1 << 23  # one call tokenizes no further refill after so many characters


class Encoder(Protocol):
    """The part of `nanochat_hf.tokenizer.CorpusEncoder` that the loader needs."""

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids [tokens] and offsets [documents + 1]; document i is `ids[offsets[i] : offsets[i + 1]]`.

        Each document begins with its start token.
        """
        ...


def as_encoder(tokenizer: Any, num_threads: int | None = None) -> Encoder:
    """Returns `tokenizer` itself where it has `encode_batch`, else a `CorpusEncoder` of it.

    Args:
        tokenizer: an encoder, or a `PreTrainedTokenizerFast` of `nanochat_hf.tokenizer`.
        num_threads: threads of the `CorpusEncoder`; default: all cores.
    """
    if hasattr(tokenizer, "encode_batch"):
        return tokenizer
    from nanochat_hf.tokenizer import CorpusEncoder

    return CorpusEncoder(tokenizer, num_threads=num_threads)


class RowStream:
    """The rows of one stream: its documents, tokenized and packed, without end; see the top of this module.

    The state of a large corpus is the position in the source, and all documents in the packing buffer. That of a small
    one is the number of the pass and of the row in it. A restored stream goes on with exactly the next row.

    Args:
        documents: the stream's documents; they must repeat.
        encoder: turns texts into token ids.
        row_length: tokens per row, one more than the model's sequence length.
        packing: see `BestFitPacker`.
        buffer_documents: the buffer is refilled whenever it holds fewer documents than this, and fewer tokens than
            `BUFFER_TOKENS`. A corpus of fewer documents (and characters) is small.
        seed: shuffles the passes of a small corpus; numbers.

    Raises:
        UserError: in `next_row`, where the documents end or cannot be read, or a large corpus fills no row.
    """

    def __init__(
        self,
        documents: DocumentStream,
        encoder: Encoder,
        row_length: int,
        packing: Packing = "best_fit",
        buffer_documents: int = BUFFER_DOCUMENTS,
        seed: Sequence[int] = (0,),
    ):
        self.documents, self.encoder = documents, encoder
        self.packer = BestFitPacker(row_length, packing)
        self.buffer_documents, self.seed = buffer_documents, tuple(seed)
        self.rows_made = 0
        self._is_small: bool | None = None  # known when the first row is asked for
        # A large corpus.
        self._packer_epoch = 0  # of the newest documents in the packer
        self._refills: deque[tuple[list[np.ndarray], int]] = deque()  # tokenized, not yet in the packer; their epoch
        # The position where the refills were read, and how many of them are in the packer.
        self._position, self._refills_used = documents.state_dict(), 0
        # A small corpus: its documents, the rows of the current pass, the number of the pass and of the next row.
        self._corpus: list[np.ndarray] = []
        self._rows: np.ndarray | None = None
        self._pass, self._row = 0, 0

    def next_row(self, out: np.ndarray) -> None:
        """Writes the next row into `out`, int64 [row_length]. A place without a token is `packing.PADDING`."""
        if self._is_small is None:
            self._is_small = self._find_size()
        if self._is_small:
            self._next_of_pass(out)
        else:
            self._next_of_buffer(out)
        self.rows_made += 1

    def _find_size(self) -> bool:
        """Returns whether the corpus is small. It reads a pass, but no further than where the corpus is large."""
        start = self.documents.state_dict()
        documents = chars = 0
        is_small = False
        while documents < self.buffer_documents and chars < BUFFER_TOKENS:
            batch = self._next_batch()
            if self.documents.epoch:
                is_small = True
                break
            documents += len(batch)
            chars += sum(map(len, batch))
        self.documents.load_state_dict(start)
        return is_small

    def _next_batch(self) -> list[str]:
        batch = self.documents.next_batch(REFILL_DOCUMENTS)
        if not batch:
            raise UserError("the training data ended; a stream for training has to repeat")
        return batch

    # -- a small corpus ------------------------------------------------------------------------------------------

    def _next_of_pass(self, out: np.ndarray) -> None:
        if self._rows is None:
            if not self._corpus:
                self._read_corpus()
            rng = np.random.default_rng((*self.seed, self._pass))
            self._rows = pack_pass(self._corpus, self.packer.row_length, self.packer.packing, rng)
        out[:] = self._rows[self._row]
        self._row += 1
        if self._row == len(self._rows):
            self._pass, self._row, self._rows = self._pass + 1, 0, None

    def _read_corpus(self) -> None:
        start = self.documents.state_dict()
        texts: list[str] = []
        while batch := self._next_batch():
            if self.documents.epoch:
                break
            texts += batch
        self.documents.load_state_dict(start)
        ids, offsets = self.encoder.encode_batch(texts)
        bounds = offsets.tolist()
        ids = ids.astype(np.int32, copy=False)
        self._corpus = [ids[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]

    # -- a large corpus ------------------------------------------------------------------------------------------

    def _next_of_buffer(self, out: np.ndarray) -> None:
        filled, restarted = 0, False
        while filled < len(out):
            while len(self.packer) < self.buffer_documents and self.packer.tokens < BUFFER_TOKENS:
                if not self._refill(within_row=filled > 0):
                    break
            if self.packer:
                filled += self.packer.place(out[filled:])
                continue
            # The pass ended within a row. Its beginning is left out, as the next pass may hold the same documents.
            if restarted:
                raise UserError(
                    f"the training text does not fill one row of {len(out)} tokens; give more text or a shorter "
                    "--sequence_length"
                )
            filled, restarted = 0, True

    def _refill(self, within_row: bool) -> bool:
        """Adds documents to the packer; returns False where the pass before has to be used up first."""
        if not self._refills:
            self._tokenize()
        documents, epoch = self._refills[0]
        if epoch > self._packer_epoch and (within_row or len(self.packer)):
            return False
        self._refills.popleft()
        self._packer_epoch = epoch
        for document in documents:
            self.packer.add(document)
        self._refills_used += 1
        return True

    def _tokenize(self) -> None:
        """Reads and tokenizes the documents of the next refills."""
        self._position, self._refills_used = self.documents.state_dict(), 0
        batches: list[list[str]] = []
        epochs: list[int] = []
        chars = 0
        while len(batches) < REFILLS_AT_ONCE and chars < CHARS_AT_ONCE:
            batches.append(self._next_batch())
            epochs.append(self.documents.epoch)
            chars += sum(map(len, batches[-1]))
        ids, offsets = self.encoder.encode_batch([text for batch in batches for text in batch])
        ids = ids.astype(np.int32, copy=False)
        bounds = offsets.tolist()
        # Copies: a view of one document that waits long would keep the ids of the whole batch in memory.
        documents = (ids[start:end].copy() for start, end in zip(bounds, bounds[1:], strict=False))
        for batch, epoch in zip(batches, epochs, strict=True):
            self._refills.append((list(islice(documents, len(batch))), epoch))

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """How many times the source has been read."""
        return self._pass if self._is_small else self.documents.epoch

    def snapshot(self) -> "StreamSnapshot":
        """Returns the state at this moment. It is cheap: it refers to the waiting documents, which nobody changes."""
        return StreamSnapshot(
            self.rows_made,
            self.epoch,
            self._position,
            self._refills_used,
            self.packer.documents,
            self._packer_epoch,
            self._is_small,
            self._row,
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a state that `StreamSnapshot.state_dict` returned.

        Raises:
            UserError: the state belongs to other data.
        """
        if "position" not in state:
            raise UserError("the run was made with several sources; resume it with the same --data")
        self.documents.load_state_dict(state["position"])
        self._refills.clear()
        self._position, self._refills_used = state["position"], 0
        if state["refills_used"]:
            self._tokenize()
            for _ in range(state["refills_used"]):
                self._refills.popleft()
            self._refills_used = state["refills_used"]
        self.packer = BestFitPacker(self.packer.row_length, self.packer.packing)
        ids, ends = state["buffer_ids"].numpy(), state["buffer_lengths"].cumsum(0).tolist()
        for start, end in zip([0, *ends], ends, strict=False):
            self.packer.add(ids[start:end].copy())
        self.rows_made = state["rows_made"]
        # Absent in older checkpoints, which then go on as those of a large corpus.
        self._packer_epoch = state.get("packer_epoch", 0)
        self._is_small = state.get("is_small", False)
        self._corpus, self._rows = [], None
        self._pass, self._row = (state["epoch"], state["row"]) if self._is_small else (0, 0)


@dataclass(frozen=True)
class StreamSnapshot:
    """A stream's state, not yet written out.

    Attributes:
        rows_made: rows made so far.
        epoch: how many times the source has been read; of a small corpus the number of the pass.
        position: where the current refills were read.
        refills_used: how many of these refills are in the packer.
        documents: the documents in the packer, oldest first.
        packer_epoch: the epoch of the newest documents in the packer.
        is_small: whether the corpus is small; None before the first row.
        row: of a small corpus, the number of the next row in the pass.
    """

    rows_made: int
    epoch: int
    position: dict[str, Any]
    refills_used: int
    documents: list[np.ndarray]
    packer_epoch: int
    is_small: bool | None
    row: int

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as numbers, strings and tensors; the waiting documents as one int32 array and lengths."""
        ids = np.concatenate([np.empty(0, np.int32), *self.documents])
        lengths = [len(document) for document in self.documents]
        return {
            "rows_made": self.rows_made,
            "epoch": self.epoch,
            "position": self.position,
            "refills_used": self.refills_used,
            "packer_epoch": self.packer_epoch,
            "is_small": self.is_small,
            "row": self.row,
            "buffer_ids": torch.from_numpy(ids),
            "buffer_lengths": torch.tensor(lengths, dtype=torch.int64),
        }


class MixedRows:
    """The rows of several sources in given shares. Each row holds one source.

    The next row comes from the source that is furthest behind its share. This needs no random numbers, and the shares
    are exact to within a row. A small source repeats by its own passes, however large the others are.

    Args:
        streams: one per source.
        weights: the weight of each; they need not sum to 1.
    """

    def __init__(self, streams: Sequence[RowStream], weights: Sequence[float]):
        self.streams = list(streams)
        self.weights = np.asarray(weights, dtype=np.float64) / np.sum(weights)

    def next_row(self, out: np.ndarray) -> None:
        """Writes the next row into `out`, int64 [row_length]."""
        made = np.array([stream.rows_made for stream in self.streams], dtype=np.float64)
        lag = self.weights * (made.sum() + 1) - made
        self.streams[int(np.argmax(lag + 1e-9 * self.weights))].next_row(out)  # at the very start: the heaviest

    @property
    def rows_made(self) -> int:
        """Rows made so far."""
        return sum(stream.rows_made for stream in self.streams)

    def snapshot(self) -> "MixedSnapshot":
        """Returns the state at this moment."""
        return MixedSnapshot([stream.snapshot() for stream in self.streams])

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a state that `MixedSnapshot.state_dict` returned.

        Raises:
            UserError: the state belongs to other sources, or to a version that mixed sources within a row.
        """
        sources = state.get("sources")
        if sources is None or len(sources) != len(self.streams):
            raise UserError(
                "the saved position is one in other sources, or was saved by a version that mixed sources within a "
                "row; resume with the same data and version, or start afresh"
            )
        for stream, own in zip(self.streams, sources, strict=True):
            stream.restore(own)


@dataclass(frozen=True)
class MixedSnapshot:
    """The state of `MixedRows`, not yet written out."""

    streams: list[StreamSnapshot]

    @property
    def epoch(self) -> int:
        """How many times the source with the most epochs has been read."""
        return max(stream.epoch for stream in self.streams)

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of all sources."""
        return {"sources": [stream.state_dict() for stream in self.streams]}
