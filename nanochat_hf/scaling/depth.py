"""The depth dial: one number decides shape, tokens, batch, learning rates, weight decay and iterations.

Everything here is arithmetic on shapes: no model is built. Values and exponents are upstream's (July 2026 for the
modern preset, October 2025 for the classic one); `tests/parity/test_scaling.py` checks them against its own figures.
"""

import math
from dataclasses import asdict, dataclass, replace

REFERENCE_DEPTH = 12  # the depth at which the learning rates and the weight decay were tuned
REFERENCE_BATCH = 2**19  # tokens; the best batch of the reference depth, measured upstream
REFERENCE_WIDTH = 768  # hidden size of the reference depth
BATCH_EXPONENT = 0.383  # best batch ∝ tokens^0.383: "Power Lines", arXiv 2505.13738
BASE_WEIGHT_DECAY = 0.28  # Muon's decay at the reference depth
VOCAB_MULTIPLE = 64  # tables are padded to it, for tensor cores and for sharding
DEFAULT_RATIO = {"modern": 12, "classic": 20}  # tokens per (scaling) parameter


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs to know of a model. `windows` are upstream's: how many earlier keys a query sees."""

    depth: int
    hidden_size: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    sequence_length: int
    windows: tuple[int, ...]
    preset: str = "modern"

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def value_embedding_layers(self) -> int:
        """Every second layer, the last always: layers i with i ≡ depth - 1 (mod 2)."""
        return (self.depth + 1) // 2 if self.preset == "modern" else 0

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part; `scaling` (blocks and head) gives the flattest best tokens:parameters ratio."""
        query, key_value, width = self.heads * self.head_dim, self.key_value_heads * self.head_dim, self.hidden_size
        attention = 2 * width * query + 2 * width * key_value
        modern = self.preset == "modern"
        counts = {
            "embedding": self.padded_vocab * width,
            "value_embeddings": self.value_embedding_layers * self.padded_vocab * key_value,
            "head": self.padded_vocab * width,
            "matrices": self.depth * (attention + 8 * width * width),
            "scalars": 2 * self.depth + 24 + 1 + 1 if modern else 0,  # lambdas, smear gate and lambda, backout lambda
        }
        if modern:
            counts["matrices"] += self.value_embedding_layers * 12 * self.key_value_heads  # gates of 12 channels
        counts["total"] = sum(counts.values())
        counts["scaling"] = counts["matrices"] + counts["head"]
        return counts

    def flops_per_token(self) -> int:
        """Floating point operations of forward and backward for one token.

        6 per matrix parameter (PaLM, arXiv 2204.02311, appendix B) plus 12 · heads · head_dim · (keys seen) per layer;
        embedding look-ups are free, elementwise work is left out.
        """
        counts = self.parameter_counts()
        smear_gate = 24 if self.preset == "modern" else 0
        matmul = counts["matrices"] + counts["head"] + smear_gate
        keys = sum(min(window, self.sequence_length) for window in self.windows)
        return 6 * matmul + 12 * self.heads * self.head_dim * keys


def shape_from_depth(
    depth: int,
    *,
    preset: str = "modern",
    vocab_size: int = 32768,
    sequence_length: int = 2048,
    aspect_ratio: int = 64,
    head_dim: int = 128,
    key_value_heads: int | None = None,
    window_pattern: str = "SSSL",
) -> Shape:
    """Modern: width depth · aspect_ratio, rounded up to whole heads. Classic: ⌈width / head_dim⌉ heads."""
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    base = depth * aspect_ratio
    heads = math.ceil(base / head_dim)
    if preset == "modern":
        width, windows = heads * head_dim, _windows(depth, window_pattern, sequence_length)
    else:
        if base % heads:
            raise ValueError(f"depth {depth} gives width {base}, which {heads} heads do not divide; use an even depth")
        width, head_dim, windows = base, base // heads, (sequence_length,) * depth
    return Shape(depth, width, heads, key_value_heads or heads, head_dim, vocab_size, sequence_length, windows, preset)


def _windows(depth: int, pattern: str, sequence_length: int) -> tuple[int, ...]:
    """Tiles the pattern over the layers: L is the whole context, S a quarter in whole blocks of 128; the last is L."""
    pattern = pattern.upper()
    if not pattern or set(pattern) - {"S", "L"}:
        raise ValueError(f"window_pattern {pattern!r} may only hold the letters S and L, such as SSSL")
    short = 128 * math.ceil(sequence_length / 4 / 128)
    sizes = [short if pattern[layer % len(pattern)] == "S" else sequence_length for layer in range(depth)]
    return (*sizes[:-1], sequence_length)


@dataclass(frozen=True)
class DepthDial:
    """All that follows from depth. The first fields carry the names of upstream's figures in `scaling_modern.json`.

    Attributes:
        params, scaling_params: all parameters; those that count for the horizon.
        target_tokens: ratio · scaling_params (classic: ratio · params).
        total_batch_size: tokens per optimizer step, over all devices.
        num_iterations: optimizer steps.
        lr_scale: factor on every learning rate, √(batch / 2^19).
        adam_dim_scale: factor on the rates of embeddings and head, (hidden_size / 768)^-0.5; applied by the optimizer.
        weight_decay: Muon's, at the start of its schedule.
        flops_per_token: forward and backward.
        shape: the model's shape.
    """

    depth: int
    ratio: float
    hidden_size: int
    heads: int
    params: int
    scaling_params: int
    target_tokens: int
    total_batch_size: int
    num_iterations: int
    lr_scale: float
    adam_dim_scale: float
    weight_decay: float
    flops_per_token: int
    shape: Shape

    @property
    def total_tokens(self) -> int:
        return self.num_iterations * self.total_batch_size

    @property
    def total_flops(self) -> float:
        return float(self.flops_per_token) * self.total_tokens

    def describe(self) -> str:
        return (
            f"d{self.depth}: width {self.hidden_size}, {self.heads} heads, {self.params:,} parameters "
            f"({self.scaling_params:,} scaling), {self.flops_per_token:.3g} FLOPs a token\n"
            f"{self.num_iterations:,} steps, {self.total_tokens:,} tokens, {self.total_flops:.3g} FLOPs; Muon weight "
            f"decay {self.weight_decay:.4f}"
        )

    def as_dict(self) -> dict:
        return asdict(self) | {"total_tokens": self.total_tokens, "total_flops": self.total_flops}

    def with_batch(self, total_batch_size: int) -> "DepthDial":
        """The same run with a batch that the devices can make; the horizon in tokens is kept, the rates follow."""
        if total_batch_size == self.total_batch_size:
            return self
        steps = max(1, round(self.total_tokens / total_batch_size))
        factor = total_batch_size / self.total_batch_size
        changes = {"lr_scale": self.lr_scale * factor**0.5, "weight_decay": self.weight_decay * factor**0.5}
        if self.shape.preset == "classic":
            changes = {}
        return replace(self, total_batch_size=total_batch_size, num_iterations=steps, **changes)


def depth_dial(
    depth: int,
    *,
    preset: str = "modern",
    param_data_ratio: float | None = None,
    vocab_size: int = 32768,
    sequence_length: int = 2048,
    aspect_ratio: int = 64,
    head_dim: int = 128,
    key_value_heads: int | None = None,
    window_pattern: str = "SSSL",
    num_iterations: int = -1,
    target_flops: float = -1.0,
    total_batch_size: int = -1,
    base_weight_decay: float | None = None,
) -> DepthDial:
    """Turns the dial.

    The horizon is the first of these that is given: `num_iterations`, `target_flops`, `param_data_ratio`. Batch size
    and weight decay follow from the ratio's token count even where one of the others decides the length of the run.

    Args:
        preset: "modern" (July 2026) or "classic" (October 2025: fixed batch, no scaling of rates or decay).
        param_data_ratio: tokens per scaling parameter; default 12 (classic: 20 per parameter).
        total_batch_size: tokens per step; -1 chooses it.
        base_weight_decay: Muon's decay at the reference depth; default 0.28 (classic: 0).
    """
    if preset not in DEFAULT_RATIO:
        raise ValueError(f"unknown preset {preset!r}: use 'modern' or 'classic'")
    ratio = DEFAULT_RATIO[preset] if param_data_ratio is None else param_data_ratio
    if ratio <= 0 and num_iterations <= 0 and target_flops <= 0:
        raise ValueError("no horizon: give num_iterations, target_flops or param_data_ratio")
    flags = {"preset": preset, "vocab_size": vocab_size, "sequence_length": sequence_length}
    flags |= {"aspect_ratio": aspect_ratio, "head_dim": head_dim, "window_pattern": window_pattern}
    shape = shape_from_depth(depth, key_value_heads=key_value_heads, **flags)
    counts = shape.parameter_counts()
    horizon_ratio = ratio if ratio > 0 else DEFAULT_RATIO[preset]  # only to place batch size and decay

    if preset == "classic":
        target_tokens = int(horizon_ratio * counts["total"])
        batch = total_batch_size if total_batch_size > 0 else REFERENCE_BATCH
        lr_scale, weight_decay = 1.0, base_weight_decay or 0.0
    else:
        target_tokens = int(horizon_ratio * counts["scaling"])
        reference = shape_from_depth(REFERENCE_DEPTH, **flags)
        reference_tokens = horizon_ratio * reference.parameter_counts()["scaling"]
        batch = total_batch_size
        if batch <= 0:  # the nearest power of two
            batch = 2 ** round(math.log2(REFERENCE_BATCH * (target_tokens / reference_tokens) ** BATCH_EXPONENT))
        # Adam's square-root rule, taken for Muon too: √(batch / batch_ref).
        lr_scale = (batch / REFERENCE_BATCH) ** 0.5
        # Keeps batch / (lr · decay · tokens) constant, AdamW's time scale of forgetting: arXiv 2405.13698.
        base = BASE_WEIGHT_DECAY if base_weight_decay is None else base_weight_decay
        weight_decay = base * math.sqrt(batch / REFERENCE_BATCH) * (reference_tokens / target_tokens)

    flops = shape.flops_per_token()
    if num_iterations > 0:
        iterations = num_iterations
    elif target_flops > 0:
        iterations = max(1, round(target_flops / (flops * batch)))
    else:
        iterations = max(1, target_tokens // batch)
    return DepthDial(
        depth=depth,
        ratio=ratio,
        hidden_size=shape.hidden_size,
        heads=shape.heads,
        params=counts["total"],
        scaling_params=counts["scaling"],
        target_tokens=target_tokens,
        total_batch_size=batch,
        num_iterations=iterations,
        lr_scale=lr_scale,
        adam_dim_scale=(shape.hidden_size / REFERENCE_WIDTH) ** -0.5,
        weight_decay=weight_decay,
        flops_per_token=flops,
        shape=shape,
    )


@dataclass(frozen=True)
class BatchPlan:
    """How a batch is made: `world_size` devices · `accumulation_steps` · `device_batch_size` rows of one sequence."""

    device_batch_size: int
    accumulation_steps: int
    world_size: int
    sequence_length: int
    wanted: int

    @property
    def total_batch_size(self) -> int:
        return self.device_batch_size * self.accumulation_steps * self.world_size * self.sequence_length

    @property
    def exact(self) -> bool:
        return self.total_batch_size == self.wanted

    def describe(self) -> str:
        text = f"batch of {self.total_batch_size:,} tokens = {self.world_size} processes × {self.accumulation_steps}"
        text += f" micro-batches × {self.device_batch_size} rows × {self.sequence_length}"
        if not self.exact:
            off = 100 * (self.total_batch_size / self.wanted - 1)
            text += f" (the nearest to {self.wanted:,} that fits, {off:+.1f} %)"
        return text


def fit_batch(total_batch_size: int, sequence_length: int, world_size: int, max_device_batch: int) -> BatchPlan:
    """Splits a batch over any number of processes: exactly where possible, else as near as possible.

    The micro-batch is at most `max_device_batch` rows and, to keep devices busy, never less than about half of what
    the fewest possible accumulation steps would allow.
    """
    if min(total_batch_size, sequence_length, world_size, max_device_batch) < 1:
        raise ValueError("batch size, sequence length, processes and device batch must all be at least 1")
    rows = total_batch_size / sequence_length / world_size  # per process and step
    fewest = max(1, math.ceil(rows / max_device_batch))
    plans = []
    for accumulation in range(fewest, 2 * fewest + 1):
        micro = min(max_device_batch, max(1, round(rows / accumulation)))
        plans.append(BatchPlan(micro, accumulation, world_size, sequence_length, total_batch_size))
    return min(plans, key=lambda plan: (abs(plan.total_batch_size - plan.wanted), plan.accumulation_steps))


def fit_dial(
    dial: DepthDial, world_size: int, max_device_batch: int, keep_steps: bool = False
) -> tuple[DepthDial, BatchPlan]:
    """The dial with the batch that `world_size` devices can make, and how they make it.

    Args:
        keep_steps: keep the number of steps, where it was asked for, instead of the number of tokens.
    """
    batch = fit_batch(dial.total_batch_size, dial.shape.sequence_length, world_size, max_device_batch)
    fitted = dial.with_batch(batch.total_batch_size)
    return (replace(fitted, num_iterations=dial.num_iterations) if keep_steps else fitted), batch
