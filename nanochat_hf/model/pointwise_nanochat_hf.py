"""The RMS norm and the squared ReLU. It travels to the Hub beside the checkpoint.

PyTorch composes both from small operations on a CPU, and each of these has a backward of its own that reads and writes
the whole tensor again. Where a model is trained there without compilation, closed forms take about half of the passes
(docs/log.md has the measurement). They can be differentiated twice, and by `torch.func.grad` and `torch.func.vmap`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils.generic import maybe_autocast


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of the last dimension of `x` [..., channels], without parameters and in the dtype of `x`, as upstream.

    Autocast on GPUs would compute it in fp32 and keep the result in fp32 for the backward pass.
    """
    if _trains_eagerly_on_cpu(x):
        return _RMSNorm.apply(x, eps)[0]
    with maybe_autocast(x.device.type, enabled=False):
        return F.rms_norm(x, x.shape[-1:], eps=eps)


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)² of every element (Primer, arXiv:2109.08668)."""
    return _SquaredReLU.apply(x)[0] if _trains_eagerly_on_cpu(x) else F.relu(x).square()


def _trains_eagerly_on_cpu(x: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


class _RMSNorm(torch.autograd.Function):
    """y = s·x with s = 1/√(mean(x²) + eps). The backward pass needs s, so it is an output, too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        scale = torch.rsqrt(mean_square + eps)
        return x * scale, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, grad_scale: torch.Tensor | None):
        """dL/dx = s · (g - y · mean(g·y)). Only second derivatives have a gradient of s."""
        y, scale = ctx.saved_tensors
        found = None
        if grad is not None:
            found = torch.addcmul(grad, y, (grad * y).mean(-1, keepdim=True), value=-1).mul_(scale)
        if grad_scale is not None:
            through_scale = -grad_scale * scale.square() * y / y.shape[-1]
            found = through_scale if found is None else found + through_scale
        return found, None


class _SquaredReLU(torch.autograd.Function):
    """max(x, 0)². The backward pass needs max(x, 0), so it is an output, too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positive = F.relu(x)
        return positive * positive, positive

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, grad_positive: torch.Tensor | None):
        """dL/dx = 2 · max(x, 0) · g. Only second derivatives have a gradient of max(x, 0)."""
        (positive,) = ctx.saved_tensors
        found = None if grad is None else torch.mul(positive, grad).mul_(2)
        if grad_positive is not None:
            through_positive = grad_positive * (positive > 0)
            found = through_positive if found is None else found + through_positive
        return found
