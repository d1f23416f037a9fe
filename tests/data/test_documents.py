"""Documents of any length: what is cut where, and what is held in memory."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import ByteEncoder, make_documents, write_jsonl, write_parquet

from nanochat_hf.data import decoding, documents, files, packing, row_stream
from nanochat_hf.data.documents import MAX_DOCUMENT_CHARS, TEXT_DOCUMENT_CHARS, cut_document, split_lines
from nanochat_hf.data.found import hold_out_end
from nanochat_hf.data.loader import PackedLoader, ValidationBatches
from nanochat_hf.data.packing import BestFitPacker, pack_best_fit
from nanochat_hf.data.row_stream import RowStream
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError

WORDS = [f"word{i}" for i in range(500)]


def prose(chars: int, between: str = " ", seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    text = between.join(rng.choice(WORDS, size=chars // 5 + 1))
    return text[:chars]


def letters(text: str) -> str:
    return "".join(text.split())


def read(path, split="train", **options) -> list[str]:
    return list(open_documents(str(path), split, **options))


NO_BLANK_LINES = {
    "lines": prose(100_000, "\n"),
    "one line of sentences": prose(100_000, ". Next "),
    "one line of words": prose(100_000),
    "one word": prose(100_000, ""),
    "Chinese": "漢字仮名交じり文。" * 5000,
    "line ends of a Mac": prose(100_000, "\r"),
    "line ends of Windows": prose(100_000, "\r\n"),
    "a long line of marked documents": prose(100_000, "<|endoftext|>"),
}


@pytest.mark.parametrize("name", NO_BLANK_LINES)
def test_a_single_file_without_blank_lines_gives_many_documents_and_both_splits(tmp_path, name):
    text = NO_BLANK_LINES[name]
    (tmp_path / "novel.txt").write_text(text, encoding="utf-8", newline="")
    training, validation = read(tmp_path / "novel.txt"), read(tmp_path / "novel.txt", "validation")
    assert len(training) >= 8 and validation
    assert max(map(len, training + validation)) < 2 * TEXT_DOCUMENT_CHARS
    assert sum(map(len, map(letters, validation))) < 0.2 * len(text)
    together = letters("".join(training + validation))
    assert sorted(together) == sorted(letters(text.replace("<|endoftext|>", ""))), "not a character is lost"


def test_a_document_is_cut_at_lines_else_at_sentences_else_at_words_else_anywhere():
    size = 1000
    for text, end in [
        (prose(5000, "\n"), "\n"),
        (prose(5000, ". Next "), ". "),
        (prose(5000), " "),
        ("漢字仮名交じり文。" * 600, "。"),
        ('He said: "Yes!" ' * 300, '" '),
    ]:
        pieces = list(cut_document(text, size))
        assert "".join(pieces) == text and len(pieces) <= 2 * len(text) // size + 1
        assert all(piece.endswith(end) and len(piece) <= size for piece in pieces[:-1]), end
    assert [len(piece) for piece in cut_document("x" * 2500, size)] == [1000, 1000, 500]


@settings(deadline=None)
@given(st.text(alphabet="ab \n.!。", max_size=400), st.integers(1, 50))
def test_the_pieces_of_any_text_are_the_text(text, size):
    pieces = list(cut_document(text, size))
    assert "".join(pieces) == text and all(len(piece) <= size for piece in pieces)


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab \n.", max_size=60), max_size=30))
def test_lines_in_parts_give_the_same_documents(texts):
    text = "\n".join(texts) * 40
    whole = list(split_lines(line + "\n" for line in text.split("\n")))
    parts = list(split_lines(part for line in text.split("\n") for part in (line[:7], line[7:] + "\n")))
    assert letters("".join(whole)) == letters("".join(parts)) == letters(text)


def test_documents_of_ordinary_length_are_left_as_they_are(tmp_path):
    long = prose(MAX_DOCUMENT_CHARS)
    longer = prose(3 * MAX_DOCUMENT_CHARS, "\n")
    originals = [*make_documents(30), long, longer, *make_documents(5, "e")]
    for path in (
        write_parquet(tmp_path / "a.parquet", originals, group=10),
        write_jsonl(tmp_path / "a.jsonl", originals),
        write_jsonl(tmp_path / "b.jsonl.gz", originals),
    ):
        found = [text for _, _, texts in files.read_groups(path) for text in texts]
        assert found[:31] == originals[:31] and found[-5:] == originals[-5:]
        pieces = found[31:-5]
        assert "".join(pieces) == longer and 3 <= len(pieces) <= 6
        assert all(len(piece) <= MAX_DOCUMENT_CHARS for piece in pieces)
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(originals))
    found = [text for _, _, texts in files.read_groups(tmp_path / "a.txt") for text in texts]
    assert found[:31] == [text.strip() for text in originals[:31]] and found[-5:] == originals[-5:]


def test_a_line_of_any_length_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 1000)
    for text in (prose(50_000), prose(50_000, ""), "a story<|endoftext|>" * 2500):
        (tmp_path / "line.txt").write_text(text)
        parts = list(decoding.text_lines(tmp_path / "line.txt", whole=False))
        assert "".join(parts) == text and max(map(len, parts)) < 3000
        assert all(part.count("<|") == part.count("|>") for part in parts), "a mark is not cut"


def test_a_line_of_json_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_ROW_CHARS", 10_000)
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 1000)
    write_jsonl(tmp_path / "a.jsonl", ["short", "x" * 20_000])
    (tmp_path / "array.json").write_text(json.dumps([{"text": "x" * 50}] * 1000))
    assert read(tmp_path / "array.json", keep_whole=True) == ["x" * 50] * 950, "an array may be one long line"
    with pytest.raises(UserError, match="a.jsonl, line 2 has more than 10,000 characters; write one row per line"):
        read(tmp_path / "a.jsonl")


def test_a_group_ends_where_it_has_many_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "GROUP_CHARS", 5000)
    originals = [prose(1000, seed=i) for i in range(100)]
    write_jsonl(tmp_path / "a.jsonl", originals)
    groups = list(files.read_groups(tmp_path / "a.jsonl"))
    assert all(len(texts) <= 5 for _, _, texts in groups) and [index for index, _, _ in groups] == list(range(20))
    assert [text for _, _, texts in groups for text in texts] == originals
    write_jsonl(tmp_path / "b.jsonl", ["held out"])
    shares = [read(tmp_path, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(sum(shares, [])) == sorted(originals)


def test_a_giant_row_group_is_read_in_parts_that_readers_share(tmp_path, monkeypatch):
    originals = make_documents(1000)
    write_parquet(tmp_path / "a.parquet", originals, group=1000)
    write_parquet(tmp_path / "b.parquet", ["held out"])
    assert files.num_groups(tmp_path / "a.parquet") == 1
    monkeypatch.setattr("nanochat_hf.data.table_files.ROW_GROUP_BYTES", 4000)
    count = files.num_groups(tmp_path / "a.parquet")
    assert count > 8
    for start, step in ((0, 1), (1, 3), (2, 3), (0, 3), (5, count)):
        groups = list(files.read_groups(tmp_path / "a.parquet", None, start, step))
        assert [index for index, _, _ in groups] == list(range(start, count, step))
        assert all(texts == originals[first : first + len(texts)] for _, first, texts in groups)
    for seed in (None, 1):
        shares = [read(tmp_path, rank=rank, world_size=3, seed=seed) for rank in range(3)]
        assert sorted(sum(shares, [])) == sorted(originals)


class CountingEncoder(ByteEncoder):
    def encode_batch(self, texts):
        self.most = max(getattr(self, "most", 0), sum(map(len, texts)))
        return super().encode_batch(texts)


@pytest.mark.parametrize("kind", ["best_fit", "keep_tails"])
def test_no_buffer_grows_with_the_length_of_documents(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(row_stream, "BUFFER_TOKENS", 100_000)
    monkeypatch.setattr(packing, "BUFFER_TOKENS", 100_000)
    monkeypatch.setattr(row_stream, "CHARS_AT_ONCE", 50_000)
    monkeypatch.setattr(documents, "MAX_DOCUMENT_CHARS", 2000)
    monkeypatch.setattr(documents.cut_document, "__defaults__", (2000,))
    write_jsonl(tmp_path / "a.jsonl", [prose(20_000, seed=i) for i in range(300)])
    encoder = CountingEncoder()
    stream = RowStream(open_documents(str(tmp_path / "a.jsonl"), repeat=True), encoder, 65, kind)
    row = np.empty(65, dtype=np.int64)
    tokens = []
    for _ in range(3000):
        stream.next_row(row)
        tokens.append(stream.packer.tokens)
    refill = 128 * 2001
    assert max(tokens) < 100_000 + refill and encoder.most < 50_000 + refill
    assert stream.packer.tokens == sum(map(len, stream.packer.documents))
    ids = (np.arange(2000) for _ in range(1000))
    assert sum(1 for _ in pack_best_fit(ids, 65, packing=kind)) >= 1000


def test_few_documents_are_not_buffered_in_copies(tmp_path):
    """Upstream's buffer would hold some 80 copies of each, and give them one after the other."""
    originals = [f"{letter}" * (90 + i) for i, letter in enumerate("abcdefghijkl")]
    write_jsonl(tmp_path / "a.jsonl", originals)
    write_jsonl(tmp_path / "b.jsonl", ["held out"])
    loader = PackedLoader(str(tmp_path), ByteEncoder(), batch_size=12, sequence_length=64)
    rows = [next(loader)["input_ids"].numpy()[:, 1] for _ in range(20)]
    for i in range(18):
        assert len(set(np.concatenate(rows[i : i + 3]).tolist())) == 12, "36 rows show all documents"
    state = loader.state_dict()
    ahead = [next(loader)["input_ids"] for _ in range(10)]
    copy = PackedLoader(str(tmp_path), ByteEncoder(), batch_size=12, sequence_length=64)
    copy.load_state_dict(state)
    assert all((next(copy)["input_ids"] == batch).all() for batch in ahead)
    loader.close(), copy.close()


def test_the_packer_counts_its_tokens():
    rng = np.random.default_rng(0)
    for kind in ("best_fit", "keep_tails"):
        packer = BestFitPacker(50, kind)
        for _ in range(200):
            packer.add(np.zeros(rng.integers(1, 200), dtype=np.int32))
            packer.place(np.empty(rng.integers(1, 51), dtype=np.int64))
            assert packer.tokens == sum(map(len, packer.documents))


@pytest.mark.parametrize("count", [1, 2, 3, 10, 19])
@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_file_of_few_documents_holds_out_the_end_of_its_text(tmp_path, count, write):
    originals = [prose(30_000, ". ", seed=i) for i in range(count)]
    path = write(tmp_path / ("a.jsonl" if write is write_jsonl else "a.parquet"), originals)
    training, validation = read(path), read(path, "validation")
    assert "".join(training + validation) == "".join(originals), "in order, and complete"
    share = sum(map(len, validation)) / sum(map(len, originals))
    assert (0.12 if count == 1 else 0.04) < share < (0.21 if count == 1 else 0.11)
    shares = [read(path, rank=rank, world_size=2, seed=1) for rank in range(2)] if count > 2 else [training]
    assert sorted(sum(shares, [])) == sorted(training)


def test_short_documents_are_held_out_whole():
    assert hold_out_end(["one", "two", "three"]) == (["one", "two"], ["three"])
    training, validation = hold_out_end(["a" * 100])
    assert training + validation == ["a" * 80, "a" * 20]
    assert hold_out_end([]) == ([], [])


def test_one_small_file_trains_and_validates(tmp_path):
    (tmp_path / "names.txt").write_text("".join(f"name{i}\n" for i in range(2000)))
    loader = PackedLoader(str(tmp_path / "names.txt"), ByteEncoder(), batch_size=4, sequence_length=128)
    assert next(loader)["input_ids"].shape == (4, 128)
    loader.close()
    options = {"batch_size": 4, "sequence_length": 128, "tokens": 1000}
    assert len(ValidationBatches(str(tmp_path / "names.txt"), ByteEncoder(), **options)) >= 1


def test_text_of_nothing_but_space_is_said(tmp_path):
    (tmp_path / "blank.txt").write_text("\n\n  \n" * 100)
    with pytest.raises(UserError, match="no text in blank.txt .the train split of .*; give files that hold some"):
        read(tmp_path / "blank.txt")


def test_a_position_in_a_file_of_few_documents_is_restored(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [prose(3000, seed=i) for i in range(7)])
    for seed in (None, 4):
        stream = open_documents(str(tmp_path / "a.jsonl"), repeat=True, seed=seed)
        for _ in range(17):
            next(stream)
        copy = open_documents(str(tmp_path / "a.jsonl"), repeat=True, seed=seed)
        copy.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        assert [next(copy) for _ in range(20)] == [next(stream) for _ in range(20)]


def test_long_texts_in_a_string_view_or_dictionary_are_cut_too(tmp_path):
    long = prose(3 * MAX_DOCUMENT_CHARS, "\n")
    table = pa.table({"text": pa.array([long, "b"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    pieces = [text for _, _, texts in files.read_groups(tmp_path / "a.parquet") for text in texts]
    assert "".join(pieces) == long + "b" and len(pieces) >= 4
