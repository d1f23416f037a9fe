"""The corpus encoder compared with the `PreTrainedTokenizerFast` and with tiktoken."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer

from nanochat_hf import _rustbpe
from nanochat_hf.tokenizer import (
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    CorpusEncoder,
    from_mergeable_ranks,
    mergeable_ranks,
    read_tiktoken,
    to_tiktoken,
    token_byte_lengths,
    write_tiktoken,
)
from nanochat_hf.tokenizer.fast_tokenizer import merges_and_pattern

TEXTS = [
    "",
    "Hello world, it's 12345 o'clock.\r\n\r\n\tDON'T  panic   ",
    "😀👩‍👩‍👧‍👦 한국어 日本語 Ελληνικά العربية é e\u0301 \ufffd",
    "a" * 3000 + " " * 3000 + "ab" * 2000 + "\n" * 500 + "=-" * 300,
]


def random_texts(count: int) -> list[str]:
    state = random.Random(2)
    alphabet = list("abcdefghij  ''\n\t.,0123") + ["é", "漢", "한", "😀", "the ", " and", "ing"]
    return ["".join(state.choices(alphabet, k=state.randrange(200))) for _ in range(count)]


def split_documents(ids: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [ids[start:end].tolist() for start, end in zip(offsets, offsets[1:], strict=False)]


def test_ids_are_the_tokenizers_with_bos_first(tokenizer, texts):
    documents = TEXTS + texts[:100] + random_texts(300)
    ids, offsets = CorpusEncoder(tokenizer, num_threads=2).encode_batch(documents)
    assert ids.dtype == np.int32 and offsets.dtype == np.int64 and len(offsets) == len(documents) + 1
    expected = tokenizer.backend_tokenizer.encode_batch(documents)
    got = split_documents(ids, offsets)
    assert got == [[tokenizer.bos_token_id, *encoding.ids] for encoding in expected]


def test_ids_are_those_of_tiktoken(tokenizer):
    pytest.importorskip("tiktoken")
    reference = to_tiktoken(tokenizer)
    documents = TEXTS + random_texts(300)
    ids, offsets = CorpusEncoder(tokenizer).encode_batch(documents)
    assert [one[1:] for one in split_documents(ids, offsets)] == reference.encode_ordinary_batch(documents)


@pytest.mark.parametrize("pattern", _rustbpe.KNOWN_PATTERNS, ids=lambda pattern: pattern[:20])
def test_ids_under_the_patterns_of_other_models(tokenizer, texts, pattern):
    other = from_mergeable_ranks(mergeable_ranks(tokenizer), pattern=pattern)
    documents = TEXTS + texts[::20] + random_texts(100)
    ids, offsets = CorpusEncoder(other, num_threads=2).encode_batch(documents)
    got = [one[1:] for one in split_documents(ids, offsets)]
    assert got == [encoding.ids for encoding in other.backend_tokenizer.encode_batch(documents)]
    pytest.importorskip("tiktoken")
    assert got == to_tiktoken(other).encode_ordinary_batch(documents)


def test_more_words_than_any_cache_holds(tokenizer):
    """Words of one, few and many tokens. The second time they come from the cache, with the same ids."""
    letters = np.random.default_rng(6).integers(97, 123, 8 * 300_000, dtype=np.uint8).tobytes().decode()
    words = [letters[start : start + 3 + start % 6] for start in range(0, len(letters), 8)]
    words += ["-" * length for length in range(1, 300)] * 2 + ["x" * 20, "y" * 140, "z" * 2000] * 2
    documents = [" ".join(words[start : start + 5000]) for start in range(0, len(words), 5000)]
    encoder = CorpusEncoder(tokenizer, 1)
    ids, offsets = encoder.encode_batch(documents)
    some = [0, 1, 30, len(documents) - 1]
    expected = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch([documents[i] for i in some])]
    split = split_documents(ids, offsets)
    assert [split[i][1:] for i in some] == expected
    for again in (encoder, CorpusEncoder(tokenizer, 2)):
        assert np.array_equal(again.encode_batch(documents)[0], ids)


def test_memory_of_ids_is_used_again_only_after_they_are_dropped(tokenizer, texts):
    encoder = CorpusEncoder(tokenizer, 2)
    documents = texts * (3_000_000 // len("".join(texts)) + 1)
    ids, _ = encoder.encode_batch(documents)
    expected = ids.tolist()
    part = ids[10:1000]
    del ids
    encoder.encode_batch(documents[1:])  # `part` still holds the memory of the first call
    assert part.tolist() == expected[10:1000]
    del part
    few, offsets = encoder.encode_batch(documents[:1])
    many, _ = encoder.encode_batch(documents)
    assert few.tolist() == expected[: offsets[-1]]
    assert many.tolist() == expected


def test_ids_that_need_more_than_two_bytes(tokenizer):
    shift = 70_000
    merges, pattern = merges_and_pattern(tokenizer)
    tokens = [(token, rank + shift) for token, rank in mergeable_ranks(tokenizer).items()]
    moved = [tuple(one + shift for one in merge) for merge in merges]
    documents = TEXTS + random_texts(50)
    buffers = _rustbpe.Encoder(tokens, moved, pattern=pattern, first_id=1 + shift).encode_batch(documents)
    expected, _ = CorpusEncoder(tokenizer).encode_batch(documents)
    expected[expected == tokenizer.bos_token_id] = 1
    assert np.array_equal(np.frombuffer(buffers[0], np.int32), expected + shift)
    with pytest.raises(ValueError, match="too large"):
        _rustbpe.Encoder(tokens, [(1 << 21, 5, 6)])


def test_the_number_of_threads_does_not_matter(tokenizer):
    documents = [text * 40 for text in random_texts(1200)]
    one, two = (CorpusEncoder(tokenizer, threads).encode_batch(documents) for threads in (1, 3))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("order", [1, -1])
def test_texts_with_more_or_fewer_ids_than_the_first_suggest(tokenizer, num_threads, order):
    """There is room for as many ids per byte as in the first megabyte. The rest has more or fewer."""
    few, many = ["the " * 400_000], ["\u0950\ufffd1 " * 150_000, "", "7" * 999]
    documents = (few + many * 3)[::order]
    ids, offsets = CorpusEncoder(tokenizer, num_threads).encode_batch(documents)
    alone = [CorpusEncoder(tokenizer, 1).encode_batch([document])[0] for document in documents]
    assert np.array_equal(ids, np.concatenate(alone))
    assert np.array_equal(np.diff(offsets), [len(one) for one in alone])


def distinct_words(seed: int, count: int = 20_000) -> str:
    """Words of three to eight letters, nearly all of them different."""
    letters = np.random.default_rng(seed).integers(97, 123, 8 * count, dtype=np.uint8).tobytes().decode()
    return " ".join(letters[start : start + 3 + start // 8 % 6] for start in range(0, len(letters), 8))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_callers_in_several_threads_share_what_the_encoder_has_learnt(tokenizer, num_threads):
    """Eight callers encode overlapping texts at the same time, and get the ids of an encoder that knows nothing."""
    texts = [distinct_words(seed) + TEXTS[seed % len(TEXTS)] for seed in range(10)]
    calls = [[texts[(first + step) % 10] for step in range(4)] for first in range(16)]
    shared = CorpusEncoder(tokenizer, num_threads)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda documents: shared.encode_batch(documents)[0], calls))
    alone = [CorpusEncoder(tokenizer, 1).encode_batch([text])[0] for text in texts]
    for first, ids in enumerate(results):
        assert np.array_equal(ids, np.concatenate([alone[(first + step) % 10] for step in range(4)]))


MEMORY = """
import resource, sys
from nanochat_hf import _rustbpe
encoder = _rustbpe.Encoder([(bytes([byte]), byte) for byte in range(256)], [], num_threads=4)
peaks = []
for call in range(6):  # 840,000 different words
    numbers = range(call * 140_000, call * 140_000 + 140_000)
    encoder.encode_batch([" ".join(f"{number:07x}" for number in numbers[start::8]) for start in range(8)])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
print(peaks[-1] - peaks[1])
"""


def test_memory_does_not_grow_with_the_number_of_words():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 10, f"the encoder's memory grew by {float(done.stdout):.0f} MB"


def test_control_tokens_in_a_document_are_text(tokenizer):
    ids, _ = CorpusEncoder(tokenizer).encode_batch(["".join(SPECIAL_TOKENS)])
    assert ids[0] == tokenizer.bos_token_id and max(ids[1:]) < tokenizer.vocab_size - len(SPECIAL_TOKENS) + 9
    assert not set(ids[1:].tolist()) & set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))


def test_byte_lengths_add_up(tokenizer):
    lengths = token_byte_lengths(tokenizer)
    broken = b"caf\xc3 \xff\xf0\x9f\x98 ok".decode("utf-8", "replace")
    documents = [*TEXTS, broken]
    ids, offsets = CorpusEncoder(tokenizer).encode_batch(documents)
    assert [int(lengths[one].sum()) for one in split_documents(ids, offsets)] == [len(t.encode()) for t in documents]
    assert all(lengths[tokenizer.convert_tokens_to_ids(name)] == 0 for name in SPECIAL_TOKENS)
    assert (lengths[: len(lengths) - 9] > 0).all()


def test_half_a_surrogate_pair_becomes_one_replacement_character_as_in_tiktoken(tokenizer):
    texts = ["a\ud800b", "next \ude00", "\ud83d\ude00 whole", "\ud83d \ude00"]
    ids, offsets = CorpusEncoder(tokenizer).encode_batch(texts)
    decoded = [tokenizer.decode(one[1:]) for one in split_documents(ids, offsets)]
    assert decoded == ["a\ufffdb", "next \ufffd", "😀 whole", "\ufffd \ufffd"]
    pytest.importorskip("tiktoken")
    expected = to_tiktoken(tokenizer).encode_ordinary_batch(texts)
    assert [one[1:] for one in split_documents(ids, offsets)] == expected


def test_streams_never_show_half_a_character(tokenizer):
    """For tokenizers' stream and transformers' streamer, on text whose characters are several tokens each."""
    text = "größe ✨ 😀👩‍👩‍👧‍👦 日本語 한국어 नमस्ते 🇰🇷 e\u0301 end"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > len(text)
    stream = DecodeStream(skip_special_tokens=True)
    shown = [piece for piece in (stream.step(tokenizer.backend_tokenizer, one) for one in ids) if piece]
    assert "".join(shown) == text and not any("\ufffd" in piece for piece in shown)
    streamer = TextIteratorStreamer(tokenizer, timeout=10)
    for one in ids:
        streamer.put(np.array([one]))
    streamer.end()
    shown = list(streamer)
    assert "".join(shown) == text and not any("\ufffd" in piece for piece in shown)


def test_a_file_of_ranks_and_an_encoding_give_the_same_tokenizer_back(tokenizer, tmp_path):
    path = tmp_path / "vocabulary.tiktoken"
    write_tiktoken(tokenizer, path)
    again = from_mergeable_ranks(read_tiktoken(path))
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    tiktoken_load = pytest.importorskip("tiktoken.load")
    assert tiktoken_load.load_tiktoken_bpe(str(path)) == mergeable_ranks(tokenizer)
    encoding = to_tiktoken(tokenizer)
    special = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    assert encoding.encode("".join(SPECIAL_TOKENS), allowed_special="all") == list(special.values())
    assert encoding.decode([special["<|bos|>"]]) == "<|bos|>" and encoding.n_vocab == len(tokenizer)
    path.write_text("aGk= 0\nnot base64\n")
    with pytest.raises(ValueError, match="line 2 is not a token"):
        read_tiktoken(path)


def test_tiktokens_ranks_give_the_same_tokenizer_back(tokenizer):
    again = from_mergeable_ranks(mergeable_ranks(tokenizer))
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    for ranks, message in [({b"a": 0, b"b": 2}, "gap"), ({b"a": 0}, "byte")]:
        with pytest.raises(ValueError, match=message):
            from_mergeable_ranks(ranks)


def foreign_tokenizer(kind):
    """A tokenizer of another family, trained on a sentence, or one of ours with a single difference."""
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    others = {
        "GPT-2's": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "spaces dropped": [pre_tokenizers.Split(Regex(r"\s+"), "removed"), to_bytes],
        "digits first": [pre_tokenizers.Digits(True), split, to_bytes],
        "a space first": [split, pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)],
        "split twice": [split, pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "by a letter": [pre_tokenizers.Split(" ", "isolated"), to_bytes],
        "SentencePiece": pre_tokenizers.Metaspace(),
    }
    model, trainer = {
        "WordPiece": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
        "Unigram": (models.Unigram(), trainers.UnigramTrainer),
    }.get(kind, (models.BPE(byte_fallback=kind == "SentencePiece"), trainers.BpeTrainer))
    backend = Tokenizer(model)
    steps = others.get(kind, [split, to_bytes])
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if isinstance(steps, list) else steps
    backend.normalizer = {"NFC": normalizers.NFC(), "small letters": normalizers.Lowercase()}.get(kind)
    letters = [] if kind == "not all bytes" else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainer(vocab_size=300, special_tokens=["<s>", "[UNK]"], initial_alphabet=letters, show_progress=False)
    backend.train_from_iterator(["Cafe\u0301 and more cafes, 2024 of them.\n"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("WordPiece", "is a WordPiece tokenizer"),
        ("Unigram", "is a Unigram tokenizer"),
        ("SentencePiece", "does not split text by exactly one regular expression"),
        ("GPT-2's", "does not split text by exactly one regular expression"),
        ("by a letter", "does not split text by exactly one regular expression"),
        ("digits first", "does not split text by exactly one regular expression"),
        ("spaces dropped", "does not keep all"),
        ("a space first", "adds spaces"),
        ("split twice", "splits text a second time"),
        ("NFC", "changes the text before it splits it .NFC"),
        ("small letters", "changes the text before it splits it .Lowercase"),
        ("not all bytes", "the vocabulary has no token for byte"),
    ],
)
def test_a_tokenizer_that_works_otherwise_is_refused(kind, says):
    with pytest.raises(ValueError, match=says):
        CorpusEncoder(foreign_tokenizer(kind))


def test_a_tokenizer_trained_by_the_library_will_do():
    other = foreign_tokenizer("none of these")
    texts = [*TEXTS, "Cafe\u0301 cafes 2024"]
    ids, offsets = CorpusEncoder(other).encode_batch(texts)
    expected = [[other.bos_token_id, *other.encode(text, add_special_tokens=False)] for text in texts]
    assert split_documents(ids, offsets) == expected
