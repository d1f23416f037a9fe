"""A base model beside tables of n-grams counted from the same text, and beside a mixture of both.

    python benchmarks/ngrams.py --model runs/local/base --data DATA_FOLDER
    python benchmarks/ngrams.py --model runs/local/base --data DATA_FOLDER --tokens 33000000 --orders 3 4

A table of order n says how often each token follows the n - 1 tokens before it. From each count a discount is taken,
and the table of order n - 1 gets it (absolute discounting; Ney, Essen and Kneser 1994). The discount is estimated from
the numbers of n-grams that occur once and twice. The mixture weighs the model's and the table's probabilities; the
weight is chosen on the same text, so it is a little too good.

All figures are bits per byte of whole documents of the validation split. The model reads windows of its context, from
the document's beginning; the tables also see the tokens before a window. A base model that does not beat the tables
has learned less than counting brings.
"""

import argparse
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from benchmark_tools import HelpFormat

from nanochat_hf.data.row_stream import Encoder, as_encoder
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError, run_main

WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the model in the mixture
DOCUMENTS_AT_ONCE = 1024  # tokenized at once


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--model", required=True, help="checkpoint folder of a base model")
    parser.add_argument("--data", required=True, help="source with a training and a validation split")
    parser.add_argument("--tokens", type=int, default=2**24, help="tokens of the training split to count, about")
    parser.add_argument("--documents", type=int, default=300, help="documents of the validation split to score")
    parser.add_argument("--orders", type=int, nargs="+", default=[2, 3, 4], help="of the tables, the longest last")
    options = parser.parse_args()
    if min(options.orders) < 2 or min(options.tokens, options.documents) < 1:
        raise UserError("--orders begin at 2; --tokens and --documents at 1")
    return options


def encoded(source: str, split: str, encoder: Encoder) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each document with its token ids, int64; the first is the start token."""
    documents = open_documents(source, split)
    while texts := documents.next_batch(DOCUMENTS_AT_ONCE):
        ids, offsets = encoder.encode_batch(texts)
        for text, start, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
            yield text, ids[start:end].astype(np.int64)


def ngrams(ids: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """The n-gram that ends at each position, as one number; the first `order - 1` positions have none.

    Args:
        ids: int64 [tokens].

    Returns:
        int64 [tokens - order + 1].
    """
    keys = ids[: len(ids) - order + 1].copy()
    for begin in range(1, order):
        keys *= vocab_size
        keys += ids[begin : len(ids) - order + 1 + begin]
    return keys


def looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values of the wanted keys; 0 where a key is missing. `keys` are sorted."""
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[found] == wanted, values[found], 0)


def add_order(shorter: np.ndarray, counted: np.ndarray, scored: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """Probabilities of the table of one order, smoothed with those of the table before.

    Args:
        shorter: of each token of `scored`, by the table of the order below, [tokens].
        counted: the training text, int64 [tokens].
        scored: the validation text, int64 [tokens].
    """
    keys, counts = np.unique(ngrams(counted, order, vocab_size), return_counts=True)
    once, twice = ((counts == times).sum() for times in (1, 2))
    discount = once / max(1, once + 2 * twice)
    contexts, first = np.unique(keys // vocab_size, return_index=True)
    totals, kinds = np.add.reduceat(counts, first), np.diff(np.append(first, len(keys)))
    wanted = ngrams(scored, order, vocab_size)
    count = looked_up(keys, counts, wanted)
    total, kind = (looked_up(contexts, values, wanted // vocab_size) for values in (totals, kinds))
    below = shorter[order - 1 :]
    smoothed = (np.maximum(count - discount, 0) + discount * kind * below) / np.maximum(total, 1)
    return np.concatenate([shorter[: order - 1], np.where(total > 0, smoothed, below)])


@torch.inference_mode()
def model_probabilities(model: torch.nn.Module, documents: list[np.ndarray]) -> np.ndarray:
    """The model's probability of each token but the start tokens, in windows of its context, [tokens]."""
    length, parts = model.config.max_position_embeddings, []
    for ids in documents:
        for start in range(0, len(ids) - 1, length):
            window = torch.from_numpy(ids[start : start + length + 1]).to(model.device)[None]
            probabilities = model(window[:, :-1], use_cache=False).logits[0].float().softmax(-1)
            parts.append(probabilities.gather(1, window[0, 1:, None])[:, 0].cpu().numpy())
    return np.concatenate(parts).astype(np.float64)


def main() -> None:
    options = parse_arguments()
    from nanochat_hf.generation.loading import load_checkpoint

    model, tokenizer = load_checkpoint(options.model)
    encoder, vocab_size = as_encoder(tokenizer), len(tokenizer)
    longest = int(63 / math.log2(vocab_size))  # an n-gram is one number of 63 bits
    if max(options.orders) > longest:
        raise UserError(f"with {vocab_size:,} tokens in the vocabulary, --orders end at {longest}")
    texts, documents = [], []
    for text, ids in encoded(options.data, "validation", encoder):
        texts.append(text)
        documents.append(ids)
        if len(texts) == options.documents:
            break
    size = sum(len(text.encode()) for text in texts)
    is_start = np.concatenate([np.arange(len(ids)) == 0 for ids in documents])
    if is_start.all():
        raise UserError(f"{options.data}: the validation documents are empty (--data)")
    scored = np.concatenate(documents)

    def bits_per_byte(probabilities: np.ndarray) -> float:
        return float(-np.log2(probabilities).sum() / size)

    ours = model_probabilities(model, documents)
    began = time.perf_counter()
    parts, waiting = [], options.tokens
    for _, ids in encoded(options.data, "train", encoder):
        parts.append(ids)
        if (waiting := waiting - len(ids)) <= 0:
            break
    counted = np.concatenate(parts)
    frequencies = (np.bincount(counted, minlength=vocab_size) + 1) / (len(counted) + vocab_size)
    print(f"{len(counted):,} tokens are counted, {len(ours):,} of {len(texts)} documents are scored")
    print("\n| bits per byte of whole documents | alone | mixed | weight of the model | seconds so far |")
    print("|---|--:|--:|--:|--:|")
    print(f"| the model | {bits_per_byte(ours):.4f} | | | |")
    table = frequencies[scored]
    for order in range(2, max(options.orders) + 1):
        table = add_order(table, counted, scored, order, vocab_size)
        if order not in options.orders:
            continue
        alone = table[~is_start]
        mixed, weight = min((bits_per_byte(w * ours + (1 - w) * alone), w) for w in WEIGHTS)
        row = f"{bits_per_byte(alone):.4f} | {mixed:.4f} | {weight} | {time.perf_counter() - began:.0f}"
        print(f"| table of {order}-grams | {row} |", flush=True)


if __name__ == "__main__":
    run_main(main)
