"""The start of a short run: embedding and head are fitted to the text's bigrams, the pairs of neighbouring tokens.

The last matrices of each layer begin at zero, so a new model's logits are head · norm(embedding of the last token): a
table of bigrams, of limited rank. A text's pairs are counted in seconds. Training needs more than half a million
tokens to find the same table. All counts together make a gradient without noise, so some steps of Adam are enough.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nanochat_hf.data.row_stream import as_encoder
from nanochat_hf.data.sources import open_documents
from nanochat_hf.model.loss_nanochat_hf import soft_cap_gradient, soft_cap_in_place
from nanochat_hf.model.products_nanochat_hf import onednn_products
from nanochat_hf.progress import progress_bar

TOKENS = 2**24  # of the text that are counted at most
LONGEST_RUN = 2**22  # tokens of the longest run that starts so by default: it gains at 3 million, loses at 6
TOKENS_AT_ONCE = 2**22  # counted before the counts are merged
DOCUMENTS_AT_ONCE = 1024  # tokenized at once
DISCOUNT = 0.75  # of every count, given to the unigrams (absolute discounting, Ney, Essen and Kneser 1994)
STEPS = 40
SHARE_OF_RUN = 1 / 2  # of the run's floating point operations, which the fit may take at most
FEWEST_STEPS = 16  # with fewer, the fit is not far enough for the low rates that follow it
EMBEDDING_RATE, HEAD_RATE = 0.2, 0.03 * 256  # Adam's; the head's is divided by the width
FLAT = 0.4  # share of the steps at the full rate; then it falls to zero
CACHED_LOGITS, LOGITS_AT_ONCE = 2**20, 2**24  # computed at once on a CPU and on other devices
FEWEST_ROWS = 128  # at once; with fewer, the matrix products are slow


@dataclass(frozen=True)
class BigramStart:
    """Whether a run starts from bigrams.

    Attributes:
        tokens: how many tokens of the text are to be counted.
        steps: of the fit; 0: the run starts from noise.
        trigram_steps: of the fit to trigrams that follows, where the model has room for it.
        reason: why the run starts from noise, where a reader may expect otherwise.
        resumed: whether the run goes on from a checkpoint, so that the start lies behind it.
    """

    tokens: int = 0
    steps: int = 0
    trigram_steps: int = 0
    reason: str = ""
    resumed: bool = False

    def as_dict(self) -> dict[str, int]:
        """What is recorded of it."""
        further = {"trigram_steps": self.trigram_steps} if self.trigram_steps else {}  # older records are without
        return {"tokens": self.tokens, "steps": self.steps} | further

    def describe(self) -> str:
        """A line for the user; "" where there is nothing to say."""
        if self.resumed:
            return ""
        if self.steps:
            further = f", value embeddings to its trigrams in {self.trigram_steps}" if self.trigram_steps else ""
            return (
                f"start: embedding and head are fitted to the bigrams of {self.tokens:,} tokens of the text in "
                f"{self.steps} steps{further} (--bigram_tokens 0 starts without it)"
            )
        return f"start: random weights, as {self.reason}" if self.reason else ""


@dataclass(frozen=True)
class PairCounts:
    """How often tokens follow each other.

    Attributes:
        tokens: number of tokens that were counted.
        first, second: the two tokens of each pair that occurs, int64 [pairs], in order.
        count: float32 [pairs].
    """

    tokens: int
    first: torch.Tensor
    second: torch.Tensor
    count: torch.Tensor


def fit_steps(vocab_size: int, hidden_size: int, run_flops: float) -> int:
    """Returns the number of steps of the fit that a run can afford, 0 where it is too short for one.

    Args:
        vocab_size, hidden_size: of the model; a step takes 6 · vocab_size² · hidden_size floating point operations.
        run_flops: of the whole training run.
    """
    steps = int(SHARE_OF_RUN * run_flops / (6 * vocab_size**2 * hidden_size))
    return min(STEPS, steps) if steps >= FEWEST_STEPS else 0


def count_pairs(
    source: str | Path | Sequence[str],
    tokenizer: Any,
    tokens: int = TOKENS,
    num_threads: int | None = None,
    **reading: Any,
) -> PairCounts:
    """Counts the neighbouring tokens in the beginning of the training split.

    Args:
        source: see `nanochat_hf.data.sources.open_documents`.
        tokenizer: or an encoder, see `nanochat_hf.data.row_stream.as_encoder`.
        tokens: reading ends after the batch of documents that reaches this number, or with the text.
        num_threads: tokenizing threads; default: all cores.
        reading: options of `open_documents`.

    Raises:
        UserError: the source cannot be read.
    """
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    counted, vocab = 0, len(tokenizer)
    for ids in batches(source, tokenizer, tokens, num_threads, **reading):
        found, times = np.unique(ids[:-1] * vocab + ids[1:], return_counts=True)
        keys, inverse = np.unique(np.concatenate([keys, found]), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate([counts, times])).astype(np.int64)
        counted += len(ids)
    first, second = (torch.from_numpy(part) for part in np.divmod(keys, vocab))
    return PairCounts(counted, first, second, torch.from_numpy(counts).float())


def batches(
    source: str | Path | Sequence[str], tokenizer: Any, tokens: int, num_threads: int | None, **reading: Any
) -> Iterator[np.ndarray]:
    """Yields the ids of whole documents, int64, about `TOKENS_AT_ONCE` of them and `tokens` in all.

    The arguments are those of `count_pairs`.
    """
    documents, encoder = open_documents(source, "train", **reading), as_encoder(tokenizer, num_threads)
    waiting: list[np.ndarray] = []
    size = 0
    while tokens > 0 and (texts := documents.next_batch(DOCUMENTS_AT_ONCE)):
        ids, _ = encoder.encode_batch(texts)
        waiting.append(ids.astype(np.int64))
        size, tokens = size + len(ids), tokens - len(ids)
        if size >= TOKENS_AT_ONCE:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if size:
        yield np.concatenate(waiting)


def fit_bigrams(model: Any, pairs: PairCounts, steps: int = STEPS, verbose: bool = False, free: int = 0) -> float:
    """Fits embedding and head of a new model to counted pairs, by Adam on all pairs at once.

    The table's entries are smoothed: each count loses `DISCOUNT` to the frequencies of single tokens.

    Args:
        model: with embedding, head and soft cap of a `NanochatHFForCausalLM`; changed in place.
        pairs: the counts. Their tokens are below the model's vocabulary size.
        steps: of Adam.
        verbose: show the progress.
        free: how many of the last channels are left to others. The embedding becomes 0 there, and 1 in the last one;
            the head becomes 0.

    Returns:
        The model's loss against the smoothed table before the last step, in nats per token.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    vocab, width = head.shape
    table = SmoothedTable(pairs, vocab, head.device)
    states, weight = (part.detach().float().clone().requires_grad_() for part in (embedding, head))
    fitted = (torch.arange(width, device=head.device) < width - free).float()
    with torch.no_grad():
        states.mul_(fitted)
        weight.mul_(fitted)
        if free > 0:
            states[:, -1] = 1.0
    loss, rates = 0.0, [(states, EMBEDDING_RATE), (weight, HEAD_RATE / width)]
    for _ in adam_steps(rates, steps, "fitting bigrams", verbose):
        hidden = F.rms_norm(states, (width,))
        loss, grad_hidden, weight.grad = loss_and_gradients(
            hidden.detach(), weight.detach(), table.joint, model.config.final_logit_softcapping
        )
        (states.grad,) = torch.autograd.grad(hidden, states, grad_hidden)
        for part in (states, weight):
            part.grad *= fitted
    with torch.no_grad():
        embedding.copy_(states)
        head.copy_(weight)
    return loss


def adam_steps(rates: Sequence[tuple[torch.Tensor, float]], steps: int, name: str, verbose: bool) -> Iterator[None]:
    """Yields before each step of Adam, for the caller to set the gradients.

    Args:
        rates: tensors and their full rates, which hold for the share `FLAT` of the steps and then fall to zero.
        steps: of Adam.
        name, verbose: of the progress bar, and whether it is shown.
    """
    optimizer = torch.optim.Adam([{"params": [part]} for part, _ in rates], betas=(0.8, 0.95))
    for step in progress_bar(range(steps), desc=name, unit=" steps", disable=not verbose):
        for group, (_, rate) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (steps - step) / ((1 - FLAT) * steps))
        yield
        optimizer.step()


def loss_and_gradients(
    hidden: torch.Tensor, weight: torch.Tensor, wanted: Callable[[slice], torch.Tensor], cap: float | None
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Returns a cross-entropy in nats and its gradients by `hidden` [N, width] and `weight` [vocab, width].

    Some rows at a time, so that on a CPU the logits stay in its last cache.

    Args:
        hidden: final states.
        weight: of the head.
        wanted: returns the probabilities that some of the N rows should have, float32 [rows, vocab]; all sum to 1.
        cap: soft cap of the logits.
    """
    grad_hidden, grad_weight, loss = torch.empty_like(hidden), torch.zeros_like(weight), 0.0
    rows = max(FEWEST_ROWS, (CACHED_LOGITS if weight.device.type == "cpu" else LOGITS_AT_ONCE) // len(weight))
    with onednn_products():
        for begin in range(0, len(hidden), rows):
            here = slice(begin, min(begin + rows, len(hidden)))
            goal = wanted(here)
            logits, squashed = soft_cap_in_place(F.linear(hidden[here], weight), cap)
            log_probs = logits.log_softmax(1)
            loss -= torch.dot(goal.flatten(), log_probs.flatten()).item()
            grad = log_probs.exp_().mul_(goal.sum(1, keepdim=True)).sub_(goal)
            grad = soft_cap_gradient(grad, squashed)
            grad_hidden[here] = grad @ weight
            grad_weight.addmm_(grad.T, hidden[here])
    return loss, grad_hidden, grad_weight


class SmoothedTable:
    """The probabilities of pairs of tokens, a few rows at a time.

    Args:
        pairs: the counts.
        vocab: number of rows and columns.
        device: where the rows are made.
    """

    def __init__(self, pairs: PairCounts, vocab: int, device: torch.device):
        self.first, self.second, count = (part.to(device) for part in (pairs.first, pairs.second, pairs.count))
        by_row = torch.zeros(vocab, device=device).index_add_(0, self.first, count)
        by_column = torch.zeros(vocab, device=device).index_add_(0, self.second, count)
        kinds = torch.zeros(vocab, device=device).index_add_(0, self.first, torch.ones_like(count))
        total = by_row.sum()
        self.unigrams = by_column / total
        self.discounted = (count - DISCOUNT) / total
        self.given_away = DISCOUNT * kinds / total  # per row
        self.by_row = by_row / total
        self.starts = torch.searchsorted(self.first, torch.arange(vocab + 1, device=device))
        self.ends = self.starts.tolist()

    def joint(self, rows: slice) -> torch.Tensor:
        """The probabilities of the pairs whose first token is one of `rows`: float32 [rows, vocab]."""
        table = self.given_away[rows, None] * self.unigrams
        here = slice(self.ends[rows.start], self.ends[rows.stop])
        table.index_put_((self.first[here] - rows.start, self.second[here]), self.discounted[here], accumulate=True)
        return table

    def after(self, tokens: torch.Tensor) -> torch.Tensor:
        """The probabilities of what follows each of `tokens` [n]: float32 [n, vocab]."""
        table = self.given_away[tokens, None] * self.unigrams
        rows, entries = ranges(self.starts[tokens], self.starts[tokens + 1])
        table.index_put_((rows, self.second[entries]), self.discounted[entries], accumulate=True)
        return table / self.by_row[tokens, None].clamp_min(torch.finfo(torch.float32).tiny)


def ranges(starts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns all numbers of n ranges, one after the other, and before them the number of each one's range."""
    sizes = ends - starts
    rows = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    within = torch.arange(len(rows), device=sizes.device) - (sizes.cumsum(0) - sizes)[rows]
    return rows, starts[rows] + within
