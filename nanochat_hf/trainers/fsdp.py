"""FSDP2 for our trainers: weights, gradients and optimizer state sharded over the processes, chosen by config file.

`accelerate launch --config_file training/accelerate_fsdp.yaml …` asks for it. The trainer shards the model itself,
with the same few lines on CPUs and GPUs: accelerate's own FSDP works on GPUs only and saves the optimizer in another
form. So checkpoints are the same with and without FSDP. A run resumes with any number of processes, sharded or not.

Over several nodes the same file, with one more option of the launcher, gives each node a whole copy (HSDP).
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import patch_environment
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from nanochat_hf.settings import UserError


def requested() -> bool:
    """Whether the launcher's config file asks for FSDP.

    Raises:
        UserError: it asks for the first version of FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise UserError("the config file asks for FSDP 1; set fsdp_version: 2, as in training/accelerate_fsdp.yaml")
    return True


def hidden_from_accelerate() -> AbstractContextManager:
    """While a trainer is built within this context, accelerate does not see the request for FSDP."""
    return patch_environment(accelerate_use_fsdp="false", accelerate_use_parallelism_config="false")


def requested_mesh(device_type: str, world_size: int) -> DeviceMesh | None:
    """The processes as the config file's `parallelism_config` arranges them: copies × shards of each copy.

    Where there are several copies of the model (HSDP), a copy is on neighbouring processes, such as those of a node.
    Then only sums of gradients go from node to node.

    Returns:
        A mesh with the dimensions "dp_replicate" and "dp_shard"; None: one copy over all processes.

    Raises:
        UserError: the sizes do not fit the number of processes, or it asks for other kinds of parallelism.
    """
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return None
    asked = ParallelismConfig()
    copies, shards = asked.dp_replicate_size, asked.dp_shard_size
    if asked.non_data_parallel_size > 1:
        raise UserError("the config file asks for tp, cp or sp; set only dp_replicate_size and dp_shard_size")
    if shards == 1:
        shards = world_size // copies
    if copies * shards != world_size or shards == 1:
        raise UserError(
            f"{copies} copies of the model in {asked.dp_shard_size} shards do not fit {world_size} processes; set "
            "parallelism_config_dp_replicate_size to the number of nodes, and leave dp_shard_size out"
        )
    if copies == 1:
        return None
    mesh = ParallelismConfig(dp_replicate_size=copies, dp_shard_size=shards).build_device_mesh(device_type)
    return mesh["dp_replicate", "dp_shard"]


def shard(model: nn.Module, bf16: bool = False, mesh: DeviceMesh | None = None) -> None:
    """Shards a model in place.

    Each block is gathered for its forward and again for its backward pass; with `fsdp_reshard_after_forward: false`
    only once (ZeRO-2). The parameters outside the blocks stay gathered from the forward to the backward pass.

    Args:
        bf16: whether blocks are gathered in bf16, half the bytes. Their projections compute in bf16 anyway, so the
            results are the same. Gradients are reduced in fp32.
        mesh: the processes, as `requested_mesh` arranges them.
    """
    base: Any = model.base_model
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    for block in base.layers:
        fully_shard(block, mesh=mesh, reshard_after_forward=_blocks_reshard(), mp_policy=precision)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _blocks_reshard() -> bool:
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"


def reduce_gradients(model: nn.Module, now: bool) -> None:
    """Says whether the next backward pass of a sharded model reduces gradients, or only adds them up on each process.

    So a step with several micro-batches reduces once. Meanwhile each process holds whole gradients, 4 bytes each.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@contextmanager
def gathered_weights(model: nn.Module) -> Iterator[None]:
    """Gathers all weights of a sharded model within the context; does nothing with another model.

    Without it every forward pass needs all processes, and an evaluation that divides its examples among them hangs.
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


def unsharded(model: Any) -> Any:
    """The model to call `save_pretrained(folder, state_dict=…)` on.

    A sharded model has a class that FSDP2 made, whose source files `save_pretrained` would copy into the checkpoint.
    So for a sharded model this is a model of the original class without weights (on the meta device).
    """
    if not is_sharded(model):
        return model
    original: Any = next(base for base in type(model).__mro__[1:] if not issubclass(base, FSDPModule))
    with torch.device("meta"):
        copy = original(model.config)
    copy.generation_config = model.generation_config
    return copy


def full_state_dict(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """All weights, unsharded, on the CPU, where `keep` is true (else empty). Every process has to call it."""
    found = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = full.detach().cpu()
    return found


def broadcast(model: nn.Module) -> None:
    """Gives all processes the weights of the first one."""
    for tensor in [*model.parameters(), *model.buffers()]:
        torch.distributed.broadcast(tensor.data, src=0)
