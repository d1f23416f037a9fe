"""Packs token ids into rows. In: documents or conversations of any length. Out: rows of one length.

A pretraining row is full to the last token and begins with a document's first token (nanochat's "BOS best-fit"). In a
chat row no conversation is cropped: space that none fits is padded.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np

IGNORED = -100  # the label of a token that is not trained on, as in torch and transformers
BUFFER_DOCUMENTS = 1000  # upstream's buffer
REFILL_DOCUMENTS = 128  # upstream tokenizes and refills in batches of this size
BUFFER_TOKENS = 1 << 26  # a buffer with more is not refilled; 1,000 documents of 262,144 characters have about as many
SMALL_BUFFER_SHARE = 2  # a small corpus is packed from a buffer of 1 / this of its documents
PADDING = -1  # a place of a row without a token
KEEP_TAILS_UP_TO = 512  # tokens per row
MIN_TAIL = 16  # tokens; a shorter rest of a document is dropped, because it needs a start token of its own

Packing = Literal["best_fit", "keep_tails"]
ChatPacking = Literal["best_fit", "none"]


def default_packing(sequence_length: int) -> Packing:
    """Returns the packing with fewer bits per byte on whole documents, for rows of so many tokens.

    `"keep_tails"` is ahead at rows of 512 at depths 2 and 4 (docs/log.md). There `"best_fit"` drops three fifths of
    web text, and of shorter rows more. Longer rows keep upstream's rule: nothing else is measured there.

    Args:
        sequence_length: tokens of a row that the model sees.
    """
    return "keep_tails" if sequence_length <= KEEP_TAILS_UP_TO else "best_fit"


class BestFitPacker:
    """The buffer of documents that wait to be packed, and the rule that chooses the next one.

    A row is filled with the longest document that still fits, again and again (of equal ones the oldest). When none
    fits, a document is cropped to fill the rest of the row:

    - `"best_fit"`, upstream's rule, crops the shortest document and drops its rest. At rows of 2,048 tokens
      upstream loses about 35 % of all tokens of web text that way.
    - `"keep_tails"` crops the oldest of the documents longer than a row; where there are none, the longest document.
      The rest goes back into the buffer as a document of its own, after a start token. Only rests of less than
      `MIN_TAIL` tokens are lost. Always cropping the longest would fill neighbouring rows with one book (docs/log.md).

    Both choices take O(log n) time for n documents. Documents that fit into a row are in queues by length, with a bit
    mask of the lengths that are present. Longer ones are in a heap.

    Args:
        row_length: tokens per row; for a language model one more than its sequence length.
        packing: what becomes of the rest of a cropped document.

    Raises:
        ValueError: `row_length` is below 2, or there is no such packing.
    """

    def __init__(self, row_length: int, packing: Packing = "best_fit"):
        if row_length < 2:
            raise ValueError(f"rows of {row_length} tokens cannot be trained on")
        if packing not in ("best_fit", "keep_tails"):
            raise ValueError(f"packing is best_fit or keep_tails, not {packing!r}")
        self.row_length, self.packing = row_length, packing
        self._documents: dict[int, np.ndarray] = {}  # by arrival: dicts keep that order
        self._keys: dict[int, int] = {}  # by arrival; only of documents that were added with a key
        self._arrivals = 0
        self._queues: list[deque[int]] = [deque() for _ in range(row_length + 1)]
        self._present = 0  # bit n is set where self._queues[n] is not empty
        self._up_to = [(1 << (length + 1)) - 1 for length in range(row_length + 1)]
        self.tokens = 0  # of all waiting documents
        self.placed_key: int | None = None  # of the document that `place` took last
        self._long: list[tuple[int, int]] = []  # heap of (length, arrival), or (0, arrival) with keep_tails

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def documents(self) -> list[np.ndarray]:
        """The waiting documents, oldest first. A new packer to which they are added goes on exactly like this one."""
        return list(self._documents.values())

    def add(self, document: np.ndarray, key: int | None = None) -> None:
        """Adds a document: token ids [tokens], the start token first. The packer keeps a reference.

        `key` names it in `placed_key`, and so does it the rest of it that `"keep_tails"` keeps.
        """
        length = len(document)
        if not length:
            return
        arrival = self._arrivals
        if key is not None:
            self._keys[arrival] = key
        self._arrivals += 1
        self._documents[arrival] = document
        self.tokens += length
        if length <= self.row_length:
            self._queues[length].append(arrival)
            self._present |= 1 << length
        else:
            heapq.heappush(self._long, (length if self.packing == "best_fit" else 0, arrival))

    def place(self, space: np.ndarray) -> int:
        """Writes the next document to the beginning of `space`.

        Args:
            space: the free rest of a row, int64 [tokens]; changed in place.

        Returns:
            How many tokens were written.

        Raises:
            IndexError: no document is waiting.
        """
        fitting = (self._present & self._up_to[len(space)]).bit_length() - 1
        if fitting > 0:
            document = self._take_queued(fitting)
            space[:fitting] = document
            return fitting
        document = self._take_to_crop()
        space[:] = document[: len(space)]
        if self.packing == "keep_tails" and len(document) - len(space) >= MIN_TAIL:
            self.add(np.concatenate([document[:1], document[len(space) :]]), self.placed_key)
        return len(space)

    def fits(self, space: int) -> bool:
        """Returns whether a waiting document fits into `space` tokens without cropping."""
        return bool(self._present & self._up_to[space])

    def _take_queued(self, length: int) -> np.ndarray:
        queue = self._queues[length]
        arrival = queue.popleft()
        if not queue:
            self._present ^= 1 << length
        return self._take(arrival)

    def _take(self, arrival: int) -> np.ndarray:
        document = self._documents.pop(arrival)
        self.placed_key = self._keys.pop(arrival, None)
        self.tokens -= len(document)
        return document

    def _take_to_crop(self) -> np.ndarray:
        if self.packing == "best_fit":  # the shortest, so that little is lost
            if self._present:
                return self._take_queued((self._present & -self._present).bit_length() - 1)
            return self._take(heapq.heappop(self._long)[1])
        if self._long:
            return self._take(heapq.heappop(self._long)[1])
        if self._present:
            return self._take_queued(self._present.bit_length() - 1)
        raise IndexError("no document is waiting")


def pack_best_fit(
    documents: Iterable[Sequence[int] | np.ndarray],
    row_length: int,
    *,
    packing: Packing = "best_fit",
    buffer_documents: int = BUFFER_DOCUMENTS,
    refill_documents: int = REFILL_DOCUMENTS,
) -> Iterator[np.ndarray]:
    """Packs documents into rows, by default with upstream's rule; see `BestFitPacker`.

    Args:
        documents: the token ids of each document, the start token first.
        row_length: tokens per row.
        packing: `"best_fit"` is upstream's rule; `"keep_tails"` keeps the rests of cropped documents.
        buffer_documents: the buffer is refilled whenever it holds fewer documents than this, and fewer tokens than
            `BUFFER_TOKENS`.
        refill_documents: documents per refill.

    Yields:
        int64 arrays [row_length]. A last row that cannot be filled is dropped.

    Raises:
        ValueError: as `BestFitPacker`.
    """
    packer, remaining = BestFitPacker(row_length, packing), iter(documents)
    while True:
        row, filled = np.empty(row_length, dtype=np.int64), 0
        while filled < row_length:
            while len(packer) < buffer_documents and packer.tokens < BUFFER_TOKENS:
                batch = list(islice(remaining, refill_documents))
                for document in batch:
                    packer.add(np.asarray(document))
                if not batch:
                    break
            if not packer:
                return
            filled += packer.place(row[filled:])
        yield row


def pack_pass(
    documents: Sequence[np.ndarray], row_length: int, packing: Packing, rng: np.random.Generator
) -> np.ndarray:
    """Packs all documents of a small corpus once, for a corpus that is read many times.

    The documents are shuffled and packed from a buffer of half of them, so that each pass combines and crops them
    otherwise. Then the rows are shuffled: a packer takes short and long documents at different times. No row holds a
    document twice, nor two parts of it. The last row is filled with documents that it does not hold yet. Where these
    are too few, the rest of it is `PADDING`; a row less than half full is left out then, unless it is the only one.

    Args:
        documents: token ids of each document, the start token first; at least one of them not empty.
        row_length: tokens per row.
        packing: see `BestFitPacker`.
        rng: decides both orders.

    Returns:
        int32 [rows, row_length], at least one row.
    """
    packer = BestFitPacker(row_length, packing)
    order = rng.permutation(len(documents)).tolist()
    buffer, entered = max(1, len(order) // SMALL_BUFFER_SHARE), 0
    rows: list[np.ndarray] = []
    while entered < len(order) or packer:
        row, filled, inside = np.full(row_length, PADDING, dtype=np.int32), 0, set()
        while filled < row_length:
            while entered < len(order) and len(packer) < buffer:
                packer.add(documents[order[entered]], order[entered])
                entered += 1
            if not packer:
                break
            filled += packer.place(row[filled:])
            inside.add(packer.placed_key)
        others = (key for key in rng.permutation(len(documents)).tolist() if key not in inside)
        for key in others if filled < row_length else ():
            part = documents[key][: row_length - filled]
            row[filled : filled + len(part)] = part
            filled += len(part)
        if 2 * filled >= row_length or not rows:
            rows.append(row)
    return np.stack(rows)[rng.permutation(len(rows))]


def pack_conversations(
    rendered: Iterable[tuple[Sequence[int], Sequence[int]]],
    row_length: int,
    pad_id: int,
    *,
    packing: ChatPacking = "best_fit",
    buffer_conversations: int = 100,
) -> Iterator[dict[str, np.ndarray]]:
    """Packs whole conversations into rows. Where none fits any more, the rest of the row is padded.

    Args:
        rendered: (ids, mask) of each conversation; mask is 1 where the token is trained on. A conversation has at most
            `row_length` ids: whoever renders it shortens it. One with no 1 after the first token is left out.
        row_length: tokens per row.
        pad_id: the token id in the padding.
        packing: `"best_fit"` puts several conversations into a row; `"none"` puts each into a row of its own, in
            their order.
        buffer_conversations: the number of conversations that `"best_fit"` chooses from.

    Yields:
        `input_ids` and `labels`, int64 [row_length]. Labels are the ids, not shifted; they are -100 in padding and
        where the mask is 0. Each row has at least one label.

    Raises:
        ValueError: a conversation is longer than a row, or ids and mask differ in length.
    """
    if packing == "none":
        buffer_conversations = 1
    packer = BestFitPacker(row_length)
    conversations = (_encode_mask(ids, mask, row_length) for ids, mask in rendered if any(mask[1:]))
    while True:
        row, filled = np.full(row_length, ~pad_id, dtype=np.int64), 0
        while filled < row_length:
            for conversation in islice(conversations, buffer_conversations - len(packer)):
                packer.add(conversation)
            if not packer.fits(row_length - filled):
                break
            filled += packer.place(row[filled:])
            if packing == "none":
                break
        if not filled:
            return
        ids = np.where(row < 0, ~row, row)
        yield {"input_ids": ids, "labels": np.where(row < 0, IGNORED, row)}


def _encode_mask(ids: Sequence[int], mask: Sequence[int], row_length: int) -> np.ndarray:
    """Returns ids and mask as one array: a token that is not trained on is stored as its complement (negative)."""
    if len(ids) > row_length:
        raise ValueError(f"a conversation of {len(ids)} tokens for rows of {row_length}: shorten it when rendering")
    if len(ids) != len(mask):
        raise ValueError(f"a conversation has {len(ids)} tokens but a mask of {len(mask)}")
    ids_array = np.asarray(ids, dtype=np.int64)
    return np.where(np.asarray(mask, dtype=bool), ids_array, ~ids_array)
