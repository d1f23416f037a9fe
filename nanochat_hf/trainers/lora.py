"""LoRA's matrices and generation: a copy of the model in which they are part of the weights."""

import copy
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def merged_for_decoding(model: Any) -> Any:
    """Returns the model of a PEFT model with LoRA's matrices added to the weights that they adapt.

    It is a model of its own class, so it decodes as fast as one without LoRA. Weights that LoRA leaves alone are
    shared, and the given model does not change. Make a new one after each update.
    """
    base = model.get_base_model()
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    merged = copy.deepcopy(base, shared)
    for name, layer in list(merged.named_modules()):
        if not hasattr(layer, "get_delta_weight"):
            continue
        plain = layer.get_base_layer()
        weight = plain.weight
        for adapter in layer.active_adapters:
            weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        parent, _, attribute = name.rpartition(".")
        setattr(merged.get_submodule(parent), attribute, plain)
    return merged
