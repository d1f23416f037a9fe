"""Kernels for decoding on a CPU in fp32: what a step computes between its matrix products.

For one token per row that is little arithmetic in many operations: some 50 per layer, of one to ten microseconds each.
The Rust extension does it in two calls (`rustbpe/src/decode.rs`). They compute what `FastDecoder` computes in torch,
up to rounding.

Shapes: R rows, C hidden_size, H query heads, K key/value heads, D head_dim, S slots of a layer's buffer, V vocabulary.
"""

import torch

from nanochat_hf import _rustbpe


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Divides each row of fp32 [R, C] by its root mean square; the result is contiguous."""
    output = torch.empty(x.shape, dtype=torch.float32)
    _rustbpe.rms_norm((x.data_ptr(), x.stride()), output.data_ptr(), x.shape, eps)
    return output


def attend(
    product: torch.Tensor,
    heads: tuple[int, int, int],
    rotation: tuple[torch.Tensor, torch.Tensor],
    places: torch.Tensor,
    columns: int,
    keys: torch.Tensor,
    values: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    embedded: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
    eps: float,
) -> torch.Tensor:
    """Attention of one token per row: gates, rotation, norms, writing to the buffers, and attention over them.

    Args:
        product: fp32 [R, (H + 2 K) * D] of queries, keys and values, then K gates if there are embedded values.
        heads: H, K and D.
        rotation: cosines and sines, fp32 [positions, D], contiguous.
        places: int64 [3, R], contiguous; per row the token's position, the first column that it sees and its own
            column. A column is in the slot `column % S`.
        columns: how many columns a row sees at most; decides how many threads work.
        keys, values: fp32 buffers [at least R, K, S, D], contiguous; the token's own are written to its slot.
        prefix: fp32 keys and values [K, tokens, D] before all columns that all rows see, or None.
        embedded: fp32 table [V, K * D] of values and int64 tokens [R], contiguous; or None.
        scale: of the scores.
        eps: of the norms of queries and keys.

    Returns:
        fp32 [R, H * D].
    """
    rows = len(product)
    output = torch.empty(rows, heads[0] * heads[2], dtype=torch.float32)
    shared = None
    if prefix is not None:
        shared = (prefix[0].data_ptr(), prefix[1].data_ptr(), prefix[0].stride(0), prefix[0].shape[1])
    _rustbpe.attend(
        (product.data_ptr(), product.stride()),
        rows,
        heads,
        (rotation[0].data_ptr(), rotation[1].data_ptr()),
        places.data_ptr(),
        columns,
        (keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.stride(1), keys.shape[2]),
        shared,
        None if embedded is None else (embedded[0].data_ptr(), embedded[1].data_ptr()),
        (scale, eps),
        output.data_ptr(),
        torch.get_num_threads(),
    )
    return output
