"""Parameter groups: which parameter Muon trains, which AdamW, and at which rates.

A parameter's group follows from its owner and its name, never from its `ndim`. Values are upstream's, but for
`FITTED_RATES` and `TRIGRAM_RATES`.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from .muon_adamw import MuonAdamW

# Roles of the parameters that are no matrix of a block, no embedding and not the head, by parts of their names.
SCALAR_ROLES = {
    "resid_lambdas": "resid_lambdas",
    "x0_lambdas": "x0_lambdas",
    "smear_gate": "smear",
    "smear_lambda": "smear",
    "backout_lambda": "backout",
}


@dataclass(frozen=True)
class AdamWRole:
    """AdamW settings of one role.

    Attributes:
        base: which of the rates of `build_param_groups` the role's rate is derived from.
        lr: factor on that rate.
        betas, weight_decay: AdamW's.
        width_scaled: whether the rate is also multiplied by (hidden_size / 768)^-0.5.
    """

    base: str
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    width_scaled: bool = False


# Upstream, July 2026: found there by sweeps at depth 12 and checked at depth 24.
MODERN_ROLES = {
    "head": AdamWRole("unembedding_lr", 1.0, (0.8, 0.96), 0.01, width_scaled=True),
    "embedding": AdamWRole("embedding_lr", 1.0, (0.8, 0.995), 0.001, width_scaled=True),
    "value_embedding": AdamWRole("value_embedding_lr", 1.0, (0.8, 0.995), 0.01, width_scaled=True),
    "resid_lambdas": AdamWRole("scalar_lr", 0.01, (0.8, 0.95), 0.05),
    "x0_lambdas": AdamWRole("scalar_lr", 1.0, (0.96, 0.95), 0.0),
    "smear": AdamWRole("smear_lr", 1.0, (0.8, 0.95), 0.0),
    "backout": AdamWRole("backout_lr", 1.0, (0.8, 0.95), 0.0),
}
# Upstream, October 2025: one pair of betas, no decay. The other roles are for a classic optimizer on a modern model.
CLASSIC_ROLES = {
    role: AdamWRole(setting.base, setting.lr, (0.8, 0.95), 0.0, setting.width_scaled)
    for role, setting in MODERN_ROLES.items()
}

# Peak rates at the reference batch. Those of smear and backout are the same for every batch.
COMMON_RATES = {"matrix_lr": 0.02, "scalar_lr": 0.5}
PRESET_RATES = {
    "modern": {"unembedding_lr": 0.008, "embedding_lr": 0.3},
    "classic": {"unembedding_lr": 0.004, "embedding_lr": 0.2},
}
FIXED_RATES = {"smear_lr": 0.2, "backout_lr": 0.2}
# Of embedding and head that start from bigrams: the preset's rates would destroy that start. Backout's scalar has no
# gradient but noise as long as the layers add little, and could end the run in its first steps (docs/log.md).
FITTED_RATES = {"unembedding_lr": 0.0005, "embedding_lr": 0.015, "value_embedding_lr": 0.15, "backout_lr": 0.02}
TRIGRAM_RATES = {"value_embedding_lr": 0.03}  # of all value embeddings, where one layer's are fitted to trigrams


def peak_rates(
    preset: str, scale: float, *, fitted: bool = False, trigrams: bool = False, **rates: float | None
) -> dict[str, float]:
    """Returns the peak learning rates for `build_param_groups`.

    Args:
        preset: "modern", "small" (the same rates) or "classic".
        scale: factor on all rates but those of smear and backout; see `nanochat_hf.scaling.lr_scale`.
        fitted: whether embedding and head start from bigrams, see `nanochat_hf.trainers.bigrams`.
        trigrams: whether value embeddings start from trigrams, see `nanochat_hf.trainers.trigrams`.
        rates: rates at the reference batch that replace the preset's; None keeps the preset's.
    """
    following = COMMON_RATES | PRESET_RATES["classic" if preset == "classic" else "modern"]
    given = {name: rate for name, rate in rates.items() if rate is not None}
    following["value_embedding_lr"] = given.get("embedding_lr", following["embedding_lr"]) / 2
    start = (FITTED_RATES if fitted else {}) | (TRIGRAM_RATES if trigrams else {})
    chosen = following | FIXED_RATES | start | given
    return {name: rate * scale if name in following else rate for name, rate in chosen.items()}


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """Maps every trainable parameter's name to its role: matrix, head, embedding, value_embedding or a scalar role.

    A tied head counts as embedding.

    Raises:
        ValueError: a parameter fits no role; the message names it.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    get_head = getattr(model, "get_output_embeddings", lambda: None)
    head = get_head()
    heads = {id(p) for p in head.parameters()} if head is not None else set()
    linears = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    roles: dict[str, str] = {}
    unknown = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = _role(name, id(parameter), embeddings, heads, linears)
            if role is None:
                unknown.append(name)
            else:
                roles[name] = role
    if unknown:
        raise ValueError(f"no optimizer group for {', '.join(unknown)}: give them a role in optim/groups.py")
    return roles


def _role(name: str, key: int, embeddings: set[int], heads: set[int], linears: set[int]) -> str | None:
    parts = name.split(".")
    if key in embeddings:
        return "value_embedding" if any("value_embed" in part for part in parts) else "embedding"
    if key in heads:
        return "head"
    for part in parts:
        if part in SCALAR_ROLES:
            return SCALAR_ROLES[part]
    if "layers" in parts and (key in linears or parts[-1].startswith("lora_")):
        return "matrix"
    if "layers" in parts or "norm" in parts[-2:]:  # norms and biases of other architectures (SFT of any Hub model)
        return "resid_lambdas"
    return None


def build_param_groups(
    model: Any,
    *,
    unembedding_lr: float = 0.008,
    embedding_lr: float = 0.3,
    value_embedding_lr: float | None = None,
    matrix_lr: float = 0.02,
    weight_decay: float = 0.28,
    scalar_lr: float = 0.5,
    smear_lr: float = 0.2,
    backout_lr: float = 0.2,
    backout_max: float | None = None,
    variant: str = "modern",
    hidden_size: int | None = None,
    eps: float = 1e-10,
) -> list[dict[str, Any]]:
    """Returns the parameter groups of `MuonAdamW`; every trainable parameter is in exactly one.

    Args:
        model: a `torch.nn.Module`, with a `config.hidden_size` where `hidden_size` is not given.
        unembedding_lr, embedding_lr, scalar_lr, smear_lr, backout_lr: peak AdamW rates; those of head, embeddings and
            value embeddings are multiplied here by (hidden_size / 768)^-0.5.
        value_embedding_lr: default half of `embedding_lr`.
        matrix_lr, weight_decay: Muon's peak rate and weight decay, already scaled for the batch size.
        backout_max: largest value of backout's scalar β; None (upstream): no bound. The final state is x - β·x_mid,
            and x is mostly x_mid: when β passes 1, the direction of every position flips. See docs/log.md.
        variant: "modern" (July 2026) or "classic" (October 2025).
        hidden_size: width for that factor; default the model's own.
        eps: AdamW's.

    Raises:
        ValueError: the variant is unknown, or a parameter fits no role.
    """
    if variant not in ("modern", "classic"):
        raise ValueError(f"unknown optimizer variant {variant!r}: use 'modern' or 'classic'")
    rates = {"unembedding_lr": unembedding_lr, "embedding_lr": embedding_lr}
    rates["value_embedding_lr"] = embedding_lr / 2 if value_embedding_lr is None else value_embedding_lr
    rates |= {"scalar_lr": scalar_lr, "smear_lr": smear_lr, "backout_lr": backout_lr}
    width_factor = ((hidden_size or model.config.hidden_size) / 768) ** -0.5
    named, roles = dict(model.named_parameters()), parameter_roles(model)
    groups = []
    for role, setting in (MODERN_ROLES if variant == "modern" else CLASSIC_ROLES).items():
        members = [(name, named[name]) for name, found in roles.items() if found == role]
        if members:
            lr = rates[setting.base] * setting.lr * (width_factor if setting.width_scaled else 1.0)
            group = {"name": role, "kind": "adamw", "params": members, "lr": lr, "betas": setting.betas}
            group |= {"eps": eps, "weight_decay": setting.weight_decay}
            groups.append(group | ({"largest": backout_max} if role == "backout" else {}))
    matrices = [(name, named[name]) for name, found in roles.items() if found == "matrix"]
    for shape in sorted({tuple(p.shape) for _, p in matrices}):
        group = {"name": f"matrix {shape[0]}x{shape[1]}", "kind": "muon", "variant": variant, "lr": matrix_lr}
        group["params"] = [(name, p) for name, p in matrices if tuple(p.shape) == shape]
        groups.append({**group, "momentum": 0.95, "beta2": 0.9, "weight_decay": weight_decay})
    return groups


def fine_tuning_groups(
    model: nn.Module, learning_rate: float, *, weight_decay: float = 0.0, muon: bool = True, variant: str = "modern"
) -> list[dict[str, Any]]:
    """Returns parameter groups with one rate, for models that were not pretrained with the rates of this file.

    Muon trains the weights of linear layers (LoRA's too), without the head; AdamW trains embeddings, head, norms and
    biases. An entry of Muon's update has the root mean square 1 / √max(rows, cols), before the rate. So Muon's rate is
    0.2 · √max(rows, cols) · `learning_rate`: then its updates are as large as AdamW's (arXiv 2502.16982, section 2.2).

    Args:
        model: any model. A parameter's group follows from its owner, as in `parameter_roles`.
        learning_rate: AdamW's peak rate.
        weight_decay: of the weights of linear layers.
        muon: False trains these with AdamW, too.
    """
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    head = getattr(model, "get_output_embeddings", lambda: None)()
    outside = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    outside |= {id(p) for p in head.parameters()} if head is not None else set()
    linears = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | Conv1D)}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inside = {id(p) for _, p in trained if id(p) in linears - outside and p.ndim == 2}
    matrices, others = ([pair for pair in trained if (id(pair[1]) in inside) == one] for one in (True, False))
    adamw = {"kind": "adamw", "lr": learning_rate, "betas": (0.9, 0.95), "eps": 1e-8}
    groups: list[dict[str, Any]] = []
    if others:
        groups.append({**adamw, "name": "others", "params": others, "weight_decay": 0.0})
    if matrices and not muon:
        groups.append({**adamw, "name": "matrices", "params": matrices, "weight_decay": weight_decay})
    for rows, cols in sorted({tuple(p.shape) for _, p in matrices}) if muon else ():
        group = {"name": f"matrix {rows}x{cols}", "kind": "muon", "variant": variant, "momentum": 0.95, "beta2": 0.9}
        group["lr"] = learning_rate * 0.2 * max(rows, cols) ** 0.5 / max(1.0, rows / cols) ** 0.5
        group["params"] = [(name, p) for name, p in matrices if tuple(p.shape) == (rows, cols)]
        groups.append({**group, "weight_decay": weight_decay})
    return groups


def build_optimizer(model: Any, **hyper: Any) -> MuonAdamW:
    """Returns the optimizer of a model; `hyper` as in `fine_tuning_groups` if it has a `learning_rate`, else as in
    `build_param_groups`."""
    make = fine_tuning_groups if "learning_rate" in hyper else build_param_groups
    return MuonAdamW(make(model, **hyper))
