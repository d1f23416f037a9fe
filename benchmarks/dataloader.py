"""Tokens per second of the pretraining loader beside upstream's and `datasets`; how many each packing keeps.

    python benchmarks/dataloader.py                 # the microworld, without upstream
    python benchmarks/dataloader.py --data DATA_FOLDER --upstream NANOCHAT_CHECKOUT

Table 1: every loader tokenizes and packs the same shards with the same vocabulary, pinned to one core, for --seconds
after a warm-up. Counted are the served tokens, on which a model can train, per second of processor time of all
threads. So other load on the machine does not count. Upstream's loader is its own code, imported from the checkout.
Its first ten batches are compared with those of `best_fit`.

Table 2: a fixed number of documents is packed into rows, and the share of tokens that end up in rows is printed.

Table 3: the same --documents are read from parquet files, once and again, by our reader and by `datasets`, streamed:
row by row, and 128 rows at a time. Then each reader feeds the same encoder and packer. Counted are megabytes of text
and tokens in rows, per second of processor time. All readers must give the same texts.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_tools import UPSTREAM_HELP, HelpFormat, check_upstream, train_tokenizer, vocab_size_for

from nanochat_hf.data.files import read_documents
from nanochat_hf.data.loader import PackedLoader
from nanochat_hf.data.packing import REFILL_DOCUMENTS, pack_best_fit
from nanochat_hf.data.row_stream import RowStream
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError, run_main


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


class Texts:
    """Texts of any iterable, again and again, as the documents that [`RowStream`] reads."""

    def __init__(self, open_texts: Callable[[], Iterator[str]]):
        self.open_texts, self.texts = open_texts, open_texts()
        self.epoch = self.read = 0

    def next_batch(self, size: int = REFILL_DOCUMENTS) -> list[str]:
        """The next texts, at most `size`; a batch ends where the source does."""
        batch = list(islice(self.texts, size))
        if not batch:
            self.texts, self.read = self.open_texts(), 0
            self.epoch += 1
            batch = list(islice(self.texts, size))
        self.read += len(batch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position: the pass, and how many of its texts were read."""
        return {"epoch": self.epoch, "read": self.read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position by reading up to it."""
        self.epoch = state["epoch"]
        self.read, self.texts = state["read"], islice(self.open_texts(), state["read"], None)


def readers_of(data: str, folder: Path) -> dict[str, Callable[[], Iterator[str]]]:
    """Name → a function that reads all texts of `data` once.

    Args:
        data: a folder of parquet files, or "microworld", whose texts are then written into `folder`.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    if data == "microworld":
        data = str(folder)
        texts = list(open_documents("microworld").next_batch(4000))
        pq.write_table(pa.table({"text": texts}), folder / "texts.parquet", row_group_size=500)
    files = sorted(str(path) for path in Path(data).rglob("*.parquet"))
    if not files:
        raise UserError(f"{data} has no parquet files; `datasets` is compared on such files only")
    streamed = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, columns=["text"])

    def by_row() -> Iterator[str]:
        return (row["text"] for row in streamed)

    def by_batch() -> Iterator[str]:
        return (text for batch in streamed.iter(REFILL_DOCUMENTS) for text in batch["text"])

    def ours() -> Iterator[str]:
        return read_documents(files, "text")

    return {"ours": ours, "datasets, row by row": by_row, f"datasets, {REFILL_DOCUMENTS} rows at a time": by_batch}


def compare_readers(arguments: argparse.Namespace, tokenizer: Any) -> None:
    """Prints table 3."""
    from nanochat_hf.tokenizer import CorpusEncoder

    encoder, length = CorpusEncoder(tokenizer, num_threads=1), arguments.sequence_length + 1
    speeds: dict[str, tuple[float, float]] = {}
    digests = set()
    with tempfile.TemporaryDirectory() as folder:
        for name, open_texts in readers_of(arguments.data, Path(folder)).items():
            size, seconds = 0, 0.0
            while seconds < arguments.seconds:
                start = time.process_time()
                texts = list(islice(open_texts(), arguments.documents))
                seconds += time.process_time() - start
                encoded = [text.encode() for text in texts]
                size += sum(map(len, encoded))
            digests.add(hashlib.sha256(b"\0".join(encoded)).hexdigest())
            rows, out = RowStream(Texts(open_texts), encoder, length), np.empty(length, np.int64)
            rows.next_row(out)
            start, count = time.process_time(), 0
            while (passed := time.process_time() - start) < arguments.seconds:
                rows.next_row(out)
                count += 1
            speeds[name] = size / seconds / 1e6, count * arguments.sequence_length / passed
    print(f"\nall readers give {'the same' if len(digests) == 1 else 'DIFFERENT'} texts")
    print("\n| reader | text alone, MB per second | packed rows, tokens per second | times ours |")
    print("|---|--:|--:|--:|")
    for name, (megabytes, tokens) in speeds.items():
        print(f"| {name} | {megabytes:,.1f} | {tokens:,.0f} | {tokens / speeds['ours'][1]:.2f}× |")


def main() -> None:
    arguments = parse_arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)
    tokenizer = make_tokenizer(arguments)
    compare_speed(arguments, tokenizer)
    compare_packing(arguments, tokenizer)
    compare_readers(arguments, tokenizer)


if __name__ == "__main__":
    run_main(main)
