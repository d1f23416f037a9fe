"""Small models with weights that make every feature count (upstream's initialisation has many zeros)."""

import torch

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM


def tiny_config(**fields) -> NanochatHFConfig:
    """Four layers, SSSL with a window of nine, two key/value heads for four query heads."""
    shape = dict(
        vocab_size=128,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=9,
    )
    return NanochatHFConfig(**{**shape, **fields})


def classic_fields() -> dict:
    off = dict(value_embeddings=False, residual_scalars=False, smear=False, backout=False, qk_scale=1.0)
    return dict(preset="classic", sliding_window=None, **off)


def randomized(config: NanochatHFConfig, seed: int = 0) -> NanochatHFForCausalLM:
    model = NanochatHFForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        std = 0.1 if parameter.ndim > 1 else 0.5
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return model
