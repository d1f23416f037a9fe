"""The nanochat decoder for transformers: upstream's July 2026 architecture, with October 2025 as a preset.

The file reads from the parts to the whole: rotary positions, attention, MLP, block, model, language model. The norm is
in `pointwise_nanochat_hf.py`, a fast linear product in `products_nanochat_hf.py`, attention over windows in
`window_attention_nanochat_hf.py`, the loss in `loss_nanochat_hf.py`, and what smear keeps in caches in
`smear_state_nanochat_hf.py`.

Shapes: B batch, T tokens, C hidden_size, H query heads, K key/value heads, D head_dim, V vocab_size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_nanochat_hf import NanochatHFConfig
from .loss_nanochat_hf import IGNORE_INDEX, causal_loss, chunked_causal_loss, soft_cap
from .pointwise_nanochat_hf import rms_norm, squared_relu
from .products_nanochat_hf import linear
from .shape_nanochat_hf import SMEAR_GATE_CHANNELS, VALUE_GATE_CHANNELS
from .smear_state_nanochat_hf import check_engine, give_state_layer, paged_previous_tokens, previous_states
from .window_attention_nanochat_hf import (
    BlockMask,
    pick_window_kernel,
    window_mask,
    windowed_flex,
    windowed_sdpa,
    windowed_varlen,
)


class Linear(nn.Linear):
    """A projection without bias: it computes in the dtype of its input, whatever the dtype of its weight."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        same = self.weight.dtype == x.dtype  # in inference mode, torchao's weights of few bits have no `to`
        return linear(x, self.weight if same else self.weight.to(x.dtype))


class NanochatHFRotaryEmbedding(nn.Module):
    """Rotary positions, computed for the positions of each batch, so that no table limits the length."""

    def __init__(self, config: NanochatHFConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        default = self.rope_type == "default"
        init_function = self.compute_default_rope_parameters if default else ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = init_function(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """As in PyTorch, but the frequencies stay in fp32: `model.bfloat16()` would round each by up to 0.4 %."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, exact in before.items():
            if self._buffers[name].dtype != exact.dtype:
                self._buffers[name] = exact.to(self._buffers[name].device)
        return self

    @staticmethod
    def compute_default_rope_parameters(config: NanochatHFConfig, device=None, **_: Any) -> tuple[torch.Tensor, float]:
        """Returns the inverse frequencies [D/2] and the factor on cos and sin."""
        channels = torch.arange(0, config.head_dim, 2, dtype=torch.float, device=device)
        return 1.0 / (config.rope_parameters["rope_theta"] ** (channels / config.head_dim)), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cos and sin [B, 1, T, D/2] of the positions [B, T], in the dtype of `x`."""
        angles = position_ids[:, None, :, None].float() * self.inv_freq.to(x.device, torch.float)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the channel pairs (i, i + D/2) of `x` [B, H, T, D] by minus the angle, upstream's convention."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention from its formula; returns the output [B, T, H, D] and the weights [B, H, T, keys].

    Args:
        module: the attention layer, for its number of query heads per key/value head.
        query: [B, H, T, D].
        key, value: [B, K, keys, D].
        attention_mask: added to the scores; broadcasts to [B, H, T, keys].
        scaling: factor on the scores.
        dropout: of the weights, in training.
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class NanochatHFAttention(nn.Module):
    """Causal grouped-query attention, with rotary positions and then a norm on queries and keys.

    Where the layer has a value embedding, the values are v + 3 · sigmoid(gate) · value embedding of the token.
    """

    def __init__(self, config: NanochatHFConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.layer_type = config.layer_types[layer_idx]
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        # Upstream multiplies queries and keys by qk_scale; one factor on the scores saves two roundings.
        self.scaling = config.head_dim**-0.5 * config.qk_scale**2
        self.sliding_window = config.sliding_window if self.layer_type == "sliding_attention" else None
        self.is_causal = True
        self.q_proj = Linear(config.hidden_size, config.num_attention_heads * config.head_dim)
        self.k_proj = Linear(config.hidden_size, config.num_key_value_heads * config.head_dim)
        self.v_proj = Linear(config.hidden_size, config.num_key_value_heads * config.head_dim)
        self.o_proj = Linear(config.num_attention_heads * config.head_dim, config.hidden_size)
        if config.has_value_embedding(layer_idx):
            self.ve_gate = Linear(min(VALUE_GATE_CHANNELS, config.hidden_size), config.num_key_value_heads)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        value_embeds: torch.Tensor | None = None,
        window_kernel: str | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the layer's output [B, T, C] and, where the implementation has them, the attention weights.

        Args:
            hidden_states: [B, T, C], normed.
            position_embeddings: cos and sin [B, 1, T, D/2].
            attention_mask: as the attention implementation takes it; with the window kernel "flex" its mask of blocks.
            past_key_values: cache that keys and values are added to.
            value_embeds: [B, T, K · D], the value embeddings of the tokens.
            window_kernel: for sliding layers of whole rows, a kernel of `window_attention_nanochat_hf.py`; None: the
                implementation's own way.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)  # [B, H, T, D]
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)  # [B, K, T, D]
        value = self.v_proj(hidden_states).view(heads)  # [B, T, K, D]
        if value_embeds is not None:
            gate = 3 * torch.sigmoid(self.ve_gate(hidden_states[..., : self.ve_gate.in_features]))  # [B, T, K]
            value_embeds = value_embeds.view(heads)
            if value_embeds.shape != value.shape:  # tensor parallelism: this process has some of the heads
                mesh = self.v_proj.weight.device_mesh
                value_embeds = value_embeds.chunk(mesh.size(), dim=2)[mesh.get_local_rank()]
            value = value + gate.unsqueeze(-1) * value_embeds
        value = value.transpose(1, 2)

        cos, sin = position_embeddings
        eps = self.config.rms_norm_eps
        query, key = rms_norm(rotate(query, cos, sin), eps), rms_norm(rotate(key, cos, sin), eps)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        dropout = self.config.attention_dropout if self.training else 0.0
        window, weights = self.sliding_window, None
        if window_kernel is not None and window and query.shape[2] > window:
            output = self._over_window(query, key, value, attention_mask, window_kernel, dropout).transpose(1, 2)
        else:
            implementation = self.config._attn_implementation
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
            options = dict(dropout=dropout, scaling=self.scaling, sliding_window=window)
            output, weights = attend(self, query, key, value, attention_mask, **options, **kwargs)
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights

    def _over_window(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: BlockMask | None,
        kernel: str,
        dropout: float,
    ) -> torch.Tensor:
        if dropout == 0.0 and mask is not None:
            return windowed_flex(query, key, value, mask, scale=self.scaling)
        if dropout == 0.0 and kernel == "varlen":
            return windowed_varlen(query, key, value, self.sliding_window, scale=self.scaling)
        return windowed_sdpa(query, key, value, self.sliding_window, scale=self.scaling, dropout_p=dropout)


class NanochatHFMLP(nn.Module):
    """Up projection, squared ReLU, down projection; [B, T, C] to [B, T, C]."""

    def __init__(self, config: NanochatHFConfig):
        super().__init__()
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(squared_relu(self.up_proj(hidden_states)))


class NanochatHFDecoderLayer(GradientCheckpointingLayer):
    """A block: residual scales, then attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: NanochatHFConfig, layer_idx: int):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.self_attn = NanochatHFAttention(config, layer_idx)
        self.mlp = NanochatHFMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        initial_states: torch.Tensor | None = None,
        scales: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Returns the residual stream [B, T, C] after the block.

        Args:
            hidden_states: [B, T, C], the residual stream.
            initial_states: [B, T, C], what entered the first block.
            scales: 0-D factors on the two; None for 1 and 0.
            kwargs: go to the attention.
        """
        if scales is not None:
            hidden_states = scales[0] * hidden_states + scales[1] * initial_states
        attended, _ = self.self_attn(rms_norm(hidden_states, self.eps), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(rms_norm(hidden_states, self.eps))


class NanochatHFPreTrainedModel(PreTrainedModel):
    """What model and language model share: transformers' flags, resizing, upstream's initialisation."""

    config: NanochatHFConfig
    config_class = NanochatHFConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NanochatHFDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": NanochatHFDecoderLayer, "attentions": NanochatHFAttention}
    # Quantizers leave these out: gates have 12 and 24 inputs, less than a group of any 4-bit format.
    _keep_in_fp32_modules = [".*_gate"]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the folder's `auto_map` names all classes of this file, whichever of them is saved."""
        names = {auto: f"{kind.__module__.split('.')[-1]}.{kind.__name__}" for auto, kind in AUTO_CLASSES.items()}
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **names}
        return super().save_pretrained(*args, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the value embeddings, too, have a row per token, and the head stays of its class."""
        head = self.get_output_embeddings()
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        for table in self.base_model.value_embeds.values() if self.config.value_embeddings else ():
            resized = self._get_resized_embeddings(table, embeddings.num_embeddings)
            resized.requires_grad_(table.weight.requires_grad)
            table.weight, table.num_embeddings = resized.weight, resized.num_embeddings
        if head is not None:
            resized = self.get_output_embeddings()
            head.weight, head.out_features = resized.weight, resized.out_features
            self.set_output_embeddings(head)
        return embeddings

    def _initialize_weights(self, module: nn.Module, *_: Any, **__: Any) -> None:
        """As in transformers for its own models: no module is skipped.

        For custom code transformers skips modules without parameters of their own. Those are attention, MLP and the
        head's owner here, and their projections would keep PyTorch's initialisation. The skip protects loaded weights
        from code that overwrites them; `transformers.initialization`, used below, does not.
        """
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Upstream's initialisation. `init` leaves alone what a checkpoint has filled."""
        classic, width = self.config.preset == "classic", self.config.hidden_size
        uniform = (3 / width) ** 0.5  # U(-b, b) has the standard deviation of N(0, 1/sqrt(width))
        if isinstance(module, NanochatHFAttention):
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                if classic:
                    fan_out, fan_in = projection.weight.shape
                    init.normal_(projection.weight, std=fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5))
                else:
                    init.uniform_(projection.weight, -uniform, uniform)
            init.zeros_(module.o_proj.weight)
            if hasattr(module, "ve_gate"):
                init.uniform_(module.ve_gate.weight, 0.0, 0.02)
        elif isinstance(module, NanochatHFMLP):
            if classic:
                init.normal_(module.up_proj.weight, std=width**-0.5)
            else:
                init.uniform_(module.up_proj.weight, -0.4 * uniform, 0.4 * uniform)
            init.zeros_(module.down_proj.weight)
        elif isinstance(module, NanochatHFModel):
            self._init_base(module, classic, uniform)
        elif isinstance(module, NanochatHFForCausalLM):
            if classic:
                init.zeros_(module.lm_head.weight)
            else:
                init.normal_(module.lm_head.weight, std=0.001)
        elif isinstance(module, NanochatHFRotaryEmbedding):
            super()._init_weights(module)
        elif type(module) is nn.Linear:  # the head of a classifier
            init.normal_(module.weight, std=width**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)

    def _init_base(self, module: "NanochatHFModel", classic: bool, uniform: float) -> None:
        init.normal_(module.embed_tokens.weight, std=1.0 if classic else 0.8)
        if self.config.value_embeddings:
            for table in module.value_embeds.values():
                init.uniform_(table.weight, -uniform, uniform)
        if self.config.residual_scalars:
            # Early layers get more of the residual stream and of the initial embedding than late ones.
            layers = self.config.num_hidden_layers
            steps = torch.arange(layers, dtype=torch.float) / max(layers - 1, 1)
            init.copy_(module.resid_lambdas, 1.15 - 0.10 * steps)
            init.copy_(module.x0_lambdas, 0.20 - 0.15 * steps)
        if self.config.smear:
            init.uniform_(module.smear_gate.weight, 0.0, 0.02)
            init.zeros_(module.smear_lambda)
        if self.config.backout:
            init.constant_(module.backout_lambda, 0.2)


class NanochatHFModel(NanochatHFPreTrainedModel):
    """The decoder up to and including the final norm."""

    def __init__(self, config: NanochatHFConfig):
        super().__init__(config)
        if config.smear:
            check_engine(self.config._attn_implementation)
        width, layers = config.hidden_size, config.num_hidden_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(NanochatHFDecoderLayer(config, index) for index in range(layers))
        if config.value_embeddings:
            value_width = config.num_key_value_heads * config.head_dim
            self.value_embeds = nn.ModuleDict(
                {
                    str(index): nn.Embedding(config.vocab_size, value_width)
                    for index in range(layers)
                    if config.has_value_embedding(index)
                }
            )
        if config.residual_scalars:
            self.resid_lambdas = nn.Parameter(torch.ones(layers))
            self.x0_lambdas = nn.Parameter(torch.zeros(layers))
        if config.smear:
            self.smear_gate = Linear(min(SMEAR_GATE_CHANNELS, width), 1)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))
        self.rotary_emb = NanochatHFRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.window_kernel = "auto"  # one of WINDOW_KERNELS, for the implementation "sdpa"
        self.layers_are_compiled = False  # a trainer has compiled each layer
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the decoder.

        Args:
            input_ids: [B, T] tokens. A model with value embeddings needs them: every second layer looks them up.
            attention_mask: [B, past + T] with 0 for padding, or transformers' prepared masks by layer type.
            position_ids: [B, T]; a position of 0 begins a document (smear does not reach over it). Default: counted
                from the mask, else from the cache.
            past_key_values: any cache of transformers; smear's state is kept there in one more layer.
            inputs_embeds: [B, T, C] embeddings instead of `input_ids`.
            use_cache: whether to return a cache; default: the configuration's.

        Returns:
            `last_hidden_state` [B, T, C] after backout and the final norm, and `past_key_values`.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds` is given, or value embeddings lack
                `input_ids`; or smear would lose its state, see `check_engine`.
        """
        if self.config.smear:
            check_engine(self.config._attn_implementation, kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if input_ids is None and self.config.value_embeddings:
            raise ValueError("this model has value embeddings, which need input_ids; inputs_embeds is not enough")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None and not (self.training and torch.is_grad_enabled()):
            past_key_values = DynamicCache(config=self.config)

        padded_or_packed = position_ids is not None or isinstance(attention_mask, torch.Tensor)
        whole_rows = not padded_or_packed and attention_mask is None and past_key_values is None
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, attention_mask, past_key_values)
        hidden_states = self._norm(self._to_compute_dtype(inputs_embeds))
        window_kernel = None
        if whole_rows and self.config._attn_implementation == "sdpa" and not is_exporting():
            # Under torch.compile transformers would make [T, T] masks.
            masks, window_kernel = self._whole_row_masks(hidden_states)
        else:
            masks = self._masks(inputs_embeds, attention_mask, past_key_values, position_ids)

        if self.config.smear:
            starts = position_ids == 0 if padded_or_packed or past_key_values is not None else None
            previous = self._previous_states(hidden_states, input_ids, past_key_values, kwargs)
            hidden_states = self._smear(hidden_states, previous, starts)
        position_embeddings = self.rotary_emb(hidden_states, position_ids)

        initial_states = hidden_states
        middle = self.config.num_hidden_layers // 2
        scalars = (self.resid_lambdas, self.x0_lambdas) if self.config.residual_scalars else ()
        scales = list(zip(*(scalar.unbind() for scalar in scalars), strict=True))
        for index, layer in enumerate(self.layers):
            value_embeds = None
            if self.config.has_value_embedding(index):
                value_embeds = self.value_embeds[str(index)](input_ids).to(hidden_states.dtype)
            hidden_states = layer(
                hidden_states,
                initial_states,
                scales[index] if scales else None,
                position_embeddings=position_embeddings,
                attention_mask=masks[self.config.layer_types[index]],
                position_ids=position_ids,
                past_key_values=past_key_values,
                value_embeds=value_embeds,
                window_kernel=window_kernel,
                **kwargs,
            )
            if index == middle:
                middle_states = hidden_states
        if self.config.backout:
            hidden_states = hidden_states - self.backout_lambda.to(hidden_states.dtype) * middle_states
        return BaseModelOutputWithPast(last_hidden_state=self._norm(hidden_states), past_key_values=past_key_values)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.config.rms_norm_eps)

    @staticmethod
    def _to_compute_dtype(x: torch.Tensor) -> torch.Tensor:
        """The residual stream is in the embedding table's dtype, or in autocast's.

        Autocast alone would leave it in fp32, because embedding and norm keep the dtype of their input.
        """
        if torch.is_autocast_enabled(x.device.type):
            return x.to(torch.get_autocast_dtype(x.device.type))
        return x

    @staticmethod
    def _positions(x: torch.Tensor, attention_mask: Any, past_key_values: Cache | None) -> torch.Tensor:
        """Returns positions [B or 1, T], counted from the cache; a 2-D mask leaves padding out of the count."""
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -x.shape[1] :]
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        return (torch.arange(x.shape[1], device=x.device) + seen).unsqueeze(0)

    def _whole_row_masks(self, x: torch.Tensor) -> tuple[dict[str, BlockMask | None], str]:
        """Returns the masks of rows that begin at their left edge, by kind of layer, and the window kernel's name."""
        kernel, masks = self.window_kernel, dict.fromkeys(self.config.layer_types)
        if kernel == "auto":
            compiled = self.layers_are_compiled or torch.compiler.is_compiling()
            kernel = pick_window_kernel(x.device, x.dtype, compiled)
        window = self.config.sliding_window
        if kernel == "flex" and "sliding_attention" in masks and x.shape[1] > window:
            masks["sliding_attention"] = window_mask(x.shape[1], window, x.device)
        return masks, kernel

    def _masks(self, x: torch.Tensor, attention_mask: Any, past_key_values: Cache | None, position_ids: torch.Tensor):
        """Returns the attention mask of each kind of layer, by its name in `layer_types`."""
        if isinstance(attention_mask, dict):
            return attention_mask
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        layer_types = self.config.layer_types
        # Which layer of the cache sizes the mask is said, because smear's state is a sliding layer too.
        return {
            kind: make(
                self.config, x, attention_mask, past_key_values, position_ids, layer_idx=layer_types.index(kind)
            )
            for kind, make in makers.items()
            if kind in layer_types
        }

    def _previous_states(
        self, x: torch.Tensor, input_ids: torch.Tensor | None, past_key_values: Cache | None, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Returns each token's predecessor [B, T, C], from the normed embeddings `x` and from the cache."""
        state_layer = self.config.num_hidden_layers
        if kwargs.get("cache") is not None:  # continuous batching
            tokens = paged_previous_tokens(input_ids, state_layer, kwargs)
            return self._norm(self._to_compute_dtype(self.embed_tokens(tokens)))
        if past_key_values is not None:
            return previous_states(x, past_key_values, state_layer)
        return F.pad(x, (0, 0, 1, -1))  # a slice would make export exclude the length of one token

    def _smear(self, x: torch.Tensor, previous: torch.Tensor, starts: torch.Tensor | None) -> torch.Tensor:
        """Returns x_t + lambda * sigmoid(w . x_t) * x_(t-1) [B, T, C], and x_t where a document starts."""
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(x[..., : self.smear_gate.in_features]))
        if starts is not None:
            gate = gate.masked_fill(starts.unsqueeze(-1), 0)
        return x + gate * previous


def is_exporting() -> bool:
    """Whether `torch.export` is running; PyTorch before 2.14 says so inside of `torch.compile`, too."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


class NanochatHFForCausalLM(NanochatHFPreTrainedModel, GenerationMixin):
    """The decoder with its language-modelling head: one linear map and a soft cap."""

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: NanochatHFConfig):
        super().__init__(config)
        self.model = NanochatHFModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        return_logits: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the model; see [`NanochatHFModel.forward`] for what is not described here.

        Args:
            labels: [B, T] token ids, -100 for tokens that are not supervised; shifted inside.
            logits_to_keep: 0 for all positions, n for the last n, or a tensor of positions.
            num_items_in_batch: what the summed loss is divided by; default the number of supervised tokens here.
            return_logits: whether to return logits beside a loss; by default not in training, where [B, T, V] in fp32
                would be the largest tensor of all.
            kwargs: may hold `shift_labels` [B, T], labels that are shifted already, instead of `labels`; the rest goes
                to the decoder.

        Returns:
            `loss` (0-D, nats per supervised token), and `logits` [B, T, V] in fp32 or None.
        """
        # No parameter of its own: `Trainer` takes every parameter with "label" in its name for a column of each batch.
        shift_labels = kwargs.pop("shift_labels", None)
        supervised = labels is not None or shift_labels is not None
        if supervised and use_cache is None:
            use_cache = False
        if return_logits is None:
            return_logits = not (supervised and self.training and torch.is_grad_enabled())
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        if labels is not None and shift_labels is None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        if supervised:
            loss, logits = self.supervised_loss(hidden_states, shift_labels, num_items_in_batch, return_logits)
        else:
            loss, logits = None, self._logits(hidden_states)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def supervised_loss(
        self,
        hidden_states: torch.Tensor,
        shift_labels: torch.Tensor,
        num_items_in_batch: int | torch.Tensor | None,
        return_logits: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The head and its loss: (loss, logits or None), as `forward` describes them. Trainers compile it."""
        cap = self.config.final_logit_softcapping
        if not return_logits and is_only_its_weight(self.lm_head):
            weight = self.lm_head.weight
            return chunked_causal_loss(hidden_states, weight, shift_labels, cap, num_items_in_batch), None
        logits = self._logits(hidden_states)
        return causal_loss(logits, shift_labels, num_items_in_batch), logits

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return soft_cap(self.lm_head(hidden_states).float(), self.config.final_logit_softcapping)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, whose `generate_batch`, server and TRL's trainers call it; adds smear's state."""
        manager = super().init_continuous_batching(*args, **kwargs)
        if self.config.smear:
            give_state_layer(manager, self)
        return manager


def is_only_its_weight(head: nn.Module) -> bool:
    """Whether the loss may use a head's weight without calling the head.

    It may not where the head is wrapped (LoRA), quantised, in 8-bit floats or sharded (tensor parallelism, FSDP), or
    where it has hooks, such as those of `device_map`.
    """
    hooked = head._forward_hooks or head._forward_pre_hooks or "forward" in head.__dict__
    return type(head) is Linear and type(head.weight) is nn.Parameter and not hooked


class NanochatHFForSequenceClassification(GenericForSequenceClassification, NanochatHFPreTrainedModel):
    """One score per label for a whole text, from its last token: classifiers, and the reward models of TRL.

    The last token is the last one that differs from the configuration's `pad_token_id`.
    """

    def __init__(self, config: NanochatHFConfig):
        NanochatHFPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = NanochatHFModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class NanochatHFForTokenClassification(GenericForTokenClassification, NanochatHFPreTrainedModel):
    """One score per label for each token."""

    def __init__(self, config: NanochatHFConfig):
        NanochatHFPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = NanochatHFModel(config)
        self.dropout = nn.Dropout(getattr(config, "classifier_dropout", None) or 0.0)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class NanochatHFForQuestionAnswering(GenericForQuestionAnswering, NanochatHFPreTrainedModel):
    """Scores of each token as the first and as the last of an answer in the text."""

    def __init__(self, config: NanochatHFConfig):
        NanochatHFPreTrainedModel.__init__(self, config)
        self.model = NanochatHFModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


AUTO_CLASSES = {
    "AutoModel": NanochatHFModel,
    "AutoModelForCausalLM": NanochatHFForCausalLM,
    "AutoModelForSequenceClassification": NanochatHFForSequenceClassification,
    "AutoModelForTokenClassification": NanochatHFForTokenClassification,
    "AutoModelForQuestionAnswering": NanochatHFForQuestionAnswering,
}
NanochatHFConfig.register_for_auto_class()
for _auto_class, _model_class in AUTO_CLASSES.items():
    _model_class.register_for_auto_class(_auto_class)

__all__ = [
    "NanochatHFForCausalLM",
    "NanochatHFForQuestionAnswering",
    "NanochatHFForSequenceClassification",
    "NanochatHFForTokenClassification",
    "NanochatHFModel",
    "NanochatHFPreTrainedModel",
]
