"""The loss of the language model: cross-entropy of soft-capped fp32 logits, with and without holding them all.

N tokens, C hidden_size, V vocab_size. Like the rest of this folder it travels to the Hub beside the checkpoint.
"""

from typing import Any

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100
# Logits at hand at one time: 16 MB in fp32 stay in a CPU's cache. Large batches take more, a sixteenth of their
# tokens, for the loop over the parts is unrolled when the model is compiled, and GPUs like large products.
LOGITS_AT_ONCE, MOST_PARTS = 2**22, 16


def tokens_at_once(tokens: int, vocab_size: int) -> int:
    """Tokens in a part of `chunked_causal_loss`."""
    return min(tokens, max(-(-tokens // MOST_PARTS), LOGITS_AT_ONCE // vocab_size, 1))


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Squashes logits smoothly into (-cap, cap)."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def causal_loss(logits: torch.Tensor, targets: torch.Tensor, num_items: int | torch.Tensor | None) -> torch.Tensor:
    """Summed cross-entropy of the supervised tokens divided by `num_items`, by default their number.

    An all-masked batch gives 0, not NaN: packed chat rows can consist of prompt alone.

    Args:
        logits: [..., V], soft-capped.
        targets: [...] token ids, -100 where nothing is to be learned.
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
    """The same loss from the last hidden states [..., C] and the head's weight [V, C], a part of the tokens at a time.

    The matrix products run in the dtype of `hidden_states`, or in autocast's; soft cap and loss in fp32.
    """
    if torch.is_autocast_enabled(hidden_states.device.type):
        hidden_states = hidden_states.to(torch.get_autocast_dtype(hidden_states.device.type))
    targets = targets.to(hidden_states.device).flatten()
    total = _ChunkedCrossEntropy.apply(hidden_states.flatten(0, -2), weight, targets, cap)
    return _per_item(total, targets, num_items)


def _per_item(total: torch.Tensor, targets: torch.Tensor, num_items: int | torch.Tensor | None) -> torch.Tensor:
    if num_items is None:
        num_items = (targets != IGNORE_INDEX).sum().clamp(min=1)
    if isinstance(num_items, torch.Tensor):
        num_items = num_items.to(total.device)
    return total / num_items


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of soft-capped logits; the gradients are made in the forward pass, where the logits are.

    Nothing is computed twice (unlike with checkpoints), and what is kept for the backward pass is as large as the
    arguments. The idea is Liger Kernel's (arXiv:2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None):
        rows = tokens_at_once(hidden.shape[0], weight.shape[0])
        cast_weight = weight.to(hidden.dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), device=hidden.device)
        grad_hidden = []
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for states, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            loss, grad_logits = _loss_and_gradient(F.linear(states, cast_weight).float(), wanted, cap)
            total = total + loss
            grad_logits = grad_logits.to(hidden.dtype)
            if needs_hidden:
                grad_hidden.append(grad_logits @ cast_weight)
            if needs_weight and hidden.dtype == torch.float32:
                grad_weight.addmm_(grad_logits.T, states)
            elif needs_weight:
                grad_weight += grad_logits.T @ states
        ctx.save_for_backward(
            torch.cat(grad_hidden) if needs_hidden else None, grad_weight.to(weight.dtype) if needs_weight else None
        )
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor):
        grads = [None if grad is None else grad * grad_total.to(grad.dtype) for grad in ctx.saved_tensors]
        return *grads, None, None


def _loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor, cap: float | None):
    """Summed loss of raw fp32 logits [n, V], which are overwritten, and its gradient by them [n, V]."""
    supervised = targets != IGNORE_INDEX
    index = targets.clamp(min=0).unsqueeze(1)
    squashed = None
    if cap is not None:
        squashed = logits.div_(cap).tanh_()
        logits = squashed * cap
    log_total = logits.logsumexp(1, keepdim=True)
    loss = ((log_total - logits.gather(1, index)).squeeze(1) * supervised).sum()
    grad = logits.sub_(log_total).exp_()  # softmax
    grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
    grad.mul_(supervised.unsqueeze(1))
    if squashed is not None:
        grad.mul_(squashed.square_().neg_().add_(1))  # the derivative of tanh
    return loss, grad
