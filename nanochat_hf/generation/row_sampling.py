"""Sampling in a batch whose rows have settings of their own: what a server needs.

[`Sampling`] has one setting for a whole batch. Here each row has its own temperature, filters, penalties, biases and
random numbers. So what a row draws depends on its own request only.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nanochat_hf.generation.sampling import LEAST_TEMPERATURE


@dataclass(frozen=True)
class RowSettings:
    """How one row samples. The filters apply in the order temperature, top-k, min-p, top-p, as in [`Sampling`].

    Attributes:
        temperature: divides the logits; 0, and less than `LEAST_TEMPERATURE`, always takes the most likely token.
        top_k, top_p, min_p: as in [`Sampling`]; None is off.
        frequency_penalty: subtracted from a token's logit per time that the row has written it.
        presence_penalty: subtracted once from the logit of each token that the row has written.
        repetition_penalty: divides positive logits of tokens in prompt and answer, multiplies negative ones
            (arXiv:1909.05858); 1 is off.
        bias: token id → what is added to its logit; minus infinity forbids it.
        seed: of this row's random numbers, any integer; None takes other numbers each time.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias: dict[int, float] = field(default_factory=dict)
    seed: int | str | None = None


class RowSampler:
    """Draws the tokens of one row; keeps its random numbers and the tokens that it has written."""

    def __init__(self, settings: RowSettings, prompt: Sequence[int]):
        self.settings = settings
        self.random = random.Random(settings.seed)
        self.written: Counter[int] = Counter()
        self.seen = set(prompt) if settings.repetition_penalty != 1 else set()

    def add(self, token: int) -> None:
        """Notes that the row has written this token."""
        settings = self.settings
        if settings.frequency_penalty or settings.presence_penalty:
            self.written[token] += 1
        if settings.repetition_penalty != 1:
            self.seen.add(token)

    def adjusts(self) -> bool:
        """Whether [`RowSampler.adjust`] changes anything."""
        return bool(self.written or self.seen or self.settings.bias)

    def adjust(self, logits: torch.Tensor) -> None:
        """Applies penalties and biases to this row's logits [V], in place."""
        settings, device = self.settings, logits.device
        if self.seen:
            ids = torch.tensor(sorted(self.seen), device=device)
            values, factor = logits[ids], settings.repetition_penalty
            largest = torch.finfo(logits.dtype).max  # a tiny factor must not make a logit infinite
            logits[ids] = torch.where(values > 0, values / factor, values * factor).clamp(-largest, largest)
        if self.written:
            ids = torch.tensor(list(self.written), device=device)
            counts = torch.tensor(list(self.written.values()), device=device, dtype=logits.dtype)
            logits[ids] -= settings.frequency_penalty * counts + settings.presence_penalty
        if settings.bias:
            ids = torch.tensor(list(settings.bias), device=device)
            logits[ids] += torch.tensor(list(settings.bias.values()), device=device, dtype=logits.dtype)


def draw_rows(logits: torch.Tensor, samplers: Sequence[RowSampler]) -> list[int]:
    """Samples one token per row, each by its own settings.

    Args:
        logits: fp32 [R, V]; changed in place where a row has penalties or biases.
        samplers: R of them.

    Returns:
        R token ids.
    """
    for row, sampler in enumerate(samplers):
        if sampler.adjusts():
            sampler.adjust(logits[row])
    groups: dict[str, list[int]] = {"greedy": [], "top_k": [], "sorted": [], "plain": []}
    for row, sampler in enumerate(samplers):
        settings = sampler.settings
        if settings.temperature < LEAST_TEMPERATURE:
            kind = "greedy"
        elif settings.top_k:
            kind = "top_k"
        else:
            kind = "sorted" if settings.min_p or (settings.top_p or 1) < 1 else "plain"
        groups[kind].append(row)
    tokens = [0] * len(samplers)
    for kind, rows in groups.items():
        if not rows:
            continue
        chosen = logits if len(rows) == len(samplers) else logits[rows]
        group = [samplers[row] for row in rows]
        ids = chosen.argmax(dim=-1) if kind == "greedy" else _draw(chosen, group, kind)
        for row, token in zip(rows, ids.tolist(), strict=True):
            tokens[row] = token
    return tokens


def _draw(logits: torch.Tensor, samplers: Sequence[RowSampler], kind: str) -> torch.Tensor:
    """Samples [R, V] → [R] by inverting each row's cumulative distribution at one random number."""
    settings, tokens = [sampler.settings for sampler in samplers], None
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # Apple's GPUs have no float64

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=exact, device=logits.device).unsqueeze(1)

    if kind == "top_k":
        widest = min(max(each.top_k or 0 for each in settings), logits.shape[-1])
        logits, tokens = logits.topk(widest, dim=-1)
        ranks = torch.arange(widest, device=logits.device)
        logits = logits.masked_fill(ranks >= column([each.top_k or 0 for each in settings]), -math.inf)
    elif kind == "sorted":
        logits, tokens = logits.sort(dim=-1, descending=True)
    logits = logits.to(exact)
    if exact == torch.float32:  # where a quotient by a small temperature could overflow
        logits = logits - logits.amax(dim=-1, keepdim=True)
    probabilities = (logits / column([each.temperature for each in settings])).softmax(dim=-1)
    if any(each.min_p for each in settings):
        least = column([each.min_p or 0.0 for each in settings]) * probabilities[:, :1]
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    cumulative = probabilities.cumsum(dim=-1)
    if any((each.top_p or 1) < 1 for each in settings):
        limit = column([each.top_p or 1.0 for each in settings])
        limit = torch.where(limit < 1, limit * cumulative[:, -1:], math.inf)
        probabilities = probabilities.masked_fill(cumulative - probabilities >= limit, 0)
        cumulative = probabilities.cumsum(dim=-1)
    target = column([sampler.random.random() for sampler in samplers]) * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, target, right=True)
    last = (probabilities > 0).long() * torch.arange(1, probabilities.shape[-1] + 1, device=logits.device)
    choice = torch.minimum(choice, last.max(dim=-1, keepdim=True).values - 1)  # rounding may reach the very end
    choice = choice.clamp(min=0)  # where no token has a probability: all are forbidden, or the model gave NaN
    return (choice if tokens is None else tokens.gather(-1, choice)).squeeze(-1)
