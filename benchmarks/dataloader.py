"""Tokens per second of the pretraining loader beside upstream's, and how many tokens each packing keeps.

    python benchmarks/dataloader.py                 # the microworld, without upstream
    python benchmarks/dataloader.py --data DATA_FOLDER --upstream NANOCHAT_CHECKOUT

Table 1: every loader tokenizes and packs the same shards with the same vocabulary, pinned to one core, for --seconds
after a warm-up. Counted are the served tokens, on which a model can train, per second of processor time of all
threads. So other load on the machine does not count. Upstream's loader is its own code, imported from the checkout.
Its first ten batches are compared with those of `best_fit`.

Table 2: a fixed number of documents is packed into rows, and the share of tokens that end up in rows is printed.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_tools import UPSTREAM_HELP, HelpFormat, check_upstream, train_tokenizer, vocab_size_for

from nanochat_hf.data.loader import PackedLoader
from nanochat_hf.data.packing import pack_best_fit
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import run_main


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--data", default="microworld", help="source; with --upstream a folder of parquet shards")
    parser.add_argument("--upstream", type=Path, help=UPSTREAM_HELP)
    parser.add_argument("--tokenizer", help="tokenizer folder; without it one is trained on --training_chars")
    parser.add_argument("--vocab_size", type=int, help="of the trained tokenizer; 32768, for the microworld 512")
    parser.add_argument("--training_chars", type=int, default=20_000_000, help="characters to train the tokenizer on")
    parser.add_argument("--batch_size", type=int, default=32, help="rows per batch")
    parser.add_argument("--sequence_length", type=int, default=2048, help="tokens per row")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured processor time of each loader")
    parser.add_argument("--documents", type=int, default=20_000, help="documents of the packing table")
    options = parser.parse_args()
    options.upstream = check_upstream(options.upstream, "nanochat/dataloader.py")
    options.vocab_size = vocab_size_for(options.data, options.vocab_size, 32768)
    return options


def make_tokenizer(arguments: argparse.Namespace) -> Any:
    """The tokenizer of all loaders: the given folder's, or one trained on the first documents of the data."""
    if arguments.tokenizer:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(arguments.tokenizer)

    def texts() -> Iterator[str]:
        chars = 0
        for text in open_documents(arguments.data):
            yield text
            chars += len(text)
            if chars >= arguments.training_chars:
                return

    return train_tokenizer(texts(), arguments.vocab_size)


def upstream_loader(arguments: argparse.Namespace, tokenizer: Any, base: Path) -> Iterator[Any]:
    """Upstream's own loader over the same shards, with our vocabulary as the tiktoken encoding that it needs."""
    from nanochat_hf.tokenizer import to_tiktoken

    (base / "base_data_climbmix").symlink_to(Path(arguments.data).absolute(), target_is_directory=True)
    os.environ["NANOCHAT_BASE_DIR"] = str(base)
    sys.path.insert(0, str(arguments.upstream))
    from nanochat.dataloader import tokenizing_distributed_data_loader_bos_bestfit
    from nanochat.tokenizer import RustBPETokenizer

    return tokenizing_distributed_data_loader_bos_bestfit(
        RustBPETokenizer(to_tiktoken(tokenizer), "<|bos|>"),
        arguments.batch_size,
        arguments.sequence_length,
        "train",
        tokenizer_threads=1,
        device="cpu",
    )


def measure(batches: Iterator[Any], tokens_per_batch: int, seconds: float) -> float:
    """Tokens served per processor second, after a warm-up of 20 batches that fills buffers and queues."""
    for _ in islice(batches, 20):
        pass
    start, count = time.process_time(), 0
    while (passed := time.process_time() - start) < seconds:
        next(batches)
        count += 1
    return count * tokens_per_batch / passed


def compare_speed(arguments: argparse.Namespace, tokenizer: Any) -> None:
    """Prints table 1."""
    per_batch = arguments.batch_size * arguments.sequence_length
    shape = {"batch_size": arguments.batch_size, "sequence_length": arguments.sequence_length}
    speeds: dict[str, float] = {}
    first: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as base:
        if arguments.upstream:
            loader = upstream_loader(arguments, tokenizer, Path(base))
            first["upstream"] = [next(loader)[0].numpy().copy() for _ in range(10)]
            speeds["upstream"] = measure(loader, per_batch, arguments.seconds)
        for packing in ("best_fit", "keep_tails"):
            ours = PackedLoader(arguments.data, tokenizer, **shape, packing=packing, num_threads=1)
            first[packing] = [next(ours)["input_ids"].numpy() for _ in range(10)]
            speeds[packing] = measure(ours, per_batch, arguments.seconds)
            ours.close()
    if "upstream" in first:
        same = all(np.array_equal(a, b) for a, b in zip(first["upstream"], first["best_fit"], strict=True))
        print(f"first 10 batches of upstream and best_fit are {'the same' if same else 'DIFFERENT'}\n")
    print("| loader | tokens per second, one core | times upstream |")
    print("|---|--:|--:|")
    for name, speed in speeds.items():
        ratio = f"{speed / speeds['upstream']:.1f}×" if "upstream" in speeds else ""
        print(f"| {name} | {speed:,.0f} | {ratio} |")


def compare_packing(arguments: argparse.Namespace, tokenizer: Any) -> None:
    """Prints table 2."""
    from nanochat_hf.tokenizer import CorpusEncoder

    texts = list(islice(open_documents(arguments.data), arguments.documents))
    ids, offsets = CorpusEncoder(tokenizer, num_threads=1).encode_batch(texts)
    documents = [ids[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    lengths = np.diff(offsets)
    bos = tokenizer.bos_token_id
    mean, median = lengths.mean(), np.median(lengths)
    print(f"\n{len(documents):,} documents; tokens per document: mean {mean:,.0f}, median {median:,.0f}")
    print("\n| row length | packing | tokens kept | documents or parts per row | tokens per second, packing only |")
    print("|--:|---|--:|--:|--:|")
    for length in sorted({512, 1024, arguments.sequence_length}):
        for packing in ("best_fit", "keep_tails"):
            start, rows = time.process_time(), 0
            pieces = kept = 0
            for row in pack_best_fit(documents, length + 1, packing=packing):
                rows += 1
                starts = int(np.count_nonzero(row == bos))
                pieces += starts
                kept += len(row) - starts
            speed = rows * length / (time.process_time() - start)
            share = kept / (lengths.sum() - len(documents))  # without start tokens, as every part gets one
            print(f"| {length} | {packing} | {share:.1%} | {pieces / rows:.2f} | {speed:,.0f} |")


def main() -> None:
    arguments = parse_arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)
    tokenizer = make_tokenizer(arguments)
    compare_speed(arguments, tokenizer)
    compare_packing(arguments, tokenizer)


if __name__ == "__main__":
    run_main(main)
