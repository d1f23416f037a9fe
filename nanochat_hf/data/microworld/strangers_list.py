"""The stranger's list: messages that somebody who knows nothing of the microworld may type first, or as a follow-up.

It is a set to evaluate with, in `strangers_list.yaml`, which says how an answer is judged. None of
its judged messages is in training: `talk` refuses them.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("strangers_list.yaml")


@lru_cache(maxsize=1)
def items() -> tuple[dict[str, Any], ...]:
    """Returns the items: `kind`, `says` (the user's messages in turn) and the rules for the answer to the last one."""
    import yaml

    return tuple(
        {"kind": kind, **item}
        for kind, own in yaml.safe_load(PATH.read_text(encoding="utf-8")).items()
        for item in own
    )


@lru_cache(maxsize=1)
def messages() -> frozenset[str]:
    """Returns the messages whose answers are judged."""
    return frozenset(item["says"][-1] for item in items())
