"""To tiktoken and back: the same ranks, as an encoding in memory or as a file of ranks."""

import base64
import binascii
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from .vocabulary import SPECIAL_TOKENS, mergeable_ranks, merges_and_pattern


def to_tiktoken(tokenizer: PreTrainedTokenizerFast, name: str = "nanochat_hf") -> Any:
    """Returns the tokenizer as `tiktoken.Encoding`, with the nine control tokens at the same ids.

    Raises:
        ImportError: tiktoken is not installed.
    """
    try:
        import tiktoken
    except ImportError:
        raise ImportError("this makes a tiktoken encoding: pip install tiktoken") from None
    return tiktoken.Encoding(
        name=name,
        pat_str=merges_and_pattern(tokenizer)[1],
        mergeable_ranks=mergeable_ranks(tokenizer),
        special_tokens={one: tokenizer.convert_tokens_to_ids(one) for one in SPECIAL_TOKENS},
    )


def write_tiktoken(tokenizer: PreTrainedTokenizerFast, path: str | os.PathLike) -> None:
    """Writes a `.tiktoken` file: a line a token, its bytes in base64 and its rank. It holds no split pattern."""
    ranks = sorted(mergeable_ranks(tokenizer).items(), key=lambda one: one[1])
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks]
    Path(path).write_text("".join(lines), encoding="ascii")


def read_tiktoken(path: str | os.PathLike) -> dict[bytes, int]:
    """Returns the ranks of a `.tiktoken` file, for `from_mergeable_ranks`.

    Raises:
        ValueError: a line is not base64 and a number.
    """
    ranks = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}, line {number} is not a token in base64 and its rank") from None
    return ranks
