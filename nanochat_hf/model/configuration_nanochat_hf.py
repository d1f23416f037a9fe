"""The configuration of a nanochat: each feature is a field that can be off, and two presets set them together."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .shape_nanochat_hf import (
    WINDOW_PATTERN,
    check_preset,
    default_sliding_window,
    layer_has_value_embedding,
    width_and_heads,
    window_pattern_to_layer_types,
)

ROPE_THETA = {"modern": 100_000.0, "classic": 10_000.0}


@strict
class NanochatHFConfig(PreTrainedConfig):
    """Configuration of [`NanochatHFModel`]. The defaults are the modern 12-layer model.

    Args:
        vocab_size: rows of the embedding tables and of the head; a multiple of 64 runs fastest.
        hidden_size: width of the residual stream.
        intermediate_size: width of the squared-ReLU MLP; default 4 x `hidden_size`.
        num_hidden_layers: number of transformer blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key/value heads; default as many as query heads.
        head_dim: channels per head; default `hidden_size / num_attention_heads`.
        max_position_embeddings: length the model is trained on. Rotary angles are computed, not tabulated, so longer
            sequences run; full-attention layers then attend over everything.
        rope_parameters: transformers' rotary settings; the default is plain RoPE with the preset's base.
        final_logit_softcapping: the logits are `c * tanh(logits / c)`, in fp32; None turns it off.
        sliding_window: keys that a query of a sliding layer sees, itself included (upstream's window + 1).
        layer_types: "full_attention" or "sliding_attention" per layer.
        value_embeddings: every second layer (the last one always) adds a gated token embedding to its values.
        residual_scalars: learned scales of the residual stream and of the initial embedding before each block.
        smear: learned, gated mixing of the previous token's embedding into each token's.
        backout: subtracts a learned multiple of the middle block's output before the final norm.
        qk_scale: factor on normalised queries and on normalised keys (sharper attention than 1).
        preset: "modern" or "classic"; decides the initialisation and the defaults of `layer_types` and the rotary
            base. The other features are set by their own fields.
    """

    model_type = "nanochat_hf"
    keys_to_ignore_at_inference = ["past_key_values"]

    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.ve_gate": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
        "value_embeds.*": "replicated_with_grad_allreduce",  # each process uses the columns of its own heads
    }

    vocab_size: int = 32768
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rope_parameters: dict | None = None
    rms_norm_eps: float = 1.1920928955078125e-07  # fp32 epsilon, what torch's rms_norm takes when none is given
    final_logit_softcapping: float | int | None = 15.0
    attention_dropout: float | int = 0.0
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    value_embeddings: bool = True
    residual_scalars: bool = True
    smear: bool = True
    backout: bool = True
    qk_scale: float | int = 1.2
    preset: str = "modern"
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_preset(self.preset)
        if self.tie_word_embeddings:
            raise ValueError("embedding and head of this model cannot be tied; leave out tie_word_embeddings")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}; set head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, not {self.head_dim}")
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.layer_types is None:
            self.layer_types = window_pattern_to_layer_types(WINDOW_PATTERN[self.preset], self.num_hidden_layers)
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            self.sliding_window = default_sliding_window(self.max_position_embeddings)
        rope = {"rope_type": "default", "rope_theta": ROPE_THETA[self.preset]}
        self.rope_parameters = {**rope, **(self.rope_parameters or {})}
        super().__post_init__(**kwargs)

    @classmethod
    def from_depth(
        cls,
        depth: int,
        *,
        vocab_size: int = 32768,
        preset: str = "modern",
        sequence_length: int = 2048,
        aspect_ratio: int = 64,
        head_dim: int = 128,
        num_key_value_heads: int | None = None,
        window_pattern: str | None = None,
        **fields: Any,
    ) -> "NanochatHFConfig":
        """Builds the configuration from one number, the depth: width, heads and windows follow from it.

        Args:
            depth: number of layers; see [`width_and_heads`] for the width and the heads that follow.
            vocab_size: rows of the embedding tables and of the head.
            preset: "modern" (upstream, July 2026) or "classic" (upstream, October 2025).
            sequence_length: tokens per row in training.
            aspect_ratio: width per layer.
            head_dim: channels per head; the classic preset may take fewer.
            num_key_value_heads: default as many as query heads.
            window_pattern: S (a quarter of the context) and L (all of it), repeated over the layers; the last layer
                is always L. Default "SSSL" for modern and "L" for classic.
            fields: any other field of the configuration, taken as given.

        Raises:
            ValueError: the preset is unknown, the depth is less than 1, or the classic width cannot be split over its
                heads.
        """
        width, num_heads = width_and_heads(depth, preset=preset, aspect_ratio=aspect_ratio, head_dim=head_dim)
        if window_pattern is not None:
            fields.setdefault("layer_types", window_pattern_to_layer_types(window_pattern, depth))
        if preset == "classic":
            fields = {**classic_features(), **fields}
        return cls(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=width // num_heads,
            max_position_embeddings=sequence_length,
            preset=preset,
            **fields,
        )

    def has_value_embedding(self, layer_idx: int) -> bool:
        """Whether this layer adds a gated token embedding to its values."""
        return self.value_embeddings and layer_has_value_embedding(layer_idx, self.num_hidden_layers)


def classic_features() -> dict[str, Any]:
    """Returns the fields that turn the October 2025 model's missing features off."""
    return dict(value_embeddings=False, residual_scalars=False, smear=False, backout=False, qk_scale=1.0)


__all__ = ["NanochatHFConfig"]
