"""The two ways to compute the next logits: through `model.forward` for any model, and a short cut for our own.

The short cut exists because a single token's arithmetic is so little that most of a forward's time is spent around it:
building masks, growing caches by copying them, dispatching three projections where one would do. It reads the prompt
through the model itself and then takes single steps over the same weights: fused projections, buffers allocated once,
and in sliding layers a ring of as many slots as the window has keys, so memory stops growing there.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from nanochat_hf.model.modeling_nanochat_hf import Linear, NanochatHFForCausalLM


class ForwardSteps:
    """Steps of any causal language model, by `model.forward` and its own cache."""

    soft_cap: float | None = None  # the model's forward applies its own

    def __init__(self, model: Any):
        self.model = model
        self.cache = DynamicCache(config=model.config.get_text_config())

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Reads prompts [P, T], padded on the left as `mask` says, and goes on with `rows` of them, repeats allowed.

        Returns:
            fp32 logits [R, V] behind the last token.
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
        """Takes one more token of each row [R]; returns fp32 logits [R, V], `soft_cap` still to be applied."""
        self.positions = self.positions + 1
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, 1), value=1)
        return self._forward(tokens.unsqueeze(1))

    def select(self, rows: torch.Tensor) -> None:
        """Goes on with these rows."""
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


class Projection:
    """`F.linear` for a few rows at a time.

    On a CPU in fp32, a weight is read by all threads, each its own rows of it, and stands on the left of the product:
    for 1 to 32 rows that is 1.5 to 1.8 times as fast as `F.linear` (2 cores of an AMD EPYC, weights out of the cache),
    which gives a single row to one thread. On Intel's processors MKL gives that row to all threads, and the product of
    blocks to one, so there a single row goes the plain way.
    """

    def __init__(self, weight: torch.Tensor):
        self.weight = weight  # [out, in]
        self.blocks, self.plain_row = None, runs_on_intel()
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            self.blocks = weight.view(math.gcd(len(weight), torch.get_num_threads()), -1, weight.shape[1])

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """[R, in] → [R, out], added to `residual` where it is given."""
        if self.blocks is None or (self.plain_row and len(x) == 1):
            return F.linear(x, self.weight) if residual is None else torch.addmm(residual, x, self.weight.t())
        product = self._by_blocks(x)
        return product if residual is None else residual + product

    def _by_blocks(self, x: torch.Tensor) -> torch.Tensor:
        product = torch.bmm(self.blocks, x.t().expand(len(self.blocks), -1, -1))  # [threads, out / threads, R]
        if len(x) == 1:  # strides of a plain row, without which the next product takes a slow path
            return product.view(1, -1)
        return product.view(-1, len(x)).t()


@functools.cache
def runs_on_intel() -> bool:
    """Whether this is an Intel processor, as far as Linux tells."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class NanochatSteps:
    """Steps of a `NanochatHFForCausalLM`; the same numbers as its forward, up to the order of rounding.

    Compiled steps take a fifth to a third less time on a CPU (docs/serving.md), after half a minute of compiling for a
    single row and more than a minute for several. What is compiled serves all models of the same shape.

    Shapes: R rows, C hidden_size, H query heads, K key/value heads, D head_dim, S slots of a layer's buffer.
    """

    @staticmethod
    def fit(model: Any) -> bool:
        """Whether the model is exactly what is written down here: no adapters, hooks, quantised or mixed weights."""
        if type(model) is not NanochatHFForCausalLM or torch.is_autocast_enabled(model.device.type):
            return False
        if model.model.rotary_emb.rope_type != "default" or len({p.device for p in model.parameters()}) > 1:
            return False
        plain = (Linear, torch.nn.Embedding)
        leaves = [module for module in model.modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
        return all(type(leaf) in plain and type(leaf.weight) is torch.nn.Parameter for leaf in leaves) and not any(
            module._forward_hooks or module._forward_pre_hooks for module in model.modules()
        )

    def __init__(self, model: NanochatHFForCausalLM, capacity: int, compiled: bool = False):
        self.model, self.config, self.compiled = model, model.config, compiled
        base, config = model.model, model.config
        self.dtype = base.embed_tokens.weight.dtype
        self.layers = [self._layer(index) for index in range(config.num_hidden_layers)]
        self.head = Projection(model.lm_head.weight.detach().to(self.dtype))
        angles = torch.arange(capacity, device=model.device)[:, None] * base.rotary_emb.inv_freq.float()
        self.cos = torch.cat([angles.cos(), angles.cos()], dim=-1).to(self.dtype)  # [capacity, D]
        self.sin = torch.cat([angles.sin(), -angles.sin()], dim=-1).to(self.dtype)
        self.capacity = capacity
        self.soft_cap = config.final_logit_softcapping
        fp32_on_cpu = model.device.type == "cpu" and self.dtype == torch.float32
        self.eps = torch.tensor(config.rms_norm_eps) if fp32_on_cpu else None
        self.scale = config.head_dim**-0.5 * config.qk_scale**2
        # Scalars are tensors, for numbers would be compiled into the step.
        if config.residual_scalars:
            self.resid_scales = base.resid_lambdas.detach().to(self.dtype).unbind()
            self.initial_scales = base.x0_lambdas.detach().to(self.dtype)[:, None, None]  # [layers, 1, 1]
        if config.smear:
            self.smear_gate = base.smear_gate.weight.detach().to(self.dtype)
            self.smear_scale = base.smear_lambda.detach().to(self.dtype)
        if config.backout:
            self.minus_backout = -base.backout_lambda.detach().to(self.dtype)

    def _layer(self, index: int) -> dict[str, Any]:
        """The weights of one layer, in the activations' dtype."""
        layer, base = self.model.model.layers[index], self.model.model
        attention = layer.self_attn
        projections = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        facts: dict[str, Any] = {"sliding": self.config.layer_types[index] == "sliding_attention", "table": None}
        if self.config.has_value_embedding(index):
            # The gate reads the first channels of the same input: zeros for the rest, and it is one more projection.
            gate = attention.ve_gate.weight
            projections.append(F.pad(gate, (0, self.config.hidden_size - gate.shape[1])))
            facts["table"] = base.value_embeds[str(index)].weight.detach().to(self.dtype)
        weights = {
            "qkv": torch.cat([weight.to(self.dtype) for weight in projections]),
            "out": attention.o_proj.weight,
            "up": layer.mlp.up_proj.weight,
            "down": layer.mlp.down_proj.weight,
        }
        return facts | {name: Projection(weight.detach().to(self.dtype)) for name, weight in weights.items()}

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """See [`ForwardSteps.prefill`]."""
        reader = ForwardSteps(self.model)
        logits = reader.prefill(ids, mask, range(len(ids)))
        chosen = torch.tensor(rows, device=ids.device)
        self.column = ids.shape[1]  # of the next token; all rows are in step
        self.pads = (ids.shape[1] - mask.sum(dim=1))[chosen]  # [R]
        self.max_pad = int(self.pads.max())
        # Samples of one prompt share its cache, and reading it is what attention costs. Only where the scores lose
        # nothing by being written down: fp32.
        shared = len(ids) == 1 < len(rows) and ids.device.type == "cpu" and self.dtype == torch.float32
        self.begin = self.column if shared else 0  # column of the first token in the rows' own buffers
        self.keys, self.values, self.prefixes = [], [], []
        for layer, cached in zip(self.layers, reader.cache.layers, strict=False):
            slots = self.capacity - self.begin
            if layer["sliding"]:
                slots = min(slots, self.config.sliding_window)
            kept = torch.arange(self.column - cached.keys.shape[2], self.column, device=ids.device)[-slots:] % slots
            for buffers, states in ((self.keys, cached.keys), (self.values, cached.values)):
                buffer = states.new_empty(len(rows), states.shape[1], slots, states.shape[3])  # [R, K, S, D]
                if not shared:
                    buffer[:, :, kept] = states[chosen, :, -len(kept) :]
                buffers.append(buffer)
            prefix = (cached.keys[0].contiguous(), cached.values[0].contiguous()) if shared else None
            self.prefixes.append(prefix)  # [K, tokens, D] each
        if self.config.smear:
            self.previous = reader.cache.layers[self.config.num_hidden_layers].keys[chosen, 0, -1]  # [R, C]
        return logits[chosen]

    def select(self, rows: torch.Tensor) -> None:
        """See [`ForwardSteps.select`]."""
        self.keys = [buffer[rows] for buffer in self.keys]
        self.values = [buffer[rows] for buffer in self.values]
        self.pads = self.pads[rows]
        self.max_pad = int(self.pads.max())
        if self.config.smear:
            self.previous = self.previous[rows]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See [`ForwardSteps.step`]."""
        # A compiler treats a single slot as a special case, not worth the time for one token.
        plain = not self.compiled or self.column == self.begin
        logits = (NanochatSteps._step if plain else compiled_step())(self, tokens)
        self.column += 1
        return logits

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        base, config = self.model.model, self.config
        positions = self.column - self.pads if self.max_pad else slice(self.column, self.column + 1)
        rotation = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)  # [R or 1, 1, D]
        masks = self._visible(self.capacity), self._visible(min(self.capacity, config.sliding_window or self.capacity))

        x = self._norm(F.embedding(tokens, base.embed_tokens.weight))  # [R, C]
        if config.smear:
            gate = self.smear_scale * torch.sigmoid(F.linear(x[:, : self.smear_gate.shape[1]], self.smear_gate))
            self.previous, x = x, torch.addcmul(x, gate, self.previous)
        initial = (self.initial_scales * x).unbind() if config.residual_scalars else None  # layers of [R, C]
        middle = None
        for index, layer in enumerate(self.layers):
            if initial is not None:
                x = torch.addcmul(initial[index], x, self.resid_scales[index])
            attended = self._attend(index, self._norm(x), tokens, rotation, masks[layer["sliding"]])
            x = layer["out"](attended, residual=x)
            x = layer["down"](layer["up"](self._norm(x)).relu_().square_(), residual=x)
            if index == config.num_hidden_layers // 2:
                middle = x
        if config.backout:
            x = torch.addcmul(x, middle, self.minus_backout)
        return self.head(self._norm(x)).float()

    def _attend(self, index: int, x: torch.Tensor, tokens: torch.Tensor, rotation: Any, mask: Any) -> torch.Tensor:
        """Attention of one token a row [R, C] over the layer's buffers → [R, H * D]."""
        config, layer, rows = self.config, self.layers[index], len(x)
        heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        sizes = [(heads + kv_heads) * width, kv_heads * width] + [kv_heads] * (layer["table"] is not None)
        turning, value, *gate = layer["qkv"](x).split(sizes, dim=1)
        turning, value = turning.reshape(rows, -1, width), value.view(rows, kv_heads, width)
        if gate:
            gate = torch.sigmoid(gate[0]).unsqueeze(-1)  # [R, K, 1]
            embedded = F.embedding(tokens, layer["table"]).view(rows, kv_heads, width)
            value = torch.addcmul(value, gate, embedded, value=3)
        cos, sin = rotation
        turning = self._norm(torch.addcmul(turning * cos, turning.roll(width // 2, -1), sin))

        keys, values = self.keys[index], self.values[index]
        column = self.column - self.begin
        slot, filled = column % keys.shape[2], min(column + 1, keys.shape[2])
        keys.select(2, slot).copy_(turning[:, heads:])
        values.select(2, slot).copy_(value)
        query, keys, values = turning[:, :heads], keys.narrow(2, 0, filled), values.narrow(2, 0, filled)
        prefix = self._visible_prefix(index)
        if prefix is not None:
            return attend_with_prefix(query * self.scale, keys, values, *prefix)
        attended = F.scaled_dot_product_attention(
            query.unsqueeze(2), keys, values, attn_mask=mask, scale=self.scale, enable_gqa=heads != kv_heads
        )
        return attended.reshape(rows, heads * width)

    def _visible_prefix(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values [K, tokens, D] of the shared prompt that a layer still sees."""
        if self.prefixes[index] is None:
            return None
        keys, values = self.prefixes[index]
        if not self.layers[index]["sliding"]:
            return keys, values
        # Of the window's columns, those before `begin`; the cache holds the last of them.
        seen = min(keys.shape[1], self.begin - (self.column + 1 - self.config.sliding_window))
        return (keys[:, -seen:], values[:, -seen:]) if seen > 0 else None

    def _visible(self, slots: int) -> torch.Tensor | None:
        """Which filled slots of a buffer hold no padding [R, 1, 1, filled]; None once none does."""
        if not self.max_pad or self.column - slots >= self.max_pad - 1:
            return None
        slot = torch.arange(min(self.column + 1, slots), device=self.pads.device)
        column = self.column - (self.column - slot) % slots  # the one that a slot holds
        return (column >= self.pads[:, None])[:, None, None]

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        if self.eps is None:
            return F.rms_norm(x, x.shape[-1:], eps=self.config.rms_norm_eps)
        # On a CPU `rms_norm` is eight small operations: with these four a step of a single row takes 7 % less.
        norm = torch.linalg.vector_norm(x, 2, -1, True)
        return x * torch.addcmul(self.eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


# Numbers and dimensions that differ between steps, rows and capacities. The compiler would find out too, by compiling
# again; told so, it makes one graph for a single row and one for several.
CHANGING = (
    r"L\['tokens'\]:0",
    r"L\['self'\]\.(column|begin|capacity|max_pad)",
    r"L\['self'\]\.(previous|pads|cos|sin):0",
    r"L\['self'\]\.(keys|values)\[\d+\]:0",
    r"L\['self'\]\.(keys|values)\[\d+\]:2",
    r"L\['self'\]\.prefixes\[\d+\]\[\d\]:1",
)


@functools.cache
def compiled_step() -> Callable[[NanochatSteps, torch.Tensor], torch.Tensor]:
    compiled = torch.compile(NanochatSteps._step, fullgraph=True)

    def step(steps: NanochatSteps, tokens: torch.Tensor) -> torch.Tensor:
        with torch.compiler.config.patch(dynamic_sources=",".join(CHANGING)):
            return compiled(steps, tokens)

    return step


def attend_with_prefix(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prefix_keys: torch.Tensor,
    prefix_values: torch.Tensor,
) -> torch.Tensor:
    """Attention over a prompt that all rows share and over each row's own tokens.

    The prompt's keys and values are read once for all rows instead of once for each.

    Args:
        query: [R, H, D], scaled.
        keys, values: [R, K, S, D] of the rows.
        prefix_keys, prefix_values: [K, P, D].

    Returns:
        [R, H * D]
    """
    rows, kv_heads, own, width = keys.shape
    group, shared = query.shape[1] // kv_heads, prefix_keys.shape[1]
    query = query.reshape(rows, kv_heads, group, width)
    together = query.transpose(0, 1).reshape(kv_heads, rows * group, width)
    # One dimension for rows and heads: of four, `matmul` would make a contiguous copy.
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    scores = torch.cat(
        (
            torch.bmm(together, prefix_keys.transpose(1, 2)).view(kv_heads, rows, group, shared).transpose(0, 1),
            torch.bmm(query.flatten(0, 1), keys.transpose(1, 2)).view(rows, kv_heads, group, own),
        ),
        dim=-1,
    )
    weights = scores.softmax(dim=-1)  # [R, K, H / K, P + S]
    of_prefix = weights[..., :shared].transpose(0, 1).reshape(kv_heads, rows * group, shared)
    attended = torch.bmm(of_prefix, prefix_values).view(kv_heads, rows, group, width).transpose(0, 1)
    of_own = torch.bmm(weights[..., shared:].flatten(0, 1), values).view(rows, kv_heads, group, width)
    return (attended + of_own).reshape(rows, -1)
