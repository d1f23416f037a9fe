"""Upstream's checkpoints, ours, and transformers' own NanoChat: three ways to write down one model.

`tensors.py` maps models in memory, `folders.py` whole checkpoint folders (`nanochat-hf convert`).
"""

from .folders import convert_folder
from .tensors import from_transformers, from_upstream, to_transformers, to_upstream, upstream_names

__all__ = [
    "convert_folder",
    "from_transformers",
    "from_upstream",
    "to_transformers",
    "to_upstream",
    "upstream_names",
]
