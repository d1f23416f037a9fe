"""Buckets: parameters that several processes reduce, update and gather together, each process its own share.

Every rank holds all weights, but the optimizer state and the update of each element belong to one rank only (ZeRO-1,
arXiv 1910.02054; gradients are reduced straight to their owner). There are two kinds of bucket:

* `MatrixBucket`: matrices of one shape. Of every `world_size` matrices each rank owns one, by one reduce-scatter. The
  matrices left over are reduced to one owner each. So any number of matrices fits any number of ranks, unpadded.
* `ElementBucket`: AdamW parameters, cut into equal flat pieces. Small parameters, and the few elements that do not
  divide, are all-reduced together and updated by every rank alike.

For N matrix elements and W ranks, each rank sends N·(W-1)/W elements per step to reduce the gradients, and as many to
gather the weights: together the volume of one all-reduce.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import kernels

# A smaller parameter, counted in elements, is not worth a collective call of its own.
MIN_SHARDED_ELEMENTS = 1024
# In place of buffers that are not in use, so that their memory is free between steps.
NO_BUFFER = torch.empty(0)


@dataclass(frozen=True)
class Ranks:
    """The processes that share the optimizer step.

    Attributes:
        rank: number of this process within them.
        world_size: how many there are.
        group: their process group; None for the default group, or for one process without any.
        copy: number of the copy of the model that they hold together.
        copies: how many copies there are (HSDP).
    """

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    copy: int = 0
    copies: int = 1

    @classmethod
    def current(cls, group: dist.ProcessGroup | None = None) -> "Ranks":
        """The ranks of `group`, by default of all processes; one rank where torch.distributed is not in use."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def global_rank(self, rank: int) -> int:
        """The number that a rank of this group has among all processes."""
        return dist.get_global_rank(self.group, rank) if self.group is not None else rank


@dataclass(frozen=True)
class StatePiece:
    """One rank's part of one state tensor of one parameter.

    Attributes:
        parameter: name of the parameter.
        state: name of the state, such as "momentum_buffer".
        start, stop, size: the part is the flat elements `start:stop` of `size`.
        tensor: their values.
    """

    parameter: str
    state: str
    start: int
    stop: int
    size: int
    tensor: Tensor

    @property
    def key(self) -> str:
        """Name under which checkpoints store the piece."""
        return f"{self.parameter}|{self.state}|{self.start}|{self.stop}|{self.size}"


class MatrixBucket:
    """Matrices of one shape, of one Muon group.

    Args:
        group: the optimizer's parameter group, whose hyper-parameters are read at every step.
        indices: which of the group's parameters.
        ranks: the processes that share the step.
        rotation: number of the bucket, by which the owners of left-over matrices rotate.
        kernel: one of `kernels.muon_modern` and `kernels.muon_classic`.
    """

    def __init__(
        self, group: dict[str, Any], indices: list[int], ranks: Ranks, rotation: int, kernel: Callable[..., Any]
    ):
        self.group, self.ranks, self.kernel = group, ranks, kernel
        self.params = [group["params"][index] for index in indices]
        self.names = [group["param_names"][index] for index in indices]
        world, rank = ranks.world_size, ranks.rank
        rounds = len(indices) // world
        self.whole = rounds * world
        self.owners = {index: (index + rotation) % world for index in range(self.whole, len(indices))}
        mine = list(range(rank * rounds, (rank + 1) * rounds))
        self.owned = mine + [index for index, owner in self.owners.items() if owner == rank]
        self.rounds = rounds
        self._make_state()

    def _make_state(self) -> None:
        rows, cols = self.params[0].shape
        device, count = self.params[0].device, len(self.owned)
        self.momentum_buffer = torch.zeros(count, rows, cols, device=device)
        second_shape = (count, rows, 1) if rows >= cols else (count, 1, cols)
        modern = self.group["variant"] == "modern"
        self.second_moment = torch.zeros(second_shape, device=device) if modern else None
        self.works: list[Any] = []  # collective calls under way
        self.received = self.sent = self.updated = NO_BUFFER
        self.unpaired: dict[int, Tensor] = {}  # index of a left-over matrix → its gradient

    def launch(self) -> None:
        """Starts the reduction of the gradients; a missing gradient counts as zero."""
        grads = [_gradient(p) for p in self.params]
        if self.ranks.world_size == 1:
            self.received = torch.stack(grads).float()
            return
        group = self.ranks.group
        if self.rounds:
            self.sent = torch.stack(grads[: self.whole]).float()
            self.received = self.sent.new_empty(self.rounds, *self.sent.shape[1:])
            self.works.append(dist.reduce_scatter_tensor(self.received, self.sent, group=group, async_op=True))
        self.unpaired = {index: grads[index].float().contiguous() for index in self.owners}
        for index, owner in self.owners.items():
            destination = self.ranks.global_rank(owner)
            self.works.append(dist.reduce(self.unpaired[index], dst=destination, group=group, async_op=True))

    def update(self, measured: Tensor | None = None) -> None:
        """Updates the owned matrices and starts sending them to the other ranks.

        Args:
            measured: [2]; the sums of squares of the owned gradients and of the changes of the weights are added.
        """
        self._wait()
        if self.owned:
            grads = self._owned_gradients()
            params = torch.stack([self.params[index] for index in self.owned])
            before = None
            if measured is not None:
                before = params.clone()
                measured[0] += grads.square().sum()
            self.updated = self._step(params, grads)
            if measured is not None and before is not None:
                measured[1] += (self.updated - before).square().sum()
        if self.ranks.world_size > 1:
            self._send_back()
        else:
            torch._foreach_copy_(self.params, list(self.updated.unbind(0)))

    def finish(self) -> None:
        """Waits for the other ranks' matrices and copies them into the parameters."""
        self._wait()
        if self.ranks.world_size > 1 and self.rounds:
            torch._foreach_copy_(self.params[: self.whole], list(self.sent.unbind(0)))
        self.received = self.sent = self.updated = NO_BUFFER
        self.unpaired = {}

    def pieces(self) -> Iterator[StatePiece]:
        """This rank's part of the optimizer state."""
        for slot, index in enumerate(self.owned):
            states = {"momentum_buffer": self.momentum_buffer[slot]}
            if self.second_moment is not None:
                states["second_moment"] = self.second_moment[slot]
            for state, tensor in states.items():
                yield StatePiece(self.names[index], state, 0, tensor.numel(), tensor.numel(), tensor)

    def _owned_gradients(self) -> Tensor:
        if self.ranks.world_size == 1:
            return self.received
        parts = [self.received] if self.rounds else []
        parts += [self.unpaired[index][None] for index in self.owned[self.rounds :]]
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).div_(self.ranks.world_size)

    def _step(self, params: Tensor, grads: Tensor) -> Tensor:
        self.kernel(params, grads, *self._state(), self._lr(), self.group["weight_decay"])
        return params

    def _state(self) -> list[Any]:
        """State tensors and their decays, in the kernels' order of arguments."""
        group = self.group
        if self.second_moment is None:
            return [self.momentum_buffer, group["momentum"]]
        return [self.momentum_buffer, self.second_moment, group["momentum"], group["beta2"]]

    def _lr(self) -> float:
        rows, cols = self.params[0].shape
        return self.group["lr"] * max(1.0, rows / cols) ** 0.5

    def _send_back(self) -> None:
        group = self.ranks.group
        if self.rounds:  # the gradients' buffer takes the weights
            chunk = self.updated[: self.rounds].float()
            self.works.append(dist.all_gather_into_tensor(self.sent, chunk, group=group, async_op=True))
        for slot, index in enumerate(self.owned[self.rounds :], start=self.rounds):
            self.params[index].copy_(self.updated[slot])
        for index, owner in self.owners.items():
            source = self.ranks.global_rank(owner)
            self.works.append(dist.broadcast(self.params[index].data, src=source, group=group, async_op=True))

    def _wait(self) -> None:
        for work in self.works:
            work.wait()
        self.works = []


class ElementBucket:
    """The parameters of one AdamW group, cut into flat pieces; the arguments are those of `MatrixBucket`."""

    def __init__(self, group: dict[str, Any], indices: list[int], ranks: Ranks):
        self.group, self.ranks = group, ranks
        self.params = [group["params"][index] for index in indices]
        self.names = [group["param_names"][index] for index in indices]
        world, rank = ranks.world_size, ranks.rank
        self.spans: list[tuple[int, int, int]] = []  # (index of the parameter, start, stop) of what this rank updates
        self.shares: dict[int, int] = {}  # index of the parameter → elements per rank
        self.tails: list[tuple[int, int]] = []  # (index of the parameter, first replicated element)
        for index, p in enumerate(self.params):
            size = p.numel()
            share = size if world == 1 else (size // world if size >= MIN_SHARDED_ELEMENTS else 0)
            if share:
                self.shares[index] = share
                self.spans.append((index, rank * share, (rank + 1) * share))
            if share * world < size:
                self.tails.append((index, share * world))
        self.spans += [(index, start, self.params[index].numel()) for index, start in self.tails]
        make = [torch.zeros(stop - start, device=self.params[index].device) for index, start, stop in self.spans]
        self.exp_avg, self.exp_avg_sq = make, [torch.zeros_like(tensor) for tensor in make]
        self.steps = [torch.zeros((), device=tensor.device) for tensor in make]
        self.works: list[Any] = []  # collective calls under way
        self.grads: list[Tensor] = []
        self.tail = NO_BUFFER

    def launch(self) -> None:
        """Starts the reduction of the gradients; a missing gradient counts as zero."""
        flat = [_gradient(p).reshape(-1) for p in self.params]
        self.grads = [flat[index][start:stop] for index, start, stop in self.spans]
        if self.ranks.world_size == 1:
            return
        group, world = self.ranks.group, self.ranks.world_size
        for slot, (index, share) in enumerate(self.shares.items()):
            self.grads[slot] = flat[index].new_empty(share)
            sent = flat[index][: share * world]
            self.works.append(dist.reduce_scatter_tensor(self.grads[slot], sent, group=group, async_op=True))
        if self.tails:
            self.tail = torch.cat([flat[index][start:].float() for index, start in self.tails])
            self.works.append(dist.all_reduce(self.tail, group=group, async_op=True))

    def update(self, measured: Tensor | None = None) -> None:
        """Updates this rank's pieces and starts sending them to the other ranks; `measured` as in `MatrixBucket`."""
        self._wait()
        if self.ranks.world_size > 1:
            if self.tails:
                sizes = [self.params[index].numel() - start for index, start in self.tails]
                self.grads[len(self.shares) :] = list(self.tail.split(sizes))
            torch._foreach_div_(self.grads, self.ranks.world_size)
        flat = [p.data.view(-1) for p in self.params]
        mine = [flat[index][start:stop] for index, start, stop in self.spans]
        group = self.group
        hyper = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        # Pieces that all ranks update alike are measured by the first rank only.
        counted = len(mine) if self.ranks.rank == 0 else len(self.shares)
        before = [piece.clone() for piece in mine[:counted]] if measured is not None else []
        kernels.adamw(mine, self.grads, self.exp_avg, self.exp_avg_sq, self.steps, **hyper)
        if mine and group.get("largest") is not None:  # sharded, the scalar is one rank's
            torch._foreach_clamp_max_(mine, group["largest"])
        if measured is not None:
            for grad, old, new in zip(self.grads, before, mine, strict=False):
                measured[0] += grad.float().square().sum()
                measured[1] += (new - old).float().square().sum()
        if self.ranks.world_size > 1:
            for slot, (index, share) in enumerate(self.shares.items()):
                whole = flat[index][: share * self.ranks.world_size]
                self.works.append(
                    dist.all_gather_into_tensor(whole, mine[slot], group=self.ranks.group, async_op=True)
                )

    def finish(self) -> None:
        """Waits for the other ranks' pieces, which arrive in place."""
        self._wait()
        self.grads, self.tail = [], NO_BUFFER

    def pieces(self) -> Iterator[StatePiece]:
        """This rank's part of the optimizer state."""
        for slot, (index, start, stop) in enumerate(self.spans):
            name, size = self.names[index], self.params[index].numel()
            yield StatePiece(name, "exp_avg", start, stop, size, self.exp_avg[slot])
            yield StatePiece(name, "exp_avg_sq", start, stop, size, self.exp_avg_sq[slot])
            yield StatePiece(name, "step", 0, 1, 1, self.steps[slot])

    def _wait(self) -> None:
        for work in self.works:
            work.wait()
        self.works = []


def _gradient(p: Tensor) -> Tensor:
    return p.grad if p.grad is not None else torch.zeros_like(p)
