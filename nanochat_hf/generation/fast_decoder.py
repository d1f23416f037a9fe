"""Fast decoding of this project's models, one token per row and step.

The arithmetic of one token is little. Most of a forward's time goes elsewhere: it builds masks, copies caches to grow
them, and dispatches three projections where one is enough. The fast decoder reads the prompt through the model itself.
Then it computes single steps with the same weights: projections are fused, and buffers are allocated once. In sliding
layers the buffer is a ring with as many slots as the window has keys, so it stops growing.

Steps compute in the dtype in which the model's forward computes. With mixed precision that is not the dtype of the
weights. So [`DecoderWeights`] holds the projections in the compute dtype, copied once per call of
`generate_with_tools` or `stream_chat`. In RL one such call makes all rollouts of a step, so the copies are made once
per policy update. Without mixed precision nothing is copied but the fused projections of queries, keys and values.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from nanochat_hf.generation.forward_decoder import ForwardDecoder
from nanochat_hf.model.modeling_nanochat_hf import Linear, NanochatHFForCausalLM
from nanochat_hf.model.products_nanochat_hf import linear, onednn_is_better, processor_vendor, rows_for_onednn

ROWS_OF_PACK = 16  # for which weights are packed; others are tried by `mkl_can_pack`


class Projection:
    """`F.linear` without bias, made for a few rows.

    On a CPU in fp32 the weight is stored so that all threads read it once (docs/log/generation-and-serving.md):

    - On Intel processors MKL spreads a single row over the threads by itself. More rows take a copy of the weight in
      MKL's own format.
    - Elsewhere the weight is split into one block of rows per thread, and stands on the left of the product. A single
      row of AMD processors takes a transposed copy, where the outputs are more than the inputs. Many rows are oneDNN's
      where it is faster than MKL (`products_nanochat_hf`).

    Copies are made when the first rows come that take them. Compiled code has the blocks for all but Intel's single
    rows.
    """

    def __init__(self, weight: torch.Tensor):
        self.weight, self.turned = weight, weight.t()  # [out, in] and a view of it, [in, out]
        self.blocks, self.one_row_is_linear, self.one_row_is_transposed = None, True, False
        self.many_rows = math.inf
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            self.blocks = weight.view(math.gcd(len(weight), torch.get_num_threads()), -1, weight.shape[1])
            self.one_row_is_linear = processor_vendor() == "GenuineIntel"
            self.one_row_is_transposed = processor_vendor() == "AuthenticAMD" and len(weight) > weight.shape[1]
            if onednn_is_better():
                self.many_rows = rows_for_onednn(weight)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """[R, in] → [R, out], plus `residual` [R, out] if it is given."""
        rows = x.shape[0]
        if self.blocks is None or (rows == 1 and self.one_row_is_linear):
            return x @ self.turned if residual is None else torch.addmm(residual, x, self.turned)
        if torch.compiler.is_compiling():
            product = self._block_product(x)
        elif self._packed is not None:
            product = torch.ops.mkl._mkl_linear(x, self._packed, self.weight, None, rows)
        elif rows == 1 and self.one_row_is_transposed:
            product = x @ self._transposed
        elif rows >= self.many_rows:
            product = linear(x, self.weight)
        else:
            product = self._block_product(x)
        return product if residual is None else residual + product

    @functools.cached_property
    def _packed(self) -> torch.Tensor | None:
        if processor_vendor() != "GenuineIntel" or not mkl_can_pack(self.weight.shape):
            return None
        return torch.ops.mkl._mkl_reorder_linear_weight(self.weight, ROWS_OF_PACK)

    @functools.cached_property
    def _transposed(self) -> torch.Tensor:
        return self.weight.t().contiguous()  # [in, out]

    def _block_product(self, x: torch.Tensor) -> torch.Tensor:
        product = torch.bmm(self.blocks, x.t().expand(len(self.blocks), -1, -1))  # [threads, out / threads, R]
        if len(x) == 1:  # the strides of a contiguous row; with others the next product takes a slow path
            return product.view(1, -1)
        return product.view(-1, len(x)).t()


@functools.cache
def mkl_can_pack(shape: torch.Size) -> bool:
    """Whether torch has MKL, and a weight of this shape that MKL has packed serves any number of rows.

    Torch packs for one number of rows. MKL's format does not depend on it, but no document says so. So it is tried.
    """
    if not torch.backends.mkl.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, ROWS_OF_PACK)
    for rows in (2, 3, 5, ROWS_OF_PACK, 33, 64):
        x = torch.randn(rows, shape[1], generator=generator)
        plain, found = F.linear(x, weight), torch.ops.mkl._mkl_linear(x, packed, weight, None, rows)
        if not (found - plain).norm() < 1e-5 * plain.norm():
            return False
    return True


class DecoderWeights:
    """The weights of a `NanochatHFForCausalLM`, prepared for [`FastDecoder`].

    Projections and scalars are in the compute dtype: copies where the model's weights have another dtype, else the
    model's own tensors. Only queries, keys and values are always copied, into one projection. Token tables stay in
    the model's dtype, because a step reads a few of their rows only. Make new ones after the model's weights change.
    """

    def __init__(self, model: NanochatHFForCausalLM, dtype: torch.dtype):
        """Prepares the weights.

        Args:
            model: a model that [`FastDecoder.supports`].
            dtype: the compute dtype.
        """
        base, config = model.model, model.config
        self.dtype = dtype
        # A step reads some fifty of these. From a transformers config, each would take a microsecond.
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.smear, self.residual_scalars, self.backout = config.smear, config.residual_scalars, config.backout
        self.middle = config.num_hidden_layers // 2  # the layer whose output backout subtracts
        self.embed_tokens = base.embed_tokens.weight.detach()
        self.layers = [self._layer_weights(model, index) for index in range(config.num_hidden_layers)]
        self.head = Projection(model.lm_head.weight.detach().to(dtype))
        # Scalars stay tensors: numbers would be compiled into the step as constants.
        if self.residual_scalars:
            self.resid_scales = base.resid_lambdas.detach().to(dtype).unbind()
            self.initial_scales = base.x0_lambdas.detach().to(dtype)[:, None, None]  # [layers, 1, 1]
        if self.smear:
            self.smear_gate = base.smear_gate.weight.detach().to(dtype)
            self.smear_scale = base.smear_lambda.detach().to(dtype)
        if self.backout:
            self.minus_backout = -base.backout_lambda.detach().to(dtype)

    def _layer_weights(self, model: NanochatHFForCausalLM, index: int) -> dict[str, Any]:
        layer, base, config = model.model.layers[index], model.model, model.config
        attention = layer.self_attn
        projections = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        sizes = [(self.heads + self.kv_heads) * self.head_dim, self.kv_heads * self.head_dim]
        weights: dict[str, Any] = {"sliding": config.layer_types[index] == "sliding_attention", "table": None}
        if config.has_value_embedding(index):
            # The gate reads the first channels of the same input. With zeros for the others it joins the projection.
            gate = attention.ve_gate.weight
            projections.append(F.pad(gate, (0, config.hidden_size - gate.shape[1])))
            sizes.append(self.kv_heads)
            weights["table"] = base.value_embeds[str(index)].weight.detach()
        matrices = {
            "qkv": torch.cat([weight.to(self.dtype) for weight in projections]),
            "out": attention.o_proj.weight,
            "up": layer.mlp.up_proj.weight,
            "down": layer.mlp.down_proj.weight,
        }
        weights["sizes"] = sizes  # of queries with keys, of values, of the gate
        return weights | {name: Projection(matrix.detach().to(self.dtype)) for name, matrix in matrices.items()}


class WeightStore:
    """Prepares a model's [`DecoderWeights`] when first asked for, and keeps them for the batches of a call."""

    def __init__(self, model: Any):
        self.model = model
        self.prepared: DecoderWeights | None = None

    def get(self, dtype: torch.dtype) -> DecoderWeights:
        """Returns the weights in the compute dtype `dtype`."""
        if self.prepared is None or self.prepared.dtype != dtype:
            self.prepared = DecoderWeights(self.model, dtype)
        return self.prepared


class FastDecoder:
    """Computes next-token logits of a `NanochatHFForCausalLM`: those of its forward, up to rounding.

    The methods are those of [`ForwardDecoder`]. All rows are at the same column, because prompts are padded on the
    left. Compiled steps of 1 and of 16 rows take a seventh to a third less time on a CPU (docs/serving.md). Compiling
    takes half a minute for a single row and more than a minute for several; models of the same shape share the result.

    Shapes: R rows, C hidden_size, H query heads, K key/value heads, D head_dim, S slots of a layer's buffer, V
    vocabulary.

    Attributes:
        dtype: the compute dtype, known after `prefill`: that of the keys which the model's forward left in its cache.
        soft_cap: the soft cap that the logits of `step` still need (see [`Sampling.draw`]), or None.
        shares_prompts: whether the samples of one prompt may read its keys and values from one place.
    """

    shares_prompts = True

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether the model is exactly this class, on one device, without adapters, hooks or quantised weights.

        Its forward may run under autocast, as the one that accelerate wraps for mixed precision does.
        """
        if type(model) is not NanochatHFForCausalLM:
            return False
        if model.model.rotary_emb.rope_type != "default" or len({p.device for p in model.parameters()}) > 1:
            return False
        plain = (Linear, torch.nn.Embedding)
        leaves = [module for module in model.modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
        return all(type(leaf) in plain and type(leaf.weight) is torch.nn.Parameter for leaf in leaves) and not any(
            module._forward_hooks or module._forward_pre_hooks for module in model.modules()
        )

    def __init__(
        self, model: NanochatHFForCausalLM, capacity: int, compiled: bool = False, store: WeightStore | None = None
    ):
        """Prepares the decoder; `prefill` prepares the weights.

        Args:
            model: a model that [`FastDecoder.supports`].
            capacity: columns, that is the padded prompt and the new tokens, at most.
            compiled: compiles the steps.
            store: the weights that other batches of the same call share; None: weights of its own.
        """
        self.model, self.config, self.compiled = model, model.config, compiled
        self.store = store or WeightStore(model)
        self.capacity = capacity
        self.soft_cap = self.config.final_logit_softcapping
        self.scale = self.config.head_dim**-0.5 * self.config.qk_scale**2
        self.window, self.norm_eps = self.config.sliding_window, self.config.rms_norm_eps

    def _set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Prepares what the steps need in this dtype: the weights and the rotary positions of all columns."""
        self.dtype, self.weights = dtype, self.store.get(dtype)
        device = self.model.device
        angles = torch.arange(self.capacity, device=device)[:, None] * self.model.model.rotary_emb.inv_freq.float()
        self.cos = torch.cat([angles.cos(), angles.cos()], dim=-1).to(dtype)  # [capacity, D]
        self.sin = torch.cat([angles.sin(), -angles.sin()], dim=-1).to(dtype)
        fp32_on_cpu = device.type == "cpu" and dtype == torch.float32
        self.eps = torch.tensor(self.norm_eps) if fp32_on_cpu else None

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """See [`ForwardDecoder.prefill`]."""
        reader = ForwardDecoder(self.model)
        logits = reader.prefill(ids, mask, range(len(ids)))
        self._set_compute_dtype(reader.cache.layers[0].keys.dtype)
        chosen = torch.tensor(rows, device=ids.device)
        self.column = ids.shape[1]  # of the next token
        self.padding = (ids.shape[1] - mask.sum(dim=1))[chosen]  # [R]
        self.max_padding = int(self.padding.max())
        # Samples of a prompt share its cache, because reading it is the cost of attention. Only in fp32: the shared
        # path stores its scores, and in fewer bits they would lose precision. Compiled steps know one prompt only.
        several = len(rows) >= 2 * len(ids) and not (self.compiled and len(ids) > 1)
        shared = self.shares_prompts and several and ids.device.type == "cpu" and self.dtype == torch.float32
        self.first_own = self.column if shared else 0  # the first column in the rows' own buffers
        self.groups = PromptGroups(chosen, mask) if shared else None
        self.keys, self.values, self.prefixes = [], [], []
        for layer, cached in zip(self.weights.layers, reader.cache.layers, strict=False):
            slots = self.capacity - self.first_own
            if layer["sliding"]:
                slots = min(slots, self.window)
            kept = torch.arange(self.column - cached.keys.shape[2], self.column, device=ids.device)[-slots:] % slots
            for buffers, states in ((self.keys, cached.keys), (self.values, cached.values)):
                buffer = states.new_zeros(len(rows), states.shape[1], slots, states.shape[3])  # [R, K, S, D]
                if not shared:
                    buffer[:, :, kept] = states[chosen, :, -len(kept) :]
                buffers.append(buffer)
            prompts = (cached.keys, cached.values) if shared else ()
            prefix = tuple(states.flatten(0, 1).contiguous() for states in prompts)  # [P * K, tokens, D] each
            self.prefixes.append(prefix or None)
        if self.config.smear:
            self.previous = reader.cache.layers[self.config.num_hidden_layers].keys[chosen, 0, -1]  # [R, C]
        return logits[chosen]

    def select(self, rows: torch.Tensor) -> None:
        """See [`ForwardDecoder.select`]."""
        self.keys = [buffer[rows] for buffer in self.keys]
        self.values = [buffer[rows] for buffer in self.values]
        self.padding = self.padding[rows]
        self.max_padding = int(self.padding.max())
        if self.groups is not None and (kept := self.groups.select(rows)) is not None:
            heads = self.config.num_key_value_heads
            self.prefixes = [
                tuple(states.unflatten(0, (-1, heads))[kept].flatten(0, 1) for states in prefix)
                for prefix in self.prefixes
            ]
        if self.config.smear:
            self.previous = self.previous[rows]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See [`ForwardDecoder.step`]."""
        # With a single filled slot the compiler would make a special graph: not worth it for one token.
        eager = not self.compiled or self.column == self.first_own
        step = FastDecoder._step if eager else compiled_step()
        device = self.model.device.type
        if torch.is_autocast_enabled(device):  # it would give products and norms dtypes of its own
            with torch.autocast(device, enabled=False):
                logits = step(self, tokens)
        else:
            logits = step(self, tokens)
        self.column += 1
        return logits

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        """The model's forward for one token per row: [R] → fp32 logits [R, V]. What `compiled` compiles."""
        weights = self.weights
        positions, masks = self._positions(), self._masks()
        rotation = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)  # [R or 1, 1, D]

        x = self._norm(torch.embedding(weights.embed_tokens, tokens).to(self.dtype))  # [R, C]
        if weights.smear:
            gate_in = x[:, : weights.smear_gate.shape[1]]
            gate = weights.smear_scale * torch.sigmoid(F.linear(gate_in, weights.smear_gate))
            self.previous, x = x, torch.addcmul(x, gate, self.previous)
        initial = (weights.initial_scales * x).unbind() if weights.residual_scalars else None  # layers of [R, C]
        middle = None
        for index, layer in enumerate(weights.layers):
            if initial is not None:
                x = torch.addcmul(initial[index], x, weights.resid_scales[index])
            attended = self._attend(index, self._norm(x), tokens, rotation, masks[layer["sliding"]])
            x = layer["out"](attended, residual=x)
            x = layer["down"](layer["up"](self._norm(x)).relu_().square_(), residual=x)
            if index == weights.middle:
                middle = x
        if weights.backout:
            x = torch.addcmul(x, middle, weights.minus_backout)
        return weights.head(self._norm(x)).float()

    def _positions(self) -> torch.Tensor | slice:
        """Returns the positions of the tokens that are read: one per row, or one for all."""
        return self.column - self.padding if self.max_padding else slice(self.column, self.column + 1)

    def _masks(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Returns which slots full and sliding layers may see; None where they may see all filled ones."""
        if self.first_own:  # the rows' own buffers begin after the prompts and their padding
            return None, None
        window = min(self.capacity, self.window or self.capacity)
        return self._no_padding(self.capacity), self._no_padding(window)

    def _attend(self, index: int, x: torch.Tensor, tokens: torch.Tensor, rotation: Any, mask: Any) -> torch.Tensor:
        """Attention of one token per row over the layer's buffers: [R, C] → [R, H * D]."""
        weights, layer, rows = self.weights, self.weights.layers[index], x.shape[0]
        heads, kv_heads, width = weights.heads, weights.kv_heads, weights.head_dim
        query_key, value, *gate = layer["qkv"](x).split_with_sizes(layer["sizes"], dim=1)
        query_key, value = query_key.reshape(rows, -1, width), value.view(rows, kv_heads, width)
        if gate:
            gate = torch.sigmoid(gate[0]).unsqueeze(-1)  # [R, K, 1]
            embedded = torch.embedding(layer["table"], tokens).to(self.dtype).view(rows, kv_heads, width)
            value = torch.addcmul(value, gate, embedded, value=3)
        cos, sin = rotation
        query_key = self._norm(torch.addcmul(query_key * cos, query_key.roll(width // 2, -1), sin))

        query, key = query_key.split_with_sizes((heads, kv_heads), dim=1)
        attended = self._attend_over_buffers(index, query, key, value, mask)
        return attended.reshape(rows, heads * width)

    def _attend_over_buffers(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Writes key and value [R, K, D] into the layer's buffers and attends over them: [R, H, D] → R rows."""
        keys, values = self.keys[index], self.values[index]
        column = self.column - self.first_own
        slot, filled = column % keys.shape[2], min(column + 1, keys.shape[2])
        keys.select(2, slot).copy_(key)
        values.select(2, slot).copy_(value)
        keys, values = keys.narrow(2, 0, filled), values.narrow(2, 0, filled)
        prefix = self._visible_prefix(index)
        if prefix is not None:
            return attend_with_prefix(query * self.scale, keys, values, *prefix, self.groups)
        return F.scaled_dot_product_attention(
            query.unsqueeze(2),
            keys,
            values,
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _visible_prefix(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns keys and values [P * K, tokens, D] of the shared prompts that the layer still sees, or None."""
        if self.prefixes[index] is None:
            return None
        keys, values = self.prefixes[index]
        if not self.weights.layers[index]["sliding"]:
            return keys, values
        # The columns of the window that lie before `first_own`; the cache holds the last of them.
        seen = min(keys.shape[1], self.first_own - (self.column + 1 - self.window))
        return (keys[:, -seen:], values[:, -seen:]) if seen > 0 else None

    def _no_padding(self, slots: int) -> torch.Tensor | None:
        """Returns which filled slots hold no padding, bool [R, 1, 1, filled]; None if no slot holds padding."""
        if not self.max_padding or self.column - slots >= self.max_padding - 1:
            return None
        slot = torch.arange(min(self.column + 1, slots), device=self.padding.device)
        column = self.column - (self.column - slot) % slots  # the column that each slot holds
        return (column >= self.padding[:, None])[:, None, None]

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        if self.eps is None:
            return F.rms_norm(x, x.shape[-1:], eps=self.norm_eps)
        # On a CPU `rms_norm` is eight small operations. With these four, a step of a single row takes 7 % less time.
        norm = torch.linalg.vector_norm(x, 2, -1, True)
        return x * torch.addcmul(self.eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


# Numbers and dimensions that differ between steps, rows and capacities, as the compiler names them. Without this list
# the compiler finds them by compiling again. With it, there is one graph for a single row and one for several.
DYNAMIC_SOURCES = (
    r"L\['tokens'\]:0",
    r"L\['self'\]\.(column|first_own|capacity|max_padding)",
    r"L\['self'\]\.(previous|padding|cos|sin):0",
    r"L\['self'\]\.(keys|values)\[\d+\]:0",
    r"L\['self'\]\.(keys|values)\[\d+\]:2",
    r"L\['self'\]\.prefixes\[\d+\]\[\d\]:1",
)


@functools.cache
def compiled_step() -> Callable[[FastDecoder, torch.Tensor], torch.Tensor]:
    """Returns `FastDecoder._step`, compiled; once per process, for all decoders."""
    compiled = torch.compile(FastDecoder._step, fullgraph=True)

    def step(decoder: FastDecoder, tokens: torch.Tensor) -> torch.Tensor:
        with torch.compiler.config.patch(dynamic_sources=",".join(DYNAMIC_SOURCES)):
            return compiled(decoder, tokens)

    return step


class PromptGroups:
    """Which rows continue which of P prompts; for attention over prompts that several rows share.

    Shapes: n rows of the prompt with most rows, G query heads per key/value head. Prompts with fewer rows than n are
    filled up with other rows, whose results nothing reads.

    Attributes:
        hidden: fp32 [P, 1, 1, T], 0 for tokens and -inf for padding; None where no prompt has padding.
    """

    def __init__(self, prompt_of_row: torch.Tensor, mask: torch.Tensor):
        """Makes the groups of `prompt_of_row` [R], with the mask of the padded prompts [P, T]."""
        self.hidden = None
        if not bool(mask.all()):
            self.hidden = torch.zeros(mask.shape).masked_fill_(mask == 0, -torch.inf)[:, None, None]
        self._assign(prompt_of_row)

    def _assign(self, prompt_of_row: torch.Tensor) -> None:
        self.prompt_of_row, self.members = prompt_of_row, None
        counts = prompt_of_row.bincount()
        if len(counts) > 1:
            order = prompt_of_row.argsort(stable=True)
            first = counts.cumsum(0) - counts  # of each prompt, in that order
            most = int(counts.max())
            self.members = order[(first[:, None] + torch.arange(most)).clamp(max=len(order) - 1)]  # [P, n]
            self.places, ordered = torch.empty_like(order), prompt_of_row[order]
            self.places[order] = ordered * most + torch.arange(len(order)) - first[ordered]  # [R], in [P * n]

    def select(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Keeps only these rows; returns the prompts that are still needed, or None where all are."""
        kept, prompt_of_row = self.prompt_of_row[rows].unique(return_inverse=True)
        everything = len(kept) > int(self.prompt_of_row.max())
        if not everything and self.hidden is not None:
            self.hidden = self.hidden[kept]
        self._assign(prompt_of_row)
        return None if everything else kept

    def by_prompt(self, x: torch.Tensor) -> torch.Tensor:
        """[R, K, G, X] → [P * K, n * G, X]"""
        x = x.unsqueeze(0) if self.members is None else x[self.members]  # [P, n, K, G, X]
        return x.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def by_row(self, x: torch.Tensor, kv_heads: int, group: int) -> torch.Tensor:
        """[P * K, n * G, X] → [R, K, G, X]"""
        x = x.view(len(x) // kv_heads, kv_heads, -1, group, x.shape[-1]).transpose(1, 2)
        return x[0] if self.members is None else x.flatten(0, 1)[self.places]


def attend_with_prefix(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prefix_keys: torch.Tensor,
    prefix_values: torch.Tensor,
    groups: PromptGroups,
) -> torch.Tensor:
    """Attention over prompts that rows share, and over each row's own tokens.

    A prompt's keys and values are read once for all of its rows, instead of once per row.

    Args:
        query: [R, H, D], already scaled.
        keys, values: [R, K, S, D], of each row's own tokens.
        prefix_keys, prefix_values: [P * K, T, D], of the prompts' last T tokens.
        groups: which rows continue which prompt.

    Returns:
        [R, H * D]
    """
    rows, kv_heads, own, width = keys.shape
    group, shared = query.shape[1] // kv_heads, prefix_keys.shape[1]
    query = query.reshape(rows, kv_heads, group, width)
    of_prefix = torch.bmm(groups.by_prompt(query), prefix_keys.transpose(1, 2))  # [P * K, n * G, T]
    if groups.hidden is not None:
        of_prefix = of_prefix.unflatten(0, (-1, kv_heads)).add_(groups.hidden[..., -shared:]).flatten(0, 1)
    # Rows and heads in one dimension: with four dimensions `matmul` would make a contiguous copy.
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    of_own = torch.bmm(query.flatten(0, 1), keys.transpose(1, 2)).view(rows, kv_heads, group, own)
    weights = torch.cat((groups.by_row(of_prefix, kv_heads, group), of_own), dim=-1).softmax(dim=-1)
    attended = groups.by_row(torch.bmm(groups.by_prompt(weights[..., :shared]), prefix_values), kv_heads, group)
    of_own = torch.bmm(weights[..., shared:].flatten(0, 1), values).view(rows, kv_heads, group, width)
    return (attended + of_own).reshape(rows, -1)
