"""Fast decoding on a GPU: the kernels of one step, launched together as a CUDA graph.

A step computes little, so launching its kernels one by one takes longer than running them. A graph launches all of
them at once. It replays the same kernels on the same memory. So everything that changes between steps is in tensors
that the graph itself updates, and shapes stay the same: attention reads a fixed number of slots and masks the empty
ones.
"""

import logging
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from nanochat_hf.generation.fast_decoder import FastDecoder

logger = logging.getLogger(__name__)

# Attention reads this many slots, or the next multiple of it that holds all tokens.
SLOTS_PER_GRAPH = 256


class GraphedDecoder(FastDecoder):
    """A [`FastDecoder`] that replays its steps as a CUDA graph; see there for the methods.

    A new graph is captured when rows leave, and when the tokens have filled the slots that attention reads. Each
    time one step runs kernel by kernel first, so that nothing is loaded or compiled during the capture. Where CUDA
    refuses a capture, a warning says so once, and all steps run kernel by kernel.
    """

    shares_prompts = False  # attention over two places would need shapes that change

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """See [`FastDecoder.prefill`]."""
        logits = super().prefill(ids, mask, rows)
        self.next_column = torch.tensor(self.column, device=ids.device)
        self.replay: Callable[[], None] | None = None
        self.can_capture, self.steps_of_shape, self.spans = True, 0, []
        return logits

    def select(self, rows: torch.Tensor) -> None:
        """See [`FastDecoder.select`]."""
        super().select(rows)
        self.replay, self.steps_of_shape = None, 0

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See [`FastDecoder.step`]. The logits are valid until the next step."""
        spans = [min(-(-(self.column + 1) // SLOTS_PER_GRAPH) * SLOTS_PER_GRAPH, keys.shape[2]) for keys in self.keys]
        if spans != self.spans:
            self.spans, self.replay, self.steps_of_shape = spans, None, 0
        if self.steps_of_shape == 0:
            self.tokens = tokens.clone()
        else:
            self.tokens.copy_(tokens)
        with torch.autocast(self.model.device.type, enabled=False):
            if self.replay is None and self.steps_of_shape > 0 and self.can_capture:
                self._try_to_capture()
            if self.replay is None:
                self._update()
            else:
                self.replay()
        self.column, self.steps_of_shape = self.column + 1, self.steps_of_shape + 1
        return self.logits

    def _update(self) -> None:
        """Computes one step from `tokens` and leaves its results in tensors: what a graph records."""
        previous = getattr(self, "previous", None)
        self.logits = self._step(self.tokens)
        if previous is not None:
            self.previous = previous.copy_(self.previous)
        self.next_column += 1

    def _try_to_capture(self) -> None:
        """Records a graph; recording runs no kernel."""
        previous = getattr(self, "previous", None)
        try:
            self.replay = capture(self._update)
        except RuntimeError as error:
            logger.warning("CUDA refused to capture a decoding step as a graph, so steps are slower: %s", error)
            self.can_capture = False
            if previous is not None:
                self.previous = previous

    def _positions(self) -> torch.Tensor:
        return self.next_column - self.padding

    def _masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns which slots full and sliding layers may see: bool [R, 1, 1, slots]."""
        sliding = [layer["sliding"] for layer in self.weights.layers]
        masks = []
        for kind in (False, True):
            index = sliding.index(kind) if kind in sliding else 0
            slots = self.keys[index].shape[2]
            slot = torch.arange(self.spans[index], device=self.padding.device)
            # The column that each slot holds. It is negative for slots that were never written.
            column = self.next_column - torch.remainder(self.next_column - slot, slots)
            masks.append((column >= self.padding[:, None])[:, None, None])
        return masks[0], masks[1]

    def _attend_over_buffers(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        keys, values, span = self.keys[index], self.values[index], self.spans[index]
        slot = torch.remainder(self.next_column, keys.shape[2]).view(1)
        keys.index_copy_(2, slot, key.unsqueeze(2))
        values.index_copy_(2, slot, value.unsqueeze(2))
        return F.scaled_dot_product_attention(
            query.unsqueeze(2),
            keys[:, :, :span],
            values[:, :, :span],
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """Records the kernels that `function` launches, without running them.

    Returns:
        what runs them; each call updates the same tensors.

    Raises:
        RuntimeError: the function does something that a CUDA graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads, of a server for example, may go on using the GPU meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay
