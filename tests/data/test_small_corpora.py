"""A corpus that is read many times: no row and no buffer holds two copies, and every pass has another order."""

import numpy as np
import pytest
import torch
from toy import START, ByteEncoder, make_documents, write_jsonl, write_shards

from nanochat_hf.data.loader import PackedLoader
from nanochat_hf.data.packing import PADDING, pack_best_fit, pack_pass
from nanochat_hf.data.row_stream import RowStream
from nanochat_hf.data.sources import open_documents

LENGTH = 49
SHINGLE = 12  # letters; the texts are random, so two equal shingles are two copies of one text


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of 50 training documents in two files."""
    folder = tmp_path_factory.mktemp("small")
    documents = make_documents(50)
    write_jsonl(folder / "a.jsonl", documents[:25])
    write_jsonl(folder / "b.jsonl", documents[25:])
    write_jsonl(folder / "c.jsonl", ["held out"])
    return str(folder)


def make_stream(source, packing="best_fit", buffer_documents=1000, row_length=LENGTH, **options):
    documents = open_documents(source, repeat=True, **options)
    return RowStream(documents, ByteEncoder(), row_length, packing, buffer_documents)


def next_row(stream, row_length=LENGTH) -> np.ndarray:
    row = np.empty(row_length, dtype=np.int64)
    stream.next_row(row)
    return row


def rows_of_passes(stream, passes: int) -> list[list[np.ndarray]]:
    found: list[list[np.ndarray]] = [[] for _ in range(passes)]
    while (epoch := stream.snapshot().epoch) < passes:
        found[epoch].append(next_row(stream))
    return found


def shingles(row: np.ndarray) -> list[bytes]:
    """Every run of SHINGLE letters, none across two documents."""
    parts = bytes(np.where(row == START, 0, row.clip(0)).astype(np.uint8)).split(b"\0")
    return [part[i : i + SHINGLE] for part in parts for i in range(len(part) - SHINGLE + 1)]


@pytest.mark.parametrize("packing", ["best_fit", "keep_tails"])
@pytest.mark.parametrize("seed", [None, 3])
def test_no_row_holds_a_document_twice_and_passes_differ(small, packing, seed):
    passes = rows_of_passes(make_stream(small, packing, seed=seed), 6)
    for rows in passes:
        for row in rows:
            assert row[0] == START and (row >= 0).all()
            assert len(set(shingles(row))) == len(shingles(row))
    as_sets = [{row.tobytes() for row in rows} for rows in passes]
    assert all(a != b for i, a in enumerate(as_sets) for b in as_sets[:i]), "documents are combined anew"
    # The rows of a pass are not sorted by the length of their first document, as upstream's rule alone would do.
    firsts = [(rows[k] == START).sum() for rows in passes for k in range(len(rows))]
    correlation = np.corrcoef(firsts, [k / len(rows) for rows in passes for k in range(len(rows))])[0, 1]
    assert abs(correlation) < 0.3


def test_with_kept_tails_every_pass_holds_the_whole_text_once(small):
    letters = sum(len(document) for document in make_documents(50))
    for rows in rows_of_passes(make_stream(small, "keep_tails"), 3):
        found = sum((row != START).sum() for row in rows)
        assert 0.95 * letters < found < letters + LENGTH  # short rests are dropped; the last row is filled
        everything = [one for row in rows for one in shingles(row)]
        assert len(set(everything)) > len(everything) - LENGTH


def test_the_seed_decides_the_order(small):
    def rows(seed):
        loader = PackedLoader(small, ByteEncoder(), batch_size=8, sequence_length=LENGTH - 1, seed=seed)
        found = torch.cat([next(loader)["input_ids"] for _ in range(9)])
        loader.close()
        return found

    assert torch.equal(rows(1), rows(1)) and not torch.equal(rows(1), rows(2))
    assert torch.equal(rows(None), rows(None))


@pytest.mark.parametrize("packing", ["best_fit", "keep_tails"])
def test_the_buffer_of_a_larger_corpus_never_holds_two_copies(small, packing):
    """50 documents are many for a buffer of 20. In the first pass, rows are upstream's; then passes must not mix."""
    stream = make_stream(small, packing, buffer_documents=20)
    expected = list(
        pack_best_fit(
            (ByteEncoder().encode_batch([text])[0] for text in make_documents(50)),
            LENGTH,
            packing=packing,
            buffer_documents=20,
            refill_documents=25,  # refills end where files end
        )
    )
    for row in expected:
        assert np.array_equal(next_row(stream), row)
    for _ in range(6 * len(expected)):
        row = next_row(stream)
        assert len(set(shingles(row))) == len(shingles(row))
        waiting = [document.tobytes() for document in stream.packer.documents]
        assert len(set(waiting)) == len(waiting)
    assert stream.snapshot().epoch >= 3


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("packing", ["best_fit", "keep_tails"])
def test_any_number_of_processes_sees_the_same_rows_and_any_can_resume(small, packing, streams):
    def open_loader(rank, world_size):
        options = {"packing": packing, "sequence_length": LENGTH - 1, "streams": streams, "seed": 4}
        size = 6 // world_size
        return PackedLoader(small, ByteEncoder(), batch_size=size, rank=rank, world_size=world_size, **options)

    def step(loaders):
        return sorted(row for loader in loaders for row in next(loader)["input_ids"].tolist())

    alone = [open_loader(0, 1)]
    steps = [step(alone) for _ in range(40)]  # several passes
    assert alone[0].epoch >= 3
    for world_size in (1, 2, 3):
        loaders = [open_loader(rank, world_size) for rank in range(world_size)]
        for k in range(17):
            assert step(loaders) == steps[k]
        states = [loader.state_dict() for loader in loaders]
        for after in (1, 2, 3):
            resumed = [open_loader(rank, after) for rank in range(after)]
            for loader in resumed:
                loader.load_state_dict(states)
            for k in range(17, 40):
                assert step(resumed) == steps[k]
            for loader in resumed:
                loader.close()
        for loader in loaders:
            loader.close()
    alone[0].close()


def test_a_corpus_shorter_than_a_row_is_padded(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    write_jsonl(tmp_path / "b.jsonl", ["held out"])
    loader = PackedLoader(str(tmp_path), ByteEncoder(), batch_size=2, sequence_length=16)
    for _ in range(3):
        batch = next(loader)
        for inputs, targets in zip(batch["input_ids"], batch["shift_labels"], strict=True):
            assert sorted(bytes(inputs[:8].clip(0, 255).to(torch.uint8).tolist())) == sorted(b"\xffone\xfftwo")
            assert (targets[:7] >= 0).all() and (targets[7:] == -100).all() and (inputs >= 0).all()
    loader.close()


def test_a_pass_of_one_document_longer_than_a_row():
    document = np.arange(100)
    rng = np.random.default_rng(0)
    assert [row.tolist() for row in pack_pass([document], 40, "best_fit", rng)] == [list(range(40))]
    rows = sorted(row.tolist() for row in pack_pass([document], 40, "keep_tails", rng))
    assert rows[:2] == [list(range(40)), [0, *range(40, 79)]]
    assert rows[2:] == [[0, *range(79, 100), *[PADDING] * 18]], "no other part of the document may fill the row"
    assert len(pack_pass([document[:90]], 40, "keep_tails", rng)) == 2, "the last row would be less than half full"


def test_a_mixture_has_exact_shares_and_copies_of_a_small_source_do_not_meet(small, tmp_path):
    write_shards(tmp_path)
    source = [f"{tmp_path}:0.7", f"{small}:0.3"]
    options = {"batch_size": 10, "sequence_length": LENGTH - 1, "buffer_documents": 100}
    loader = PackedLoader(source, ByteEncoder(), **options)
    rows = torch.cat([next(loader)["input_ids"] for _ in range(60)]).numpy()
    state = loader.state_dict()
    ahead = [next(loader)["input_ids"] for _ in range(5)]
    resumed = PackedLoader(source, ByteEncoder(), **options)
    resumed.load_state_dict(state)
    assert all(torch.equal(next(resumed)["input_ids"], batch) for batch in ahead)
    assert loader.epoch >= 3
    loader.close(), resumed.close()
    known = {one for text in make_documents(50) for one in shingles(np.frombuffer(text.encode(), np.uint8))}
    of_small = [bool(known & set(shingles(row))) for row in rows if shingles(row)]
    assert sum(of_small) == pytest.approx(180, abs=2)  # a row of short documents has no shingles
    for row in rows:
        assert len(set(shingles(row))) == len(shingles(row))


def test_the_order_of_the_microworld_is_upstreams():
    """The quickstart's text: generated, and long enough that nothing here comes twice."""
    loader = PackedLoader("microworld", ByteEncoder(), batch_size=50, sequence_length=96)
    packed = pack_best_fit((ByteEncoder().encode_batch([text])[0] for text in open_documents("microworld")), 97)
    for _ in range(6):
        for row in next(loader)["input_ids"].numpy():
            assert row.tolist() == next(packed)[:-1].tolist()
    loader.close()
