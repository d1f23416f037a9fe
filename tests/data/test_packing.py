"""Packing compared with a plain reference of upstream's rule, and the guarantees of each packing."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_hf.data.packing import MIN_TAIL, BestFitPacker, pack_best_fit, pack_conversations

START = 0


def documents_of(lengths: list[int]) -> list[np.ndarray]:
    """Documents that begin with the start token and whose other tokens are all different."""
    first = np.cumsum([1, *lengths])
    return [np.r_[START, np.arange(a, a + n - 1)] for a, n in zip(first, lengths, strict=False)]


def upstream_rows(documents: list[np.ndarray], row_length: int, buffer: int, batch: int) -> list[list[int]]:
    """The rule as the specification states it, by scanning a list."""
    documents, waiting, rows = list(documents), [], []
    while True:
        row: list[int] = []
        while len(row) < row_length:
            while len(waiting) < buffer and documents:
                waiting, documents = waiting + documents[:batch], documents[batch:]
            if not waiting:
                return rows
            space = row_length - len(row)
            fitting = [d for d in waiting if len(d) <= space]
            pick = max(fitting, key=len) if fitting else min(waiting, key=len)
            waiting = [d for d in waiting if d is not pick]
            row += pick[:space].tolist()
        rows.append(row)


lengths = st.lists(st.integers(1, 60), min_size=0, max_size=80)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(2, 40), st.integers(1, 20), st.integers(1, 8))
def test_rows_are_those_of_upstreams_rule(lengths, row_length, buffer, batch):
    documents = documents_of(lengths)
    rows = pack_best_fit(documents, row_length, buffer_documents=buffer, refill_documents=batch)
    assert [row.tolist() for row in rows] == upstream_rows(documents, row_length, buffer, batch)


def test_of_equal_documents_the_oldest_is_taken():
    packer = BestFitPacker(4)
    for token in (7, 8, 9):
        packer.add(np.array([START, token]))
    space = np.empty(4, dtype=np.int64)
    packer.place(space)
    packer.place(space[2:])
    assert space.tolist() == [START, 7, START, 8]


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(2, 40))
def test_keeping_tails_loses_only_short_ones(lengths, row_length):
    documents = documents_of(lengths)
    rows = list(pack_best_fit(documents, row_length, packing="keep_tails", buffer_documents=10, refill_documents=4))
    packed = np.concatenate([np.empty(0, int), *rows])
    content = packed[packed != START]
    assert len(np.unique(content)) == len(content), "no token is used twice"
    assert all(row[0] == START for row in rows), "each row begins with a start token"
    lost = sum(map(len, documents)) - len(documents) - len(content)
    assert lost <= len(rows) * (MIN_TAIL + 1) + 2 * row_length, "a tail a row, and the row at the end"
    for row in rows:  # between two start tokens the text runs on without a gap
        for piece in np.split(row, np.flatnonzero(row == START)[1:]):
            assert np.all(np.diff(piece[1:]) == 1)


def test_long_documents_take_turns_when_tails_are_kept():
    packer = BestFitPacker(100, "keep_tails")
    for token, length in ((7, 1000), (8, 350), (9, 250)):
        packer.add(np.array([START] + [token] * length))
    space = np.empty(100, dtype=np.int64)
    sources = [int(space[-1]) for _ in range(6) if packer.place(space)]
    assert sources == [7, 8, 9, 7, 8, 9]


def test_a_packer_refilled_with_its_documents_goes_on_alike():
    rng = random.Random(0)
    for packing in ("best_fit", "keep_tails"):
        packer = BestFitPacker(32, packing)
        for document in documents_of([rng.randint(2, 90) for _ in range(300)]):
            packer.add(document)
        row = np.empty(32, dtype=np.int64)
        fill = lambda p, row=row: [p.place(row), row.copy().tolist()]  # noqa: E731
        for _ in range(20):
            fill(packer)
        copy = BestFitPacker(32, packing)
        for document in packer.documents:
            copy.add(document)
        assert [fill(packer) for _ in range(40)] == [fill(copy) for _ in range(40)]


def test_a_row_too_short_and_an_unknown_rule_are_refused():
    with pytest.raises(ValueError, match="rows of 1"):
        BestFitPacker(1)
    with pytest.raises(ValueError, match="greedy"):
        BestFitPacker(8, "greedy")
    with pytest.raises(IndexError):
        BestFitPacker(8).place(np.empty(8))


conversations = st.lists(
    st.integers(2, 16).flatmap(lambda n: st.lists(st.integers(0, 1), min_size=n, max_size=n)), max_size=50
)


@settings(max_examples=60, deadline=None)
@given(conversations, st.integers(1, 9), st.sampled_from(["best_fit", "none"]))
def test_conversations_stay_whole_and_padding_is_not_trained_on(masks, buffer, packing):
    pad, row_length = 5, 16
    rendered = [(list(range(100 * (i + 1), 100 * (i + 1) + len(mask))), mask) for i, mask in enumerate(masks)]
    rows = list(pack_conversations(rendered, row_length, pad, packing=packing, buffer_conversations=buffer))
    found = {}
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        assert len(ids) == len(labels) == row_length
        assert (labels != -100).any(), "a row with nothing to train on gives a loss of 0/0"
        assert np.all(labels[ids == pad] == -100)
        for which in set(ids[ids != pad] // 100):
            place = ids // 100 == which
            found[which - 1] = (ids[place].tolist(), (labels[place] != -100).astype(int).tolist())
            assert np.all(labels[place & (labels != -100)] == ids[place & (labels != -100)])
    trained = {i: (ids, mask) for i, (ids, mask) in enumerate(rendered) if any(mask[1:])}
    assert found == trained, "each conversation that trains anything is there once, whole, with its mask"
    if packing == "none":
        assert list(found) == list(trained) and len(rows) == len(trained), "a row each, in their order"


def test_padding_is_not_mistaken_for_an_equal_token_of_a_conversation():
    (row,) = pack_conversations([([5, 5, 5], [0, 1, 1])], 5, pad_id=5)
    assert row["input_ids"].tolist() == [5] * 5
    assert row["labels"].tolist() == [-100, 5, 5, -100, -100]


def test_a_conversation_longer_than_a_row_is_an_error_not_a_stall():
    with pytest.raises(ValueError, match="20 tokens for rows of 16"):
        list(pack_conversations([(list(range(20)), [1] * 20)], 16, 0))
    with pytest.raises(ValueError, match="mask of 3"):
        list(pack_conversations([([1, 2], [1, 1, 1])], 16, 0))
