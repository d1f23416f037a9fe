"""Trains and encodes beside the peers: rustbpe, tokenizers, tiktoken. Prints two tables.

    python benchmarks/tokenizer.py --data my_texts/ --megabytes 77 --vocab_size 32768 --threads 2 --runs 5

Every measurement runs in a process of its own; times are medians; memory is the peak above the loaded texts. A peer
that is not installed is named as absent.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

TRAINERS = ("nanochat_hf", "rustbpe", "tokenizers")
ENCODERS = ("nanochat_hf", "tiktoken", "tokenizers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="microworld", help="text: a folder, a file, a Hub id or microworld")
    parser.add_argument("--megabytes", type=float, default=77)
    parser.add_argument("--vocab_size", type=int, default=32768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "LIBRARY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    for kind, libraries in (("train", TRAINERS), ("encode", ENCODERS)):
        print(f"\n| {kind} | seconds | MB/s | peak memory MB | identical |\n|---|---|---|---|---|")
        reference = None
        for library in libraries:
            if importlib.util.find_spec(library) is None:
                print(f"| {library} | absent | | | |")
                continue
            runs = [in_own_process(args, kind, library) for _ in range(args.runs)]
            seconds = statistics.median(run["seconds"] for run in runs)
            memory = statistics.median(run["memory_mb"] for run in runs)
            reference = reference or runs[0]["digest"]
            same = "yes" if all(run["digest"] == reference for run in runs) else "no"
            print(f"| {library} | {seconds:.2f} | {runs[0]['megabytes'] / seconds:.1f} | {memory:.0f} | {same} |")


def in_own_process(args: argparse.Namespace, kind: str, library: str) -> dict:
    command = [sys.executable, __file__, "--measure", kind, library, "--data", args.data]
    for name in ("megabytes", "vocab_size", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    threads = {"RAYON_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, env=os.environ | threads, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict:
    kind, library = args.measure
    texts = read_texts(args.data, args.megabytes)
    work = prepare(kind, library, texts, args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    outcome = work()
    seconds = time.perf_counter() - started
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "seconds": seconds,
        "memory_mb": memory,
        "megabytes": sum(len(text.encode()) for text in texts) / 1e6,
        "digest": digest(kind, library, outcome),
    }


def read_texts(data: str, megabytes: float) -> list[str]:
    from nanochat_hf.data.sources import open_documents

    texts, size = [], 0
    for text in open_documents(data, "train"):
        texts.append(text)
        size += len(text.encode())
        if size >= megabytes * 1e6:
            break
    return texts


def prepare(kind: str, library: str, texts: list[str], args: argparse.Namespace) -> Callable:
    """Does what is not to be measured and returns what is."""
    from nanochat_hf import tokenizer as ours

    if kind == "train":
        merged = args.vocab_size - len(ours.SPECIAL_TOKENS)
        if library == "nanochat_hf":
            from nanochat_hf import _rustbpe

            return lambda: _rustbpe.train(iter(texts), merged - 256, num_threads=args.threads)[0]
        if library == "rustbpe":
            import rustbpe

            trainer = rustbpe.Tokenizer()
            return lambda: trainer.train_from_iterator(iter(texts), merged, pattern=ours.SPLIT_PATTERN) or trainer
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

        backend = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(ours.SPLIT_PATTERN), behavior="isolated")
        bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=merged, initial_alphabet=alphabet, show_progress=False)
        return lambda: backend.train_from_iterator(texts, trainer) or backend
    tokenizer = ours.train(texts, args.vocab_size, num_threads=args.threads)
    if library == "nanochat_hf":
        encoder = ours.CorpusEncoder(tokenizer, args.threads)
        return lambda: encoder.encode_batch(texts)
    if library == "tiktoken":
        import tiktoken

        ranks = ours.mergeable_ranks(tokenizer)
        encoding = tiktoken.Encoding("x", pat_str=ours.SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
        return lambda: encoding.encode_ordinary_batch(texts, num_threads=args.threads)
    return lambda: tokenizer.backend_tokenizer.encode_batch_fast(texts)


def digest(kind: str, library: str, outcome: object) -> str:
    """A hash of the learnt tokens, or of all ids without the document-start tokens."""
    if kind == "encode":
        import numpy as np

        if library == "nanochat_hf":
            ids, offsets = outcome
            ids = np.delete(ids, offsets[:-1])
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
    else:
        tokens = [token.encode() for token, _ in sorted(outcome.get_vocab().items(), key=lambda one: one[1])]
    return hashlib.sha256(b"\0".join(tokens)).hexdigest()


if __name__ == "__main__":
    main()
