"""Which kernels training uses: attention by setting, and compiled blocks.

A model is compiled block by block: blocks share their code, so a few graphs serve all of them. As one graph, depth 24
took more than two minutes to compile on a machine with an H100 (docs/gpu.md). Outside of training steps the model
stays as it is, so that sampling and other lengths compile nothing.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch

from nanochat_hf.model.window_attention_nanochat_hf import (
    WINDOW_KERNELS,
    has_flex,
    has_varlen,
    pick_window_kernel,
)
from nanochat_hf.settings import UserError


def compiles_layers(setting: str, device: torch.device) -> bool:
    """Whether a setting `compile` asks for compiled layers: "auto" does on CUDA, "true" everywhere."""
    return setting in ("true", "layers") or (setting == "auto" and device.type == "cuda")


def compiled_layers(model: Any) -> AbstractContextManager:
    """Compiles the blocks of a model, and the loss of one of ours; the result is a context in which it uses them.

    It can be entered any number of times. Nothing is compiled before the first call inside of it.

    Raises:
        UserError: it is a model of another kind, whose blocks are not known.
    """
    model = without_adapter(model)
    base = model.base_model
    if not hasattr(base, "layers"):
        raise UserError(f"--compile layers does not know the blocks of {type(model).__name__}; take --compile model")
    methods = [(layer, "forward") for layer in base.layers]
    methods += [(model, "supervised_loss")] if hasattr(model, "supervised_loss") else []
    compiled = [(owner, name, torch.compile(getattr(owner, name), dynamic=False)) for owner, name in methods]
    return _Swap([*compiled, (base, "layers_are_compiled", True)])


def without_adapter(model: Any) -> Any:
    """The model itself, where PEFT has wrapped it."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


class _Swap(AbstractContextManager):
    """Gives objects other attributes within the context."""

    def __init__(self, attributes: list[tuple[Any, str, Any]]):
        self.attributes = attributes
        self.before: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        for owner, name, value in self.attributes:
            self.before.append({name: owner.__dict__[name]} if name in owner.__dict__ else {})
            setattr(owner, name, value)

    def __exit__(self, *_: Any) -> None:
        for owner, name, _value in reversed(self.attributes):
            before = self.before.pop()
            if name in before:
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)


def set_attention(model: Any, setting: str, device: torch.device, bf16: bool) -> None:
    """Chooses the attention of a model.

    Args:
        setting: one of `WINDOW_KERNELS` for the sliding layers, with PyTorch's SDPA for the others. Any other word is
            an attention implementation of transformers or a kernel of the Hub, for all layers.
        device: where the model will be.
        bf16: whether it will compute in bf16.

    Raises:
        UserError: it cannot be used there.
    """
    base = model.base_model
    if not hasattr(base, "window_kernel"):  # a model of another kind
        if setting in WINDOW_KERNELS and setting != "auto":
            raise UserError(f"--attention {setting} is for models of this project; take auto, sdpa or eager")
        if setting == "auto":
            return
    else:
        base.window_kernel = setting if setting in WINDOW_KERNELS else "auto"
    usable = has_flex(device, _compute_dtype(bf16)) and (setting == "flex" or has_varlen())
    if setting in ("varlen", "flex") and not usable:
        raise UserError(
            f"--attention {setting} needs bf16 on an NVIDIA GPU of compute capability 8.0 or newer, and varlen needs "
            "PyTorch 2.11 or newer; take auto, which uses what there is"
        )
    try:
        model.set_attn_implementation("sdpa" if setting in (*WINDOW_KERNELS, "sdpa") else setting)
    except (ImportError, OSError, ValueError) as error:
        raise UserError(f"--attention {setting} cannot be used here, auto can: {error}") from None


def describe_attention(model: Any, device: torch.device, bf16: bool, compiled: bool) -> str:
    """One sentence on the attention kernels of a training run."""
    base, implementation = without_adapter(model).base_model, model.config._attn_implementation
    if implementation != "sdpa" or not hasattr(base, "window_kernel"):
        return f"attention: {implementation}"
    kernel = base.window_kernel
    if kernel == "auto":
        kernel = pick_window_kernel(device, _compute_dtype(bf16), compiled)
    names = {"blocks": "SDPA in blocks", "varlen": "varlen_attn", "flex": "flex_attention"}
    sliding = model.config.layer_types.count("sliding_attention")
    full = len(model.config.layer_types) - sliding
    parts = [f"{names[kernel]} in {sliding} layers with a window"] * (sliding > 0) + [f"SDPA in {full} full layers"]
    return "attention: " + ", ".join(parts)


def _compute_dtype(bf16: bool) -> torch.dtype:
    return torch.bfloat16 if bf16 else torch.float32
