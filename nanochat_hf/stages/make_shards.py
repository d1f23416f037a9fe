"""Turns any text into shuffled shards for pretraining, with a validation shard of its own.

    # a folder of .jsonl.gz files
    nanochat-hf data shards my_corpus/ shards/

    # a data set of the Hub, uploaded again as shards
    nanochat-hf data shards HuggingFaceFW/fineweb-edu:sample/10BT shards/ --push_to_hub me/fineweb-edu-shards

    # then
    nanochat-hf pretrain --data shards/ --tokenizer RUN/tokenizer --output_dir RUN/base

All documents are shuffled together, with memory for only one bucket: each document goes into one of --buckets
buckets at random, then each bucket is shuffled. Exact duplicates are dropped, so that no validation document is also
a training document. The same input and seed give the same shards.
"""

import argparse
import hashlib
import os
import random
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from nanochat_hf.data.overview import describe_data
from nanochat_hf.data.sources import open_documents
from nanochat_hf.progress import progress_bar
from nanochat_hf.settings import Parser, UserError, check_output_dir, convert, program, run_main, without_paths

ROW_GROUP = 1024  # documents per row group, the unit in which loaders divide a shard among readers
WAITING_CHARS = 1 << 22  # a bucket's documents are written when they have so many characters
NUMBERS: dict[str, tuple[type, dict[str, float]]] = {  # options that are numbers, and what they may be
    "shard_chars": (int, {"at_least": 1}),
    "validation_fraction": (float, {"above": 0, "at_most": 1}),
    "max_chars": (int, {"at_least": 1}),
    "buckets": (int, {"at_least": 1, "at_most": 1000}),  # each is an open file
    "seed": (int, {"at_least": 0}),
}
SCATTERED = ".scattered-"  # begins the name of the folder of buckets, which is there until the shards are finished
COMPRESSION = {"compression": "zstd", "compression_level": 3}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; `argv` without the program's name, default `sys.argv[1:]`."""

    class Format(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    called = program("data shards")
    text = (__doc__ or "").replace("nanochat-hf data shards ", f"{called} ")
    parser = Parser(prog=called, description=text, formatter_class=Format)
    add = parser.add_argument
    add("source", help="folder, file, pattern or Hub data set (owner/name[:config]); several as a:0.7,b:0.3")
    add("output_dir", type=lambda word: Path(word).expanduser(), help="folder for the shards; must be new or empty")
    add("--text_column", help="column or key with the text; found if not given")
    add("--shard_chars", default=250_000_000, help="characters per shard; 250 million take about 100 MB")
    add("--validation_fraction", default=0.01, help="validation's share of the text, one shard at most")
    add("--max_chars", help="read at most this many characters, in whole documents; all if not given")
    add("--buckets", default=64, help="buckets of the shuffle; more buckets need less memory")
    add("--seed", default=42, help="seed of the shuffle")
    add("--on_bad_file", choices=("stop", "skip"), default="stop", help="what to do at a damaged file")
    add("--push_to_hub", metavar="OWNER/NAME", help="upload the shards as this data set of the Hub")
    add("--private", action="store_true", help="make the uploaded data set private")
    arguments = parser.parse_args(argv)
    for name, (kind, rules) in NUMBERS.items():
        if getattr(arguments, name) is not None:
            setattr(arguments, name, convert(getattr(arguments, name), kind, rules, f"--{name}"))
    return arguments


def read_documents(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields the documents of all splits of the source, without exact duplicates.

    Raises:
        UserError: the source is missing or cannot be read.
    """
    seen: set[bytes] = set()
    chars = 0
    options = {"text_column": arguments.text_column, "on_bad_file": arguments.on_bad_file}
    # A file of few documents comes whole in both splits; its duplicates are dropped below.
    options |= {"keep_whole": True}
    splits = (open_documents(arguments.source, split, **options) for split in ("train", "validation"))
    for text in chain.from_iterable(splits):
        digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
        if digest in seen:
            continue
        if arguments.max_chars is not None and chars + len(text) > arguments.max_chars:
            return
        seen.add(digest)
        chars += len(text)
        yield text


def scatter(documents: Iterator[str], folder: Path, buckets: int, rng: random.Random) -> tuple[int, int]:
    """Writes each document into one of `buckets` files in `folder`, chosen at random.

    Returns:
        The number of documents and of characters.
    """
    import pyarrow as pa

    schema = pa.schema([("text", pa.large_string())])
    writers = [pa.ipc.new_stream(str(folder / f"{index}.arrow"), schema) for index in range(buckets)]
    waiting: list[list[str]] = [[] for _ in range(buckets)]
    waiting_chars = [0] * buckets
    count = chars = 0

    def write(index: int) -> None:
        writers[index].write_batch(pa.record_batch([pa.array(waiting[index], pa.large_string())], schema=schema))
        waiting[index].clear()
        waiting_chars[index] = 0

    for text in progress_bar(documents, desc="reading", unit=" documents"):
        index = rng.randrange(buckets)
        waiting[index].append(text)
        count, chars = count + 1, chars + len(text)
        waiting_chars[index] += len(text)
        if len(waiting[index]) == ROW_GROUP or waiting_chars[index] >= WAITING_CHARS:
            write(index)
    for index, writer in enumerate(writers):
        write(index)
        writer.close()
    return count, chars


def gather(folder: Path, buckets: int, rng: random.Random) -> Iterator[str]:
    """Yields the documents that `scatter` wrote, bucket by bucket, each bucket shuffled."""
    import pyarrow as pa

    for index in range(buckets):
        with pa.ipc.open_stream(str(folder / f"{index}.arrow")) as reader:
            texts = reader.read_all().column("text").to_pylist()
        rng.shuffle(texts)
        yield from texts


def write_shard(path: Path, documents: Iterator[str], chars: int) -> tuple[int, int]:
    """Writes a parquet file of the next documents, until they have `chars` characters.

    The file appears under its name only when it is complete. Without documents no file is written.

    Returns:
        The number of documents and of characters written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts: list[str] = []
    size = 0
    for text in documents:
        texts.append(text)
        size += len(text)
        if size >= chars:
            break
    if texts:
        table = pa.table({"text": pa.array(texts, pa.large_string())})
        temporary = path.with_suffix(".tmp")
        pq.write_table(table, temporary, row_group_size=ROW_GROUP, write_statistics=False, **COMPRESSION)
        os.replace(temporary, path)
    return len(texts), size


def write_shards(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes all shards.

    Returns:
        The numbers of documents, characters, training shards and validation documents, for the card.

    Raises:
        UserError: the output folder is not empty, or the source has too little text.
    """
    folder: Path = arguments.output_dir
    check_output_dir(folder, unfinished=False, option="output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob(f"{SCATTERED}*")):
        raise UserError(
            f"{folder} has unfinished shards; if a command is still making them, wait until it ends, else empty the "
            "folder, or give a new one"
        )
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder, or empty it to make the shards again")
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCATTERED) as scattered:
        count, chars = scatter(read_documents(arguments), Path(scattered), arguments.buckets, rng)
        if count < 2:
            raise UserError(f"{arguments.source} has {count} documents, and shards need at least two; give more text")
        documents = gather(Path(scattered), arguments.buckets, rng)
        wanted = max(1, min(arguments.shard_chars, int(chars * arguments.validation_fraction)))
        held_out = write_shard(folder / "validation_00000.parquet", documents, wanted)
        shards = 0
        with progress_bar(total=count, initial=held_out[0], desc="writing", unit=" documents") as bar:
            path = folder / "train_00000.parquet"
            while (written := write_shard(path, documents, arguments.shard_chars))[0]:
                bar.update(written[0])
                shards += 1
                path = folder / f"train_{shards:05d}.parquet"
    if not shards:
        raise UserError(
            f"{arguments.source} is too small: the validation shard took all {count} documents; "
            "lower --validation_fraction or give more text"
        )
    return {"documents": count, "characters": chars, "shards": shards, "validation_documents": held_out[0]}


def write_card(arguments: argparse.Namespace, numbers: dict[str, Any]) -> None:
    """Writes the data set's README.md. The Hub and `datasets` read the splits from its front matter."""
    name = arguments.push_to_hub or arguments.output_dir.resolve().name
    (arguments.output_dir / "README.md").write_text(
        f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: train_*.parquet
  - split: validation
    path: validation_*.parquet
task_categories:
- text-generation
tags:
- nanochat-hf
---

# {name.rpartition("/")[2]}

Text for pretraining, made from `{without_paths(arguments.source)}`. Exact duplicates were dropped and all documents \
shuffled together (seed {arguments.seed}). The parquet shards have about {arguments.shard_chars:,} characters each. \
Their one column is `text`; a row group has {ROW_GROUP:,} documents.

| | |
|---|---|
| documents | {numbers["documents"]:,} |
| characters | {numbers["characters"]:,} |
| training shards | {numbers["shards"]:,} |
| documents in the validation shard | {numbers["validation_documents"]:,} |

```bash
nanochat-hf pretrain --data {shlex.quote(arguments.push_to_hub or str(arguments.output_dir))} ...
```

The licence is that of the source.
""",
        encoding="utf-8",
    )


def push(arguments: argparse.Namespace) -> str:
    """Uploads the folder as a data set of the Hub; returns its address.

    Raises:
        UserError: the upload failed; the message says how to upload the finished shards.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        api.create_repo(arguments.push_to_hub, repo_type="dataset", private=arguments.private, exist_ok=True)
        api.upload_folder(
            repo_id=arguments.push_to_hub,
            repo_type="dataset",
            folder_path=arguments.output_dir,
            commit_message="Add shuffled shards",
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        upload = ["hf", "upload", arguments.push_to_hub, str(arguments.output_dir), "--repo-type", "dataset"]
        raise UserError(
            f"the shards are complete in {arguments.output_dir}, but could not be uploaded ({reason}); log in with "
            f"`hf auth login` and run `{shlex.join(upload)}`"
        ) from None
    return f"{api.endpoint}/datasets/{arguments.push_to_hub}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    arguments = parse_arguments(argv)
    print(describe_data(arguments.source, text_column=arguments.text_column, on_bad_file=arguments.on_bad_file))
    try:
        numbers = write_shards(arguments)
    except KeyboardInterrupt:
        begun = any(arguments.output_dir.glob("*.parquet"))
        raise KeyboardInterrupt(f"empty {arguments.output_dir} before the next try" if begun else "") from None
    write_card(arguments, numbers)
    print(f"{numbers['documents']:,} documents in {numbers['shards']} training shards and 1 validation shard:")
    print(f"  {arguments.output_dir}")
    if arguments.push_to_hub:
        print(f"  {push(arguments)}")


if __name__ == "__main__":
    run_main(main)
