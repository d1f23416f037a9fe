"""Ctrl-C (a real SIGINT) stops training and encoding. Memory grows with distinct words, not with the text."""

import subprocess
import sys

PROGRAM = r"""
import itertools, os, random, resource, signal, string, sys, threading
from nanochat_hf import _rustbpe
from nanochat_hf.tokenizer import CorpusEncoder, train

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it

def interrupt(seconds):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()

def expect_stop(name, work, seconds=0.5):
    try:
        if seconds:
            interrupt(seconds)
        work()
    except KeyboardInterrupt:
        print(name, "stopped", flush=True)

text = "endless words of text, again and again. " * 25_000
merged = [0]

def peak():  # MB; macOS counts in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

before = peak()
_, num_bytes, num_words, _ = _rustbpe.train(itertools.repeat(text, 300), 20, num_threads=2)
assert num_bytes == 300 * len(text) and num_words == 10, (num_bytes, num_words)
print("memory", "stopped" if peak() - before < 50 else f"grew by {peak() - before:.0f} MB for {num_bytes:,} bytes")

def show(stage, done, total):
    if stage == "merge" and not merged[0]:
        interrupt(0.3)
    if stage == "merge":
        merged[0] = max(done, 1)

expect_stop("counting", lambda: _rustbpe.train(itertools.repeat(text), 100, num_threads=2))
one_text = iter([("no seam for the general engine " * 10_000_000)])
expect_stop("regex", lambda: _rustbpe.train(one_text, 100, pattern=r"\S+|\s+(?!\S)|\s+", num_threads=2))
letters = random.Random(0)
words = [" ".join("".join(letters.choices(string.ascii_lowercase, k=9)) for _ in range(300_000))]
wanted = 3_000_000
expect_stop("merging", lambda: _rustbpe.train(iter(words), wanted, num_threads=2, progress=show), None)
assert 0 < merged[0] < wanted // 2, merged

tokenizer = train([text], 280, num_threads=2)
encoder = CorpusEncoder(tokenizer, 2)
expect_stop("encode_batch", lambda: encoder.encode_batch([text] * 100_000))
expect_stop("one piece", lambda: encoder.encode_batch(["endless" * 3_000_000]))
"""


def test_ctrl_c_stops_training_and_encoding():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200)
    stopped = [line.removesuffix(" stopped") for line in done.stdout.splitlines()]
    assert stopped == ["memory", "counting", "regex", "merging", "encode_batch", "one piece"], done.stderr
    assert done.returncode == 0, done.stderr
