"""Decoding of a batch whose rows come and go: a server's requests.

A row can join after any step, and any row can leave. [`LiveBatch`] computes all rows of this project's models in one
step; [`GraphedLiveBatch`] does so on GPUs, as a CUDA graph. [`SeparateRows`] steps through the rows of any other model
one by one: no faster than single requests, but none waits for the end of another.

Shapes: R rows, C hidden_size, H query heads, K key/value heads, D head_dim, S columns of the buffers, V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from nanochat_hf.generation import graphed_decoder
from nanochat_hf.generation.decoding import pad_left
from nanochat_hf.generation.fast_decoder import FastDecoder, WeightStore
from nanochat_hf.generation.forward_decoder import ForwardDecoder

logger = logging.getLogger(__name__)

FIRST_COLUMNS = 256  # of the buffers, which grow by doubling


def live_batch(model: Any, context_length: int) -> "LiveBatch | SeparateRows":
    """Returns the fastest decoder that the model allows.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        context_length: the longest row, in tokens.
    """
    if not FastDecoder.supports(model):
        return SeparateRows(model)
    return (GraphedLiveBatch if model.device.type == "cuda" else LiveBatch)(model, context_length)


class SeparateRows:
    """Rows of any causal language model, each with a cache of its own. The methods are those of [`LiveBatch`]."""

    def __init__(self, model: Any):
        self.model = model
        self.rows: list[ForwardDecoder] = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> torch.Tensor:
        """See [`LiveBatch.add`]."""
        logits = []
        for prompt, number in zip(prompts, copies, strict=True):
            for _ in range(number):
                decoder = ForwardDecoder(self.model)
                ids, mask = pad_left([prompt], 0, self.model.device)
                logits.append(decoder.prefill(ids, mask, [0]))
                self.rows.append(decoder)
        return torch.cat(logits)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """See [`LiveBatch.step`]."""
        device = self.model.device
        pairs = zip(self.rows, tokens, strict=True)
        return torch.cat([row.step(torch.tensor([token], device=device)) for row, token in pairs])

    def remove(self, row: int) -> None:
        """See [`LiveBatch.remove`]."""
        self.rows[row] = self.rows[-1]
        self.rows.pop()


class LiveBatch(FastDecoder):
    """Rows of a `NanochatHFForCausalLM`, all in one step.

    Every row begins at column 0 of its buffers, so a token's column is its position. Rows of different lengths need a
    mask and nothing else. The buffers double when rows or columns are missing; the last row to leave drops them.
    """

    def __init__(self, model: Any, context_length: int):
        """Prepares the decoder.

        Args:
            model: a model that [`FastDecoder.supports`], in evaluation mode; its weights must not change.
            context_length: the longest row, in tokens.
        """
        super().__init__(model, context_length, store=WeightStore(model))
        self.lengths: list[int] = []  # tokens that each row has in the buffers
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.dtype = None

    def __len__(self) -> int:
        return len(self.lengths)

    @torch.inference_mode()
    def add(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> torch.Tensor:
        """Reads prompts and appends their rows.

        Args:
            prompts: token ids, of any lengths; they are read together.
            copies: per prompt, how many rows continue it.

        Returns:
            fp32 logits [new R, V] of the new rows' next tokens.
        """
        ids, mask = pad_left(prompts, 0, self.model.device)
        reader = ForwardDecoder(self.model)
        logits = reader.prefill(ids, mask, range(len(ids)))
        if self.dtype != reader.cache.layers[0].keys.dtype:
            self._set_compute_dtype(reader.cache.layers[0].keys.dtype)
        first = len(self.lengths)
        sources = [prompt for prompt, number in enumerate(copies) for _ in range(number)]
        self.lengths += [len(prompts[source]) for source in sources]
        self._make_room(reader.cache.layers[0].keys, max(self.lengths) + 1)
        for index in range(self.config.num_hidden_layers):
            cached = reader.cache.layers[index]
            kept = cached.keys.shape[2]  # a sliding layer has kept its window only
            for buffer, states in ((self.keys[index], cached.keys), (self.values[index], cached.values)):
                for row, source in enumerate(sources, first):
                    length = self.lengths[row]
                    seen = min(kept, length)
                    buffer[row, :, length - seen : length] = states[source, :, kept - seen :]
        if self.config.smear:
            states = reader.cache.layers[self.config.num_hidden_layers].keys[sources, 0, -1]  # [new R, C]
            self.previous = states if first == 0 else torch.cat([self.previous, states])
        return logits[sources]

    def _make_room(self, like: torch.Tensor, columns: int) -> None:
        """Lets the buffers have rows for all `lengths`, and at least this many columns."""
        rows, (_, heads, _, width) = len(self.lengths), like.shape
        have_rows, _, have_columns, _ = self.keys[0].shape if self.keys else (0, 0, 0, 0)
        if rows <= have_rows and columns <= have_columns:
            return
        new_rows, new_columns = max(have_rows, 1), max(have_columns, FIRST_COLUMNS)
        while new_rows < rows:
            new_rows *= 2
        while new_columns < columns:
            new_columns *= 2
        new_columns = max(columns, min(new_columns, self.capacity))
        for buffers in (self.keys, self.values):
            for index in range(self.config.num_hidden_layers):
                grown = like.new_zeros(new_rows, heads, new_columns, width)
                if have_rows:
                    grown[:have_rows, :, :have_columns] = buffers[index]
                    buffers[index] = grown
                else:
                    buffers.append(grown)

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Lets a row go; the last row takes its number."""
        last = len(self.lengths) - 1
        if last == 0:
            self.lengths, self.keys, self.values = [], [], []
            return
        if row != last:
            length = self.lengths[last]
            for buffer in (*self.keys, *self.values):
                buffer[row, :, :length] = buffer[last, :, :length]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if self.config.smear:
            if row != last:
                self.previous[row] = self.previous[last]
            self.previous = self.previous[:last]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Reads one token per row and returns fp32 logits [R, V] of the next ones, after the soft cap."""
        longest, shortest = max(self.lengths), min(self.lengths)
        self._make_room(self.keys[0], longest + 1)
        device, window = self.model.device, self.window or self.capacity
        self.positions = torch.tensor(self.lengths, device=device)
        self.row_index = torch.arange(len(self.lengths), device=device)
        columns = torch.arange(longest + 1, device=device)
        seen = columns <= self.positions.unsqueeze(1)  # [R, columns]
        near = seen & (columns > self.positions.unsqueeze(1) - window)
        # Full and sliding layers: the first column that any row sees, and what each row sees from there on.
        self.views = [(0, seen), (max(0, shortest + 1 - window), near)]
        self.views = [
            (first, None if shortest == longest else mask[:, None, None, first:]) for first, mask in self.views
        ]
        with torch.autocast(device.type, enabled=False):
            logits = self._step(torch.tensor(list(tokens), device=device))
        self.lengths = [length + 1 for length in self.lengths]
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def _positions(self) -> torch.Tensor:
        return self.positions

    def _masks(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.views[0][1], self.views[1][1]

    def _attend_over_buffers(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        keys, values, rows = self.keys[index], self.values[index], len(query)
        keys[self.row_index, :, self.positions] = key
        values[self.row_index, :, self.positions] = value
        first, last = self.views[self.weights.layers[index]["sliding"]][0], max(self.lengths) + 1
        return F.scaled_dot_product_attention(
            query.unsqueeze(2),
            keys[:rows, :, first:last],
            values[:rows, :, first:last],
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )


class GraphedLiveBatch(LiveBatch):
    """A [`LiveBatch`] that replays its steps as a CUDA graph, see `graphed_decoder`.

    A graph computes all rows that the buffers have room for, and reads a fixed number of columns. Rows that are free
    are computed in vain: nobody reads them. So rows may come and go without a new graph. One is captured when the
    buffers have grown, and when the longest row has filled the columns that attention reads.
    """

    def __init__(self, model: Any, context_length: int):
        """See [`LiveBatch`]."""
        super().__init__(model, context_length)
        self.can_capture = True
        self._forget_graph()

    def _forget_graph(self) -> None:
        self.replay: Callable[[], None] | None = None
        self.recorded: torch.Tensor | None = None  # the first layer's keys of the graph
        self.span = 0  # columns that its attention reads

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """See [`LiveBatch.remove`]."""
        super().remove(row)
        if not self.lengths:
            self._forget_graph()  # it would keep the buffers

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """See [`LiveBatch.step`]."""
        rows, needed = len(self.lengths), max(self.lengths) + 1
        self._make_room(self.keys[0], needed)
        keys, per_graph = self.keys[0], graphed_decoder.SLOTS_PER_GRAPH
        span = min(-(-needed // per_graph) * per_graph, keys.shape[2])
        is_new = self.recorded is not keys or self.span != span
        if is_new:
            self.replay, self.span, self.recorded = None, span, keys
            self.inputs = torch.zeros(2, len(keys), dtype=torch.long, device=keys.device)  # tokens and positions
            self.row_index = torch.arange(len(keys), device=keys.device)
            self.all_previous = keys.new_zeros(len(keys), self.config.hidden_size)
        self.inputs[:, :rows] = torch.tensor([list(tokens), self.lengths]).to(keys.device)
        if self.config.smear:
            self.all_previous[:rows] = self.previous
        with torch.autocast(keys.device.type, enabled=False):
            if self.replay is None and self.can_capture and not is_new:  # the first step loads what a capture must not
                self._try_to_capture()
            if self.replay is None:
                self._update()
            else:
                self.replay()
        self.previous = self.all_previous[:rows]
        self.lengths = [length + 1 for length in self.lengths]
        logits = self.logits[:rows]
        return logits.clone() if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def _update(self) -> None:
        """Computes one step from `inputs` and leaves its results in tensors: what a graph records."""
        self.previous = self.all_previous
        self.logits = self._step(self.inputs[0])
        self.all_previous.copy_(self.previous)

    def _try_to_capture(self) -> None:
        """Records a graph; recording runs no kernel."""
        try:
            self.replay = graphed_decoder.capture(self._update)
        except RuntimeError as error:
            logger.warning("CUDA refused to capture a step of the server as a graph, so steps are slower: %s", error)
            self.can_capture = False

    def _positions(self) -> torch.Tensor:
        return self.inputs[1]

    def _masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns which columns full and sliding layers may see: bool [R, 1, 1, span]."""
        positions = self.inputs[1].unsqueeze(1)
        columns = torch.arange(self.span, device=positions.device)
        seen = columns <= positions
        near = seen & (columns > positions - (self.window or self.capacity))
        return seen[:, None, None], near[:, None, None]

    def _attend_over_buffers(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        keys, values, positions = self.keys[index], self.values[index], self.inputs[1]
        keys[self.row_index, :, positions] = key
        values[self.row_index, :, positions] = value
        return F.scaled_dot_product_attention(
            query.unsqueeze(2),
            keys[:, :, : self.span],
            values[:, :, : self.span],
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
