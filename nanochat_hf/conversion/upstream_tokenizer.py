"""Upstream's tokenizer files: a pickled tiktoken encoding, and every token's length in bytes as a tensor."""

import pickle
from pathlib import Path
from typing import Any

import torch

from ..settings import UserError
from ..tokenizer import SPECIAL_TOKENS, from_mergeable_ranks, to_tiktoken, token_byte_lengths

NAME = "tokenizer.pkl"


class _Encoding:
    """Takes the place of `tiktoken.Encoding` in the pickle and keeps its state."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Reads an encoding from a pickle. Any other class or function is refused, so no code of the file runs."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Encoding
        raise pickle.UnpicklingError(f"it needs {module}.{name}, and only a tiktoken encoding is read")


def read_upstream_tokenizer(path: Path) -> Any:
    """Returns the tokenizer of upstream's `tokenizer.pkl` as ours.

    Raises:
        UserError: the file is not a tiktoken encoding with nanochat's control tokens.
    """
    try:
        with path.open("rb") as file:
            state = _Reader(file).load().state
        ranks, pattern, special = (state[name] for name in ("mergeable_ranks", "pat_str", "special_tokens"))
        if special != {name: len(ranks) + index for index, name in enumerate(SPECIAL_TOKENS)}:
            raise ValueError("its control tokens are not nanochat's nine, in their order after the vocabulary")
        return from_mergeable_ranks(ranks, pattern=pattern)
    except Exception as error:  # a damaged pickle fails in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not upstream's tokenizer ({reason})") from None


def write_upstream_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes `tokenizer.pkl` and `token_bytes.pt`, the only formats that upstream reads.

    Raises:
        UserError: tiktoken is not installed.
    """
    try:
        encoding = to_tiktoken(tokenizer, "rustbpe")
    except ImportError:
        raise UserError("upstream's tokenizer needs tiktoken: pip install tiktoken") from None
    with (folder / NAME).open("wb") as file:
        pickle.dump(encoding, file)
    torch.save(torch.as_tensor(token_byte_lengths(tokenizer), dtype=torch.int32), folder / "token_bytes.pt")
