"""The splitter against the regular expression, the trainer against an independent and slow one."""

import os
import random
from collections import Counter

import pytest

from nanochat_hf import _rustbpe
from nanochat_hf.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, CorpusEncoder, mergeable_ranks, train
from nanochat_hf.tokenizer.vocabulary import thread_count

INTERESTING = list("aZ'sSdDmMtTlLvVeErR09 \t\n\r\x0b\x0c.,-_!\"<|>")
INTERESTING += list("ſßéñ½²٣ⅷ漢字かな한글😀\u0301\u200b\u200d\u2028\u2029\u0085\u00a0\u3000\ufffd\ufdd0")


def fuzzed_text(random_state: random.Random) -> str:
    pieces = []
    for _ in range(random_state.randrange(1, 60)):
        kind = random_state.random()
        if kind < 0.7:
            pieces.append(random_state.choice(INTERESTING) * random_state.choice([1, 1, 1, 2, 3, 20]))
        elif kind < 0.8:
            pieces.append(random_state.choice(["'ll", "'Ve", "'RE", "\r\n", "  ", " \n ", "don't", "'ſ"]))
        else:
            code = random_state.choice([random_state.randrange(0xD800), random_state.randrange(0xE000, 0x110000)])
            pieces.append(chr(code))
    return "".join(pieces)


def test_the_table_splits_like_the_regular_expression_on_fuzzed_text():
    random_state = random.Random(0)
    for _ in range(150):
        text = "".join(fuzzed_text(random_state) for _ in range(random_state.choice([1, 40])))
        assert _rustbpe.split(text) == _rustbpe.split(text, SPLIT_PATTERN, regex=True), repr(text)


def test_the_table_splits_like_the_regular_expression_on_every_code_point():
    codes = [*range(0xD800), *range(0xE000, 0x110000)]
    text = "\n".join(f"a{chr(code)}b '{chr(code)} " for code in codes)
    assert _rustbpe.split(text) == _rustbpe.split(text, SPLIT_PATTERN, regex=True)


def slow_merges(texts: list[str], count: int) -> list[tuple[int, int]]:
    """BPE as it is defined: recount everything, take the most frequent pair, of equals the smaller."""
    words = Counter(piece for text in texts for piece in _rustbpe.split(text))
    held = [(list(word), times) for word, times in words.items()]
    merges = []
    for new in range(256, 256 + count):
        pairs = Counter()
        for ids, times in held:
            for pair in zip(ids, ids[1:], strict=False):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]))
        merges.append(best)
        for ids, _ in held:
            at = 0
            while at < len(ids) - 1:
                if (ids[at], ids[at + 1]) == best:
                    ids[at : at + 2] = [new]
                at += 1
    return merges


def test_merges_are_those_of_the_definition(texts):
    some = texts[:10] + texts[-5:-3]
    merges, _, _, _ = _rustbpe.train(iter(some), 200)
    assert merges == slow_merges(some, 200)


def test_merges_are_those_of_the_definition_down_to_the_last_pair():
    random_state = random.Random(1)
    texts = [" ".join("".join(random_state.choices("ab", k=9)) for _ in range(12)) for _ in range(3)] + ["aaaaaaa"]
    merges, _, _, _ = _rustbpe.train(iter(texts), 10_000)
    assert len(merges) > 50 and merges == slow_merges(texts, len(merges))


def test_merges_are_those_of_upstreams_trainer(texts):
    rustbpe = pytest.importorskip("rustbpe")
    reference = rustbpe.Tokenizer()
    reference.train_from_iterator(iter(texts), 1400, pattern=SPLIT_PATTERN)
    expected = {bytes(token): rank for token, rank in reference.get_mergeable_ranks()}
    assert mergeable_ranks(train(texts, 1400 + len(SPECIAL_TOKENS))) == expected


def test_the_number_of_threads_does_not_matter(texts):
    outcomes = [_rustbpe.train(iter(texts), 700, num_threads=threads) for threads in (1, 2, 5)]
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_a_generator_streams_and_another_pattern_is_obeyed():
    merges, num_bytes, words, _ = _rustbpe.train((word for word in ["ab-cd", "ab", "cd"]), 10, pattern=r"[a-z]+")
    assert (merges, num_bytes, words) == ([(97, 98), (99, 100)], 9, 2)


def test_the_cap_on_words_forgets_the_rarest():
    texts = ["common " * 50] + [f"rare{chr(97 + i % 26)}{chr(97 + i // 26)} " for i in range(600)]
    _, _, words, forgotten = _rustbpe.train(iter(texts), 3, max_words=100)
    assert forgotten >= 1 and words <= 50
    assert _rustbpe.train(iter(texts), 3, max_words=100, num_threads=3)[2:] == (words, forgotten)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "pattern", "error", "message"),
    [
        ([], 300, None, ValueError, "no text"),
        (["hello"], 264, None, ValueError, "264"),
        (["hello"], 5000, None, ValueError, "more text"),
        (["hello"], 300, "(", ValueError, "does not compile"),
        (["hello", 3], 300, None, TypeError, "int"),
        ("hello", 300, None, TypeError, "list"),
    ],
)
def test_mistakes_are_named(texts, vocab_size, pattern, error, message):
    with pytest.raises(error, match=message):
        train(texts, vocab_size, pattern=pattern)


def test_the_cap_on_words_is_named_where_it_is_reached():
    texts = [" ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" * (1 + i % 2) for i in range(600))]
    with pytest.warns(UserWarning, match=r"more distinct words than max_words=100: words seen up to 2 times"):
        train(texts * 2 + ["common words " * 50], 270, max_words=100)
    with pytest.raises(ValueError, match="max_words is 0"):
        train(texts, 270, max_words=0)


@pytest.mark.parametrize(("argument", "variable", "message"), [
    (0, "2", "num_threads is 0"), (-3, "2", "num_threads is -3"), (None, "many", "RAYON_NUM_THREADS is 'many'"),
    (None, "-1", "RAYON_NUM_THREADS is '-1'"), (2.5, "2", "num_threads is 2.5"),
])  # fmt: skip
def test_impossible_numbers_of_threads_are_named(tokenizer, monkeypatch, argument, variable, message):
    monkeypatch.setenv("RAYON_NUM_THREADS", variable)
    with pytest.raises(ValueError, match=message):
        train(["hello"], 300, num_threads=argument)
    with pytest.raises(ValueError, match=message):
        CorpusEncoder(tokenizer, argument)


def test_the_number_of_threads_comes_from_the_argument_the_environment_or_the_machine(monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    assert (thread_count(), thread_count(5)) == (3, 5)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for unset in ("", "0"):
        monkeypatch.setenv("RAYON_NUM_THREADS", unset)
        assert thread_count() == cores


def test_progress_names_bytes_and_merges(capfd):
    train(["some words to learn from, words again and again"] * 50, 275, num_threads=1, progress=True)
    shown = capfd.readouterr().err
    assert "reading text" in shown and "B/s" in shown
    assert "learning merges" in shown and "merges/s" in shown and "10/10" in shown


def test_an_error_of_the_source_comes_through_and_ends_the_threads():
    def source():
        yield "some text"
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        train(source(), 300)
