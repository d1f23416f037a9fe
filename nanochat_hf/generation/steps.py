"""The two ways to compute the next logits: through `model.forward` for any model, and a short cut for our own.

The short cut exists because a single token's arithmetic is so little that most of a forward's time is spent around it:
building masks, growing caches by copying them, dispatching three projections where one would do. It reads the prompt
through the model itself and then takes single steps over the same weights: fused projections, buffers allocated once,
and in sliding layers a ring of as many slots as the window has keys, so memory stops growing there.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from nanochat_hf.model.modeling_nanochat_hf import Linear, NanochatHFForCausalLM, soft_cap


class ForwardSteps:
    """Steps of any causal language model, by `model.forward` and its own cache."""

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
        """Takes one more token of each row [R]; returns fp32 logits [R, V]."""
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


class NanochatSteps:
    """Steps of a `NanochatHFForCausalLM`; the same numbers as its forward, up to the order of rounding.

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

    def __init__(self, model: NanochatHFForCausalLM, capacity: int):
        self.model, self.config = model, model.config
        self.dtype = model.model.embed_tokens.weight.dtype
        self.layers = [self._layer(index) for index in range(self.config.num_hidden_layers)]
        angles = torch.arange(capacity, device=model.device)[:, None] * model.model.rotary_emb.inv_freq.float()
        self.cos = torch.cat([angles.cos(), angles.cos()], dim=-1).to(self.dtype)  # [capacity, D]
        self.sin = torch.cat([angles.sin(), -angles.sin()], dim=-1).to(self.dtype)
        self.capacity = capacity

    def _layer(self, index: int) -> dict[str, Any]:
        """The weights of one layer, in the activations' dtype, and its two residual scales as numbers."""
        layer, base = self.model.model.layers[index], self.model.model
        attention = layer.self_attn
        weights = {
            "qkv": torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
            "out": attention.o_proj.weight,
            "up": layer.mlp.up_proj.weight,
            "down": layer.mlp.down_proj.weight,
        }
        if self.config.has_value_embedding(index):
            weights["gate"] = attention.ve_gate.weight
        facts: dict[str, Any] = {name: weight.detach().to(self.dtype) for name, weight in weights.items()}
        facts["table"] = base.value_embeds[str(index)].weight if "gate" in facts else None
        facts["sliding"] = self.config.layer_types[index] == "sliding_attention"
        facts["scales"] = None
        if self.config.residual_scalars:
            facts["scales"] = (base.resid_lambdas[index].item(), base.x0_lambdas[index].item())
        return facts

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """See [`ForwardSteps.prefill`]."""
        reader = ForwardSteps(self.model)
        logits = reader.prefill(ids, mask, range(len(ids)))
        chosen = torch.tensor(rows, device=ids.device)
        self.column = ids.shape[1]  # of the next token; all rows are in step
        self.pads = (ids.shape[1] - mask.sum(dim=1))[chosen]  # [R]
        self.max_pad = int(self.pads.max())
        self.keys, self.values = [], []
        for layer, cached in zip(self.layers, reader.cache.layers, strict=False):
            slots = min(self.capacity, self.config.sliding_window) if layer["sliding"] else self.capacity
            kept = torch.arange(self.column - cached.keys.shape[2], self.column, device=ids.device)[-slots:] % slots
            for buffers, states in ((self.keys, cached.keys), (self.values, cached.values)):
                buffer = states.new_zeros(len(rows), states.shape[1], slots, states.shape[3])  # [R, K, S, D]
                buffer[:, :, kept] = states[chosen, :, -len(kept) :]
                buffers.append(buffer)
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
        base, config = self.model.model, self.config
        positions = self.column - self.pads if self.max_pad else slice(self.column, self.column + 1)
        rotation = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)  # [R or 1, 1, D]
        masks = self._visible(self.capacity), self._visible(min(self.capacity, config.sliding_window or self.capacity))

        x = self._norm(F.embedding(tokens, base.embed_tokens.weight))  # [R, C]
        if config.smear:
            gate = torch.sigmoid(base.smear_gate(x[:, : base.smear_gate.in_features])) * base.smear_lambda.to(x.dtype)
            self.previous, x = x, torch.addcmul(x, gate, self.previous)
        initial, middle = x, None
        for index, layer in enumerate(self.layers):
            if layer["scales"] is not None:
                x = torch.add(x * layer["scales"][0], initial, alpha=layer["scales"][1])
            attended = self._attend(index, self._norm(x), tokens, rotation, masks[layer["sliding"]])
            x = x + F.linear(attended, layer["out"])
            x = x + F.linear(F.linear(self._norm(x), layer["up"]).relu_().square_(), layer["down"])
            if index == config.num_hidden_layers // 2:
                middle = x
        if config.backout:
            x = x - base.backout_lambda.to(x.dtype) * middle
        self.column += 1
        return soft_cap(self.model.lm_head(self._norm(x)).float(), config.final_logit_softcapping)

    def _attend(self, index: int, x: torch.Tensor, tokens: torch.Tensor, rotation: Any, mask: Any) -> torch.Tensor:
        """Attention of one token a row [R, C] over the layer's buffers → [R, H * D]."""
        config, layer = self.config, self.layers[index]
        heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        projected = F.linear(x, layer["qkv"]).view(len(x), heads + 2 * kv_heads, width)
        turning, value = projected[:, : heads + kv_heads], projected[:, heads + kv_heads :]
        if layer["table"] is not None:
            gate = torch.sigmoid(F.linear(x[:, : layer["gate"].shape[1]], layer["gate"])).unsqueeze(-1)  # [R, K, 1]
            embedded = F.embedding(tokens, layer["table"]).to(x.dtype).view(len(x), kv_heads, width)
            value = torch.addcmul(value, gate, embedded, value=3)
        cos, sin = rotation
        turning = torch.addcmul(turning * cos, turning.roll(width // 2, dims=-1), sin)
        turning = F.rms_norm(turning, (width,), eps=config.rms_norm_eps)

        keys, values = self.keys[index], self.values[index]
        slot, filled = self.column % keys.shape[2], min(self.column + 1, keys.shape[2])
        keys[:, :, slot] = turning[:, heads:]
        values[:, :, slot] = value
        attended = F.scaled_dot_product_attention(
            turning[:, :heads].unsqueeze(2),
            keys[:, :, :filled],
            values[:, :, :filled],
            attn_mask=mask,
            scale=width**-0.5 * config.qk_scale**2,
            enable_gqa=heads != kv_heads,
        )
        return attended.reshape(len(x), heads * width)

    def _visible(self, slots: int) -> torch.Tensor | None:
        """Which filled slots of a buffer hold no padding [R, 1, 1, filled]; None once none does."""
        if self.column - slots >= self.max_pad - 1 or not self.max_pad:
            return None
        slot = torch.arange(min(self.column + 1, slots), device=self.pads.device)
        column = self.column - (self.column - slot) % slots  # the one that a slot holds
        return (column >= self.pads[:, None])[:, None, None]

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.config.rms_norm_eps)
