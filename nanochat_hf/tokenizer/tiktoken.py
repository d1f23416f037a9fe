"""Converts to tiktoken and back: ranks in memory, a `tiktoken.Encoding`, or a `.tiktoken` file."""

import base64
import binascii
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from .fast_tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, mergeable_ranks, merges_and_pattern, wrap


def to_tiktoken(tokenizer: PreTrainedTokenizerFast, name: str = "nanochat_hf") -> Any:
    """Returns the tokenizer as a `tiktoken.Encoding`: same ids, the nine control tokens included.

    Args:
        tokenizer: a tokenizer of this package.
        name: the encoding's name.

    Raises:
        ImportError: tiktoken is not installed.
        ValueError: the tokenizer is of another kind; see `fast_tokenizer.unlike_ours`.
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
    """Writes a `.tiktoken` file: one line per token, with its bytes in base64 and its rank.

    Such a file holds neither the split pattern nor the control tokens.
    """
    ranks = sorted(mergeable_ranks(tokenizer).items(), key=lambda one: one[1])
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks]
    Path(path).write_text("".join(lines), encoding="ascii")


def read_tiktoken(path: str | os.PathLike) -> dict[bytes, int]:
    """Reads a `.tiktoken` file: each token's bytes with its rank, as `from_mergeable_ranks` takes them.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not a token in base64 and a number; the message names file and line.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}, line {number} is not a token in base64 and its rank") from None
    return ranks


def from_mergeable_ranks(
    ranks: dict[bytes, int], *, pattern: str | None = None, model_max_length: int = 2048
) -> PreTrainedTokenizerFast:
    """Builds the tokenizer from tiktoken's ranks.

    Args:
        ranks: each token's bytes with its rank, which is its id.
        pattern: regular expression that splits text into words; default `SPLIT_PATTERN`.
        model_max_length: context length in tokens, written into `tokenizer_config.json`.

    Raises:
        ValueError: the ranks are not 0, 1, 2, …; a single byte has no token; or a token is not a merge of two tokens
            of lower rank.
    """
    tokens = sorted(ranks, key=ranks.__getitem__)
    if [ranks[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("the ranks of a vocabulary must be 0, 1, 2, … without a gap")
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise ValueError(f"the vocabulary has no token for byte {missing[0]}; only byte-level vocabularies will do")
    merges = []
    for token in tokens:
        if len(token) == 1:
            continue
        parts = _merge_below(token, ranks)
        if len(parts) != 2:
            raise ValueError(f"token {token!r} is not made of two tokens of lower rank; these are not a BPE's ranks")
        merges.append((ranks[parts[0]], ranks[parts[1]]))
    return wrap(tokens, merges, pattern or SPLIT_PATTERN, model_max_length)


def _merge_below(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Splits a token's bytes into tokens of lower rank: two of them are the merge that made it."""
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 1:
        found = [
            (ranks.get(a + b, len(ranks)), index) for index, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
        ]
        rank, index = min(found)
        if rank >= ranks[token]:
            break
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts
