"""Causal attention over a sliding window of whole sequences, without a [T, T] mask, by one of three kernels.

- "blocks": masked `scaled_dot_product_attention`, a block of queries at a time. It works everywhere.
- "varlen": PyTorch's `varlen_attn` (FlashAttention 2), which takes the window itself. It needs a GPU and 16 bits.
- "flex": PyTorch's `flex_attention`, a Triton kernel that skips what the window hides. It has to be compiled.

One H100, forward and backward pass of a layer at d12's shape (16 × 12 heads × 2,048 tokens, window 513): blocks
3.1 ms, varlen 2.0, flex 1.7. Full causal attention takes 1.9 ms by SDPA and 3.1 by varlen. docs/gpu.md has the table.

Shapes: B rows, T tokens, H query heads, K key/value heads, D head_dim. The file travels to the Hub beside the
checkpoint.
"""

import functools
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # PyTorch before 2.10
    varlen_attn = None

WINDOW_KERNELS = ("auto", "blocks", "varlen", "flex")
OLDEST = (8, 0)  # compute capability of the first GPUs with bf16 and FlashAttention 2: Ampere


def pick_window_kernel(device: torch.device, dtype: torch.dtype, compiled: bool = False) -> str:
    """Returns the fastest kernel for states of this dtype on this device: "flex", "varlen" or "blocks".

    Args:
        compiled: whether the caller is compiled. Otherwise "flex" would compile at each new length.
    """
    if compiled and has_flex(device, dtype):
        return "flex"
    return "varlen" if has_flex(device, dtype) and has_varlen() else "blocks"


def has_flex(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel "flex" runs with states of this dtype on this device."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST


@functools.cache
def has_varlen() -> bool:
    """Whether this PyTorch has a `varlen_attn` that takes a window (2.11 and newer)."""
    return varlen_attn is not None and "window_size" in inspect.signature(varlen_attn).parameters


def windowed_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, **options: Any
) -> torch.Tensor:
    """The kernel "blocks".

    Queries are taken in at most eight blocks, each with only the keys that it can see; no block is shorter than the
    window. docs/model.md has the measurements.

    Args:
        query: [B, H, T, D].
        key, value: [B, K, T, D].
        window: keys that a query sees, itself included.
        options: of `F.scaled_dot_product_attention`.

    Returns:
        [B, H, T, D].
    """
    reach, length = window - 1, query.shape[2]
    block = max(reach, -(-length // 8))
    key, value = _one_per_query_head(query, key, value)
    ahead = torch.arange(reach + block, device=query.device) - torch.arange(block, device=query.device).unsqueeze(1)
    mask = (ahead >= 0) & (ahead <= reach)  # [block, reach + block], the same for all blocks
    outputs = []
    for start in range(0, length, block):
        end, first = min(start + block, length), max(start - reach, 0)
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, first:end],
                value[:, :, first:end],
                attn_mask=mask[: end - start, reach - (start - first) : reach + end - start],
                **options,
            )
        )
    return torch.cat(outputs, dim=2)


def windowed_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, scale: float
) -> torch.Tensor:
    """The kernel "varlen": each row is a sequence. Arguments and result are those of [`windowed_sdpa`]."""
    rows, heads, length, channels = query.shape
    key, value = _one_per_query_head(query, key, value)
    starts = torch.arange(0, (rows + 1) * length, length, device=query.device, dtype=torch.int32)
    flat = [x.transpose(1, 2).reshape(rows * length, heads, channels) for x in (query, key, value)]
    output = varlen_attn(*flat, starts, starts, length, length, scale=scale, window_size=(window - 1, 0))
    return output.view(rows, length, heads, channels).transpose(1, 2)


def windowed_flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scale: float
) -> torch.Tensor:
    """The kernel "flex", with a mask of [`window_mask`]. Arguments and result are those of [`windowed_sdpa`]."""
    attend = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    return attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])


def window_mask(length: int, window: int, device: torch.device) -> BlockMask:
    """The blocks of 128 × 128 scores that the kernel "flex" computes; made once per length, window and device."""
    make = _window_mask if torch.compiler.is_compiling() else _cached_window_mask
    return make(length, window, device)


def _window_mask(length: int, window: int, device: torch.device) -> BlockMask:
    def visible(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (query - key < window)

    return create_block_mask(visible, None, None, length, length, device=device)


_cached_window_mask = functools.lru_cache(maxsize=8)(_window_mask)


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def _one_per_query_head(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
