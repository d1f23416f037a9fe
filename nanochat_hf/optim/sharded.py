"""The buckets' counterparts for FSDP2, where each rank holds some rows of every parameter and of its gradient.

FSDP2 has averaged the gradients already, and AdamW updates whatever rows are here. Muon needs whole matrices: one
all-to-all brings the rows of every gradient to the matrix's owner, a second one takes the rows of the update back. So
a rank sends its gradients once and its share of the updates once per step. State is stored per matrix as without
sharding, so checkpoints are interchangeable. Where there are several copies of the model (HSDP), each copy does this
alone, from the same gradients.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from . import kernels
from .buckets import NO_BUFFER, ElementBucket, MatrixBucket, Ranks, StatePiece


def sharing_ranks(name: str, p: Tensor) -> Ranks | None:
    """The ranks that hold the rows of a parameter, or None if it is not sharded.

    Raises:
        ValueError: it is sharded otherwise than by FSDP2, over one dimension of devices, or over two with copies
            (HSDP).
    """
    if not isinstance(p, DTensor):
        return None
    mesh, (*copied, rows) = p.device_mesh, p.placements
    if len(copied) > 1 or not rows.is_shard(0) or not all(placement.is_replicate() for placement in copied):
        raise ValueError(
            f"{name} is placed as {p.placements} on a mesh of {mesh.ndim} dimensions; MuonAdamW works with whole "
            "parameters and with FSDP2's sharding along dimension 0, with or without copies (HSDP)"
        )
    copy, copies = (mesh.get_local_rank(0), mesh.size(0)) if copied else (0, 1)
    return Ranks(mesh.get_local_rank(-1), mesh.size(-1), mesh.get_group(-1), copy, copies)


def rows_of(rank: int, world_size: int, rows: int) -> tuple[int, int]:
    """The rows `start:stop` that FSDP2 gives a rank: chunks of one size, the last ones shorter or empty."""
    chunk = math.ceil(rows / world_size)
    return min(rows, rank * chunk), min(rows, (rank + 1) * chunk)


class ShardedMatrixBucket(MatrixBucket):
    """Matrices of one shape, of one Muon group, of which every rank holds rows.

    The arguments are those of `MatrixBucket`, but `kernel` is `kernels.modern_update` or `kernels.classic_update`.
    """

    def __init__(
        self, group: dict[str, Any], indices: list[int], ranks: Ranks, rotation: int, kernel: Callable[..., Tensor]
    ):
        self.group, self.ranks, self.kernel = group, ranks, kernel
        self.params = [group["params"][index] for index in indices]
        self.names = [group["param_names"][index] for index in indices]
        owner = [(index + rotation) % ranks.world_size for index in range(len(indices))]
        self.owned_by = [[i for i, who in enumerate(owner) if who == rank] for rank in range(ranks.world_size)]
        self.owned = self.owned_by[ranks.rank]
        self.order = [index for owned in self.owned_by for index in owned]
        self._make_state()
        rows, self.cols = self.params[0].shape
        self.rows = [rows_of(rank, ranks.world_size, rows) for rank in range(ranks.world_size)]
        start, stop = self.rows[ranks.rank]
        self.held = (stop - start) * self.cols  # elements of each matrix here
        self.measured: Tensor | None = None
        self.step = kernels.modern_step if group["variant"] == "modern" else kernels.classic_step

    def launch(self) -> None:
        """Starts sending the rows of every gradient to the matrix's owner."""
        grads = [_local_gradient(p).float().reshape(-1) for p in self.params]
        self.sent = torch.cat([grads[index] for index in self.order])
        self.received = self._exchange(self.sent, back=False)

    def update(self, measured: Tensor | None = None) -> None:
        """Computes the owned matrices' updates and starts sending their rows to the ranks that hold them.

        `measured` as in `MatrixBucket`.
        """
        self._wait()
        self.measured = measured
        parts = self.received.split([len(self.owned) * (stop - start) * self.cols for start, stop in self.rows])
        shape = (len(self.owned), -1, self.cols)
        whole = [part.view(shape) for part in parts if part.numel()]
        self.sent = self.received[:0]
        if self.owned:
            grads = torch.cat(whole, dim=1)  # [owned, rows, cols]
            if measured is not None:
                measured[0] += grads.square().sum()
            update = self.kernel(grads, *self._state())
            self.sent = torch.cat([update[:, start:stop].reshape(-1) for start, stop in self.rows])
        self.received = self._exchange(self.sent, back=True)

    def finish(self) -> None:
        """Applies the updates to the rows that are here."""
        self._wait()
        if self.held:
            updates = self.received.view(len(self.order), -1, self.cols)
            held = [self.params[index].to_local() for index in self.order]
            params = torch.stack(held)
            self.step(params, updates, self._lr(), self.group["weight_decay"])
            if self.measured is not None:
                self.measured[1] += (params - torch.stack(held)).square().sum()
            torch._foreach_copy_(held, list(params.unbind(0)))
        self.received = self.sent = NO_BUFFER
        self.measured = None

    def _exchange(self, sent: Tensor, back: bool) -> Tensor:
        """Starts an all-to-all from the holders of rows to the owners of matrices; `back`: the other way round."""
        by_owner = [len(owned) * self.held for owned in self.owned_by]
        by_holder = [len(self.owned) * (stop - start) * self.cols for start, stop in self.rows]
        sizes_in, sizes_out = (by_holder, by_owner) if back else (by_owner, by_holder)
        received = sent.new_empty(sum(sizes_out))
        self.works.append(
            dist.all_to_all_single(received, sent, sizes_out, sizes_in, group=self.ranks.group, async_op=True)
        )
        return received


class ShardedElementBucket(ElementBucket):
    """The rows of one AdamW group that are here; nothing has to be sent. The arguments are `MatrixBucket`'s."""

    def __init__(self, group: dict[str, Any], indices: list[int], ranks: Ranks):
        local = [group["params"][index].to_local() for index in indices]
        super().__init__({**group, "params": local, "param_names": group["param_names"]}, indices, Ranks())
        self.group, self.holders = group, ranks
        self.sharded = [group["params"][index] for index in indices]

    def launch(self) -> None:
        """Takes the gradients that FSDP2 has left on this rank."""
        self.params = [p.to_local() for p in self.sharded]
        self.grads = [_local_gradient(self.sharded[index]).reshape(-1) for index, _, _ in self.spans]

    def pieces(self) -> Iterator[StatePiece]:
        """This rank's part of the optimizer state, placed within the whole parameters."""
        for piece in super().pieces():
            if piece.state == "step":
                yield piece
                continue
            p = self.sharded[self.names.index(piece.parameter)]
            per_row = p.numel() // p.shape[0]
            start = rows_of(self.holders.rank, self.holders.world_size, p.shape[0])[0] * per_row
            yield StatePiece(piece.parameter, piece.state, start, start + piece.size, p.numel(), piece.tensor)


def _local_gradient(p: DTensor) -> Tensor:
    grad = p.grad
    return grad.to_local() if isinstance(grad, DTensor) else torch.zeros_like(p.to_local())
