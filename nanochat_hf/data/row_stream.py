"""The rows of one stream: documents tokenized and packed, with a state that is exact to the row."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from nanochat_hf.data.packing import BUFFER_DOCUMENTS, REFILL_DOCUMENTS, BestFitPacker, Packing
from nanochat_hf.data.sources import DocumentStream, MixedStream
from nanochat_hf.settings import UserError

REFILLS_AT_ONCE = 8  # refills of the packing buffer that are tokenized in one call, which is faster than one by one


class Encoder(Protocol):
    """What the loader needs of `nanochat_hf.tokenizer.CorpusEncoder`."""

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids, offsets); document i is ids[offsets[i]:offsets[i+1]], its start token first."""
        ...


def as_encoder(tokenizer: Any, num_threads: int | None = None) -> Encoder:
    """Returns `tokenizer` if it can encode batches itself, else a `CorpusEncoder` for it."""
    if hasattr(tokenizer, "encode_batch"):
        return tokenizer
    from nanochat_hf.tokenizer import CorpusEncoder

    return CorpusEncoder(tokenizer, num_threads=num_threads)


class RowStream:
    """The rows of one stream: its documents, tokenized and packed, without end.

    Its state is the position in the source together with all documents that wait in the packing buffer, so that a
    restored stream goes on with exactly the next row.
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
        self._refills: deque[list[np.ndarray]] = deque()  # tokenized, not yet in the packer
        self._position, self._refills_used = documents.state_dict(), 0  # where they were read, how many are packed

    def next_row(self, out: np.ndarray) -> None:
        """Writes the next row into `out`, int64 [row_length]."""
        filled = 0
        while filled < len(out):
            while len(self.packer) < self.buffer_documents:
                self._refill()
            filled += self.packer.place(out[filled:])
        self.rows_made += 1

    def _refill(self) -> None:
        if not self._refills:
            self._tokenize()
        for document in self._refills.popleft():
            self.packer.add(document)
        self._refills_used += 1

    def _tokenize(self) -> None:
        """Reads and tokenizes the documents of the next refills."""
        self._position, self._refills_used = self.documents.state_dict(), 0
        batches = [self.documents.next_batch(REFILL_DOCUMENTS) for _ in range(REFILLS_AT_ONCE)]
        if not batches[0]:
            raise UserError("the training data ended; a stream for training has to repeat")
        ids, offsets = self.encoder.encode_batch([text for batch in batches for text in batch])
        ids = ids.astype(np.int32, copy=False)
        bounds = offsets.tolist()
        # copies, or one document that waits long would keep all of its neighbours alive
        documents = (ids[start:end].copy() for start, end in zip(bounds, bounds[1:], strict=False))
        self._refills.extend(list(islice(documents, len(batch))) for batch in batches if batch)

    def snapshot(self) -> "StreamSnapshot":
        """The state at this moment; cheap, since it refers to documents that nobody changes."""
        return StreamSnapshot(
            self.rows_made, self.documents.epoch, self._position, self._refills_used, self.packer.documents
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to the state that `StreamSnapshot.state_dict` wrote."""
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


@dataclass(frozen=True)
class StreamSnapshot:
    """A stream's state that has not yet been written out."""

    rows_made: int
    epoch: int
    position: dict[str, Any]
    refills_used: int
    documents: list[np.ndarray]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tensors: the place where the last documents were read, how many refills of the
        packing buffer were made of them, and the documents that wait in the buffer."""
        ids = np.concatenate([np.empty(0, np.int32), *self.documents])
        lengths = [len(document) for document in self.documents]
        return {
            "rows_made": self.rows_made,
            "position": self.position,
            "refills_used": self.refills_used,
            "buffer_ids": torch.from_numpy(ids),
            "buffer_lengths": torch.tensor(lengths, dtype=torch.int64),
        }
