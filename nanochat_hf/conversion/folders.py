"""Converts whole checkpoint folders from one format to another: weights, configuration and tokenizer.

The files of a folder show which of three formats it has: upstream's `model_STEP.pt` with `meta_STEP.json`, ours with a
`config.json` of type "nanochat_hf", or transformers' own of type "nanochat" (the October 2025 architecture).
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..model.configuration_nanochat_hf import NanochatHFConfig
from ..model.modeling_nanochat_hf import NanochatHFForCausalLM
from ..settings import UserError, is_out_of_memory, reason_of
from ..tokenizer import stop_token_ids
from .onnx import export_onnx
from .tensors import from_own_tensors, from_transformers_tensors, from_upstream, to_transformers, to_upstream
from .upstream_tokenizer import NAME as UPSTREAM_TOKENIZER
from .upstream_tokenizer import read_upstream_tokenizer, write_upstream_tokenizer

FORMATS = ("nanochat-hf", "upstream", "transformers", "onnx")
# What people ask for and cannot get: why, and what to take instead.
REFUSED = {
    "gguf": "llama.cpp runs a fixed list of architectures, and none has squared ReLU without a gate, norms without "
    "parameters and a rotation in this direction: a file would load nowhere. On small machines take --to onnx, or "
    "8-bit weights with torchao (docs/serving.md)",
    "mlx": "MLX needs code of its own for each architecture, and this package has none. On a Mac every model runs as "
    "it is, with --device mps; a classic model can take transformers' own form with --to transformers",
}
UPSTREAM_WEIGHTS = re.compile(r"model_(\d+)\.pt")


def convert_folder(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    to: str = "nanochat-hf",
    tokenizer: str | os.PathLike | None = None,
    step: int | None = None,
) -> str:
    """Converts a checkpoint folder; every tensor keeps its bits and its dtype.

    Args:
        source: folder to read; its format is recognised.
        destination: folder to write, which must not exist or be empty. Its files appear only when all are complete.
        to: "nanochat-hf", "upstream" (model_STEP.pt, meta_STEP.json, tokenizer.pkl), "transformers" (classic only) or
            "onnx" (model.onnx with the tokenizer; one way).
        tokenizer: folder of the tokenizer, ours or upstream's; default: in `source`, or where upstream keeps it beside
            its checkpoints.
        step: which `model_STEP.pt` of an upstream folder to read (default the last); with `to="upstream"`, the step in
            the name of the file to write (default 0).

    Returns:
        A sentence that says what was written.

    Raises:
        UserError: the source is not a complete checkpoint, the destination exists, the format cannot express the
            model, or a step is given where neither side is upstream's. Nothing has been written then.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    if to.lower() in REFUSED:
        raise UserError(f"cannot convert to {to}: {REFUSED[to.lower()]}")
    if to not in FORMATS:
        raise UserError(f"cannot convert to {to!r}; the formats are {', '.join(FORMATS)}")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists already; name a new folder, or empty this one first")
    model = _read_model(source, step)
    if step is not None and to != "upstream" and not _upstream_steps(source):
        raise UserError("a step is chosen where upstream's format is read or written; leave --step out here")
    tokenizer_folder = _tokenizer_folder(source, tokenizer)
    text_tokenizer = read_tokenizer(tokenizer_folder)
    if not (tokenizer_folder / "tokenizer.json").exists():  # upstream's file does not say how long a text may be
        text_tokenizer.model_max_length = model.config.max_position_embeddings
    if len(text_tokenizer) > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(text_tokenizer)} tokens and the model only {model.config.vocab_size}: it is not "
            "this model's tokenizer; name the right one with --tokenizer"
        )
    _take_control_tokens(model, text_tokenizer)
    with _complete_or_absent(destination) as folder:
        try:
            if to == "upstream":
                _write_upstream(model, text_tokenizer, folder, step or 0)
            elif to == "onnx":
                export_onnx(model, folder / "model.onnx")
                text_tokenizer.save_pretrained(folder)
            else:
                written = to_transformers(model) if to == "transformers" else model
                written.save_pretrained(folder)
                text_tokenizer.save_pretrained(folder)
        except ValueError as error:
            raise UserError(f"{source} cannot be written as {to}: {error}") from None
    size = model.num_parameters()
    return f"{destination}: a {model.config.preset} model of {size:,} parameters, with its tokenizer, as {to}"


def _read_model(source: Path, step: int | None) -> NanochatHFForCausalLM:
    if not source.is_dir():
        raise UserError(
            f"{source} is not a folder (to download a model from the Hub: hf download OWNER/NAME --local-dir FOLDER)"
        )
    steps = _upstream_steps(source)
    if not steps and not (source / "config.json").exists():
        below = sorted(path.name for path in source.iterdir() if path.is_dir() and _upstream_steps(path))
        hint = f"; name one of the folders in it: {', '.join(below)}" if below else ""
        raise UserError(f"{source} holds neither an upstream model_STEP.pt nor a config.json{hint}")
    try:
        return _read_upstream(source, steps, step) if steps else _read_pretrained(source)
    except UserError:
        raise
    except Exception as error:  # values in a damaged configuration fail in many ways
        if is_out_of_memory(error):
            raise
        raise UserError(f"{source}: {reason_of(error)}") from None


def _upstream_steps(folder: Path) -> dict[int, Path]:
    matches = ((UPSTREAM_WEIGHTS.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in matches if match}


def _read_upstream(source: Path, steps: dict[int, Path], step: int | None) -> NanochatHFForCausalLM:
    if step is not None and step not in steps:
        raise UserError(f"{source} has no step {step}; it has {', '.join(map(str, sorted(steps)))}")
    weights = steps[max(steps) if step is None else step]
    meta = _read_json(weights.with_name(weights.name.replace("model_", "meta_").replace(".pt", ".json")))
    if not isinstance(meta.get("model_config"), dict):
        raise ValueError(f"the meta file of {weights.name} has no model_config")
    return from_upstream(_load_torch(weights), meta["model_config"])


def _load_torch(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a state dict that `torch.save` has written. A file that would run code is refused."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError or UnpicklingError, by where the file ends
        refused = "weights_only" in str(error) or "Unsupported" in str(error)
        what = "holds more than tensors and is not opened" if refused else "is damaged or was copied incompletely"
        raise UserError(f"{path} {what} ({reason_of(error)})") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} is not a state dict of tensors")
    return state


def _read_pretrained(source: Path) -> NanochatHFForCausalLM:
    """The model of a folder of ours or of transformers' NanoChat.

    Every tensor must be there; `from_pretrained` would fill gaps with random numbers.
    """
    from transformers import GenerationConfig, NanoChatConfig

    model_type = _read_json(source / "config.json").get("model_type")
    if model_type == "nanochat_hf":
        model = from_own_tensors(_load_safetensors(source), NanochatHFConfig.from_pretrained(source))
    elif model_type == "nanochat":
        model = from_transformers_tensors(_load_safetensors(source), NanoChatConfig.from_pretrained(source))
    else:
        raise ValueError(f"config.json is of a {model_type!r} model; only nanochat_hf and nanochat can be converted")
    if (source / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model


def _load_safetensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    shards = ["model.safetensors"]
    if index.exists():
        places = _read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{index} has no weight_map from tensors to files")
        shards = sorted(set(places.values()))
    tensors = {}
    for shard in shards:
        path = folder / shard
        if not path.exists():
            raise UserError(f"{path} is missing")
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {_cut_off_at(path) or reason_of(error)}") from None
    return tensors


def _cut_off_at(path: Path) -> str | None:
    """Says which tensors of a truncated safetensors file are incomplete; None where something else is wrong.

    The file begins with the length of its header (8 bytes), then the header: JSON with each tensor's place.
    """
    content = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > content - 8:
            return None
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return None
    header.pop("__metadata__", None)
    lost = sorted(name for name, place in header.items() if place["data_offsets"][1] > content - 8 - length)
    return f"it ends before {lost[0]} does ({len(lost)} of {len(header)} tensors are incomplete)" if lost else None


def _tokenizer_folder(source: Path, named: str | os.PathLike | None) -> Path:
    """The tokenizer's folder: the source, or one beside it, such as upstream's BASE/tokenizer."""
    if named is not None:
        return Path(named).expanduser()
    places = (source, source / "tokenizer", *(parent / "tokenizer" for parent in source.resolve().parents[:2]))
    for place in places:
        if (place / "tokenizer.json").exists() or (place / UPSTREAM_TOKENIZER).exists():
            return place
    raise UserError(f"no tokenizer.json or {UPSTREAM_TOKENIZER} in {source} or beside it; name it with --tokenizer")


def read_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer in a folder: `tokenizer.json` of Hugging Face, else upstream's `tokenizer.pkl`.

    Raises:
        UserError: the folder has neither, or what it has is damaged or not a tokenizer of nanochat.
    """
    if (folder / "tokenizer.json").exists():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        loader = AutoTokenizer if (folder / "tokenizer_config.json").exists() else PreTrainedTokenizerFast
        try:
            return loader.from_pretrained(str(folder))
        except Exception as error:  # transformers and tokenizers raise many kinds
            reason = reason_of(error)
            raise UserError(f"the tokenizer in {folder} cannot be loaded ({reason}); make it again") from None
    if (folder / UPSTREAM_TOKENIZER).exists():
        return read_upstream_tokenizer(folder / UPSTREAM_TOKENIZER)
    raise UserError(f"{folder} has no tokenizer.json and no {UPSTREAM_TOKENIZER}")


def _take_control_tokens(model: NanochatHFForCausalLM, tokenizer: Any) -> None:
    """Copies the ids of the tokens that begin, end and pad a text from the tokenizer to the model."""
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.config.update(tokens)
    if model.generation_config.eos_token_id is None:
        model.generation_config.update(**tokens)
    if "<|python_end|>" in tokenizer.get_vocab():
        model.generation_config.eos_token_id = stop_token_ids(tokenizer)


def _write_upstream(model: NanochatHFForCausalLM, tokenizer: Any, folder: Path, step: int) -> None:
    state, config = to_upstream(model)
    if len(tokenizer) != config["vocab_size"]:
        raise ValueError(
            f"upstream needs as many rows as tokens, but {config['vocab_size']} and {len(tokenizer)} differ"
        )
    torch.save({name: tensor.contiguous() for name, tensor in state.items()}, folder / f"model_{step:06d}.pt")
    meta = {"step": step, "model_config": config}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    write_upstream_tokenizer(tokenizer, folder)


@contextmanager
def _complete_or_absent(destination: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into the destination at the end, or deleted after an error.

    An empty destination is kept as it is: it may be the current folder, a link or a disk of its own.
    """
    made = not destination.exists()
    parent = destination.parent if made else destination
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=parent))
    try:
        folder = scratch / "content"  # mkdtemp's own folder is closed to others
        folder.mkdir()
        yield folder
        if made:
            folder.rename(destination)
        else:
            for path in folder.iterdir():
                path.rename(destination / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path} is missing or cannot be read") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content
