"""Trains the tokenizer: a byte-pair vocabulary from the training text, nine control tokens and the chat template.

    nanochat-hf tokenizer --data my_texts/ --vocab_size 32768 --output_dir runs/mine/tokenizer
    nanochat-hf tokenizer --config quickstart --output_dir runs/quickstart/tokenizer

The output folder loads with `AutoTokenizer.from_pretrained`. A tokenizer that is finished is never overwritten: models
that were trained with it need it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from nanochat_hf import settings
from nanochat_hf.settings import MAX_TOKENS, StageHelp, UserError, folder_lock, setting

UNFINISHED = "tokenizer-unfinished.json"  # lies beside a tokenizer until its `run.json` is written


@dataclass
class TokenizerConfig:
    """The settings of the tokenizer stage; see `nanochat_hf.settings.parse_stage`."""

    output_dir: str = setting("", "folder that receives the tokenizer", path=True)
    data: list[str] = setting(
        ["karpathy/climbmix-400b-shuffle"], "text: Hub ids, folders, files or microworld; several as NAME:WEIGHT"
    )
    text_column: str | None = setting(None, "column or key with the text; found if not given")
    on_bad_file: str = setting("stop", "what a file that cannot be read does", choices=("stop", "skip"))
    vocab_size: int = setting(32768, "number of tokens, control tokens included", at_least=1, at_most=MAX_TOKENS)
    sequence_length: int = setting(
        2048, "context length in tokens that the tokenizer states", at_least=1, at_most=MAX_TOKENS
    )
    max_chars: int = setting(2_000_000_000, "train on the first so many characters", at_least=1)
    doc_cap: int = setting(
        10_000, "characters used per document; what follows them is used after all others", at_least=1
    )
    num_threads: int | None = setting(None, "number of threads; all cores if not given", at_least=1, at_most=1024)


HELP = StageHelp(
    "tokenizer",
    __doc__,
    "output_dir data text_column on_bad_file vocab_size sequence_length max_chars doc_cap num_threads",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    config = settings.parse_stage("tokenizer", TokenizerConfig, argv, HELP)
    check_output_dir(config.output_dir)
    if not config.data:
        raise UserError("give --data, the text to learn from, such as my_texts/ or microworld")
    started = time.time()

    from nanochat_hf.data import fingerprints
    from nanochat_hf.data.overview import describe_data
    from nanochat_hf.data.sources import open_documents
    from nanochat_hf.tokenizer import CorpusEncoder, train

    reading = {"text_column": config.text_column, "on_bad_file": config.on_bad_file}
    read = fingerprints.of_text(config.data)
    print(describe_data(config.data, **reading), flush=True)
    folder_lock.claim(config.output_dir)
    check_output_dir(config.output_dir)  # another command may have finished it since the start
    open_again = partial(open_documents, config.data, "train", **reading)
    try:
        tokenizer = train(
            clip(open_again, config.doc_cap, config.max_chars),
            config.vocab_size,
            num_threads=config.num_threads,
            model_max_length=config.sequence_length,
            progress=True,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    seconds = time.time() - started
    unfinished = Path(config.output_dir, UNFINISHED)
    settings.write_json(unfinished, asdict(config))
    tokenizer.save_pretrained(config.output_dir)

    held_out = list(islice(open_documents(config.data, "validation", **reading), 1000))
    ids, offsets = CorpusEncoder(tokenizer, config.num_threads).encode_batch(held_out)
    num_bytes = sum(len(text.encode("utf-8", "replace")) for text in held_out)
    metrics = {
        "vocab_size": len(tokenizer),
        "bytes_per_token": num_bytes / max(len(ids) - len(held_out), 1),
        "train_seconds": seconds,
    }
    facts = {"seconds": time.time() - started, "metrics": metrics, "fingerprint": read}
    settings.save_run(config.output_dir, "tokenizer", config, **facts)
    unfinished.unlink(missing_ok=True)
    print(f"{len(tokenizer):,} tokens, {metrics['bytes_per_token']:.2f} bytes per token on held-out text")


def check_output_dir(folder: str) -> None:
    """Refuses a folder that cannot be written to, or that holds a tokenizer on which models may depend.

    Raises:
        UserError: as `nanochat_hf.settings.check_output_dir`; or a tokenizer or a model is there that this stage did
            not leave unfinished.
    """
    settings.check_output_dir(folder)
    for name, what in (("config.json", "a model"), ("tokenizer.json", "a tokenizer")):
        if Path(folder, name).exists() and not Path(folder, UNFINISHED).exists():
            raise UserError(
                f"{folder} holds {what} already, which another tokenizer would spoil; give another --output_dir, or "
                "delete that folder"
            )


def clip(open_again: Callable[[], Iterable[str]], doc_cap: int, max_chars: int) -> Iterator[str]:
    """Yields the text to learn from: `max_chars` characters, or all where there are fewer.

    First come the first `doc_cap` characters of each document, as upstream takes them. Only where these are not
    enough, the documents are read again for the rest of the long ones, so that little text is used completely.

    Args:
        open_again: opens the documents, from their beginning.
        doc_cap: characters per document in the first reading, and per piece in the second.
        max_chars: characters in total.

    Raises:
        UserError: `doc_cap` is not above 0.
    """
    if doc_cap <= 0:
        raise UserError(f"--doc_cap is a number of characters above 0, not {doc_cap}")
    has_rest = False
    for document in open_again():
        if max_chars <= 0:
            return
        text = document[:doc_cap]
        has_rest = has_rest or len(document) > doc_cap
        max_chars -= len(text)
        yield text
    for document in open_again() if has_rest else ():
        for start in range(doc_cap, len(document), doc_cap):
            if max_chars <= 0:
                return
            text = document[start : start + doc_cap]
            max_chars -= len(text)
            yield text


if __name__ == "__main__":
    settings.run_main(main)
