"""Drawing the next token."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The filters apply in the order temperature, top-k, min-p, top-p.

    Attributes:
        max_new_tokens: tokens added to a prompt at most, tool outputs included.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keeps the k likeliest tokens; None or 0 keeps all.
        top_p: keeps the likeliest tokens whose probabilities reach p together (arXiv:1904.09751); None or 1 keeps all.
        min_p: drops tokens less likely than p times the likeliest (arXiv:2407.01082); None or 0 keeps all.
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
        """[rows, vocab] logits → [rows] token ids, every row drawn on its own.

        Args:
            soft_cap: squashes the logits into (-soft_cap, soft_cap). That keeps their order, so it comes after top-k,
                to k logits instead of all.
        """
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        tokens = None
        if self.top_k:
            logits, tokens = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1)  # in falling order
        elif self.min_p or (self.top_p or 1) < 1:
            logits, tokens = logits.sort(dim=-1, descending=True)
        if soft_cap is not None:
            logits = soft_cap * torch.tanh(logits / soft_cap)
        probabilities = (logits / self.temperature).softmax(dim=-1)
        if self.min_p:
            probabilities = probabilities.masked_fill(probabilities < self.min_p * probabilities[:, :1], 0)
        if (self.top_p or 1) < 1:
            total = probabilities.sum(dim=-1, keepdim=True)
            before = probabilities.cumsum(dim=-1) - probabilities  # mass of the likelier ones; 0 for the first
            probabilities = probabilities.masked_fill(before >= self.top_p * total, 0)
        # The first of exponential clocks that run at the probabilities' rates: torch.multinomial without its checks.
        clocks = torch.empty_like(probabilities).exponential_(generator=generator)
        choice = (probabilities / clocks).argmax(dim=-1, keepdim=True)
        return (choice if tokens is None else tokens.gather(-1, choice)).squeeze(-1)
