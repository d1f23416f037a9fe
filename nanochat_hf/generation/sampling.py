"""Sampling of the next token from logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nanochat_hf.settings import CHAT_SAMPLING, UserError

LEAST_TEMPERATURE = 1e-6  # below it the most likely token is taken; divided by less, logits would become infinite


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled. The filters apply in the order temperature, top-k, min-p, top-p.

    Attributes:
        max_new_tokens: the largest number of tokens after a prompt, tool outputs included.
        temperature: divides the logits; 0, and less than `LEAST_TEMPERATURE`, always takes the most likely token.
        top_k: keeps the k most likely tokens; None or 0 keeps all.
        top_p: keeps the most likely tokens until their probabilities sum to p (arXiv:1904.09751); None or 1 keeps all.
        min_p: drops tokens less likely than p times the most likely one (arXiv:2407.01082); None or 0 keeps all.

    Raises:
        ValueError: a setting is out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or positive, not {self.temperature}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must lie in [0, 1), not {self.min_p}")

    def draw(
        self, logits: torch.Tensor, generator: torch.Generator | None = None, soft_cap: float | None = None
    ) -> torch.Tensor:
        """Samples one token per row, each row on its own.

        Args:
            logits: [R, V], before `soft_cap`.
            generator: of the random numbers, on the logits' device; None takes torch's default generator.
            soft_cap: limits the logits to (-soft_cap, soft_cap) by a scaled tanh. It keeps their order, so it is
                applied after top-k, to k logits instead of V.

        Returns:
            int64 token ids [R].
        """
        if self.temperature < LEAST_TEMPERATURE:
            return logits.argmax(dim=-1)
        tokens = None
        if self.top_k:
            logits, tokens = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1)  # in descending order
        elif self.min_p or (self.top_p or 1) < 1:
            logits, tokens = logits.sort(dim=-1, descending=True)
        if soft_cap is not None:
            logits = soft_cap * torch.tanh(logits / soft_cap)
        probabilities = (logits / self.temperature).softmax(dim=-1)
        if self.min_p:
            probabilities = probabilities.masked_fill(probabilities < self.min_p * probabilities[:, :1], 0)
        if (self.top_p or 1) < 1:
            total = probabilities.sum(dim=-1, keepdim=True)
            before = probabilities.cumsum(dim=-1) - probabilities  # sum over the more likely tokens; 0 for the first
            probabilities = probabilities.masked_fill(before >= self.top_p * total, 0)
        # The argmax of p / Exp(1) is a sample from p; torch.multinomial does the same, with checks that cost time.
        noise = torch.empty_like(probabilities).exponential_(generator=generator)
        choice = (probabilities / noise).argmax(dim=-1, keepdim=True)
        return (choice if tokens is None else tokens.gather(-1, choice)).squeeze(-1)


def read_sampling(pairs: Sequence[str], called: str) -> dict[str, Any]:
    """Reads `name=value` pairs of temperature, top_k, top_p and min_p, such as `temperature=0.3`.

    Args:
        pairs: may be empty.
        called: the setting that they come from, for errors.

    Raises:
        UserError: a name or a value is wrong.
    """
    kinds = {"temperature": float, "top_k": int, "top_p": float, "min_p": float}
    found: dict[str, Any] = {}
    for name, _, value in (pair.partition("=") for pair in pairs):
        try:
            found[name.strip()] = kinds[name.strip()](value)
        except (KeyError, ValueError):
            raise UserError(
                f"{called} has {name}={value}; give temperature, top_k, top_p or min_p with a number, "
                "such as temperature=0.3"
            ) from None
    return found


def default_sampling(model: Any) -> dict[str, Any]:
    """Returns temperature, top_k, top_p and min_p for chats with a model; a top_k of 0 and None are off.

    They come from its `generation_config` if that says `do_sample`, as checkpoints with `default_sampling` in their
    recipe have it; else they are `CHAT_SAMPLING`.
    """
    config = getattr(model, "generation_config", None)
    if not getattr(config, "do_sample", None):
        return dict(CHAT_SAMPLING)
    temperature = 1.0 if config.temperature is None else config.temperature
    filters = {name: getattr(config, name, None) for name in ("top_k", "top_p", "min_p")}
    return {"temperature": float(temperature), **filters}
