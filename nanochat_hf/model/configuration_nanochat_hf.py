"""The shape of a nanochat model: every feature is a field that can be off, and two presets set them together."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

PRESETS = ("modern", "classic")
ROPE_THETA = {"modern": 100_000.0, "classic": 10_000.0}
# Windows are whole tiles of flash attention's kernels.
WINDOW_TILE = 128


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
        head_dim: channels of a head; default `hidden_size / num_attention_heads`.
        max_position_embeddings: length the model is trained on. Rotary angles are computed, not tabulated, so longer
            sequences run; full-attention layers then attend over everything.
        rope_parameters: transformers' rotary settings; the default is plain RoPE with the preset's base.
        final_logit_softcapping: the logits are `c * tanh(logits / c)`, in fp32; None turns it off.
        sliding_window: keys that a query of a sliding layer sees, itself included (upstream's window + 1).
        layer_types: "full_attention" or "sliding_attention" for each layer.
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
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {self.preset!r}")
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
            pattern = "SSSL" if self.preset == "modern" else "L"
            self.layer_types = window_pattern_to_layer_types(pattern, self.num_hidden_layers)
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
        """The one dial: everything follows from the number of layers.

        Args:
            depth: number of layers; the width is `aspect_ratio * depth` (modern: rounded up to whole heads).
            preset: "modern" (upstream, July 2026) or "classic" (October 2025).
            head_dim: channels of a head. Classic splits its width over `ceil(width / head_dim)` heads.
            window_pattern: S (quarter context) and L (full context), tiled over the layers; the last layer is always
                full. Default "SSSL" for modern and "L" for classic.
            fields: any other field of the configuration, taken as given.

        Raises:
            ValueError: the classic width cannot be split over its heads.
        """
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        width = aspect_ratio * depth
        num_heads = math.ceil(width / head_dim)
        if preset == "modern":
            width = num_heads * head_dim
        elif width % num_heads:
            raise ValueError(
                f"the classic preset cannot split width {width} (depth {depth}) over {num_heads} heads; choose an "
                "even depth or another head_dim"
            )
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
        """Every second layer has a value embedding, counted so that the last one always does."""
        return self.value_embeddings and layer_idx % 2 == (self.num_hidden_layers - 1) % 2


def classic_features() -> dict[str, Any]:
    """The October 2025 model as fields: none of the later features."""
    return dict(value_embeddings=False, residual_scalars=False, smear=False, backout=False, qk_scale=1.0)


def window_pattern_to_layer_types(pattern: str, num_layers: int) -> list[str]:
    """Tiles a pattern of S and L over the layers; the last layer is always full.

    Example:
        >>> window_pattern_to_layer_types("SL", 3)
        ['sliding_attention', 'full_attention', 'full_attention']
    """
    if not pattern or set(pattern.upper()) - set("SL"):
        raise ValueError(f"a window pattern is made of S (sliding) and L (long), not {pattern!r}")
    names = {"S": "sliding_attention", "L": "full_attention"}
    layer_types = [names[pattern.upper()[index % len(pattern)]] for index in range(num_layers)]
    return [*layer_types[:-1], "full_attention"]


def default_sliding_window(sequence_length: int) -> int:
    """A quarter of the context in whole tiles, plus the query itself."""
    return WINDOW_TILE * math.ceil(sequence_length / 4 / WINDOW_TILE) + 1


__all__ = ["NanochatHFConfig"]
