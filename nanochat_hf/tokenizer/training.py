"""Trains a byte-pair vocabulary with the Rust extension: texts in, a `PreTrainedTokenizerFast` out."""

import warnings
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerFast

from nanochat_hf import _rustbpe
from nanochat_hf.progress import progress_bar

from .fast_tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, wrap
from .threads import thread_count

MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)  # one token per byte, and the control tokens


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
    """Learns byte-pair merges. Ties go to the smaller pair, as in upstream's trainer.

    Ctrl-C stops it within a second, while it counts and while it merges.

    Args:
        texts: any iterable of strings. It is streamed: memory grows with the number of distinct words only.
        vocab_size: all tokens, the nine control tokens included.
        pattern: regular expression that splits text into words; default `SPLIT_PATTERN`.
        num_threads: default `RAYON_NUM_THREADS`, else all cores. The result does not depend on it.
        max_words: limit on the distinct words in memory, for text without spaces such as Japanese or DNA. A word
            counts once more per 32 bytes. Above the limit the rarest words are forgotten until half the limit is
            left, and a warning says so.
        model_max_length: context length in tokens, written into `tokenizer_config.json`.
        progress: show a progress bar.

    Returns:
        The tokenizer with control tokens and chat template.

    Raises:
        TypeError: `texts` is one string instead of an iterable of strings.
        ValueError: `vocab_size` is smaller than 256 bytes and the control tokens; the pattern does not compile; there
            is no text, or too little for so many merges; `max_words` or `num_threads` is below 1.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size is {vocab_size}, but 256 bytes and {len(SPECIAL_TOKENS)} control tokens need {MIN_VOCAB_SIZE}"
        )
    if max_words < 1:
        raise ValueError(f"max_words is {max_words}, but at least one word must be held; the default is 16 million")
    if isinstance(texts, str | bytes):
        raise TypeError("texts must be an iterable of strings, not one string: put it into a list")
    wanted = vocab_size - MIN_VOCAB_SIZE
    threads = thread_count(num_threads)
    with _ProgressBars(enabled=progress) as bars:
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
            f"or a vocab_size of at most {len(merges) + MIN_VOCAB_SIZE}"
        )
    tokens = [bytes([value]) for value in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return wrap(tokens, merges, pattern or SPLIT_PATTERN, model_max_length)


class _ProgressBars:
    """Two progress bars, one after the other: bytes counted (MB/s), then merges learned (merges/s)."""

    def __init__(self, enabled: bool):
        self.enabled = enabled
        self.stage: str | None = None
        self.bar: Any = None

    def __enter__(self) -> "_ProgressBars":
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
