"""The rows of one stream. In: documents and an encoder. Out: tokenized, packed rows, and a state exact to the row."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from nanochat_hf.data.packing import BUFFER_DOCUMENTS, BUFFER_TOKENS, REFILL_DOCUMENTS, BestFitPacker, Packing
from nanochat_hf.data.sources import DocumentStream, MixedStream
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
    """The rows of one stream: its documents, tokenized and packed, without end.

    Its state is the position in the source, and all documents in the packing buffer. So a restored stream goes on with
    exactly the next row.

    Args:
        documents: the stream's documents; they must repeat.
        encoder: turns texts into token ids.
        row_length: tokens per row, one more than the model's sequence length.
        packing: see `BestFitPacker`.
        buffer_documents: the buffer is refilled whenever it holds fewer documents than this, and fewer tokens than
            `BUFFER_TOKENS`. Where the whole source has fewer documents, they are all used before any of them comes
            again; a buffer with many copies of each would give copies one after the other.

    Raises:
        UserError: in `next_row`, where the documents end or cannot be read.
    """

    def __init__(
        self,
        documents: DocumentStream | MixedStream,
        encoder: Encoder,
        row_length: int,
        packing: Packing = "best_fit",
        buffer_documents: int = BUFFER_DOCUMENTS,
    ):
        self.documents, self.encoder = documents, encoder
        self.packer = BestFitPacker(row_length, packing)
        self.buffer_documents = buffer_documents
        self.rows_made = 0
        self._in_source = 0  # documents of the source that the packer has got in its first epoch
        self._packer_epoch = 0  # of the newest documents in the packer
        self._refills: deque[tuple[list[np.ndarray], int]] = deque()  # tokenized, not yet in the packer; their epoch
        # The position where the refills were read, and how many of them are in the packer.
        self._position, self._refills_used = documents.state_dict(), 0

    def next_row(self, out: np.ndarray) -> None:
        """Writes the next row into `out`, int64 [row_length]."""
        filled = 0
        while filled < len(out):
            while len(self.packer) < self.buffer_documents and self.packer.tokens < BUFFER_TOKENS:
                if not self._refill():
                    break
            filled += self.packer.place(out[filled:])
        self.rows_made += 1

    def _refill(self) -> bool:
        """Adds documents to the packer; returns False where those that it holds have to be used first."""
        if not self._refills:
            self._tokenize()
        documents, epoch = self._refills[0]
        is_small = 0 < self._in_source < self.buffer_documents
        if epoch > self._packer_epoch and is_small and len(self.packer):
            return False
        self._refills.popleft()
        self._packer_epoch = epoch
        if not epoch:
            self._in_source += len(documents)
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
            batches.append(self.documents.next_batch(REFILL_DOCUMENTS))
            epochs.append(self.documents.whole_epochs)
            chars += sum(map(len, batches[-1]))
        if not batches[0]:
            raise UserError("the training data ended; a stream for training has to repeat")
        ids, offsets = self.encoder.encode_batch([text for batch in batches for text in batch])
        ids = ids.astype(np.int32, copy=False)
        bounds = offsets.tolist()
        # Copies: a view of one document that waits long would keep the ids of the whole batch in memory.
        documents = (ids[start:end].copy() for start, end in zip(bounds, bounds[1:], strict=False))
        for batch, epoch in zip(batches, epochs, strict=True):
            if batch:
                self._refills.append((list(islice(documents, len(batch))), epoch))

    def snapshot(self) -> "StreamSnapshot":
        """Returns the state at this moment. It is cheap: it refers to the waiting documents, which nobody changes."""
        return StreamSnapshot(
            self.rows_made,
            self.documents.epoch,
            self._position,
            self._refills_used,
            self.packer.documents,
            self._in_source,
            self._packer_epoch,
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a state that `StreamSnapshot.state_dict` returned.

        Raises:
            UserError: the state belongs to other data.
        """
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
        # Absent in checkpoints of version 0.1, which then go on by upstream's rule.
        self._in_source = state.get("documents_in_source", 0)
        self._packer_epoch = state.get("packer_epoch", 0)


@dataclass(frozen=True)
class StreamSnapshot:
    """A stream's state, not yet written out.

    Attributes:
        rows_made: rows made so far.
        epoch: how many times the source has been read.
        position: where the current refills were read.
        refills_used: how many of these refills are in the packer.
        documents: the documents in the packer, oldest first.
        documents_in_source: documents that the packer has got in the first epoch.
        packer_epoch: the epoch of the newest documents in the packer.
    """

    rows_made: int
    epoch: int
    position: dict[str, Any]
    refills_used: int
    documents: list[np.ndarray]
    documents_in_source: int = 0
    packer_epoch: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as numbers, strings and tensors; the waiting documents as one int32 array and lengths."""
        ids = np.concatenate([np.empty(0, np.int32), *self.documents])
        lengths = [len(document) for document in self.documents]
        return {
            "rows_made": self.rows_made,
            "position": self.position,
            "refills_used": self.refills_used,
            "documents_in_source": self.documents_in_source,
            "packer_epoch": self.packer_epoch,
            "buffer_ids": torch.from_numpy(ids),
            "buffer_lengths": torch.tensor(lengths, dtype=torch.int64),
        }
