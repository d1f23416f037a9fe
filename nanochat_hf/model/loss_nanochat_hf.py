"""The language model's loss: cross-entropy of soft-capped fp32 logits, from all of them or from a chunk at a time.

Shapes: N tokens, C hidden_size, V vocab_size. It travels to the Hub beside the checkpoint.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from .products_nanochat_hf import gains_from_onednn, onednn_products
from .shape_nanochat_hf import tokens_per_chunk

IGNORE_INDEX = -100
CACHED_LOGITS = 2**18  # of a chunk on a CPU: 1 MB of fp32


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Squashes logits [..., V] smoothly into (-cap, cap); a cap of None leaves them."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def soft_cap_in_place(logits: torch.Tensor, cap: float | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns `soft_cap(logits, cap)` and what `soft_cap_gradient` needs; the memory of `logits` is reused."""
    if cap is None:
        return logits, None
    squashed = logits.div_(cap).tanh_()
    return squashed * cap, squashed


def soft_cap_gradient(grad: torch.Tensor, squashed: torch.Tensor | None) -> torch.Tensor:
    """Returns the gradient by the logits [..., V], from that by the soft-capped logits."""
    return grad if squashed is None else torch.ops.aten.tanh_backward(grad, squashed)


def causal_loss(logits: torch.Tensor, targets: torch.Tensor, num_items: int | torch.Tensor | None) -> torch.Tensor:
    """Returns the loss (0-D, in nats): the summed cross-entropy of the supervised tokens divided by `num_items`.

    A batch without supervised tokens gives 0, not NaN: packed chat rows can consist of prompt alone.

    Args:
        logits: [..., V], soft-capped.
        targets: [...] token ids, -100 for tokens that are not supervised.
        num_items: number of supervised tokens over all micro-batches; default: those of `targets`. 0 counts as 1.
    """
    targets = targets.to(logits.device).flatten()
    total = F.cross_entropy(logits.flatten(0, -2), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return _per_item(total, targets, num_items)


def chunked_causal_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    cap: float | None,
    num_items: int | torch.Tensor | None,
) -> torch.Tensor:
    """Returns what `causal_loss` returns, without ever holding the logits of all tokens.

    The matrix products run in the dtype of `hidden_states`, or in autocast's; soft cap and loss in fp32.

    Args:
        hidden_states: [..., C], after the final norm.
        weight: [V, C], the head's.
        targets: [...] token ids, -100 for tokens that are not supervised.
        cap: of the logits; None for none.
        num_items: as for `causal_loss`.
    """
    if torch.is_autocast_enabled(hidden_states.device.type):
        hidden_states = hidden_states.to(torch.get_autocast_dtype(hidden_states.device.type))
    targets = targets.to(hidden_states.device).flatten()
    total = _ChunkedCrossEntropy.apply(hidden_states.flatten(0, -2), weight, targets, cap)
    return _per_item(total, targets, num_items)


def _per_item(total: torch.Tensor, targets: torch.Tensor, num_items: int | torch.Tensor | None) -> torch.Tensor:
    if num_items is None:
        num_items = (targets != IGNORE_INDEX).sum()
    if isinstance(num_items, torch.Tensor):
        num_items = num_items.to(total.device)
    return total / (num_items + (num_items == 0))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of soft-capped logits, whose gradients are computed in the forward pass.

    So the logits are computed once, unlike with gradient checkpointing. What is kept for the backward pass has the
    size of the arguments. Source: Liger Kernel (arXiv:2410.10989).

    On a CPU, chunks fit into its cache, and tokens that are not supervised are left out. On other devices leaving them
    out would mean to wait until their number is known.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None):
        rows = tokens_per_chunk(hidden.shape[0], weight.shape[0])
        every, kept = hidden, None
        if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
            rows = min(rows, max(CACHED_LOGITS // weight.shape[0], 128))
            kept = (targets != IGNORE_INDEX).nonzero().squeeze(1)
            hidden, targets = hidden[kept], targets[kept]
        cast_weight = weight.to(hidden.dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), device=hidden.device)
        grad_hidden = []
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        with onednn_products() if gains_from_onednn(hidden, weight) else nullcontext():
            for states, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
                logits = F.linear(states, cast_weight).float()
                loss, grad_logits = _loss_and_gradient(logits, wanted, cap, kept is not None)
                total = total + loss
                grad_logits = grad_logits.to(hidden.dtype)
                if needs_hidden:
                    grad_hidden.append(grad_logits @ cast_weight)
                if needs_weight and hidden.dtype == torch.float32:
                    grad_weight.addmm_(grad_logits.T, states)
                elif needs_weight:
                    grad_weight += grad_logits.T @ states
        by_token = torch.cat(grad_hidden) if needs_hidden else None
        if by_token is not None and kept is not None:
            by_token = torch.zeros_like(every).index_copy_(0, kept, by_token)
        ctx.save_for_backward(by_token, grad_weight.to(weight.dtype) if needs_weight else None)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor):
        grads = [None if grad is None else grad * grad_total.to(grad.dtype) for grad in ctx.saved_tensors]
        return *grads, None, None


def _loss_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, cap: float | None, all_supervised: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the summed loss of one chunk and its gradient [n, V].

    `logits` [n, V] are fp32 and not yet soft-capped; their memory is reused.
    """
    supervised = targets != IGNORE_INDEX
    index = targets.masked_fill(~supervised, 0).unsqueeze(1)  # other negative labels are errors, as in torch
    logits, squashed = soft_cap_in_place(logits, cap)
    log_probs = logits.log_softmax(1)
    loss = -(log_probs.gather(1, index).squeeze(1) * supervised).sum()
    grad = log_probs.exp_()  # softmax
    grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
    if not all_supervised:
        grad.mul_(supervised.unsqueeze(1))
    return loss, soft_cap_gradient(grad, squashed)
