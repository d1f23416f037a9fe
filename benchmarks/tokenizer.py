"""Seconds and memory of training a tokenizer and of encoding, beside rustbpe, tokenizers, gigatoken and tiktoken.

    python benchmarks/tokenizer.py --data my_texts/ --threads 2                       # both tables, medians of five
    python benchmarks/tokenizer.py --data my_texts/ --kinds train --rounds 3
    python benchmarks/tokenizer.py --data my_texts/ --kinds encode --libraries nanochat_hf tiktoken
    python benchmarks/tokenizer.py --train_megabytes 5 --encode_megabytes 5           # the microworld

Every measurement is a process of its own, so that an encoder's first pass starts with cold caches. The libraries take
turns in every round. Times are medians; "seconds ÷ ours" is the median over rounds of a library's seconds divided by
ours. Memory is the peak beyond the interpreter with the texts loaded. A library that is not installed is reported as
absent. gigatoken refuses nanochat's split pattern: it trains with its own, and encodes a vocabulary of GPT-2's split,
which we encode as well.
"""

import argparse
import ctypes
import gc
import hashlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark_tools import HelpFormat, train_tokenizer, vocab_size_for

from nanochat_hf.settings import UserError, run_main

TRAINERS = ("nanochat_hf", "rustbpe", "gigatoken", "tokenizers")
ENCODERS = ("nanochat_hf", "tiktoken", "tokenizers", "gigatoken", "nanochat_hf (GPT-2 split)")
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SEPARATOR = b"<|endoftext|>"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--data", default="microworld", help="text: a folder, a file, a Hub id or microworld")
    parser.add_argument(
        "--kinds", nargs="+", choices=("train", "encode"), default=("train", "encode"), help="tables to print"
    )
    parser.add_argument("--libraries", nargs="+", help="only these; ours is always measured")
    parser.add_argument("--train_megabytes", type=float, default=77, help="text to train on")
    parser.add_argument("--encode_megabytes", type=float, default=60, help="text to encode")
    parser.add_argument("--vocab_size", type=int, help="of all tokenizers; 32768, for the microworld 512")
    parser.add_argument("--threads", type=int, default=2, help="threads of every library")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of every library")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "LIBRARY"), help=argparse.SUPPRESS)
    parser.add_argument("--ranks", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.vocab_size = vocab_size_for(args.data, args.vocab_size, 32768)
    return args


def main() -> None:
    args = parse_arguments()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.ranks = folder
        if "encode" in args.kinds:
            write_vocabularies(args, Path(folder))
        for kind in args.kinds:
            print_table(args, kind)


def print_table(args: argparse.Namespace, kind: str) -> None:
    """Measures all libraries, round by round, and prints their table."""
    libraries = [
        name
        for name in (TRAINERS if kind == "train" else ENCODERS)
        if not args.libraries or name.startswith("nanochat_hf") or name in args.libraries
    ]
    present = [name for name in libraries if importlib.util.find_spec(name.split(" ")[0])]
    rounds = [{name: in_own_process(args, kind, name) for name in present} for _ in range(args.rounds)]
    again = " MB/s, second pass |" if kind == "encode" else ""
    print(f"\n| {kind} | seconds | MB/s |{again} seconds ÷ ours | peak MB | peak ÷ ours | same as ours |")
    print("|---" * (7 + bool(again)) + "|")
    for name in libraries:
        if name not in present:
            print(f"| {name} | absent |" + " |" * (5 + bool(again)))
            continue
        runs = [one[name] for one in rounds]
        ours = [one["nanochat_hf"] for one in rounds]
        times, peaks = (
            [run[key] / our[key] for run, our in zip(runs, ours, strict=True)] for key in ("seconds", "mb")
        )
        seconds = statistics.median(run["seconds"] for run in runs)
        cells = [name, f"{seconds:.2f}", f"{runs[0]['megabytes'] / seconds:.1f}"]
        if again:
            cells.append(f"{runs[0]['megabytes'] / statistics.median(run['second'] for run in runs):.1f}")
        cells += [f"{statistics.median(times):.1f}", f"{statistics.median(run['mb'] for run in runs):.0f}"]
        cells += [f"{statistics.median(peaks):.2f}", identical(kind, name, runs, rounds[0])]
        print("| " + " | ".join(cells) + " |", flush=True)


def identical(kind: str, name: str, runs: list[dict], one_round: dict[str, dict]) -> str:
    """Whether all runs gave the same result as ours with the same split pattern."""
    if name == "gigatoken" and kind == "train":
        return "another split"
    if name == "gigatoken":
        reference = one_round["nanochat_hf (GPT-2 split)"]
    else:
        reference = one_round[name if "GPT-2" in name else "nanochat_hf"]
    return "yes" if all(run["digest"] == reference["digest"] for run in runs) else "no"


def in_own_process(args: argparse.Namespace, kind: str, library: str) -> dict:
    """The figures of one measurement, made in a fresh process."""
    command = [sys.executable, __file__, "--measure", kind, library, "--data", args.data]
    for name in ("train_megabytes", "encode_megabytes", "vocab_size", "threads", "ranks"):
        command += [f"--{name}", str(getattr(args, name))]
    threads = {"RAYON_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{library} failed in {kind}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict:
    """Seconds, peak memory in MB and a hash of the result for one library, in this process."""
    kind, library = args.measure
    texts = read_texts(args.data, args.train_megabytes if kind == "train" else args.encode_megabytes)
    work = (prepare_training if kind == "train" else prepare_encoding)(library, texts, args)
    before = resident_mb_and_reset_peak()
    started = time.perf_counter()
    outcome = work()
    seconds = time.perf_counter() - started
    result = {"seconds": seconds, "mb": peak_mb() - before, "digest": digest(kind, library, outcome)}
    result["megabytes"] = sum(len(text.encode()) for text in texts) / 1e6
    if kind == "encode":
        del outcome
        started = time.perf_counter()
        work()
        result["second"] = time.perf_counter() - started
    return result


def read_texts(data: str, megabytes: float) -> list[str]:
    """The first documents of the data, at least so many megabytes.

    Raises:
        UserError: there is less text.
    """
    from nanochat_hf.data.sources import open_documents

    texts, size = [], 0
    for text in open_documents(data, "train"):
        texts.append(text)
        size += len(text.encode())
        if size >= megabytes * 1e6:
            return texts
    raise UserError(
        f"{data} has {size / 1e6:.1f} MB of training text, less than {megabytes:g}; "
        "lower --train_megabytes or --encode_megabytes"
    )


# ---- memory ------------------------------------------------------------------------


def resident_mb_and_reset_peak() -> float:
    """Memory of this process in MB; the peak is reset."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or memory freed after loading hides what the work needs
        Path("/proc/self/clear_refs").write_text("5")
        return status_mb("VmRSS")
    except (OSError, AttributeError):  # not Linux: the highest peak so far
        return peak_mb()


def peak_mb() -> float:
    if Path("/proc/self/status").exists():
        return status_mb("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {name} in /proc/self/status")


# ---- the libraries: each function prepares, and returns the call that is measured -----


def prepare_training(library: str, texts: list[str], args: argparse.Namespace) -> Callable[[], Any]:
    from nanochat_hf import tokenizer as ours

    vocabulary = args.vocab_size - len(ours.SPECIAL_TOKENS)
    if library == "nanochat_hf":
        from nanochat_hf import _rustbpe

        return lambda: _rustbpe.train(iter(texts), vocabulary - 256, num_threads=args.threads)[0]
    if library == "rustbpe":
        import rustbpe

        trainer = rustbpe.Tokenizer()
        return lambda: trainer.train_from_iterator(iter(texts), vocabulary, pattern=ours.SPLIT_PATTERN) or trainer
    if library == "gigatoken":
        import gigatoken

        joined = SEPARATOR.join(text.encode() for text in texts)
        return lambda: gigatoken.train_bpe(joined, vocabulary, [], separator=SEPARATOR)
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(ours.SPLIT_PATTERN), behavior="isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    return lambda: backend.train_from_iterator(texts, trainer) or backend


def prepare_encoding(library: str, texts: list[str], args: argparse.Namespace) -> Callable[[], Any]:
    from nanochat_hf import tokenizer as ours

    gpt2 = library == "gigatoken" or "GPT-2" in library
    path = Path(args.ranks) / ("gpt2.tiktoken" if gpt2 else "ours.tiktoken")
    if library == "gigatoken":
        import gigatoken

        peer = gigatoken.Tokenizer.from_tiktoken(path, pretokenizer="gpt2")
        return lambda: peer.encode_batch(texts, parallel=True)
    ranks = ours.read_tiktoken(path)
    tokenizer = ours.from_mergeable_ranks(ranks, pattern=GPT2_PATTERN if gpt2 else None)
    if library == "tiktoken":
        encoding = ours.to_tiktoken(tokenizer)
        return lambda: encoding.encode_ordinary_batch(texts, num_threads=args.threads)
    if library == "tokenizers":
        return lambda: tokenizer.backend_tokenizer.encode_batch_fast(texts)
    encoder = ours.CorpusEncoder(tokenizer, args.threads)
    return lambda: encoder.encode_batch(texts)


def write_vocabularies(args: argparse.Namespace, folder: Path) -> None:
    """Trains the two vocabularies that are encoded, and writes them in tiktoken's format."""
    from nanochat_hf import tokenizer as ours

    texts = read_texts(args.data, args.encode_megabytes)
    for name, pattern in (("ours", None), ("gpt2", GPT2_PATTERN)):
        tokenizer = train_tokenizer(texts, args.vocab_size, pattern=pattern, num_threads=args.threads)
        ours.write_tiktoken(tokenizer, folder / f"{name}.tiktoken")


def digest(kind: str, library: str, outcome: Any) -> str:
    """A hash of the learnt tokens in order, or of all ids without the document-start tokens."""
    if kind == "encode":
        import numpy as np

        if library.startswith("nanochat_hf"):
            ids, offsets = outcome
            ids = np.delete(ids, offsets[:-1])
        elif library == "gigatoken":
            import awkward

            ids = awkward.to_numpy(awkward.flatten(outcome))
        else:
            rows = outcome if library == "tiktoken" else [row.ids for row in outcome]
            ids = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
        return hashlib.sha256(np.ascontiguousarray(ids, dtype=np.int32).tobytes()).hexdigest()
    if library == "nanochat_hf":
        tokens = [bytes([byte]) for byte in range(256)]
        for left, right in outcome:
            tokens.append(tokens[left] + tokens[right])
    elif library == "rustbpe":
        tokens = [bytes(token) for token, _ in sorted(outcome.get_mergeable_ranks(), key=lambda one: one[1])]
    elif library == "gigatoken":
        tokens = [outcome[0][index] for index in sorted(outcome[0])]
    else:
        tokens = [token.encode() for token, _ in sorted(outcome.get_vocab().items(), key=lambda one: one[1])]
    return hashlib.sha256(b"\0".join(tokens)).hexdigest()


if __name__ == "__main__":
    run_main(main)
