"""What the benchmarks share: tokenizers trained on the spot, upstream's checkout, the form of --help."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanochat_hf.settings import UserError

MICROWORLD_VOCAB_SIZE = 512  # the microworld has some 400 words, which yield few merges
UPSTREAM_HELP = "checkout of karpathy/nanochat to compare with; without it upstream is not measured"


class HelpFormat(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the script's docstring with its lines as they are."""


def vocab_size_for(data: str, asked: int | None, otherwise: int) -> int:
    """The vocabulary of a tokenizer trained here: as asked, else one that fits the data."""
    return asked or (MICROWORLD_VOCAB_SIZE if data == "microworld" else otherwise)


def train_tokenizer(texts: Iterable[str], vocab_size: int, **options: Any) -> Any:
    """Trains a tokenizer; options as in `nanochat_hf.tokenizer.train`.

    Raises:
        UserError: the text yields fewer merges than the vocabulary needs.
    """
    from nanochat_hf.tokenizer import train

    try:
        return train(texts, vocab_size, **options)
    except ValueError as error:
        raise UserError(f"no tokenizer can be trained for this benchmark: {error} (--vocab_size)") from None


def check_upstream(folder: Path | None, file: str) -> Path | None:
    """Returns the absolute path of upstream's checkout; None where it is not to be compared with, which is printed.

    Args:
        folder: value of --upstream.
        file: a file that the benchmark takes from the checkout, such as "nanochat/engine.py".

    Raises:
        UserError: the folder is no checkout of nanochat.
    """
    if folder is None:
        print("upstream is not measured: no --upstream NANOCHAT_CHECKOUT is given", flush=True)
        return None
    if not (folder / file).is_file():
        raise UserError(f"{folder} is not a checkout of nanochat (it has no {file}); clone it and give its folder")
    return folder.resolve()
