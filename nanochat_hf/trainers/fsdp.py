"""FSDP2 for our trainers: weights, gradients and optimizer state sharded over the processes, chosen by config file.

`accelerate launch --config_file training/accelerate_fsdp.yaml …` asks for it. The trainer shards the model itself, by
the same few lines on CPUs and GPUs (accelerate's own FSDP is for GPUs only and saves the optimizer in another form),
so that checkpoints are the same as without FSDP and go on with any number of processes, sharded or not.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from nanochat_hf.settings import UserError


def take_request() -> bool:
    """Whether the launcher's config file asks for FSDP; takes the request away, or accelerate would answer it too.

    Raises:
        UserError: it asks for the first version of FSDP.
    """
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise UserError("the config file asks for FSDP 1; set fsdp_version: 2, as in training/accelerate_fsdp.yaml")
    return True


def shard(model: nn.Module) -> None:
    """Shards a model in place: each block is gathered when its turn comes, what is outside the blocks stays gathered
    from the forward to the backward pass. With `fsdp_reshard_after_forward: false` the blocks do too (ZeRO-2)."""
    for block in model.base_model.layers:
        fully_shard(block, reshard_after_forward=_blocks_reshard())
    fully_shard(model, reshard_after_forward=False)


def _blocks_reshard() -> bool:
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Gathers all weights of a sharded model for the time being; does nothing with another one.

    Without it every forward pass is a matter of all processes, and an evaluation that deals out its examples hangs.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model and _blocks_reshard(), recurse=False)


@contextmanager
def plain_class(model: nn.Module) -> Iterator[None]:
    """Gives a sharded model its own class back for the time being: FSDP2 puts one of its own in its place, and
    `save_pretrained` would copy that one's source files into the checkpoint."""
    sharded_class = type(model)
    if is_sharded(model):
        model.__class__ = next(base for base in sharded_class.__mro__[1:] if not issubclass(base, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = sharded_class


def full_state_dict(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """All weights, whole, on the CPU, where `keep` is true (else empty). Every process has to call it."""
    found = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = whole.detach().cpu()
    return found


def broadcast(model: nn.Module) -> None:
    """Gives all processes the weights of the first one."""
    for tensor in [*model.parameters(), *model.buffers()]:
        torch.distributed.broadcast(tensor.data, src=0)
