"""The depth dial: one number decides shape, tokens, batch, learning rates, weight decay and steps.

Everything here is arithmetic on shapes: no model is built. Values and exponents are upstream's (July 2026 for the
modern preset, October 2025 for the classic one). `tests/parity/test_scaling.py` compares the results with upstream's.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from nanochat_hf.model.shape_nanochat_hf import (
    SMEAR_GATE_CHANNELS,
    VALUE_GATE_CHANNELS,
    WINDOW_PATTERN,
    check_preset,
    default_sliding_window,
    layer_has_value_embedding,
    width_and_heads,
    window_pattern_to_layer_types,
)

REFERENCE_DEPTH = 12  # the depth at which the learning rates and the weight decay were tuned
REFERENCE_BATCH = 2**19  # tokens per step; the best batch of the reference depth, measured upstream
SMALLEST_RATE_BATCH = 2**17  # tokens per step; smaller batches train with the learning rates of this one
BACKOUT_BOUND = 0.9  # of backout's scalar, where batches are smaller than that
REFERENCE_WIDTH = 768  # hidden size of the reference depth
BATCH_EXPONENT = 0.383  # best batch ∝ tokens^0.383: "Power Lines", arXiv 2505.13738
BASE_WEIGHT_DECAY = 0.28  # Muon's decay at the reference depth
# Largest share of a weight that Muon's decay takes in a step at the full rate. Its time scale, 25 steps, is then about
# that of Muon's momentum (0.95 to 0.97: 20 to 33 steps). Upstream's depths from 4 on are below 0.027.
LARGEST_DECAY_STEP = 0.04
MUON_RATE = 0.02  # Muon's learning rate at the reference batch
# Text that is seen up to four times teaches almost as much as new text (Muennighoff et al., arXiv:2305.16264).
MAX_PASSES = 4
MIN_STEPS = 200  # of a run of little text or few tokens, by a smaller batch. The warm-up alone takes 40
# The preset "small", for short runs: docs/log.md has the measurements.
SMALL_RUN = 2**25  # tokens; up to there it is chosen, where neither batch nor steps are asked for
SMALL_BATCH, SMALL_BATCH_TOKENS = 2**11, 2**20  # tokens per step, for a run of so many tokens
VOCAB_MULTIPLE = 64  # tables are padded to it, for tensor cores and for sharding
DEFAULT_RATIO = {"modern": 12, "classic": 20, "small": 12}  # tokens per (scaling) parameter


def architecture(preset: str) -> str:
    """Returns the preset of the model, "modern" or "classic": "small" trains the modern model."""
    return "modern" if preset == "small" else preset


def lr_scale(total_batch_size: int, preset: str = "modern") -> float:
    """Returns the factor on the learning rates that follow the batch: √(max(batch, 2^17) / 2^19), classic 1.

    The square root is Adam's rule, taken for Muon too (upstream). Upstream's own batches are 2^17 tokens or more at
    every depth with its vocabulary of 32,768. Below that the square root makes the rates too small. Measured with
    2^13 tokens per step at depths 2 and 4: the rates of 2^17 gained 0.11 bits per byte over the square root's, and
    twice as much was worse again (docs/log.md).

    Args:
        total_batch_size: tokens per optimizer step over all processes, chosen by the dial or asked for.
        preset: "modern", "small" (the same rule) or "classic".
    """
    if preset == "classic":
        return 1.0
    return (max(total_batch_size, SMALLEST_RATE_BATCH) / REFERENCE_BATCH) ** 0.5


def backout_bound(total_batch_size: int, preset: str = "modern") -> float | None:
    """Returns the largest value that backout's scalar β may take in training; None where it has no bound.

    The final state is x - β·x_mid, then normalised, and x is mostly x_mid. When β passes 1, the direction of every
    position flips: the loss jumps from 5 to 19 nats in one step (docs/log.md). At depth 2, x_mid is x, so β has only
    noise for a gradient, which AdamW turns into steps of the full rate. Batches of 2^17 tokens and more keep
    upstream's recipe, without a bound: so does `--depth` alone with upstream's vocabulary.

    Args:
        total_batch_size: tokens per optimizer step over all processes.
        preset: "modern", "small" or "classic", which has no backout.
    """
    return None if preset == "classic" or total_batch_size >= SMALLEST_RATE_BATCH else BACKOUT_BOUND


def small_batch(tokens: int, sequence_length: int) -> int:
    """Returns the tokens per step of the preset "small": a power of two, at least a row and below 2^17.

    At few tokens the number of steps limits what is learned, not the noise of their gradients. So the batch is 2^11
    for 2^20 tokens, and grows with the fourth root of the tokens: it was the best of several at 0.2 and 0.6 M tokens
    (docs/log.md). A run of fewer tokens still has about `MIN_STEPS` steps.

    Args:
        tokens: of the whole run.
        sequence_length: tokens per row.
    """
    tokens = max(1, tokens)
    wanted = min(SMALL_BATCH * (tokens / SMALL_BATCH_TOKENS) ** 0.25, tokens / MIN_STEPS)
    return max(sequence_length, min(SMALLEST_RATE_BATCH // 2, 2 ** round(math.log2(wanted))))


def bound_decay(weight_decay: float, rate_scale: float) -> float:
    """Returns Muon's decay, or the largest that takes `LARGEST_DECAY_STEP` of a weight in a step at the full rate.

    The rule of `depth_dial` keeps the decay over the whole run, so a run of few steps gets a large one: 13 at depth 2
    with a vocabulary of 2,048, which takes an eighth of each weight in every step.

    Args:
        weight_decay: by that rule.
        rate_scale: factor on the learning rates, see `lr_scale`.
    """
    return min(weight_decay, LARGEST_DECAY_STEP / (MUON_RATE * rate_scale))


def padded_vocab(vocab_size: int) -> int:
    """Rows of the vocabulary tables, for a tokenizer of `vocab_size` tokens."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its parameters, FLOPs and memory follow from.

    Attributes:
        depth: number of layers.
        hidden_size: width of the residual stream.
        heads, key_value_heads: number of query heads and of key/value heads.
        head_dim: channels per head.
        vocab_size: tokens of the tokenizer, not padded.
        sequence_length: tokens per row.
        windows: per layer, how many earlier keys a query sees (upstream's count, the query itself left out).
        preset: "modern" or "classic".
    """

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
        """Rows of the vocabulary tables."""
        return padded_vocab(self.vocab_size)

    @property
    def value_embedding_layers(self) -> int:
        """Number of layers with a value embedding."""
        if self.preset == "classic":
            return 0
        return sum(layer_has_value_embedding(layer, self.depth) for layer in range(self.depth))

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part, their `total`, and `scaling`: those of the blocks and the head.

        Counting only these gives the flattest best ratio of tokens to parameters over the depths (upstream).
        """
        query, key_value, width = self.heads * self.head_dim, self.key_value_heads * self.head_dim, self.hidden_size
        attention = 2 * width * query + 2 * width * key_value
        modern = self.preset == "modern"
        counts = {
            "embedding": self.padded_vocab * width,
            "value_embeddings": self.value_embedding_layers * self.padded_vocab * key_value,
            "head": self.padded_vocab * width,
            "matrices": self.depth * (attention + 8 * width * width),
            # two scalars per layer, smear's gate and scalar, backout's scalar
            "scalars": 2 * self.depth + SMEAR_GATE_CHANNELS + 1 + 1 if modern else 0,
        }
        if modern:
            counts["matrices"] += self.value_embedding_layers * VALUE_GATE_CHANNELS * self.key_value_heads
        counts["total"] = sum(counts.values())
        counts["scaling"] = counts["matrices"] + counts["head"]
        return counts

    def flops_per_token(self) -> int:
        """Floating point operations of forward and backward per token.

        6 per matrix parameter (PaLM, arXiv 2204.02311, appendix B) plus 12 · heads · head_dim · (keys seen) per layer.
        Embedding look-ups and elementwise work are left out.
        """
        counts = self.parameter_counts()
        smear_gate = SMEAR_GATE_CHANNELS if self.preset == "modern" else 0
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
    window_pattern: str | None = None,
    context_length: int | None = None,
) -> Shape:
    """Returns the shape that `NanochatHFConfig.from_depth` gives a model; the arguments are the same.

    `context_length` is the longest input, from which the windows follow; default: `sequence_length`, a training row.

    Raises:
        ValueError: the preset or the pattern is unknown, or the classic width cannot be split over its heads.
    """
    width, heads = width_and_heads(depth, preset=preset, aspect_ratio=aspect_ratio, head_dim=head_dim)
    pattern = WINDOW_PATTERN[preset] if window_pattern is None else window_pattern
    context = context_length or sequence_length
    sizes = {"sliding_attention": default_sliding_window(context) - 1, "full_attention": context}
    windows = tuple(sizes[kind] for kind in window_pattern_to_layer_types(pattern, depth))
    return Shape(
        depth=depth,
        hidden_size=width,
        heads=heads,
        key_value_heads=key_value_heads or heads,
        head_dim=width // heads,
        vocab_size=vocab_size,
        sequence_length=sequence_length,
        windows=windows,
        preset=preset,
    )


@dataclass(frozen=True)
class DepthDial:
    """All that follows from depth. The first fields carry the names of upstream's figures in `scaling_modern.json`.

    Attributes:
        depth, hidden_size, heads: number of layers, width of the residual stream, number of query heads.
        ratio: tokens per parameter.
        params, scaling_params: all parameters; those that count for the horizon.
        target_tokens: ratio · scaling_params (classic: ratio · params).
        total_batch_size: tokens per optimizer step, over all processes.
        num_iterations: optimizer steps.
        lr_scale: factor on the learning rates that follow the batch; see the function `lr_scale`.
        adam_dim_scale: factor on the rates of embeddings and head, (hidden_size / 768)^-0.5; applied by the optimizer.
        weight_decay: Muon's, at the start of its schedule; it follows √batch at every size, as upstream.
        flops_per_token: floating point operations of forward and backward per token.
        shape: the model's shape.
        text_limited: the text is too short for `ratio`: target_tokens is `MAX_PASSES` passes over it.
        rule_decay: weight_decay by the rule alone.
        decay_bounded: weight_decay is bounded by `bound_decay`, because nobody has asked for another.
        preset: "modern", "classic" or "small".
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
    text_limited: bool = False
    rule_decay: float = 0.0
    decay_bounded: bool = False
    preset: str = "modern"

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.num_iterations * self.total_batch_size

    @property
    def is_short(self) -> bool:
        """Whether the run has so few tokens that smaller batches than upstream's teach more."""
        return self.total_tokens <= SMALL_RUN

    @property
    def total_flops(self) -> float:
        """Floating point operations of the whole run."""
        return float(self.flops_per_token) * self.total_tokens

    def describe(self) -> str:
        """Two lines for a log."""
        return (
            f"d{self.depth}: width {self.hidden_size}, {self.heads} heads, {self.params:,} parameters "
            f"({self.scaling_params:,} scaling), {self.flops_per_token:.3g} FLOPs per token\n"
            f"{self.num_iterations:,} steps, {self.total_tokens:,} tokens, {self.total_flops:.3g} FLOPs; Muon weight "
            f"decay {self.weight_decay:.4f}"
        )

    def as_dict(self) -> dict[str, Any]:
        """All attributes and totals, as `run.json` records them."""
        return asdict(self) | {"total_tokens": self.total_tokens, "total_flops": self.total_flops}

    def with_batch(self, total_batch_size: int) -> "DepthDial":
        """The same run with another batch, in tokens per step.

        The number of tokens is kept; steps, learning rates and weight decay follow the batch.
        """
        if total_batch_size == self.total_batch_size:
            return self
        classic = self.preset == "classic"
        factor = total_batch_size / self.total_batch_size
        rate_scale = lr_scale(total_batch_size, self.preset)
        rule_decay = self.rule_decay if classic else self.rule_decay * factor**0.5
        return replace(
            self,
            total_batch_size=total_batch_size,
            num_iterations=max(1, round(self.total_tokens / total_batch_size)),
            lr_scale=rate_scale,
            weight_decay=bound_decay(rule_decay, rate_scale) if self.decay_bounded else rule_decay,
            rule_decay=rule_decay,
        )


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
    window_pattern: str | None = None,
    context_length: int | None = None,
    num_iterations: int = -1,
    total_tokens: int = -1,
    target_flops: float = -1.0,
    total_batch_size: int = -1,
    base_weight_decay: float | None = None,
    text_tokens: int | None = None,
) -> DepthDial:
    """Returns every number of a run, from the depth of its model.

    The length of the run is the first of these that is given: `num_iterations`, `total_tokens`, `target_flops`,
    `param_data_ratio`. Batch size and weight decay follow from the ratio's token count even where one of the others
    decides the length; but the batch of the preset "small" follows from the tokens of the run.

    Args:
        depth: number of layers.
        preset: "modern" (July 2026), "classic" (October 2025: fixed batch, no scaling of rates or decay), "small"
            (modern with the batch of `small_batch`) or "auto": "small" for a run of at most `SMALL_RUN` tokens where
            neither batch nor steps are asked for, else "modern".
        param_data_ratio: tokens per scaling parameter; default 12 (classic: 20 per parameter).
        vocab_size: tokens of the tokenizer.
        sequence_length: tokens per row.
        aspect_ratio, head_dim, key_value_heads, window_pattern: as in `NanochatHFConfig.from_depth`.
        context_length: longest input of the model in tokens; default: sequence_length.
        num_iterations: optimizer steps; -1 leaves them to the others.
        total_tokens: tokens of the run; -1 leaves them to the others.
        target_flops: floating point operations of the whole run; -1 leaves them to the ratio.
        total_batch_size: tokens per step; -1 chooses a power of two.
        base_weight_decay: Muon's decay at the reference depth; default 0.28, with the bound of `bound_decay` (classic:
            0).
        text_tokens: tokens of the rows that one pass over the training text fills; None: not known, or enough. Where
            none of the three lengths is given, the modern preset reads a short text `MAX_PASSES` times and takes a
            batch with which the run has `MIN_STEPS` steps.

    Raises:
        ValueError: the preset is unknown, nothing says how long to train, the ratio gives not one token, or the depth
            has no shape.
    """
    if preset == "auto":
        arguments = {name: value for name, value in locals().items() if name not in ("depth", "preset")}
        modern = depth_dial(depth, preset="modern", **arguments)
        batch_is_free = max(total_batch_size, num_iterations) <= 0  # steps alone keep upstream's batch
        return depth_dial(depth, preset="small", **arguments) if batch_is_free and modern.is_short else modern
    check_preset(architecture(preset))
    ratio = DEFAULT_RATIO[preset] if param_data_ratio is None else param_data_ratio
    if ratio <= 0 and max(num_iterations, total_tokens, target_flops) <= 0:
        raise ValueError(
            "nothing says how long to train: give num_iterations, total_tokens, target_flops or param_data_ratio"
        )

    def shape_at(depth: int, key_value_heads: int | None = None) -> Shape:
        return shape_from_depth(
            depth,
            preset=architecture(preset),
            vocab_size=vocab_size,
            sequence_length=sequence_length,
            aspect_ratio=aspect_ratio,
            head_dim=head_dim,
            key_value_heads=key_value_heads,
            window_pattern=window_pattern,
            context_length=context_length,
        )

    shape = shape_at(depth, key_value_heads)
    counts = shape.parameter_counts()
    horizon_ratio = ratio if ratio > 0 else DEFAULT_RATIO[preset]  # only to place batch size and decay

    text_limited = False
    if preset == "classic":
        target_tokens = int(horizon_ratio * counts["total"])
        batch = total_batch_size if total_batch_size > 0 else REFERENCE_BATCH
        rule_decay = base_weight_decay or 0.0
    else:
        target_tokens = int(horizon_ratio * counts["scaling"])
        if target_tokens < 1:
            raise ValueError(f"param_data_ratio {ratio} leaves nothing to train on; raise it")
        reference_tokens = horizon_ratio * shape_at(REFERENCE_DEPTH).parameter_counts()["scaling"]
        by_ratio = param_data_ratio is None and max(num_iterations, total_tokens, target_flops) <= 0
        if by_ratio and text_tokens is not None and MAX_PASSES * text_tokens < target_tokens:
            text_limited, target_tokens = True, max(sequence_length, MAX_PASSES * text_tokens)
        batch = total_batch_size
        if batch <= 0:
            if preset == "small":
                lengths = (total_tokens, target_flops / shape.flops_per_token(), target_tokens)
                batch = small_batch(next(int(tokens) for tokens in lengths if tokens > 0), sequence_length)
            else:  # the nearest power of two
                batch = 2 ** round(math.log2(REFERENCE_BATCH * (target_tokens / reference_tokens) ** BATCH_EXPONENT))
            if text_limited:
                batch = min(batch, max(sequence_length, 2 ** int(math.log2(max(1, target_tokens / MIN_STEPS)))))
        # Keeps batch / (lr · decay · tokens) constant, AdamW's time scale of forgetting: arXiv 2405.13698.
        base = BASE_WEIGHT_DECAY if base_weight_decay is None else base_weight_decay
        rule_decay = base * math.sqrt(batch / REFERENCE_BATCH) * (reference_tokens / target_tokens)
    decay_bounded = preset != "classic" and base_weight_decay is None

    flops = shape.flops_per_token()
    if num_iterations > 0:
        iterations = num_iterations
    elif total_tokens > 0:
        iterations = max(1, round(total_tokens / batch))
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
        lr_scale=lr_scale(batch, preset),
        adam_dim_scale=(shape.hidden_size / REFERENCE_WIDTH) ** -0.5,
        weight_decay=bound_decay(rule_decay, lr_scale(batch, preset)) if decay_bounded else rule_decay,
        flops_per_token=flops,
        shape=shape,
        text_limited=text_limited,
        rule_decay=rule_decay,
        decay_bounded=decay_bounded,
        preset=preset,
    )


@dataclass(frozen=True)
class BatchPlan:
    """How a batch is made: processes · micro-batches per process · rows per micro-batch · tokens per row.

    Attributes:
        device_batch_size: rows per micro-batch.
        accumulation_steps: micro-batches per process and optimizer step.
        world_size: number of processes.
        sequence_length: tokens per row.
        wanted: tokens per step that were asked for; `total_batch_size` is as near as this division gets.
    """

    device_batch_size: int
    accumulation_steps: int
    world_size: int
    sequence_length: int
    wanted: int

    @property
    def total_batch_size(self) -> int:
        """Tokens per optimizer step."""
        return self.device_batch_size * self.accumulation_steps * self.world_size * self.sequence_length

    @property
    def exact(self) -> bool:
        """Whether the batch has the size that was asked for."""
        return self.total_batch_size == self.wanted

    def describe(self) -> str:
        """One line for a log."""
        text = f"batch of {self.total_batch_size:,} tokens = {self.world_size} processes × {self.accumulation_steps}"
        text += f" micro-batches × {self.device_batch_size} rows × {self.sequence_length}"
        if not self.exact:
            off = 100 * (self.total_batch_size / self.wanted - 1)
            text += f" (the nearest to {self.wanted:,} that fits, {off:+.1f} %)"
        return text


def fit_batch(total_batch_size: int, sequence_length: int, world_size: int, max_device_batch: int) -> BatchPlan:
    """Splits a batch over any number of processes: exactly where possible, else as near as possible.

    A micro-batch has at most `max_device_batch` rows. To keep devices busy, there are at most twice as many
    micro-batches per step as the fewest possible.

    Args:
        total_batch_size: tokens per step.
        sequence_length: tokens per row.
        world_size: number of processes.
        max_device_batch: most rows per micro-batch.

    Raises:
        ValueError: one of the numbers is less than 1.
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
    """Returns the dial with the batch that `world_size` processes can make, and how they make it.

    Args:
        dial: the dial, whose batch may not divide by the processes.
        world_size: number of processes.
        max_device_batch: most rows per micro-batch.
        keep_steps: keep the number of steps, where it was asked for, instead of the number of tokens.
    """
    batch = fit_batch(dial.total_batch_size, dial.shape.sequence_length, world_size, max_device_batch)
    fitted = dial.with_batch(batch.total_batch_size)
    return (replace(fitted, num_iterations=dial.num_iterations) if keep_steps else fitted), batch
