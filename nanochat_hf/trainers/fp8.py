"""Training with matrix products in 8-bit floating point, on torchao's `Float8Linear`.

Input and weight are rounded to e4m3, the gradient of the output to e5m2. Each has one scale per tensor, computed at
every use: torchao's recipe "tensorwise", upstream's too (upstream measured rowwise scales as slower). Weights,
optimizer and checkpoints stay as they are: a converted layer holds the same parameter under the same name. Upstream,
d26 on 8×H100: 740 thousand tokens per second instead of 630 thousand in bf16; at d12 it was slower.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nanochat_hf.settings import UserError

# Both sides of a matrix must be multiples of 16 for the hardware's kernel. Below 128 rounding costs more than it saves
# (upstream's rule). In our model only the gates are excluded by this; the head is converted.
MULTIPLE, SMALLEST = 16, 128
OLDEST = (8, 9)  # compute capability of the first GPUs with 8-bit matrix products: Ada Lovelace; Hopper is 9.0


def require_hardware(device_type: str = "cuda") -> None:
    """Raises UserError where this machine cannot multiply in 8 bits."""
    found = None
    if device_type != "cuda" or not torch.cuda.is_available():
        found = "no CUDA GPU in use"
    elif torch.version.hip is None and torch.cuda.get_device_capability() < OLDEST:
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        found = f"a {torch.cuda.get_device_name()} of compute capability {capability}"
    if found:
        raise UserError(
            f"--fp8 needs a GPU of compute capability {OLDEST[0]}.{OLDEST[1]} or newer (RTX 4090, L4, L40S, H100, "
            f"B200 …) and there is {found} here; leave out --fp8"
        )


def fits(module: nn.Module, name: str = "") -> bool:
    """Whether a module is a projection that 8-bit products support."""
    if not isinstance(module, nn.Linear):
        return False
    sides = (module.in_features, module.out_features)
    return min(sides) >= SMALLEST and all(side % MULTIPLE == 0 for side in sides)


def convert(model: Any, *, emulate: bool = False) -> int:
    """Replaces the projections that fit, in place. Call it before compiling and sharding.

    Args:
        emulate: rounds to 8 bits but multiplies in fp32, on any device: for tests, slow.

    Returns:
        How many projections were replaced.

    Raises:
        UserError: torchao is not installed, or nothing in the model fits.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise UserError("--fp8 needs torchao; install it with `pip install torchao`, or leave out --fp8") from None
    count = sum(fits(module) for module in model.modules())
    if not count:
        raise UserError(
            f"--fp8 finds no projection to convert: sides must be multiples of {MULTIPLE} and at least {SMALLEST}; "
            "take a wider model or leave out --fp8"
        )
    config = replace(Float8LinearConfig.from_recipe_name("tensorwise"), emulate=emulate)
    convert_to_float8_training(model, config=config, module_filter_fn=fits)
    model.uses_fp8 = True
    return count


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Uses plain projections with the same weights within the context, so that evaluations are exact."""
    replaced = []
    if getattr(model, "uses_fp8", False):
        from torchao.float8.float8_linear import Float8Linear

        from nanochat_hf.model.modeling_nanochat_hf import Linear

        for name, module in list(model.named_modules()):
            if isinstance(module, Float8Linear):
                with torch.device("meta"):
                    plain = Linear(module.in_features, module.out_features)
                plain.weight = module.weight  # the same parameter, not a copy
                plain.train(module.training)
                parent, _, leaf = name.rpartition(".")
                replaced.append((model.get_submodule(parent), leaf, module))
                setattr(*replaced[-1][:2], plain)
    try:
        yield
    finally:
        for parent, leaf, module in replaced:
            setattr(parent, leaf, module)


def check_rows(rows: int, sequence_length: int) -> None:
    """Raises UserError where the tokens of a micro-batch, a side of the weights' gradient, are no multiple of 16."""
    if rows * sequence_length % MULTIPLE:
        raise UserError(
            f"--fp8 multiplies in blocks of {MULTIPLE} and a micro-batch is {rows} × {sequence_length} tokens; choose "
            f"a sequence length that is a multiple of {MULTIPLE}"
        )
