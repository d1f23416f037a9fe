"""Training from files; long documents cut into parts; adversarial text."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_hf import _rustbpe
from nanochat_hf.data.files import read_documents
from nanochat_hf.settings import UserError
from nanochat_hf.tokenizer import CorpusEncoder, mergeable_ranks, token_byte_lengths, train


@pytest.fixture
def folder(texts, tmp_path):
    """The same documents as parquet (two row groups), JSON lines and text, a third each."""
    third = len(texts) // 3
    pq.write_table(pa.table({"text": [*texts[:third], "", None]}), tmp_path / "a.parquet", row_group_size=third // 2)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts[third : 2 * third])
    (tmp_path / "b.jsonl").write_text(rows)
    joined = "\n<|endoftext|>\n".join(texts[2 * third :])
    (tmp_path / "c.txt").write_text(joined, newline="")
    return tmp_path


def test_files_train_like_their_texts(folder):
    documents = list(read_documents(folder))
    assert len(documents) > 300
    from_files = train(read_documents([folder / "a.parquet", folder / "b.jsonl", folder / "c.txt"]), 700)
    assert mergeable_ranks(from_files) == mergeable_ranks(train(documents, 700))


def test_bad_files_are_named(folder, tmp_path):
    (tmp_path / "nothing").mkdir()
    for path, column, message in [
        (tmp_path / "absent.parquet", None, "absent.parquet does not exist"),
        (tmp_path / "nothing", None, "nothing holds no"),
        (folder / "a.parquet", "body", "no text column 'body'"),
    ]:
        with pytest.raises(UserError, match=message):
            list(read_documents(path, column))


def random_document(state: random.Random, size: int) -> str:
    words = [*"don't|We'LL| the|12345|  |\t|...|é|e\u0301|漢字|😀|'s|x|'ſa".split("|"), "\r\n"]
    return "".join(state.choices(words, k=size))


def test_a_long_document_is_cut_where_the_splitter_would_cut(tokenizer):
    """Documents of several megabytes go to several threads in parts; ids are those of the whole."""
    state = random.Random(3)
    for document in [random_document(state, 900_000), "a" * 1_500_000 + " b" * 700_000 + "é" * 800_000, ""]:
        several, offsets = CorpusEncoder(tokenizer, 3).encode_batch([document, "next"])
        assert offsets.tolist()[-1] == len(several) and len(offsets) == 3
        pieces = _rustbpe.split(document)
        assert b"".join(pieces) == document.encode()
        memo: dict[bytes, list[int]] = {}
        ids = [tokenizer.bos_token_id]
        encoder = CorpusEncoder(tokenizer, 1)
        for piece in pieces:
            if piece not in memo:
                memo[piece] = encoder.encode_batch([piece.decode()])[0][1:].tolist()
            ids += memo[piece]
        assert several[: offsets[1]].tolist() == ids


def test_a_long_document_trains_like_its_words(texts):
    """Several threads count it in parts; with another pattern the regex engine counts it whole. Same result."""
    document = random_document(random.Random(3), 300_000)
    pattern = "(?:" + _rustbpe.DEFAULT_PATTERN + ")"
    assert _rustbpe.train(iter([document]), 40, num_threads=3) == _rustbpe.train(iter([document]), 40, pattern=pattern)


def test_adversarial_text_is_linear_in_training_and_encoding(tokenizer):
    """Quadratic work on these megabytes would take hours."""
    state = random.Random(5)
    letters = "".join(state.choices("ab", k=1_000_000))
    documents = ["a" * 1_000_000, " " * 1_000_000, "ab" * 500_000, "abcab" * 200_000, letters, "\n" * 1_000_000]
    ids, offsets = CorpusEncoder(tokenizer, 2).encode_batch(documents)
    lengths = token_byte_lengths(tokenizer)
    sums = [int(lengths[ids[start:end]].sum()) for start, end in zip(offsets, offsets[1:], strict=False)]
    assert sums == [1_000_000] * len(documents)
    for document in documents:
        merges, num_bytes, words, _ = _rustbpe.train(iter([document]), 2000)
        assert (num_bytes, words) == (1_000_000, 1) and merges


def test_a_long_piece_takes_steps_in_proportion_to_its_length(tokenizer):
    """A step takes one pair of neighbours from the heap; there are at most three steps per byte."""
    state = random.Random(5)
    for unit in ["a", " ", "ab", "the", "abcab", "".join(state.choices("abc", k=1000))]:
        steps = []
        for size in (200_000, 400_000):
            encoder = CorpusEncoder(tokenizer, 1)
            encoder.encode_batch([(unit * size)[:size]])
            steps.append(encoder.merge_steps)
        assert steps[0] < 3 * 200_000 and steps[1] <= 2 * steps[0] + 100, (unit[:5], steps)
    assert max(steps) > 0


def test_a_million_letters_train_by_doubling():
    merges, _, _, _ = _rustbpe.train(iter(["a" * (1 << 20)]), 100)
    assert merges[:3] == [(97, 97), (256, 256), (257, 257)] and len(merges) == 20
