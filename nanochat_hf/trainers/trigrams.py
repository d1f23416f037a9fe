"""The start of a short run, second part: heads that add what the token before the last one says about the next.

After the fit of `bigrams`, a new model's logits depend on the last token only. Here most heads of one layer, or all of
two, look one token back, whatever stands there, and add a vector of the token that they find. These vectors are the
heads' value embeddings. They are fitted to the text's trigrams, together with embedding and head. All weights are
trained afterwards like any others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nanochat_hf.trainers import bigrams, induction
from nanochat_hf.trainers.bigrams import DISCOUNT, PairCounts, SmoothedTable, loss_and_gradients, ranges

FEWEST = 8  # times that a pair of tokens has to occur in the text; where none does, all pairs count
STEPS, PAIRS_PER_STEP = 250, 2048
SHARE_OF_RUN = 1 / 4  # of the run's floating point operations, which the fit may take at most
FEWEST_STEPS = 50
EMBEDDING_RATE, HEAD_RATE, TABLE_RATE = 0.002, 0.0002, 0.06  # Adam's
HEADS = 3 / 4  # of the layer's heads, which look back
GAIN = 4.0  # length of the vector that a value embedding of length 1 adds, before the gate's factor
ATTENTION = 0.9  # about the share of these heads' attention one token back


@dataclass(frozen=True)
class TripleCounts:
    """What follows pairs of tokens.

    Attributes:
        first, second: the two tokens of each frequent pair, int64 [pairs].
        starts: where the pair's entries begin, int64 [pairs + 1].
        third, count: a token and how often it follows the pair, int64 and float32 [entries].
    """

    first: torch.Tensor
    second: torch.Tensor
    starts: torch.Tensor
    third: torch.Tensor
    count: torch.Tensor


def fit_steps(vocab_size: int, hidden_size: int, run_flops: float) -> int:
    """Returns the number of steps of the fit that a run can afford; the arguments are those of `bigrams.fit_steps`."""
    steps = int(SHARE_OF_RUN * run_flops / (6 * PAIRS_PER_STEP * vocab_size * hidden_size))
    return min(STEPS, steps) if steps >= FEWEST_STEPS else 0


def layer_of_table(config: Any) -> int | None:
    """Returns the layer whose heads look back: the first with value embeddings, between the first and the last layer.

    None where there is none, or where no induction heads fit (see `induction.number_of_heads`).
    """
    inner = range(1, config.num_hidden_layers - 1)
    layers = [index for index in inner if config.has_value_embedding(index)]
    return layers[0] if layers and induction.number_of_heads(config) else None


def count_triples(
    source: str | Path | Sequence[str],
    tokenizer: Any,
    tokens: int,
    num_threads: int | None = None,
    **reading: Any,
) -> TripleCounts:
    """Counts what follows pairs of tokens in the beginning of the training split.

    Args:
        source, tokenizer, tokens, num_threads, reading: see `bigrams.count_pairs`.

    Raises:
        UserError: the source cannot be read.
    """
    ids = np.concatenate(list(bigrams.batches(source, tokenizer, tokens, num_threads, **reading)))
    return count_ids(ids, len(tokenizer))


def count_ids(ids: np.ndarray, vocab: int) -> TripleCounts:
    """Counts what follows pairs of tokens in int64 `ids`, which are below `vocab`."""
    keys, count = np.unique((ids[:-2] * vocab + ids[1:-1]) * vocab + ids[2:], return_counts=True)
    pairs, starts, of_pair = np.unique(keys // vocab, return_index=True, return_inverse=True)
    kinds, frequent = np.diff(np.append(starts, len(keys))), np.bincount(of_pair, count) >= FEWEST
    if not frequent.any():
        frequent[:] = True
    kept = np.repeat(frequent, kinds)
    first, second = np.divmod(pairs[frequent], vocab)
    return TripleCounts(
        torch.from_numpy(first),
        torch.from_numpy(second),
        torch.from_numpy(np.append(0, np.cumsum(kinds[frequent]))),
        torch.from_numpy(keys[kept] % vocab),
        torch.from_numpy(count[kept]).float(),
    )


def fit_trigrams(
    model: Any, pairs: PairCounts, triples: TripleCounts, steps: int = STEPS, verbose: bool = False
) -> float:
    """Writes heads that look one token back, and fits their value embeddings, embedding and head to counted triples.

    A step of Adam takes `PAIRS_PER_STEP` pairs, drawn by the square root of their frequency. What should follow a pair
    is smoothed: each count loses `DISCOUNT` to what follows the second token alone.

    Args:
        model: a new `NanochatHFForCausalLM` that `bigrams.fit_bigrams` has fitted without the last `induction.FREE`
            channels; it has a `layer_of_table`. Changed in place.
        pairs, triples: the counts. Their tokens are below the model's vocabulary size.
        steps: of Adam.
        verbose: show the progress.

    Returns:
        The mean loss of the last tenth of the steps, in nats per token of the pairs drawn.

    Raises:
        ValueError: the model has no `layer_of_table`.
    """
    config, base, layer = model.config, model.model, layer_of_table(model.config)
    if layer is None:
        raise ValueError("this model has no layer between the first and the last whose heads could look back")
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    device, (vocab, width) = head.device, head.shape
    fitted = (torch.arange(width, device=device) < width - induction.FREE).float()
    rank = round(HEADS * config.num_attention_heads) * config.head_dim
    directions = _directions(head.detach().float().cpu(), rank).to(device)
    states, weight = (part.detach().float().clone().requires_grad_() for part in (embedding, head))
    table = torch.zeros(vocab, directions.shape[1], device=device, requires_grad=True)
    own, added = _shares(base, layer)
    drawn = _Drawn(pairs, triples, vocab, device)
    losses, rates = [], [(states, EMBEDDING_RATE), (weight, HEAD_RATE), (table, TABLE_RATE)]
    for _ in bigrams.adam_steps(rates, steps, "fitting trigrams", verbose):
        first, second = drawn.next_pairs()
        last = own * F.rms_norm(F.embedding(second, states), (width,))
        hidden = F.rms_norm(last + added * ATTENTION * F.embedding(first, table) @ directions.T, (width,))
        loss, grad_hidden, weight.grad = loss_and_gradients(
            hidden.detach(), weight.detach(), drawn.wanted, config.final_logit_softcapping
        )
        losses.append(loss)
        states.grad, table.grad = torch.autograd.grad(hidden, (states, table), grad_hidden)
        for part in (states, weight):
            part.grad *= fitted
    with torch.no_grad():
        embedding.copy_(states)
        head.copy_(weight)
    _write_table(base, layer, table.detach().cpu(), directions.cpu())
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _directions(head: torch.Tensor, rank: int) -> torch.Tensor:
    """The head's largest directions outside the free channels, [width, rank]: they change the logits most."""
    used = head[:, : -induction.FREE]
    rank = min(rank, used.shape[1])
    _, vectors = torch.linalg.eigh((used - used.mean(0)).T @ (used - used.mean(0)))
    return F.pad(vectors[:, -rank:].flip(1), (0, 0, 0, induction.FREE)).contiguous()


@torch.no_grad()
def _shares(base: Any, layer: int) -> tuple[float, float]:
    """How much of a token's embedding, and of a value embedding of its layer, a new model's last state holds."""
    own, added, middle = 1.0, 0.0, (0.0, 0.0)
    for index in range(len(base.layers)):
        if base.config.residual_scalars:
            scale, initial = base.resid_lambdas[index].item(), base.x0_lambdas[index].item()
            own, added = scale * own + initial, scale * added
        if index == layer:
            added += induction.VALUE_GATE * GAIN
        if index == base.config.num_hidden_layers // 2:
            middle = own, added
    if base.config.backout:
        own, added = (end - base.backout_lambda.item() * half for end, half in zip((own, added), middle, strict=True))
    return own, added


def _write_table(base: Any, layer: int, table: torch.Tensor, directions: torch.Tensor) -> None:
    size = base.config.head_dim
    query, key = induction.one_token_back(base)
    for head, begin in enumerate(range(0, table.shape[1], size)):
        part = slice(begin, begin + size)
        output, tokens = GAIN * directions[:, part].T, table[:, part]
        missing = size - tokens.shape[1]  # where the heads' channels are more than the directions
        output, tokens = F.pad(output, (0, 0, 0, missing)), F.pad(tokens, (0, missing))
        induction.write_head(base, layer, head, query, key, torch.zeros_like(query), output, tokens)


class _Drawn:
    """Pairs of tokens, drawn anew for each step, and what should follow them."""

    def __init__(self, pairs: PairCounts, triples: TripleCounts, vocab: int, device: torch.device):
        self.shorter = SmoothedTable(pairs, vocab, device)
        self.first, self.second, self.starts, self.third, count = (
            part.to(device) for part in (triples.first, triples.second, triples.starts, triples.third, triples.count)
        )
        kinds = self.starts.diff()
        of_pair = torch.arange(len(kinds), device=device).repeat_interleave(kinds)
        occurs = torch.zeros(len(kinds), device=device).index_add_(0, of_pair, count)
        self.left = (count - DISCOUNT) / occurs[of_pair]
        self.given_away = DISCOUNT * kinds / occurs
        self.weights, self.generator = occurs.sqrt(), torch.Generator().manual_seed(0)
        self.below = self.weights.cpu().double().cumsum(0)  # the weights up to each pair

    def next_pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws pairs; returns their tokens."""
        points = torch.rand(PAIRS_PER_STEP, dtype=torch.float64, generator=self.generator) * self.below[-1]
        self.drawn = torch.searchsorted(self.below, points).to(self.first.device)
        self.share = self.weights[self.drawn] / self.weights[self.drawn].sum()
        return self.first[self.drawn], self.second[self.drawn]

    def wanted(self, rows: slice) -> torch.Tensor:
        """What should follow some of the drawn pairs, times the pair's share of the loss: float32 [rows, vocab]."""
        drawn = self.drawn[rows]
        goal = self.shorter.after(self.second[drawn]) * self.given_away[drawn, None]
        found, entries = ranges(self.starts[drawn], self.starts[drawn + 1])
        goal.index_put_((found, self.third[entries]), self.left[entries], accumulate=True)
        return goal * self.share[rows, None]
