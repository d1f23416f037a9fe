"""The optimizer: Muon for matrices, AdamW for the rest, its work and state divided over all processes.

The arithmetic is in `kernels.py`, the communication in `buckets.py` and `sharded.py`; this file puts them together.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from nanochat_hf.model.products_nanochat_hf import onednn_products

from . import kernels
from .buckets import ElementBucket, MatrixBucket, Ranks, StatePiece
from .sharded import ShardedElementBucket, ShardedMatrixBucket, sharing_ranks

LEAST_STACK = 4  # matrices of a bucket that each rank updates in one call, where there are so many


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW in one `torch.optim.Optimizer`, for one process and for many.

    With an initialized process group, `step` itself averages the gradients over the ranks. Each rank gets only the
    gradients whose update it owns and updates those weights; then all ranks gather the new weights. So the model must
    *not* be wrapped in `DistributedDataParallel`, which would reduce the gradients again.
    `NanochatTrainer` does not wrap it.

    A step has three phases, so that communication runs behind computation:

    1. all reductions of gradients are launched (with `overlap_backward`: during the backward pass, as soon as the
       gradients of a bucket are complete);
    2. each bucket is updated when its gradients have arrived, and its new weights are sent;
    3. the new weights of the other ranks are awaited.

    Parameters that FSDP2 has sharded work too: see `nanochat_hf.optim.sharded`.

    Args:
        params: groups as `build_param_groups` makes them: dicts with `kind` "muon" or "adamw", `params` as
            (name, parameter) pairs, and the hyper-parameters of the kind.
        process_group: the ranks that share the step; default: all of them.
        matmul_dtype: precision of Muon's matrix products; default bf16 on GPUs that have it, else fp32.
        compile: whether to compile Muon's kernel, once per shape of matrices; default: on CUDA only.
        bucket_mb: MiB of fp32 matrices per bucket, with more than one rank; more where the matrices are so large that
            a rank's call would have less than `LEAST_STACK` of them.

    Attributes:
        measure_norms: whether `step` measures the norms of the averaged gradient and of the update.
        norms: what the last step measured, as "grad_norm/GROUP" and "update_norm/GROUP".

    Raises:
        ValueError: the kind of a group is unknown.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        process_group: dist.ProcessGroup | None = None,
        matmul_dtype: torch.dtype | None = None,
        compile: bool | None = None,
        bucket_mb: float = 32.0,
    ):
        super().__init__(params, defaults={})
        for group in self.param_groups:
            if group["kind"] not in ("muon", "adamw"):
                raise ValueError(f"unknown kind {group['kind']!r} of a parameter group: use 'muon' or 'adamw'")
            group.setdefault("initial_lr", group["lr"])
            group.setdefault("initial_weight_decay", group["weight_decay"])
        self._process_group, self._bucket_mb = process_group, bucket_mb
        self._matmul_dtype, self._compile = matmul_dtype, compile
        self._buckets: list[MatrixBucket | ElementBucket] | None = None
        self._pending: dict[int, set[int]] = {}
        self._launched: set[int] = set()
        self._hooks: list[Any] = []
        self._armed = False
        self.measure_norms = False
        self.norms: dict[str, float] = {}

    @property
    def buckets(self) -> list[MatrixBucket | ElementBucket]:
        """The buckets, in the order of reduction.

        They are made on first use, when parameters are on their device and the process group exists.
        """
        if self._buckets is None:
            ranks = Ranks.current(self._process_group)
            self._buckets = []
            for group in self.param_groups:
                self._buckets += self._make_buckets(group, ranks, first=len(self._buckets))
            self._buckets.sort(key=_readiness)
        return self._buckets

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Averages the gradients over the ranks and updates all weights; every rank must call it.

        Returns:
            What `closure` returns, which is called first; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, bucket in enumerate(self.buckets):
            if number not in self._launched:
                bucket.launch()
        self._launched.clear()
        self._armed = False
        measured = self._new_measurements() if self.measure_norms else {}
        for bucket in self.buckets:
            bucket.update(measured.get(bucket.group["name"]))
        for bucket in self.buckets:
            bucket.finish()
        if measured:
            self._take_norms(measured)
        return loss

    def _new_measurements(self) -> dict[str, Tensor]:
        device = self.param_groups[0]["params"][0].device
        return {group["name"]: torch.zeros(2, device=device) for group in self.param_groups}

    def _take_norms(self, measured: dict[str, Tensor]) -> None:
        sums = torch.stack(list(measured.values()))  # [groups, 2]
        if Ranks.current(self._process_group).world_size > 1:
            dist.all_reduce(sums, group=self._process_group)
            sums /= self.holders.copies
        for name, (gradient, update) in zip(measured, sums.sqrt().tolist(), strict=True):
            self.norms |= {f"grad_norm/{name}": gradient, f"update_norm/{name}": update}

    def overlap_backward(self) -> None:
        """Lets reductions start during the backward pass; call `arm` before the last backward of each step."""
        sharded = any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"])
        if self._hooks or sharded or Ranks.current(self._process_group).world_size == 1:
            return  # FSDP2 reduces gradients itself, as they appear
        for number, bucket in enumerate(self.buckets):
            for p in bucket.params:
                hook = functools.partial(self._gradient_ready, number)
                self._hooks.append(p.register_post_accumulate_grad_hook(hook))

    def arm(self) -> None:
        """Announces that the next backward pass completes the gradients of this step."""
        if self._hooks:
            self._armed = True
            self._pending = {number: {id(p) for p in bucket.params} for number, bucket in enumerate(self.buckets)}

    @torch.no_grad()
    def _gradient_ready(self, number: int, p: Tensor) -> None:
        if not self._armed:
            return
        self._pending[number].discard(id(p))
        # Collectives must be launched in the same order on every rank: only ever the next bucket in line.
        while (following := len(self._launched)) < len(self.buckets) and not self._pending[following]:
            self.buckets[following].launch()
            self._launched.add(following)

    @property
    def holders(self) -> Ranks:
        """The ranks that hold the parameters together: those that share the step, or FSDP2's."""
        first = self.param_groups[0]
        return sharing_ranks(first["param_names"][0], first["params"][0]) or Ranks.current(self._process_group)

    def state_pieces(self) -> list[StatePiece]:
        """This rank's part of the optimizer state; the parts of all ranks hold every element at least once."""
        return [piece for bucket in self.buckets for piece in bucket.pieces()]

    @torch.no_grad()
    def load_state_pieces(self, saved: Mapping[str, list[tuple[int, int, Callable[[], Tensor]]]]) -> None:
        """Fills this rank's state from pieces that any number of ranks have saved.

        Args:
            saved: "parameter|state" → list of (start, stop, function that reads that flat part); see `index_pieces`.

        Raises:
            KeyError: a needed element is in none of the pieces.
        """
        for piece in self.state_pieces():
            name = f"{piece.parameter}|{piece.state}"
            target, filled = piece.tensor.view(-1), 0
            for start, stop, read in saved.get(name, ()):
                low, high = max(start, piece.start), min(stop, piece.stop)
                if low < high:
                    part = read().reshape(-1)[low - start : high - start]
                    target[low - piece.start : high - piece.start].copy_(part)
                    filled += high - low
            if filled < target.numel():
                raise KeyError(f"the saved optimizer state lacks {name}[{piece.start}:{piece.stop}]")

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and values; on several ranks only this rank's part.

        `nanochat_hf.trainers.checkpoints` saves the parts of all ranks.
        """
        state = {piece.key: piece.tensor.clone() for piece in self.state_pieces()} if self._buckets else {}
        hyper = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"state": state, "param_groups": hyper}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` has returned, on any number of ranks if the parts of all ranks were merged.

        Raises:
            ValueError: the saved groups are not those of this optimizer.
            KeyError: a needed element of the state is missing.
        """
        if state_dict["state"]:
            readers = {key: functools.partial(_itself, tensor) for key, tensor in state_dict["state"].items()}
            self.load_state_pieces(index_pieces(readers))
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            if group["name"] != saved["name"]:
                raise ValueError(f"the saved optimizer has group {saved['name']!r} where this has {group['name']!r}")
            group.update({key: value for key, value in saved.items() if key not in ("params", "param_names")})

    def _make_buckets(self, group: dict[str, Any], ranks: Ranks, first: int) -> list[MatrixBucket | ElementBucket]:
        """The buckets of one parameter group; `first` is the number of buckets before them."""
        everything = list(range(len(group["params"])))
        holders = sharing_ranks(group["param_names"][0], group["params"][0])
        if group["kind"] == "adamw":
            if holders:
                return [ShardedElementBucket(group, everything, holders)]
            return [ElementBucket(group, everything, ranks)]
        kernel = self._muon_kernel(group["variant"], group["params"][0].device, update_only=holders is not None)
        make, ranks = (ShardedMatrixBucket, holders) if holders else (MatrixBucket, ranks)
        if ranks.world_size == 1 and not holders:
            return [MatrixBucket(group, everything, ranks, 0, kernel)]
        matrix_mb = group["params"][0].numel() * 4 / 2**20
        rounds = max(LEAST_STACK, round(self._bucket_mb / (matrix_mb * ranks.world_size)))
        size = rounds * ranks.world_size
        order = everything[::-1]  # the backward pass reaches the last layer first
        cuts = [order[start : start + size] for start in range(0, len(order), size)]
        return [make(group, cut, ranks, first, kernel) for cut in cuts]

    def _muon_kernel(self, variant: str, device: torch.device, update_only: bool) -> Callable[..., Any]:
        dtype = self._matmul_dtype
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
        whole: dict[str, Callable[..., Any]] = {"modern": kernels.muon_modern, "classic": kernels.muon_classic}
        updates: dict[str, Callable[..., Any]] = {"modern": kernels.modern_update, "classic": kernels.classic_update}
        kernel = (updates if update_only else whole)[variant]
        if self._compile if self._compile is not None else device.type == "cuda":
            return _compiled(kernel, dtype)
        kernel = functools.partial(kernel, matmul_dtype=dtype)
        return _with_onednn(kernel) if device.type == "cpu" else kernel


def _readiness(bucket: MatrixBucket | ElementBucket) -> tuple[int, int]:
    """Orders buckets as the backward pass completes them: head, layers from last to first, embeddings and scalars."""
    if isinstance(bucket, ElementBucket):
        return (0, 0) if bucket.group["name"] == "head" else (2, 0)
    layers = [int(part) for name in bucket.names for part in name.split(".") if part.isdigit()]
    return 1, -min(layers, default=0)


def _with_onednn(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the kernel's products by oneDNN, where that is better."""

    def call(*arguments: Tensor | float) -> Tensor | None:
        with onednn_products():
            return kernel(*arguments)

    return call


@functools.cache
def _compiled(kernel: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """Compiles a Muon kernel. Sizes are dynamic and numbers are 0-D tensors, so that few variants are compiled.

    There is one each for wide, square and tall matrices, alone or stacked. With static sizes there would be one per
    shape and per number of matrices: with GQA or many ranks more than the compiler allows (8).
    """
    compiled = torch.compile(functools.partial(kernel, matmul_dtype=dtype), dynamic=True, fullgraph=True)

    def call(*arguments: Tensor | float) -> Tensor | None:
        return compiled(*(a if isinstance(a, Tensor) else torch.tensor(float(a)) for a in arguments))

    return call


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def index_pieces(read: Mapping[str, Callable[[], Tensor]]) -> dict[str, list[tuple[int, int, Callable[[], Tensor]]]]:
    """Sorts saved pieces by parameter and state, each range once.

    Args:
        read: `StatePiece.key` → function that reads the piece.

    Returns:
        "parameter|state" → list of (start, stop, function), as `MuonAdamW.load_state_pieces` takes it.
    """
    found: dict[str, dict[tuple[int, int], Callable[[], Tensor]]] = {}
    for key, function in read.items():
        parameter, state, start, stop, _ = key.rsplit("|", 4)
        found.setdefault(f"{parameter}|{state}", {}).setdefault((int(start), int(stop)), function)
    return {name: [(*span, function) for span, function in spans.items()] for name, spans in found.items()}
