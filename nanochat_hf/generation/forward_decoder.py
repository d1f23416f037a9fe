"""Decoding of any causal language model: each step is one call of `model.forward` with a cache of transformers."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache


class ForwardDecoder:
    """Computes next-token logits through `model.forward`.

    A decoder is used for one batch: `prefill` once, then `step` per token, and `select` when rows leave the batch.
    [`FastDecoder`] has the same methods. Shapes: P prompts, T tokens of the longest prompt, R rows, V vocabulary.

    Attributes:
        soft_cap: the soft cap that the logits of `step` still need; None, because the model's forward applies its own.
    """

    soft_cap: float | None = None

    def __init__(self, model: Any):
        self.model = model
        self.cache = DynamicCache(config=model.config.get_text_config())

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Reads the prompts and makes one row per entry of `rows`.

        Args:
            ids: prompts [P, T], padded on the left.
            mask: [P, T], 1 for tokens and 0 for padding.
            rows: for each of the R rows, the index of its prompt. A prompt may occur several times.

        Returns:
            fp32 logits [R, V] of each row's next token.
        """
        self.positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.mask = None if bool(mask.all()) else mask
        logits = self._forward(ids)
        if list(rows) == list(range(len(ids))):
            self.positions = self.positions[:, -1:]
            return logits
        chosen = torch.tensor(rows, device=ids.device)
        self.positions = self.positions[:, -1:]
        self.select(chosen)
        return logits[chosen]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reads one token per row [R] and returns fp32 logits [R, V] of the next ones, before `soft_cap`."""
        self.positions = self.positions + 1
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, 1), value=1)
        return self._forward(tokens.unsqueeze(1))

    def select(self, rows: torch.Tensor) -> None:
        """Keeps only these rows, given as indices [new R]."""
        self.cache.reorder_cache(rows)
        self.positions = self.positions[rows]
        if self.mask is not None:
            self.mask = self.mask[rows]

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()
