"""Conversion between upstream's checkpoints, ours and those of transformers' NanoChat, and export to ONNX.

`tensors.py` converts models in memory, `folders.py` whole checkpoint folders (`nanochat-hf convert`).
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
