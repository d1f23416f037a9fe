"""The arithmetic of one optimizer step, on plain tensors: no parameter groups, no communication.

Muon's functions take a stack of K matrices of one shape, `[K, rows, cols]`: one batched matrix product instead of K.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Polar Express, arXiv 2505.16932, algorithm 1: one quintic per iteration, optimal for 5 iterations with safety factor
# 2e-2 and cushion 2. The values are the ones published with upstream's July 2026 recipe.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# Keller Jordan's quintic (https://kellerjordan.github.io/posts/muon/): the same polynomial five times.
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5


def equilibrate_rows(x: Tensor) -> Tensor:
    """Scales every row to the root mean square of all rows' norms (MuonEq, arXiv 2603.28254). `x`: [..., rows, cols].

    A matrix whose rows have one norm has a better conditioned spectrum: the polar iteration gets closer to its limit.
    """
    row_norms = x.float().norm(dim=-1, keepdim=True)  # [..., rows, 1]
    mean_norm = row_norms.norm(dim=-2, keepdim=True) / x.size(-2) ** 0.5
    return x * (mean_norm / row_norms.clamp_min(1e-6)).to(x.dtype)


def orthogonalize(x: Tensor, coefficients: Sequence[tuple[float, float, float]], margin: float, eps: float) -> Tensor:
    """Approximates the polar factor U Vᵀ of every matrix in `x` by odd quintic polynomials.

    Args:
        x: [..., rows, cols].
        coefficients: (a, b, c) of each polynomial aX + b(XXᵀ)X + c(XXᵀ)²X, in order.
        margin: factor by which the Frobenius norm is overestimated before the first polynomial, so that rounding never
            pushes the largest singular value beyond 1.
        eps: added to that norm, against division by zero.
    """
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * margin + eps)
    tall = x.size(-2) > x.size(-1)
    if x.dtype == torch.float32 and max(x.shape[-2:]) >= 2 * min(x.shape[-2:]):
        factor = _polar_factor(x.mT @ x if tall else x @ x.mT, coefficients)
        return x @ factor if tall else factor @ x
    for a, b, c in coefficients:
        gram = x.mT @ x if tall else x @ x.mT  # always the smaller side
        # a X + (b G + c G²) X, with the sum folded into the batched product where there is one batch dimension
        polynomial = _add_product(gram, gram, gram, beta=b, alpha=c)
        x = _add_product(x, x, polynomial, beta=a) if tall else _add_product(x, polynomial, x, beta=a)
    return x


def _polar_factor(gram: Tensor, coefficients: Sequence[tuple[float, float, float]]) -> Tensor:
    """Returns what the polynomials of `orthogonalize` multiply X by, from its Gram matrix alone, [..., side, side].

    One polynomial multiplies X by P = a + bG + cG², and so turns G into PGP: the long side of X comes in only at the
    beginning and at the end. At 1 : 4 this has 55 % of the products. It needs fp32: G squares the condition of X.
    """
    factor = None
    for step, (a, b, c) in enumerate(coefficients):
        polynomial = _add_product(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = polynomial if factor is None else polynomial @ factor
        if step + 1 < len(coefficients):
            gram = polynomial @ (gram @ polynomial)
    assert factor is not None
    return factor


def _add_product(base: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """beta · base + alpha · left @ right."""
    if base.ndim == 3:
        return torch.baddbmm(base, left, right, beta=beta, alpha=alpha)
    return beta * base + alpha * (left @ right)


def renormalize(x: Tensor) -> Tensor:
    """Scales every matrix [..., rows, cols] to the Frobenius norm √min(rows, cols) of an exactly orthogonal one.

    Source: arXiv 2602.21545.
    """
    norm = x.float().norm(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    return x * (min(x.size(-2), x.size(-1)) ** 0.5 / norm).to(x.dtype)


def normalize_neurons(x: Tensor, second_moment: Tensor, beta2: float | Tensor) -> Tensor:
    """Divides rows (or columns) by the root of a running mean square, keeping the norm (NorMuon, arXiv 2510.05491).

    Args:
        x: orthogonalized updates `[K, rows, cols]`.
        second_moment: running mean squares, updated in place: `[K, rows, 1]` where rows ≥ cols, else `[K, 1, cols]`.
        beta2: decay of the running mean; there is no bias correction.
    """
    dim = -1 if x.size(-2) >= x.size(-1) else -2
    mean_square = x.float().square().mean(dim=dim, keepdim=True)
    second_moment.lerp_(mean_square.to(second_moment.dtype), 1 - beta2)
    scale = second_moment.clamp_min(1e-10).rsqrt().float()
    before = mean_square.sum(dim=(-2, -1), keepdim=True)
    after = (mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True)
    return x * (scale * (before.sqrt() / after.sqrt().clamp_min(1e-10))).to(x.dtype)


def modern_update(
    grads: Tensor,
    momentum_buffer: Tensor,
    second_moment: Tensor,
    momentum: float | Tensor,
    beta2: float | Tensor,
    matmul_dtype: torch.dtype,
) -> Tensor:
    """Returns the update direction of the July 2026 Muon, [K, rows, cols] like the tensor arguments.

    Nesterov momentum → row equilibration → Polar Express → renormalization → NorMuon. The state is updated in place,
    and `grads` is overwritten.
    """
    momentum_buffer.lerp_(grads, 1 - momentum)
    update = grads.lerp_(momentum_buffer, momentum).to(matmul_dtype)
    update = orthogonalize(equilibrate_rows(update), POLAR_EXPRESS, margin=1.01, eps=1e-6).to(grads.dtype)
    return normalize_neurons(renormalize(update), second_moment, beta2)


def classic_update(
    grads: Tensor, momentum_buffer: Tensor, momentum: float | Tensor, matmul_dtype: torch.dtype
) -> Tensor:
    """Returns the update direction of the October 2025 Muon: Nesterov momentum, fixed Newton-Schulz coefficients."""
    momentum_buffer.lerp_(grads, 1 - momentum)
    update = grads.lerp_(momentum_buffer, momentum).to(matmul_dtype)
    return orthogonalize(update, NEWTON_SCHULZ, margin=1.0, eps=1e-7).to(grads.dtype)


def modern_step(params: Tensor, update: Tensor, lr: float | Tensor, weight_decay: float | Tensor) -> None:
    """Applies an update with cautious weight decay, in place: only where both agree in sign (arXiv 2510.12402)."""
    agrees = (update * params) >= 0
    params.sub_(lr * (update + weight_decay * params * agrees))


def classic_step(params: Tensor, update: Tensor, lr: float | Tensor, weight_decay: float | Tensor) -> None:
    """Applies an update with plain weight decay, in place."""
    params.sub_(lr * (update + weight_decay * params))


def muon_modern(
    params: Tensor,
    grads: Tensor,
    momentum_buffer: Tensor,
    second_moment: Tensor,
    momentum: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float | Tensor,
    matmul_dtype: torch.dtype,
) -> None:
    """One step of the July 2026 Muon on a stack of whole matrices, `[K, rows, cols]`, in place."""
    update = modern_update(grads, momentum_buffer, second_moment, momentum, beta2, matmul_dtype)
    modern_step(params, update, lr, weight_decay)


def muon_classic(
    params: Tensor,
    grads: Tensor,
    momentum_buffer: Tensor,
    momentum: float | Tensor,
    lr: float | Tensor,
    weight_decay: float | Tensor,
    matmul_dtype: torch.dtype,
) -> None:
    """One step of the October 2025 Muon on a stack of whole matrices, in place."""
    classic_step(params, classic_update(grads, momentum_buffer, momentum, matmul_dtype), lr, weight_decay)


def adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One AdamW step on lists of tensors of any shape, in place, by PyTorch's fused kernel.

    Half-precision parameters keep fp32 moments and are rounded once, at the end: bf16 moments with β2 = 0.995 would
    drop increments smaller than 1/256 of the average. `steps` are 0-D tensors that count up.
    """
    from torch.optim.adamw import adamw as fused_adamw

    rounded = [index for index, p in enumerate(params) if p.dtype != torch.float32]
    work = [p.float() if p.dtype != torch.float32 else p for p in params]
    fused_adamw(
        work,
        [g.float() for g in grads],
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
    for index in rounded:
        params[index].copy_(work[index])
