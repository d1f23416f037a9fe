"""Encodes many documents at once in Rust: texts in, flat arrays of token ids out."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from nanochat_hf import _rustbpe

from .fast_tokenizer import mergeable_ranks, merges_and_pattern
from .threads import thread_count


class CorpusEncoder:
    """Turns documents into token ids on several threads. No text becomes a control token.

    The memory of the last ids that were dropped is kept for the next call, as long as the encoder lives.

    Args:
        tokenizer: a byte-level BPE that splits text by one regular expression, such as
            `nanochat_hf.tokenizer.train` makes.
        num_threads: how many threads encode; default `RAYON_NUM_THREADS`, else all cores.

    Raises:
        ValueError: the tokenizer is of another kind (see `fast_tokenizer.unlike_ours`), or `num_threads` is not a
            whole number from 1.
        UserError: `RAYON_NUM_THREADS` is not one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, num_threads: int | None = None):
        threads = thread_count(num_threads)
        merges, pattern = merges_and_pattern(tokenizer)
        tokens = list(mergeable_ranks(tokenizer).items())
        self._encoder = _rustbpe.Encoder(
            tokens, merges, pattern=pattern, first_id=tokenizer.bos_token_id, num_threads=threads
        )

    @property
    def merge_steps(self) -> int:
        """Steps taken so far to merge pieces of more than 48 bytes. They grow in proportion to the text's length."""
        return self._encoder.steps()

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a list of documents. Ctrl-C stops it.

        Returns:
            The ids, int32 [tokens], and the offsets, int64 [documents + 1]. Document i is
            `ids[offsets[i] : offsets[i + 1]]` and begins with the document-start token.

        Raises:
            TypeError: `texts` is one string instead of a list.
        """
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be a list of strings, not one string: put it into a list")
        ids, offsets = self._encoder.encode_batch(list(texts))
        return np.frombuffer(ids, dtype=np.int32), np.frombuffer(offsets, dtype=np.int64)
