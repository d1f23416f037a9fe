"""Sizes that follow from the depth (width, heads, attention windows) and from the batch (chunks of the loss).

Plain arithmetic: the model uses it, and so does `nanochat_hf.scaling`, which must not wait for torch. Like the rest
of this folder it travels to the Hub beside the checkpoint.
"""

import math

PRESETS = ("modern", "classic")
WINDOW_PATTERN = {"modern": "SSSL", "classic": "L"}
# Sliding windows are whole tiles of flash attention's kernels.
WINDOW_TILE = 128
# Channels of the normed input that feed the two kinds of gate (upstream's choice: enough for a gate, and cheap).
VALUE_GATE_CHANNELS = 12
SMEAR_GATE_CHANNELS = 24
# Logits that the chunked loss holds at one time: 2^22 in fp32 are 16 MB and stay in a CPU's cache. A large batch has
# larger chunks, at most 16 of them: compilation unrolls the loop over the chunks, and GPUs like large products.
LOGITS_PER_CHUNK, MAX_CHUNKS = 2**22, 16


def check_preset(preset: str) -> None:
    """Raises ValueError for a preset that does not exist."""
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")


def width_and_heads(depth: int, *, preset: str, aspect_ratio: int = 64, head_dim: int = 128) -> tuple[int, int]:
    """Returns the width of the residual stream and the number of query heads.

    The width is `aspect_ratio * depth`, split over `ceil(width / head_dim)` heads. The modern preset then rounds the
    width up to whole heads of `head_dim` channels; the classic one makes the heads narrower instead.

    Raises:
        ValueError: the preset is unknown, the depth is less than 1, or the classic width cannot be split over its
            heads.
    """
    check_preset(preset)
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    width = aspect_ratio * depth
    heads = math.ceil(width / head_dim)
    if preset == "modern":
        return heads * head_dim, heads
    if width % heads:
        raise ValueError(
            f"the classic preset cannot split width {width} (depth {depth}) over {heads} heads; choose an even depth "
            "or another head_dim"
        )
    return width, heads


def window_pattern_to_layer_types(pattern: str, num_layers: int) -> list[str]:
    """Repeats a pattern of S (sliding window) and L (full context) over the layers; the last layer is always full.

    Raises:
        ValueError: the pattern is empty or holds another letter.

    Example:
        >>> window_pattern_to_layer_types("SL", 3)
        ['sliding_attention', 'full_attention', 'full_attention']
    """
    letters = pattern.upper()
    if not letters or set(letters) - set("SL"):
        raise ValueError(f"a window pattern holds only the letters S (sliding) and L (full), not {pattern!r}")
    names = {"S": "sliding_attention", "L": "full_attention"}
    layer_types = [names[letters[index % len(letters)]] for index in range(num_layers)]
    return [*layer_types[:-1], "full_attention"]


def default_sliding_window(sequence_length: int) -> int:
    """Keys that a query of a sliding layer sees: a quarter of the context in whole tiles, plus the query itself."""
    return WINDOW_TILE * math.ceil(sequence_length / 4 / WINDOW_TILE) + 1


def layer_has_value_embedding(layer_idx: int, num_layers: int) -> bool:
    """Every second layer has a value embedding, counted so that the last one always does."""
    return layer_idx % 2 == (num_layers - 1) % 2


def tokens_per_chunk(tokens: int, vocab_size: int) -> int:
    """Tokens whose logits the chunked loss holds at one time."""
    return min(tokens, max(-(-tokens // MAX_CHUNKS), LOGITS_PER_CHUNK // vocab_size, 1))
