"""Names, shapes and configuration fields of one model in three formats: upstream's, ours, transformers' NanoChat.

Upstream names its parameters `transformer.h.N.attn.c_q` and so on, and pads its vocabulary tables to a multiple of 64
rows. Its October 2025 architecture has no `value_embeds` and none of the other features of July 2026.
"""

import re
from typing import Any

import torch

from ..model.configuration_nanochat_hf import NanochatHFConfig, classic_features
from ..model.modeling_nanochat_hf import NanochatHFForCausalLM
from ..model.shape_nanochat_hf import window_pattern_to_layer_types

UPSTREAM_VOCAB_PADDING = 64
UPSTREAM_SOFTCAP = 15.0

# upstream's name → ours; {} is the layer
_LAYER_NAMES = {
    "transformer.h.{}.attn.c_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "transformer.h.{}.attn.c_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "transformer.h.{}.attn.c_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "transformer.h.{}.attn.c_proj.weight": "model.layers.{}.self_attn.o_proj.weight",
    "transformer.h.{}.attn.ve_gate.weight": "model.layers.{}.self_attn.ve_gate.weight",
    "transformer.h.{}.mlp.c_fc.weight": "model.layers.{}.mlp.up_proj.weight",
    "transformer.h.{}.mlp.c_proj.weight": "model.layers.{}.mlp.down_proj.weight",
    "value_embeds.{}.weight": "model.value_embeds.{}.weight",
}
_NAMES = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "lm_head.weight": "lm_head.weight",
    "resid_lambdas": "model.resid_lambdas",
    "x0_lambdas": "model.x0_lambdas",
    "smear_gate.weight": "model.smear_gate.weight",
    "smear_lambda": "model.smear_lambda",
    "backout_lambda": "model.backout_lambda",
}
_TO_TRANSFORMERS = {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}


def from_upstream(state_dict: dict[str, torch.Tensor], config: dict[str, Any]) -> NanochatHFForCausalLM:
    """Returns our model, in evaluation mode, with upstream's parameters.

    Args:
        state_dict: upstream names; a `_orig_mod.` prefix (compiled models) is dropped. Tensors keep their dtype.
        config: upstream's fields `sequence_len, vocab_size, n_layer, n_head, n_kv_head, n_embd` and, for the modern
            architecture, `window_pattern`.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape; the message names it.
    """
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in state_dict.items()}
    our_config = _config_from_upstream(tensors, config)
    names = {ours: theirs for theirs, ours in upstream_names(our_config).items()}
    return _assemble(our_config, tensors, names, vocab_padding=True)


def to_upstream(model: NanochatHFForCausalLM) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns upstream's state dict and configuration fields.

    Vocabulary tables get zero rows up to upstream's multiple of 64; upstream drops the logits of these rows.

    Raises:
        ValueError: the model has a feature that upstream's format cannot express.
    """
    config = model.config
    pattern = "".join("S" if kind == "sliding_attention" else "L" for kind in config.layer_types)
    fields = dict(
        sequence_len=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        n_kv_head=config.num_key_value_heads,
        n_embd=config.hidden_size,
    )
    if config.preset == "modern":
        fields["window_pattern"] = pattern
    expected = _expected_config(fields, config.preset)
    for name in _SHARED_FIELDS:
        if getattr(config, name) != getattr(expected, name):
            raise ValueError(
                f"upstream's {config.preset} model has {name} {getattr(expected, name)}, this one has "
                f"{getattr(config, name)}; it cannot be written in upstream's format"
            )
    tensors = model.state_dict()
    rows = -config.vocab_size % UPSTREAM_VOCAB_PADDING
    exported = {}
    for theirs, ours in upstream_names(config).items():
        tensor = tensors[ours].detach()
        if rows and _is_vocab_table(ours):
            tensor = torch.cat((tensor, tensor.new_zeros(rows, tensor.shape[1])))
        exported[theirs] = tensor
    return exported, fields


def to_transformers(model: NanochatHFForCausalLM) -> Any:
    """Returns the same model as `transformers.NanoChatForCausalLM`, which loads anywhere without remote code.

    Raises:
        ValueError: the model has a feature that transformers' October 2025 architecture lacks.
    """
    from transformers import NanoChatConfig, NanoChatForCausalLM

    config = model.config
    features = [name for name, value in _CLASSIC_FIELDS.items() if getattr(config, name) != value]
    if "sliding_attention" in config.layer_types:
        features.append("layer_types")
    if features:
        raise ValueError(
            f"transformers' NanoChat is the October 2025 architecture and has no {', '.join(features)}; only classic "
            "models can be exported to it. This model loads in transformers as it is, with trust_remote_code=True; "
            "train with --preset classic for a model that needs no code of its own"
        )
    shared = {name: getattr(config, name) for name in _TRANSFORMERS_FIELDS}
    theirs = NanoChatConfig(**shared, dtype=config.dtype, **_head_dim(config))
    exported = _empty(NanoChatForCausalLM, theirs)
    names = {name: _transformers_name(name) for name in model.state_dict()}
    exported.load_state_dict({names[name]: tensor for name, tensor in model.state_dict().items()}, assign=True)
    exported.generation_config = model.generation_config
    return exported.eval()


def from_transformers(model: Any) -> NanochatHFForCausalLM:
    """Returns transformers' `NanoChatForCausalLM` as our model with the preset "classic"."""
    built = from_transformers_tensors(model.state_dict(), model.config)
    built.generation_config = model.generation_config
    return built


def from_transformers_tensors(tensors: dict[str, torch.Tensor], theirs: Any) -> NanochatHFForCausalLM:
    """Returns our model, with the tensors of a `NanoChatForCausalLM`.

    Args:
        tensors: by transformers' names.
        theirs: transformers' `NanoChatConfig`.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape, or the configuration has biases or another
            activation than a nanochat.
    """
    if theirs.hidden_act != "relu2" or theirs.attention_bias:
        raise ValueError(
            f"a nanochat has squared ReLUs and no biases, but this model has hidden_act {theirs.hidden_act!r} and "
            f"attention_bias {theirs.attention_bias}"
        )
    shared = {name: getattr(theirs, name) for name in _TRANSFORMERS_FIELDS}
    config = NanochatHFConfig(**shared, **_CLASSIC_FIELDS, **_head_dim(theirs), preset="classic", dtype=theirs.dtype)
    names = {name: _transformers_name(name) for name in _empty(NanochatHFForCausalLM, config, meta=True).state_dict()}
    return _assemble(config, tensors, names, vocab_padding=False)


def from_own_tensors(tensors: dict[str, torch.Tensor], config: NanochatHFConfig) -> NanochatHFForCausalLM:
    """Returns our model with its own tensors, which keep their dtypes; `from_pretrained` would cast them to one.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    names = {name: name for name in _empty(NanochatHFForCausalLM, config, meta=True).state_dict()}
    return _assemble(config, tensors, names, vocab_padding=False)


_CLASSIC_FIELDS = classic_features()
_SHARED_FIELDS = (
    *_CLASSIC_FIELDS,
    "intermediate_size",
    "head_dim",
    "layer_types",
    "sliding_window",
    "final_logit_softcapping",
    "rope_parameters",
)
_TRANSFORMERS_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_parameters",
    "rms_norm_eps",
    "final_logit_softcapping",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def _config_from_upstream(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> NanochatHFConfig:
    """Recognises the architecture by its tensors: modern has all of the later features, classic has none."""
    marks = ("resid_lambdas", "x0_lambdas", "smear_gate.weight", "smear_lambda", "backout_lambda")
    found = [name for name in marks if name in tensors]
    found += [name for name in tensors if name.startswith("value_embeds.")][:1]
    if not found:
        return _expected_config(config, "classic")
    # With half or more of the features a tensor is missing, which _assemble reports by name.
    if len(found) <= 2:
        raise ValueError(
            f"the checkpoint has {', '.join(found)} but not the other features of July 2026's architecture: it comes "
            "from between the two architectures that can be converted (October 2025 and July 2026)"
        )
    return _expected_config(config, "modern")


def _expected_config(config: dict[str, Any], preset: str) -> NanochatHFConfig:
    needed = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_embd")
    missing = [name for name in needed if name not in config]
    if missing:
        raise ValueError(f"upstream's model configuration lacks {', '.join(missing)}")
    features = _CLASSIC_FIELDS if preset == "classic" else {}
    layers = config["n_layer"]
    return NanochatHFConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["n_embd"],
        num_hidden_layers=layers,
        num_attention_heads=config["n_head"],
        num_key_value_heads=config.get("n_kv_head", config["n_head"]),
        max_position_embeddings=config["sequence_len"],
        layer_types=window_pattern_to_layer_types(config.get("window_pattern", "L"), layers),
        final_logit_softcapping=UPSTREAM_SOFTCAP,
        preset=preset,
        dtype="float32",
        **features,
    )


def upstream_names(config: NanochatHFConfig) -> dict[str, str]:
    """Returns upstream's name → ours, for every parameter of a model of this configuration."""
    names = dict(_NAMES)
    for layer in range(config.num_hidden_layers):
        names |= {theirs.format(layer): ours.format(layer) for theirs, ours in _LAYER_NAMES.items()}
    ours = set(_empty(NanochatHFForCausalLM, config, meta=True).state_dict())
    return {theirs: our for theirs, our in names.items() if our in ours}


def _assemble(
    config: NanochatHFConfig, tensors: dict[str, torch.Tensor], names: dict[str, str], vocab_padding: bool
) -> NanochatHFForCausalLM:
    """Builds the model from `tensors`, found under `names[our name]`; presence and shape of each are checked."""
    skeleton = _empty(NanochatHFForCausalLM, config, meta=True)
    shapes = {name: value.shape for name, value in skeleton.state_dict().items()}
    missing = sorted(names[name] for name in shapes if names[name] not in tensors)
    if missing:
        raise ValueError(f"the checkpoint lacks {_some(missing)}: it is truncated or of another architecture")
    unknown = sorted(set(tensors) - set(names.values()))
    if unknown:
        raise ValueError(f"the checkpoint has tensors that this architecture does not: {_some(unknown)}")
    state = {}
    for ours, shape in shapes.items():
        tensor = tensors[names[ours]]
        rows = config.vocab_size
        if vocab_padding and _is_vocab_table(ours) and tensor.ndim == 2:
            if rows < tensor.shape[0] < rows + UPSTREAM_VOCAB_PADDING:
                tensor = tensor[:rows].clone()  # a view would keep the padded storage alive and be saved with it
        if tensor.shape != shape:
            raise ValueError(f"{names[ours]} has shape {list(tensor.shape)}, the configuration asks for {list(shape)}")
        state[ours] = tensor
    model = _empty(NanochatHFForCausalLM, config)
    model.load_state_dict(state, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def _empty(model_class: type, config: Any, meta: bool = False) -> Any:
    """A model without initialisation, whose parameters are going to be replaced."""
    from transformers.initialization import no_init_weights

    with torch.device("meta" if meta else "cpu"), no_init_weights():
        return model_class(config)


def _is_vocab_table(name: str) -> bool:
    return name in ("model.embed_tokens.weight", "lm_head.weight") or name.startswith("model.value_embeds.")


def _transformers_name(name: str) -> str:
    for ours, theirs in _TO_TRANSFORMERS.items():
        name = re.sub(rf"\b{re.escape(ours)}\b", theirs, name)
    return name


def _head_dim(config: Any) -> dict[str, int]:
    """The field `head_dim`, where it does not follow from the other fields."""
    derived = config.hidden_size // config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or derived
    return {} if head_dim == derived else {"head_dim": head_dim}


def _some(names: list[str], limit: int = 3) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
