"""Scoring token spans with any causal language model: the forward passes of CORE and of the exams.

Sequences are sorted by length, grouped into batches of at most `max_tokens` padded tokens and padded on the right. A
causal model's output at a position does not depend on what follows. So no attention mask is needed, and the scores do
not depend on how items were batched (up to floating-point rounding).
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns the rows as one tensor of int64 [rows, longest], filled up with `pad_id` on the right."""
    padded = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return padded.to(device)


def last_logits(model: torch.nn.Module, ids_BT: Tensor, keep: int) -> Tensor:
    """Logits of the last `keep` positions, [B, keep, V].

    The output head is a large share of a small model's work, so other positions are left out where the model can.
    """
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(input_ids=ids_BT, logits_to_keep=keep, use_cache=False).logits
    return model(input_ids=ids_BT, use_cache=False).logits[:, -keep:]


@torch.inference_mode()
def score_spans(
    model: torch.nn.Module, spans: Sequence[Span], *, max_tokens: int = 16384, pad_id: int = 0
) -> Iterator[list[tuple[int, SpanScore]]]:
    """Scores the spans batch by batch, and yields (index, score) pairs after each batch.

    Args:
        model: a causal language model.
        spans: what to score.
        max_tokens: padded tokens per forward pass; a single longer sequence is scored alone.
        pad_id: any valid token id; it has no influence on the scores.
    """
    device = next(model.parameters()).device
    for batch in plan_batches([len(span.ids) for span in spans], max_tokens):
        rows = [spans[index] for index in batch]
        ids_BT = pad_right([row.ids for row in rows], pad_id, device)
        length = ids_BT.shape[1]
        first = min(row.start for row in rows) - 1  # the position that predicts the first scored token
        logits = last_logits(model, ids_BT, keep=length - first)
        at_row = torch.cat([torch.full((row.end - row.start,), i) for i, row in enumerate(rows)]).to(device)
        at_token = torch.cat([torch.arange(row.start, row.end) for row in rows]).to(device)
        chosen = logits[at_row, at_token - 1 - first].float()  # [scored tokens, V]
        targets = ids_BT[at_row, at_token]
        sizes = [row.end - row.start for row in rows]
        losses = F.cross_entropy(chosen, targets, reduction="none").split(sizes)
        greedy = (chosen.argmax(dim=-1) == targets).split(sizes)
        means = torch.stack([loss.mean() for loss in losses]).tolist()
        all_greedy = torch.stack([hit.all() for hit in greedy]).tolist()
        yield [(i, SpanScore(m, g)) for i, m, g in zip(batch, means, all_greedy, strict=True)]


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
