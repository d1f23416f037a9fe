"""A tokenizer with the encoder's interface and nothing to train: one token per byte, after a start token."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = 256


class ByteEncoder:
    def encode_batch(self, texts):
        documents = [[START, *text.encode()] for text in texts]
        ids = np.array([token for document in documents for token in document], dtype=np.uint32)
        return ids, np.cumsum([0, *map(len, documents)])


def make_documents(count: int, name: str = "d", seed: int = 0) -> list[str]:
    """Distinct documents `<name0>...` of random letters, 5 to about 300 characters, mostly short."""
    rng = np.random.default_rng((seed, *name.encode()))
    sizes = rng.geometric(0.02, size=count)
    letters = [rng.integers(97, 123, size, dtype=np.uint8).tobytes().decode() for size in sizes]
    return [f"<{name}{index}>{text}" for index, text in enumerate(letters)]


def write_parquet(path: Path, documents: list[str], group: int = 64, column: str = "text") -> Path:
    pq.write_table(pa.table({column: documents}), path, row_group_size=group)
    return path


def write_jsonl(path: Path, documents: list[str], column: str = "text") -> Path:
    text = "".join(json.dumps({column: document}) + "\n" for document in documents)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


def write_shards(folder: Path, shards: int = 4, documents: int = 200, group: int = 32) -> list[list[str]]:
    """Writes parquet shards; returns the documents of each (the last is the validation shard)."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [make_documents(documents, f"s{shard}_", seed=shard) for shard in range(shards)]
    for shard, own in enumerate(made):
        write_parquet(folder / f"shard_{shard:05d}.parquet", own, group)
    return made
