"""fp32 matrix products by the faster of the two libraries that torch brings for CPUs.

torch multiplies fp32 matrices with MKL. On AMD processors MKL leaves AVX-512 unused: one core of a Zen 5 EPYC makes
110 GFLOP/s with it, and 250 with oneDNN. torch takes oneDNN for fp32 only where it is allowed to round factors to
bf16, which oneDNN does on processors with matrix units (AMX). So it is allowed here on AMD processors with AVX-512,
after a product has shown that the results are exact to fp32. It is allowed for single products: attention's many small
ones are slower with it.
"""

import functools
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

# Multiplications of a product with one thread and with several. A call of oneDNN takes 10 to 20 µs longer with one
# thread and 40 with two, so smaller products lose.
LARGE, LARGE_FOR_THREADS = 2**20, 2**23
EXACT = 1e-6  # relative error of fp32 products; factors that are rounded to bf16 bring 3e-3


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`F.linear(x, weight)` of x [..., in] and weight [out, in], by the faster library, in the backward pass, too."""
    if not gains_from_onednn(x, weight):
        return F.linear(x, weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight)
    with onednn_products():
        return F.linear(x, weight)


def rows_for_onednn(weight: torch.Tensor) -> int:
    """From how many rows [rows, in] on oneDNN multiplies by a weight [out, in] faster on a CPU, in fp32."""
    return -(-(LARGE if torch.get_num_threads() == 1 else LARGE_FOR_THREADS) // max(weight.numel(), 1))


def gains_from_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN multiplies x [..., in] and weight [out, in] faster, and as exactly. Not in compiled code."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and x.numel() >= rows_for_onednn(weight) * weight.shape[1]
        and onednn_is_better()
    )


class onednn_products:  # noqa: N801  a context manager that reads like a function
    """In this context, fp32 products on a CPU are oneDNN's, whatever their size, where `onednn_is_better`."""

    def __enter__(self) -> None:
        self.before = torch.backends.mkldnn.matmul.fp32_precision
        if onednn_is_better():
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"

    def __exit__(self, *_: Any) -> None:
        torch.backends.mkldnn.matmul.fp32_precision = self.before


class _Linear(torch.autograd.Function):
    """`F.linear` whose three products are made by oneDNN."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with onednn_products():
            return F.linear(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        with onednn_products():
            if ctx.needs_input_grad[0]:
                grad_x = grad @ weight
            if ctx.needs_input_grad[1]:
                grad_weight = grad.flatten(0, -2).T @ x.flatten(0, -2)
        return grad_x, grad_weight


@functools.cache
def onednn_is_better() -> bool:
    """Whether oneDNN multiplies fp32 matrices faster than MKL on this processor, and as exactly."""
    if processor_vendor() != "AuthenticAMD" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact, before = left.double() @ right.double(), torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        return bool((left @ right - exact).norm() < EXACT * exact.norm())
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@functools.cache
def processor_vendor() -> str:
    """The processor's vendor as /proc/cpuinfo names it, such as "AuthenticAMD"; "" where it says nothing."""
    try:
        found = re.search(r"^vendor_id\s*: *(\S+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""
