"""Loads checkpoints: model and tokenizer from a folder or the Hub, onto a device."""

import os
from pathlib import Path
from typing import Any

import torch

from nanochat_hf.settings import UserError, find_checkpoint, is_out_of_memory, reason_of

DEFAULT_CONTEXT_LENGTH = 2048  # tokens; for models whose configuration does not name a context length


def load_checkpoint(
    checkpoint: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Loads model and tokenizer from a checkpoint folder or a Hub id. The model is in evaluation mode.

    Args:
        checkpoint: a folder such as `runs/quickstart/rl`, or a Hub id such as `user/model`.
        device: such as "cpu" or "cuda:0"; None or "auto" chooses with [`pick_device`].
        dtype: such as "bfloat16"; None or "auto" takes the checkpoint's own.
        revision: of a Hub model; pin it if you set `trust_remote_code`.
        trust_remote_code: for Hub models that bring their own code. This project's models do not need it here.

    Returns:
        (model, tokenizer)

    Raises:
        UserError: the checkpoint cannot be loaded, its tokenizer is that of another model, or the device or dtype
            does not exist.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import nanochat_hf  # noqa: F401  registers the model with the Auto classes
    from nanochat_hf.progress import quiet_transformers

    find_checkpoint(checkpoint, revision)
    quiet_transformers()
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    numbers = _dtype(dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), **options)
        model = AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=numbers, **options)
    except Exception as error:  # of a damaged file; transformers, safetensors and tokenizers raise many kinds
        if isinstance(error, ImportError) or is_out_of_memory(error):
            raise
        raise UserError(
            f"cannot load {checkpoint} ({reason_of(error)}); give an intact checkpoint folder such as "
            "runs/quickstart/rl, or a Hub id"
        ) from None
    known = getattr(model.config.get_text_config(), "vocab_size", tokenizer.vocab_size)
    if tokenizer.vocab_size > known:  # tokens that a tokenizer has added do not count: they may never be used
        raise UserError(
            f"{checkpoint} has a tokenizer of {tokenizer.vocab_size} tokens, and the model knows {known}; copy the "
            "tokenizer's files of that model into the folder"
        )
    # What is too long is cut, refused or read in windows; transformers would warn of "indexing errors".
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    try:
        place = pick_device(device)
        allow_tf32(place)
        return model.to(place).eval(), tokenizer
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that it does not have
        reason = reason_of(error)
        raise UserError(f"cannot put the model on device {device!r} ({reason}); --device cpu always works") from None


def pick_device(name: str | None = None) -> torch.device:
    """Returns the device called `name`. None or "auto" takes the GPU of this process, else Apple's, else the CPU."""
    if name not in (None, "auto"):
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def allow_tf32(device: torch.device) -> None:
    """Lets fp32 matrix products on a GPU use TensorFloat-32. Changes nothing for other devices.

    transformers sets only PyTorch's newer switch for this, `torch.backends.fp32_precision`. Inductor also reads the
    older one, and fails where the two differ. This function sets both.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def _dtype(name: str | None) -> Any:
    dtype = getattr(torch, name or "", None)
    if name not in (None, "auto") and not isinstance(dtype, torch.dtype):
        raise UserError(f"there is no dtype {name!r}; use float32, bfloat16 or float16")
    return dtype or "auto"


def context_length_of(model: Any) -> int | None:
    """Returns the longest sequence that the model was built for, in tokens; None if its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
