"""Scoring tokens with any causal language model: the forward passes of CORE and of the exams.

The rows of a group begin with the same tokens, as the options of one item with few-shot examples do. These tokens are
read once per group into a key/value cache. The rows then read the rest over that cache. Groups are put together into
batches of similar length by [`plan_groups`]. The head computes logits at scored positions only.

No attention mask is needed. All cached beginnings of a batch have the same length: where one is longer, its last
tokens are read with the rows. Rows are padded on the right, and a causal model's output at a position does not depend
on what follows. So the scores do not depend on how items were batched, up to floating-point rounding.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_hf.settings import UserError

NOT_NUMBERS = (
    "the model's logits are not numbers (NaN): its weights are damaged or its training diverged; give another "
    "checkpoint, or --dtype float32"
)
MAX_GROUPS = 256  # per batch
# What one more forward pass costs, in tokens: it reads all weights and starts every kernel. Measured on a CPU at depth
# 6 (28 ms against 0.45 ms per token). For GPUs an estimate: 5 ms at 400,000 tokens per second.
FORWARD_COST = {"cpu": 60}
FORWARD_COST_ELSEWHERE = 2048
# Larger batches are no faster on a CPU: their activations leave its caches.
CPU_TOKENS_PER_FORWARD = 2048
# A cached token is copied for each row that reads over it, which costs this share of reading a token.
COPY_COST = 0.02


@dataclass(frozen=True)
class Span:
    """A token sequence of which `ids[start:end]` is scored, given all tokens before it; 1 <= start <= end."""

    ids: list[int]
    start: int
    end: int

    def crop(self, max_length: int | None) -> "Span":
        """Keeps the last `max_length` tokens; one token before the scored ones always stays as their context."""
        extra = len(self.ids) - max_length if max_length else 0
        if extra <= 0:
            return self
        return Span(self.ids[extra:], max(1, self.start - extra), max(1, self.end - extra))


@dataclass(frozen=True)
class SpanScore:
    """Score of one span.

    Attributes:
        mean_loss: nats per token; NaN for an empty span.
        is_greedy: whether every scored token is the model's most likely one.
    """

    mean_loss: float
    is_greedy: bool


@dataclass(frozen=True)
class Row:
    """Tokens to read. Logits are wanted at the positions from `first` to the end; there may be none."""

    ids: list[int]
    first: int


@dataclass(frozen=True)
class Batch:
    """Groups that are read together.

    Attributes:
        groups: their indices.
        shared: number of tokens at the beginning of their rows that are read once per group; 0 reads rows whole.
    """

    groups: list[int]
    shared: int


# ---- plans ---------------------------------------------


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups the indices of `lengths` into batches with rows × longest row <= max_tokens.

    A single row that is longer than `max_tokens` is a batch of its own. The longest rows come first, so that a lack of
    memory shows early.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def plan_groups(
    groups: Sequence[Sequence[Row]], max_tokens: int, *, forward_cost: float = 60, share: bool = True
) -> list[Batch]:
    """Puts groups together into the batches of least cost.

    The cost is the number of tokens read, padding included, plus `forward_cost` per forward pass. Groups are sorted by
    the length of what their rows share, then by their longest row. The best cuts of that order are found by dynamic
    programming.

    Args:
        groups: rows per group.
        max_tokens: padded tokens per forward pass, cached ones included. A larger group is a batch of its own.
        forward_cost: cost of a forward pass in tokens.
        share: whether the model can read rows over a cache.

    Returns:
        The batches, the longest rows first, so that a lack of memory shows early.
    """
    shapes = [
        (shared_length(rows) if share else 0, max((len(row.ids) for row in rows), default=0), len(rows))
        for rows in groups
    ]
    order = sorted((index for index, rows in enumerate(groups) if rows), key=lambda index: (shapes[index][:2], index))
    least, begin, sharing = [0.0], [0], [0]  # of the batches up to each end
    for end in range(1, len(order) + 1):
        least.append(float("inf")), begin.append(0), sharing.append(0)
        longest = rows = 0
        for start in range(end - 1, max(-1, end - 1 - MAX_GROUPS), -1):
            shared, length, count = shapes[order[start]]  # `shared` is the smallest of the batch
            longest, rows = max(longest, length), rows + count
            if end - start > 1 and rows * longest > max_tokens:
                break
            forwards = -(-rows // _rows_per_forward(longest, max_tokens))
            costs = {0: rows * longest + forward_cost * forwards}
            if shared:
                over_cache = rows * (longest - shared) + forward_cost * forwards if longest > shared else 0.0
                costs[shared] = (end - start + COPY_COST * rows) * shared + forward_cost + over_cache
            best = min(costs, key=costs.__getitem__)
            if least[start] + costs[best] < least[end]:
                least[end], begin[end], sharing[end] = least[start] + costs[best], start, best
    batches, end = [], len(order)
    while end:
        batches.append(Batch(order[begin[end] : end], sharing[end]))
        end = begin[end]
    return sorted(batches, key=lambda batch: -max(shapes[index][1] for index in batch.groups))


def shared_length(rows: Sequence[Row]) -> int:
    """Number of tokens at the beginning of all rows that can be read once; 0 for a single row.

    Logits are wanted at the last of these tokens at most, because only its logits are computed with the shared part.
    """
    if len(rows) < 2:
        return 0
    return min(common_prefix([row.ids for row in rows]), 1 + min(row.first for row in rows))


def common_prefix(rows: Sequence[list[int]]) -> int:
    """Number of tokens with which all rows begin."""
    lowest, highest = min(rows), max(rows)  # in lexicographic order: what these two share, all share
    for position, (one, other) in enumerate(zip(lowest, highest, strict=False)):
        if one != other:
            return position
    return min(len(lowest), len(highest))


def _rows_per_forward(longest: int, max_tokens: int) -> int:
    return max(1, max_tokens // max(1, longest))


# ---- forward passes ------------------------------------


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns the rows as one tensor of int64 [rows, longest], filled up with `pad_id` on the right."""
    padded = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return padded.to(device)


@torch.inference_mode()
def read_groups(
    model: torch.nn.Module, groups: Sequence[Sequence[Row]], *, max_tokens: int = 16384
) -> Iterator[tuple[list[int], Tensor]]:
    """Reads groups of rows batch by batch.

    Args:
        model: a causal language model in evaluation mode.
        groups: rows per group.
        max_tokens: padded tokens per forward pass, cached ones included; a single longer row is read alone.

    Yields:
        The indices of a batch's groups, and the wanted logits in fp32 [wanted positions, V]: group after group in that
        order, row after row, position after position.

    Raises:
        UserError: the model computes NaN.
    """
    device = next(model.parameters()).device
    on_cpu = device.type == "cpu"
    limit = min(max_tokens, CPU_TOKENS_PER_FORWARD) if on_cpu else max_tokens
    cost = FORWARD_COST.get(device.type, FORWARD_COST_ELSEWHERE)
    for batch in plan_groups(groups, limit, forward_cost=cost, share=reads_over_cache(model)):
        rows = [row for index in batch.groups for row in groups[index]]
        cache, at_shared = None, None
        if batch.shared:
            beginnings = [groups[index][0].ids[: batch.shared] for index in batch.groups]
            cache = new_cache(model)
            at_shared = _forward(model, torch.tensor(beginnings, device=device), [batch.shared - 1] * len(beginnings),
                                 range(len(beginnings)), cache)  # fmt: skip
        group_of_row = [number for number, index in enumerate(batch.groups) for _ in groups[index]]
        step = _rows_per_forward(max(len(row.ids) for row in rows), limit)
        parts = []
        for start in range(0, len(rows), step):
            chunk = slice(start, start + step)
            parts += _read_rows(model, rows[chunk], batch.shared, group_of_row[chunk], cache, at_shared)
        logits = torch.cat(parts)
        if logits.isnan().any():  # comparisons with NaN are false, so some option would win
            raise UserError(NOT_NUMBERS)
        yield batch.groups, logits if logits.ndim == 2 else logits.view(0, 1)


def _read_rows(
    model: torch.nn.Module,
    rows: Sequence[Row],
    shared: int,
    groups: Sequence[int],
    cache: Any | None,
    at_shared: Tensor | None,
) -> list[Tensor]:
    """The wanted logits of each row, [wanted positions, V]. What the rows share is in the cache already.

    Args:
        rows: the rows; their first `shared` tokens are in the cache.
        shared: tokens in the cache.
        groups: per row, the row of the cache that it continues.
        cache: keys and values of what is shared; None without.
        at_shared: logits at the last shared token, [rows of the cache, V]; None without.
    """
    device = next(model.parameters()).device
    at_row = [number for number, row in enumerate(rows) for _ in range(max(row.first, shared), len(row.ids))]
    at_token = [token for row in rows for token in range(max(row.first, shared) - shared, len(row.ids) - shared)]
    if at_row:
        ids = pad_right([row.ids[shared:] for row in rows], 0, device)
        logits = _forward(model, ids, at_token, at_row, _cache_of_rows(cache, groups) if cache is not None else None)
    else:  # `torch.cat` takes an empty vector together with logits of any vocabulary
        logits = torch.zeros(0, device=device)
    counts = [len(row.ids) - max(row.first, shared) for row in rows]
    found = list(logits.split(counts))
    if at_shared is not None:
        for number, row in enumerate(rows):
            if row.first < shared:
                found[number] = torch.cat([at_shared[groups[number], None], found[number]])
    return found


def _forward(
    model: torch.nn.Module, ids_BT: Tensor, at_token: Sequence[int], at_row: Sequence[int], cache: Any | None
) -> Tensor:
    """Logits in fp32 [N, V] at N positions (`at_row`, `at_token`) of a forward pass; `cache` is read and extended."""
    where = torch.tensor(at_row, device=ids_BT.device), torch.tensor(at_token, device=ids_BT.device)
    options: dict[str, Any] = {"use_cache": cache is not None}
    if cache is not None:
        options["past_key_values"] = cache
    with head_reads_only(model, where):
        logits = model(input_ids=ids_BT, **options).logits
    if logits.shape[:2] != (1, len(at_row)):  # the model has no head of its own, or calls it in another way
        logits = logits[where].unsqueeze(0)
    return logits[0].float()


@contextmanager
def head_reads_only(model: torch.nn.Module, where: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Within this context the output head sees hidden states at N positions only: [1, N, C] instead of [B, T, C].

    The head is a large share of a small model's work, and soft caps and losses over the whole vocabulary come on top.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][where].unsqueeze(0), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def new_cache(model: torch.nn.Module) -> Any:
    """An empty key/value cache for the model."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def reads_over_cache(model: torch.nn.Module) -> bool:
    """Whether a model can read several rows over one cached beginning: its layers cache keys and values, no state."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if "past_key_values" not in inspect.signature(model.forward).parameters or getattr(model, "_is_stateful", False):
        return False
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in plain for layer in new_cache(model).layers)


def _cache_of_rows(cache: Any, groups: Sequence[int]) -> Any:
    """A cache with one row per entry of `groups`, taken from that row of `cache`, which stays as it is."""
    rows = copy.copy(cache)
    rows.layers = [copy.copy(layer) for layer in cache.layers]
    index = torch.tensor(groups, device=rows.layers[0].keys.device)
    rows.batch_select_indices(index)
    return rows


# ---- scores --------------------------------------------


@torch.inference_mode()
def score_groups(
    model: torch.nn.Module, groups: Sequence[Sequence[Span]], *, max_tokens: int = 16384
) -> Iterator[list[tuple[int, list[SpanScore]]]]:
    """Scores groups of spans batch by batch, and yields (index of the group, its scores) pairs after each batch.

    Args:
        model: a causal language model in evaluation mode.
        groups: spans per group; the spans of a group may begin with the same tokens, which are then read once.
        max_tokens: padded tokens per forward pass; a single longer sequence is scored alone.
    """
    # The last token of a span predicts nothing that is scored, so it is not read.
    rows = [[Row(span.ids[: span.end - 1], span.start - 1) for span in spans] for spans in groups]
    for batch, logits in read_groups(model, rows, max_tokens=max_tokens):
        spans = [span for index in batch for span in groups[index]]
        sizes = [span.end - span.start for span in spans]
        targets = torch.tensor([token for span in spans for token in span.ids[span.start : span.end]])
        targets = targets.to(device=logits.device, dtype=torch.long)
        losses = F.cross_entropy(logits, targets, reduction="none").split(sizes)
        greedy = (logits.argmax(dim=-1) == targets).split(sizes)
        means = torch.stack([loss.mean() for loss in losses]).tolist()
        all_greedy = torch.stack([hit.all() for hit in greedy]).tolist()
        scores = iter([SpanScore(mean, hit) for mean, hit in zip(means, all_greedy, strict=True)])
        yield [(index, [next(scores) for _ in groups[index]]) for index in batch]


def distributed_rank() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) outside a process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def gather_sum(values: Tensor) -> Tensor:
    """Sums a tensor over all processes, in place, and returns it."""
    if distributed_rank()[1] > 1:
        torch.distributed.all_reduce(values)
    return values
