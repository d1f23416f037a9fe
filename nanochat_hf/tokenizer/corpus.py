"""Encodes whole corpora in Rust, into flat buffers."""

import os
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from nanochat_hf import _rustbpe

from .vocabulary import mergeable_ranks, merges_and_pattern


class CorpusEncoder:
    """Turns documents into ids, on several threads; no text becomes a control token.

    Args:
        tokenizer: a byte-level BPE that splits by one regular expression, such as `nanochat_hf.tokenizer.train` makes.
        num_threads: default `RAYON_NUM_THREADS`, else all cores.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, num_threads: int | None = None):
        threads = num_threads or int(os.environ.get("RAYON_NUM_THREADS") or 0) or len(os.sched_getaffinity(0))
        merges, pattern = merges_and_pattern(tokenizer)
        tokens = list(mergeable_ranks(tokenizer).items())
        self._encoder = _rustbpe.Encoder(
            tokens, merges, pattern=pattern, first_id=tokenizer.bos_token_id, num_threads=threads
        )

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids, int32 [tokens], and the offsets, int64 [documents + 1].

        Document i is `ids[offsets[i] : offsets[i + 1]]`, the document-start token first.
        """
        ids, offsets = self._encoder.encode_batch(list(texts))
        return np.frombuffer(ids, dtype=np.int32), np.frombuffer(offsets, dtype=np.int64)
