"""Trains a vocabulary with the Rust extension and wraps it as a `PreTrainedTokenizerFast`."""

import json
import os
import warnings
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nanochat_hf import _rustbpe
from nanochat_hf.progress import progress_bar

from .template import CHAT_TEMPLATE, RESPONSE_TEMPLATE

# In this order after the byte-pair vocabulary, as upstream has them.
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
# GPT-4's split, with digits in groups of one or two: 0.965 against 0.972 bits per byte for groups of up to three at
# 32,768 tokens and depth 12 (upstream's log, January 2026).
SPLIT_PATTERN: str = _rustbpe.DEFAULT_PATTERN
SMALLEST = 256 + len(SPECIAL_TOKENS)


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    pattern: str | None = None,
    num_threads: int | None = None,
    max_words: int = 16_000_000,
    model_max_length: int = 2048,
    progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Learns byte-pair merges; ties go to the smaller pair, as in upstream's trainer.

    Args:
        texts: any iterable of strings; it is streamed, and memory grows with distinct words only.
        vocab_size: tokens in all, the nine control tokens included.
        pattern: regular expression that cuts text into words; default `SPLIT_PATTERN`.
        num_threads: default `RAYON_NUM_THREADS`, else all cores. The result does not depend on it.
        max_words: the cap on memory, for text without spaces such as Japanese or DNA. Where more distinct words are
            held than this (a long one counts more), the rarest are forgotten until half are left, with a warning.
        model_max_length: the context that the tokenizer's files name.
        progress: show a bar.

    Raises:
        ValueError: the vocabulary is smaller than bytes and control tokens, the pattern does not compile, or the text
            is too small for so many merges; or the number of threads is none.

    Ctrl-C stops it within a second, while it counts and while it merges.
    """
    if vocab_size < SMALLEST:
        raise ValueError(
            f"vocab_size is {vocab_size}, but 256 bytes and {len(SPECIAL_TOKENS)} control tokens need {SMALLEST}"
        )
    if max_words < 1:
        raise ValueError(f"max_words is {max_words}, but at least one word must be held; the default is 16 million")
    if isinstance(texts, str | bytes):
        raise TypeError("texts must be an iterable of strings, not one string: put it into a list")
    wanted = vocab_size - SMALLEST
    threads = thread_count(num_threads)
    with _Bars(enabled=progress) as bars:
        merges, num_bytes, num_words, forgotten = _rustbpe.train(
            iter(texts), wanted, pattern=pattern, num_threads=threads, max_words=max_words, progress=bars.show
        )
    if forgotten:
        warnings.warn(
            f"the text has more distinct words than max_words={max_words:,}: words seen up to {forgotten:,} times "
            f"were forgotten on the way, the merges come from the {num_words:,} that were left",
            stacklevel=2,
        )
    if num_bytes == 0:
        raise ValueError("there is no text to train on: the source is empty")
    if len(merges) < wanted:
        raise ValueError(
            f"{num_bytes:,} bytes of text yield {len(merges)} merges, not {wanted}: give more text, "
            f"or a vocab_size of at most {len(merges) + SMALLEST}"
        )
    tokens = [bytes([value]) for value in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return wrap(tokens, merges, pattern or SPLIT_PATTERN, model_max_length)


def thread_count(num_threads: int | None = None) -> int:
    """Returns how many threads to use: the argument, else `RAYON_NUM_THREADS`, else all cores of this process.

    Raises:
        ValueError: either is not a whole number from 1.
    """
    name = "num_threads"
    if num_threads is None:
        name, given = "RAYON_NUM_THREADS", os.environ.get("RAYON_NUM_THREADS") or "0"
        num_threads = int(given) if given.isdecimal() else given
        if num_threads == 0:  # rayon's own meaning: as many as there are cores
            affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
            return len(affinity(0)) if affinity else os.cpu_count() or 1
    if not isinstance(num_threads, int) or num_threads < 1:
        raise ValueError(f"{name} is {num_threads!r}, but threads are counted in whole numbers from 1")
    return num_threads


def wrap(
    tokens: list[bytes], merges: list[tuple[int, int]], pattern: str, model_max_length: int
) -> PreTrainedTokenizerFast:
    """Builds the fast tokenizer from the tokens' bytes, in the order of their ids, and the merges as pairs of ids."""
    spelled = [_spell(token) for token in tokens]
    bpe = models.BPE(
        vocab={token: index for index, token in enumerate(spelled)},
        merges=[(spelled[left], spelled[right]) for left, right in merges],
        ignore_merges=True,  # a word that is a token needs no merging: tiktoken's shortcut, same ids
    )
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|assistant_end|>",
        pad_token="<|bos|>",
        extra_special_tokens=[name for name in SPECIAL_TOKENS if name not in ("<|bos|>", "<|assistant_end|>")],
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        response_template=RESPONSE_TEMPLATE,
    )


def from_mergeable_ranks(
    ranks: dict[bytes, int], *, pattern: str | None = None, model_max_length: int = 2048
) -> PreTrainedTokenizerFast:
    """Builds the tokenizer from tiktoken's form: each token's bytes with its rank, which is its id.

    Raises:
        ValueError: the ranks are not 0, 1, 2, …, a single byte is missing, or a token is not made of two earlier ones.
    """
    tokens = sorted(ranks, key=ranks.__getitem__)
    if [ranks[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("the ranks of a vocabulary must be 0, 1, 2, … without a gap")
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise ValueError(f"the vocabulary has no token for byte {missing[0]}; only byte-level vocabularies will do")
    merges = []
    for token in tokens:
        if len(token) == 1:
            continue
        parts = _merge_below(token, ranks)
        if len(parts) != 2:
            raise ValueError(f"token {token!r} is not made of two tokens of lower rank; these are not a BPE's ranks")
        merges.append((ranks[parts[0]], ranks[parts[1]]))
    return wrap(tokens, merges, pattern or SPLIT_PATTERN, model_max_length)


def _merge_below(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Encodes a token's bytes with the tokens of lower rank than its own."""
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 1:
        found = [
            (ranks.get(a + b, len(ranks)), index) for index, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
        ]
        rank, index = min(found)
        if rank >= ranks[token]:
            break
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def mergeable_ranks(tokenizer: PreTrainedTokenizerFast) -> dict[bytes, int]:
    """Returns tiktoken's form of the vocabulary: each token's bytes with its id, control tokens left out."""
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    return {_bytes_of(token): index for token, index in vocabulary.items()}


def token_byte_lengths(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Returns how many bytes each token stands for, int64 [vocab]; 0 for control tokens.

    Counted on the raw bytes: a token that is part of a character is not valid UTF-8, and decoding it would count the
    three bytes of U+FFFD instead.
    """
    lengths = np.zeros(len(tokenizer), dtype=np.int64)
    for token, index in mergeable_ranks(tokenizer).items():
        lengths[index] = len(token)
    return lengths


def merges_and_pattern(tokenizer: PreTrainedTokenizerFast) -> tuple[list[tuple[int, int, int]], str]:
    """Reads a byte-level BPE's merges, as ids (left, right, made) in order of rank, and its split pattern."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]]
    merges = [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in pairs]
    steps = content["pre_tokenizer"].get("pretokenizers", [content["pre_tokenizer"]])
    patterns = [step["pattern"]["Regex"] for step in steps if step["type"] == "Split"]
    if len(patterns) != 1:
        raise ValueError("the tokenizer does not split text by one regular expression; the corpus encoder needs that")
    return merges, patterns[0]


@lru_cache(maxsize=1)
def _alphabet() -> tuple[list[str], dict[str, int]]:
    """GPT-2's spelling of bytes as printable characters, both ways."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {value: chr(value) for value in printable}
    for value in range(256):
        letters.setdefault(value, chr(256 + sum(1 for one in letters if letters[one] >= chr(256))))
    return [letters[value] for value in range(256)], {letters[value]: value for value in range(256)}


def _spell(token: bytes) -> str:
    letters, _ = _alphabet()
    return "".join(letters[value] for value in token)


def _bytes_of(token: str) -> bytes:
    _, values = _alphabet()
    return bytes(values[letter] for letter in token)


class _Bars:
    """Two progress bars: bytes counted (MB/s), then merges learnt (merges/s)."""

    def __init__(self, enabled: bool):
        self.enabled, self.stage, self.bar = enabled, None, None

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, stage: str, done: int, total: int) -> None:
        if not self.enabled:
            return
        if stage != self.stage:
            self.__exit__()
            counting = stage == "count"
            self.bar = progress_bar(
                total=total or None,
                unit="B" if counting else " merges",
                unit_scale=counting,
                desc="reading text" if counting else "learning merges",
            )
            self.stage = stage
        self.bar.update(done - self.bar.n)
