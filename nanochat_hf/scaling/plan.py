"""What a run will need, before it is started: parameters, tokens, FLOPs, memory, time and money."""

import bisect
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nanochat_hf.model.shape_nanochat_hf import tokens_per_chunk
from nanochat_hf.scaling import BatchPlan, DepthDial, depth_dial, fit_dial

if TYPE_CHECKING:
    import torch

# Dense bf16 matrix throughput in FLOP/s, memory in GB and a usual price in dollars per hour. Throughputs are from the
# vendors' data sheets, without sparsity. Longer names stand before the shorter ones that they contain.
DEVICES = {
    "gb200": (2500e12, 186, 8.0),
    "b200": (2250e12, 180, 6.0),
    "h200": (989.4e12, 141, 3.5),
    "h100 pcie": (756e12, 80, 2.5),
    "h100": (989.4e12, 80, 3.0),
    "h20": (148e12, 96, 1.5),
    "a100": (312e12, 80, 1.79),
    "l40s": (362e12, 48, 1.0),
    "l4": (121e12, 24, 0.7),
    "a10g": (70e12, 24, 1.0),
    "rtx 5090": (209.5e12, 32, 0.7),
    "rtx 4090": (165.2e12, 24, 0.5),
    "rtx 3090": (71e12, 24, 0.3),
    "v100": (125e12, 16, 0.55),
    "t4": (65e12, 16, 0.35),
    "mi300x": (1307e12, 192, 3.0),
}

# Share of an H100's peak by the attention that runs by default, and by upstream's. docs/gpu.md has their sources: a
# micro-batch of ours on one card, and upstream's published times.
DEFAULT_MFU = 0.5
MFU_BY_PRESET = {
    "modern": (
        "flex_attention in layers with a window (d24 on one H100)",
        (0.51, 0.56),
        "measured, bf16 and 8 bits; upstream with FlashAttention 3: 59.4%",
    ),
    "classic": ("SDPA over the full context (on H100)", (0.51, 0.51), "by upstream's classic d32"),
}


def device_facts(name: str) -> tuple[float, float, float] | None:
    """Returns (peak FLOP/s, memory in GB, dollars per hour) of a device by its name; None for an unknown one."""
    name = name.lower().replace("-", " ")
    words = set(name.split())
    for known, facts in DEVICES.items():
        if known == name or set(known.split()) <= words:
            return facts
    return None


def peak_flops(name: str) -> float:
    """Returns the dense bf16 FLOP/s of a device by its name; 0 for an unknown one."""
    facts = device_facts(name)
    return facts[0] if facts else 0.0


def memory_plan(dial: DepthDial, world_size: int, device_batch_size: int, fp8: bool = False) -> dict[str, float]:
    """Returns the bytes on one device by part, for fp32 weights, bf16 activations and the sharded optimizer.

    Weights, gradients, optimizer state and the chunked loss are counted. Per logit of a chunk the loss holds two fp32
    numbers and a temporary one; for the head it holds a gradient and two copies in bf16.

    Activations are an estimate: 18 bytes per token, layer and channel of the width. So are the 7 bytes per logit with
    `fp8`, where the loss holds all logits. Both are fitted to upstream's published peaks for the classic d20.

    Args:
        dial: the run.
        world_size: number of devices.
        device_batch_size: rows per micro-batch.
        fp8: whether matrix products run in 8 bits.
    """
    shape, counts = dial.shape, dial.shape.parameter_counts()
    matrices = counts["matrices"]
    others = counts["total"] - matrices
    tokens = device_batch_size * shape.sequence_length
    if fp8:
        loss = 7.0 * shape.padded_vocab * tokens
    else:
        loss = 12.0 * shape.padded_vocab * tokens_per_chunk(tokens, shape.padded_vocab)
        loss += 8.0 * shape.padded_vocab * shape.hidden_size
    return {
        "weights": 4.0 * counts["total"],
        "gradients": 4.0 * counts["total"],
        "optimizer state": (4.0 * matrices + 8.0 * others) / world_size,
        "activations": 18.0 * shape.hidden_size * shape.depth * tokens,
        "loss": loss,
    }


def data_needs(dial: DepthDial) -> tuple[float, int]:
    """Returns the text that a run reads, in gigabytes and in shards of 250 million characters.

    It takes 4.8 characters per token, upstream's estimate for English web text and vocabularies of 32,768 to 65,536.
    What packing crops of documents is not counted.
    """
    characters = dial.total_tokens * 4.8
    return characters / 1e9, math.ceil(characters / 250e6)


def largest_device_batch(
    dial: DepthDial, world_size: int, device: "torch.device", make_model: "Callable[[], torch.nn.Module]", bf16: bool
) -> int:
    """Returns the most rows per micro-batch whose forward and backward pass fit into the memory of every device.

    On a GPU it is tried out, doubling until memory is exhausted. On a CPU, where that would stop other programs, it is
    computed from the free memory. Every process has to call it: the smallest answer counts.

    Args:
        dial: the run.
        world_size: number of processes.
        device: this process's device.
        make_model: makes the model, with fp32 weights.
        bf16: whether training runs under bf16 autocast.
    """
    import torch
    import torch.distributed as dist

    needed = max(1, dial.total_batch_size // (dial.shape.sequence_length * world_size))  # more would not be used
    if device.type == "cuda":
        rows = _try_rows(dial, world_size, device, make_model(), bf16, needed)
    else:
        rows = _rows_in_memory(dial, world_size, _local_processes(world_size), needed)
    answer = torch.tensor(rows, device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(answer, op=dist.ReduceOp.MIN)
    return int(answer)


def _local_processes(world_size: int) -> int:
    """How many of the processes run on this machine, as the launcher or accelerate says; all where neither does."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(int(said), world_size) if said.isdecimal() and int(said) > 0 else world_size


def _rows_in_memory(dial: DepthDial, world_size: int, local_processes: int, needed: int) -> int:
    """Rows that need four fifths of the free memory, divided over the processes of this machine."""
    import psutil

    def bytes_for(rows: int) -> float:
        parts = memory_plan(dial, world_size, rows)
        return sum(parts.values()) + parts["activations"] + parts["loss"]  # those two in fp32 instead of bf16

    free = psutil.virtual_memory().available / local_processes
    return max(1, bisect.bisect_right(range(1, needed + 1), 0.8 * free, key=bytes_for))


def _try_rows(
    dial: DepthDial, world_size: int, device: "torch.device", model: "torch.nn.Module", bf16: bool, needed: int
) -> int:
    """Doubles the rows while they fit, then bisects between the most that fitted and the fewest that did not."""
    import torch

    model = model.to(device)
    held = torch.empty(int(memory_plan(dial, world_size, 1)["optimizer state"]), dtype=torch.uint8, device=device)
    fits, too_many = 0, needed + 1
    while fits + 1 < too_many:
        rows = min(max(1, 2 * fits), needed) if too_many > needed else (fits + too_many) // 2
        try:
            ids = torch.zeros(rows, dial.shape.sequence_length, dtype=torch.long, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                model(input_ids=ids, shift_labels=ids, use_cache=False).loss.backward()
            fits = rows
        except torch.OutOfMemoryError:
            too_many = rows
    del model, held
    torch.cuda.empty_cache()
    return max(1, fits)


def _known_device(name: str) -> tuple[float, float, float]:
    facts = device_facts(name)
    if facts is None:
        raise ValueError(f"no figures for the device {name!r}; known are {', '.join(sorted(DEVICES))}")
    return facts


def plan(
    depth: int,
    *,
    gpus: int = 8,
    gpu: str = "h100",
    mfu: float | None = None,
    device_batch_size: int = 16,
    fp8: bool = False,
    **dial_options: Any,
) -> str:
    """Returns the plan as text.

    Args:
        depth: number of layers.
        gpus, gpu: number and kind of devices, such as "h100".
        mfu: share of the peak FLOP/s that training reaches; default `DEFAULT_MFU`, an assumption, and called so.
        device_batch_size: most rows per micro-batch.
        fp8: whether matrix products run in 8 bits.
        dial_options: go to `depth_dial`.

    Raises:
        ValueError: the device is not in the table, or the dial's options do not fit together.
    """
    peak, memory_gb, price = _known_device(gpu)
    dial, batch = fit_dial(depth_dial(depth, **dial_options), gpus, device_batch_size)
    memory = memory_plan(dial, gpus, device_batch_size, fp8)
    share = mfu or DEFAULT_MFU
    hours = dial.total_flops / (peak * gpus * share) / 3600
    total_gb = sum(memory.values()) / 1e9
    lines = [f"depth {depth}: width {dial.hidden_size}, {dial.heads} heads", "", "parameters"]
    lines += [f"  {part:18s}{count:>18,}" for part, count in dial.shape.parameter_counts().items()]
    lines += ["", "run", f"  {batch.describe()}", f"  {dial.num_iterations:,} steps, {dial.total_tokens:,} tokens"]
    lines += [f"  {dial.flops_per_token:.4g} FLOPs per token, {dial.total_flops:.3g} FLOPs in all"]
    gigabytes, shards = data_needs(dial)
    lines += [
        f"  data: about {gigabytes:.1f} GB of text, {shards:,} shards of ClimbMix or FineWeb-Edu as shuffled upstream"
    ]
    lines += ["", f"memory of each of {gpus} devices (GB of {memory_gb})"]
    lines += [f"  {part:18s}{size / 1e9:>8.1f}" for part, size in memory.items()]
    lines += [f"  {'total':18s}{total_gb:>8.1f}"]
    kind = "as given" if mfu else "assumed"
    lines += ["", f"time at {share:.0%} MFU ({kind}): {hours * 60:.0f} minutes"]
    lines[-1] += f"; cost at ${price}/h: ${hours * gpus * price:.0f}"
    if not mfu:
        path, range_, source = MFU_BY_PRESET[dial_options.get("preset", "modern")]
        shares = " to ".join(f"{share:.0%}" for share in sorted(set(range_)))
        lines += [f"  {path}: {shares} {source} (docs/gpu.md)"]
    if total_gb > memory_gb:
        lines += [f"this does not fit: lower the device batch of {device_batch_size}"]
    return "\n".join(lines)


def table_row(name: str, dial: DepthDial, batch: BatchPlan, gpu: str, mfu: float, fp8: bool) -> str:
    """Returns one line of the table of recipes in docs/pretraining.md.

    Raises:
        ValueError: the device is not in the table.
    """
    peak, _, price = _known_device(gpu)
    gigabytes, shards = data_needs(dial)
    memory = sum(memory_plan(dial, batch.world_size, batch.device_batch_size, fp8).values()) / 1e9
    hours = dial.total_flops / (peak * batch.world_size * mfu) / 3600
    cells = [name, f"{dial.params / 1e6:,.0f} M", f"{dial.total_tokens / 1e9:.2f} B", f"{dial.num_iterations:,}"]
    cells += [f"{dial.total_flops:.2e}", f"{gigabytes:.0f} GB, {shards} shards", f"{batch.world_size} × {gpu}"]
    cells += [
        f"{batch.device_batch_size}",
        f"{memory:.0f} GB",
        f"{hours:.1f} h",
        f"${hours * batch.world_size * price:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"
