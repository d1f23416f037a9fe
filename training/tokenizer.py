"""Trains the tokenizer: byte-pair encoding on the training text, the nine control tokens, the chat template.

    python training/tokenizer.py --output_dir runs/mine/tokenizer --data my_texts/ --vocab_size 32768
    python training/tokenizer.py --config training/recipes/quickstart.yaml --output_dir runs/quickstart/tokenizer

The folder that it writes loads with `AutoTokenizer.from_pretrained`.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from nanochat_hf import settings
from nanochat_hf.settings import UserError


@dataclass
class TokenizerConfig:
    output_dir: str = field(default="", metadata={"help": "folder that receives the tokenizer"})
    data: list[str] = field(
        default_factory=lambda: ["karpathy/climbmix-400b-shuffle"],
        metadata={"help": "text: Hub ids, folders, files or microworld; a:0.7 b:0.3 mixes several"},
    )
    text_column: str | None = field(default=None, metadata={"help": "column that holds the text; default: found"})
    vocab_size: int = field(default=32768, metadata={"help": "number of tokens, control tokens included"})
    sequence_length: int = field(default=2048, metadata={"help": "context length in the tokenizer's files"})
    max_chars: int = field(default=2_000_000_000, metadata={"help": "largest number of characters to train on"})
    doc_cap: int = field(default=10_000, metadata={"help": "largest number of characters per document"})
    num_threads: int | None = field(default=None, metadata={"help": "threads; default: all cores"})


def main() -> None:
    config = settings.parse_stage("tokenizer", TokenizerConfig)
    if not config.output_dir:
        raise UserError("give --output_dir, the folder that receives the tokenizer")
    started = time.time()

    from nanochat_hf.data.sources import open_documents
    from nanochat_hf.tokenizer import CorpusEncoder, train

    documents = open_documents(config.data, "train", text_column=config.text_column)
    try:
        tokenizer = train(
            clip(documents, config.doc_cap, config.max_chars),
            config.vocab_size,
            num_threads=config.num_threads,
            model_max_length=config.sequence_length,
            progress=True,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    seconds = time.time() - started
    tokenizer.save_pretrained(config.output_dir)

    held_out = list(islice(open_documents(config.data, "validation", text_column=config.text_column), 1000))
    ids, offsets = CorpusEncoder(tokenizer, config.num_threads).encode_batch(held_out)
    num_bytes = sum(len(text.encode("utf-8", "replace")) for text in held_out)
    metrics = {
        "vocab_size": len(tokenizer),
        "bytes_per_token": num_bytes / max(len(ids) - len(held_out), 1),
        "train_seconds": seconds,
    }
    settings.save_run(config.output_dir, "tokenizer", config, seconds=time.time() - started, metrics=metrics)
    print(f"{len(tokenizer):,} tokens, {metrics['bytes_per_token']:.2f} bytes per token on held-out text")


def clip(documents: Iterable[str], doc_cap: int, max_chars: int) -> Iterator[str]:
    """Yields the beginning of each document until `max_chars` characters have been given."""
    for document in documents:
        if max_chars <= 0:
            return
        text = document[:doc_cap]
        max_chars -= len(text)
        yield text


if __name__ == "__main__":
    settings.run_main(main)
