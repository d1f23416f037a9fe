"""Scores of single items: results keep them, so that two runs can be compared item by item (`nanochat-hf report`)."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any


def digest_of(items: Iterable[tuple[int, Any]]) -> int:
    """A number that tells sets of items apart. Those of several processes add up to that of the whole.

    Args:
        items: pairs of an item's index and its content, which must be JSON.
    """
    total = 0
    for index, content in items:
        text = json.dumps([index, content], sort_keys=True, ensure_ascii=False, default=str)
        total += int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:5], "big")
    return total


def pack(scores: Sequence[float]) -> str:
    """Scores as one line of text, such as "1 0 0.5": JSON with a line per number would be ten times as long."""
    return " ".join(f"{score:.9g}" for score in scores)


def unpack(text: str) -> list[float]:
    """The scores that `pack` wrote."""
    return [float(score) for score in text.split()]
