"""The splitter compared with the regular expression, the trainer with an independent slow one."""

import argparse
import inspect
import os
import random
import typing
from collections import Counter
from pathlib import Path

import pytest

from nanochat_hf import _rustbpe
from nanochat_hf.settings import UserError
from nanochat_hf.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, CorpusEncoder, mergeable_ranks, to_tiktoken, train
from nanochat_hf.tokenizer.threads import thread_count

# Article 1 of the Universal Declaration of Human Rights.
ARTICLES = [
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und "
    "sollen einander im Geist der Brüderlichkeit begegnen.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны "
    "поступать в отношении друг друга в духе братства.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι προικισμένοι με λογική "
    "και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا وعليهم أن يعامل بعضهم بعضًا بروح الإخاء.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 부여받았다.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
]

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


@pytest.mark.parametrize("pattern", _rustbpe.KNOWN_PATTERNS, ids=lambda pattern: pattern[:20])
def test_known_patterns_split_like_the_regular_expression_on_fuzzed_text(pattern):
    """Long texts, and short ones that end with every kind of character."""
    random_state = random.Random(0)
    plain = [*"aaabzZsStlLrReE'' 0917 .,-(\t\n\r", "'s", "'ll", "'VE", "\r\n", "  ", " \n", "é", "'ſ"]
    for number in range(60):
        if number % 2:
            text = "".join(random_state.choices(plain, k=random_state.choice([3, 40, 70, 500])))
        else:
            text = "".join(fuzzed_text(random_state) for _ in range(random_state.choice([1, 20])))
        assert_same_pieces(text, pattern)


@pytest.mark.parametrize("pattern", _rustbpe.KNOWN_PATTERNS, ids=lambda pattern: pattern[:20])
def test_known_patterns_split_like_the_regular_expression_at_every_offset_of_a_block(pattern):
    """The splitter looks at 64 bytes at a time: whatever stands there, at the end of a block or of the text."""
    edges = [
        " \n x",
        "\n  x",
        "\n \t ",
        "'ll ",
        "don't'",
        " 12345 ",
        "é a",
        "\r\n\r\n",
        "...\n\n a",
        "(x",
        " (x",
        "\t(x",
    ]
    text = "".join(
        "x" + " word" * (length // 5) + "y" * (length % 5) + edge for edge in edges for length in range(52, 68)
    )
    assert_same_pieces(text, pattern)
    for edge in edges:
        assert_same_pieces("ab " * 21 + edge, pattern)


def assert_same_pieces(text: str, pattern: str = SPLIT_PATTERN) -> None:
    assert _rustbpe.split(text, pattern) == _rustbpe.split(text, pattern, regex=True), repr(text[:200])


@pytest.mark.parametrize("plane", range(17))
def test_the_table_splits_like_the_regular_expression_in_every_plane(plane):
    """Characters of one plane, mostly with ordinary neighbours: classes meet that no language puts together."""
    random_state = random.Random(plane)
    for _ in range(6):
        codes = [random_state.randrange(plane << 16, (plane + 1) << 16) for _ in range(400)]
        characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
        neighbours = random_state.choices(
            ["", "", " ", "a", "'", "'s", "7", "\r\n", "\n", "\u3000"], k=len(characters)
        )
        assert_same_pieces("".join(a + b for a, b in zip(characters, neighbours, strict=True)))


def test_the_table_splits_like_the_regular_expression_on_long_runs_and_line_ends():
    random_state = random.Random(7)
    units = [
        " ",
        "a",
        "7",
        "é",
        "٣",
        "漢",
        "-",
        "\n",
        "\r\n",
        "\r",
        "\t",
        "\u3000",
        "\u0301",
        "😀",
        "'",
        "'s",
        " \r",
        "\n ",
    ]
    for unit in units:
        for follower in ("", "x", " x", "\n", "\r\n ", "!", "5", " '"):
            assert_same_pieces(unit * 1500 + follower)
    for _ in range(200):
        assert_same_pieces("".join(random_state.choices(["\r", "\n", "\r\n", " ", "  ", "\t", "a", ".", "1"], k=60)))


def test_halves_of_surrogate_pairs_are_split_and_counted_as_replacement_characters():
    random_state = random.Random(8)
    pieces = ["\ud83d", "\ude00", "\ud83d\ude00", "a", " ", "7", "\n", "é", "😀"]
    texts = ["".join(random_state.choices(pieces, k=50)) for _ in range(100)]
    clean = [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]
    assert any("\ufffd" in text for text in clean)
    assert _rustbpe.train(iter(texts), 60) == _rustbpe.train(iter(clean), 60)
    for text in clean:
        assert_same_pieces(text)


def test_the_table_splits_like_the_regular_expression_on_every_code_point():
    codes = [*range(0xD800), *range(0xE000, 0x110000)]
    text = "\n".join(f"a{chr(code)}b '{chr(code)} " for code in codes)
    assert _rustbpe.split(text) == _rustbpe.split(text, SPLIT_PATTERN, regex=True)


def slow_merges(texts: list[str], count: int) -> list[tuple[int, int]]:
    """BPE by its definition: recount all pairs, merge the most frequent; of equals the smaller."""
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


PROSE = [
    (Path(__file__).parents[2] / "evaluation" / "samples" / f"{name}.txt") for name in ("prose", "science", "maths")
]
KINDS = {
    "prose": [path.read_text(encoding="utf-8") for path in PROSE],
    "code": [Path(module.__file__).read_text(encoding="utf-8") for module in (argparse, inspect, random, typing)],
    "multilingual": ARTICLES,
}


@pytest.mark.parametrize(("kind", "vocab_size"), [("prose", 900), ("code", 4000), ("multilingual", 900)])
def test_merges_are_those_of_upstreams_trainer(kind, vocab_size):
    """Real text, down to rare pairs, of which hundreds have the same count."""
    rustbpe = pytest.importorskip("rustbpe")
    reference = rustbpe.Tokenizer()
    reference.train_from_iterator(iter(KINDS[kind]), vocab_size, pattern=SPLIT_PATTERN)
    expected = {bytes(token): rank for token, rank in reference.get_mergeable_ranks()}
    assert len(expected) == vocab_size
    trained = train(KINDS[kind], vocab_size + len(SPECIAL_TOKENS), num_threads=2)
    assert mergeable_ranks(trained) == expected
    # ... and its vocabulary encodes all three kinds alike, whoever does it.
    documents = [text for texts in KINDS.values() for text in texts]
    ids, offsets = CorpusEncoder(trained, 2).encode_batch(documents)
    got = [ids[start + 1 : end].tolist() for start, end in zip(offsets, offsets[1:], strict=False)]
    assert got == [encoding.ids for encoding in trained.backend_tokenizer.encode_batch(documents)]
    pytest.importorskip("tiktoken")
    assert got == to_tiktoken(trained).encode_ordinary_batch(documents)


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
    """In the environment it is the user's mistake: a command says it in one sentence."""
    monkeypatch.setenv("RAYON_NUM_THREADS", variable)
    error = UserError if argument is None else ValueError
    with pytest.raises(error, match=message):
        train(["hello"], 300, num_threads=argument)
    with pytest.raises(error, match=message):
        CorpusEncoder(tokenizer, argument)


def test_the_number_of_threads_comes_from_the_argument_the_environment_or_the_machine(monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    assert (thread_count(), thread_count(5)) == (3, 5)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for unset in ("", "0"):
        monkeypatch.setenv("RAYON_NUM_THREADS", unset)
        assert thread_count() == cores


@pytest.mark.parametrize("value", ["abc", "-2", "1.5", "²"])
def test_a_bad_number_of_threads_in_the_environment_is_named(value, monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", value)
    with pytest.raises(UserError, match=f"RAYON_NUM_THREADS is '{value}'.* set it to a whole number from 1, or unset"):
        thread_count()
    assert thread_count(2) == 2, "the argument counts"


def test_progress_names_bytes_and_merges(capfd, monkeypatch):
    monkeypatch.setattr("nanochat_hf.progress.SECONDS_PER_LINE", 0.0)  # even short work prints lines
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
