"""Our model against numbers that upstream's own code has made."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nanochat_hf import conversion

FOLDER = Path(os.environ.get("NANOCHAT_GOLDENS", Path(__file__).parents[1] / "goldens"))
MODERN = sorted(FOLDER.glob("model_modern_*.safetensors"))
CLASSIC = sorted(FOLDER.glob("model_classic_*.safetensors"))
# The October 2025 code rounds its rotary tables to bf16; ours are fp32.
LOGITS_ATOL = {"modern": 1e-4, "classic": 5e-3}


def read(path: Path) -> tuple[dict, dict]:
    """Returns the tensors and upstream's configuration fields."""
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["config"])


def weights(tensors: dict) -> dict:
    return {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}


def run(path: Path):
    tensors, config = read(path)
    model = conversion.from_upstream(weights(tensors), config)
    targets = tensors["targets"].long()
    output = model(tensors["input_ids"].long(), shift_labels=targets.masked_fill(targets == -1, -100))
    return model, output, tensors


def test_there_are_goldens_of_both_architectures():
    assert MODERN and CLASSIC, f"no model_modern_* or model_classic_* in {FOLDER}"


@pytest.mark.parametrize("path", MODERN + CLASSIC, ids=lambda path: path.stem)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_and_loss_are_upstreams(path, attention):
    preset = path.stem.split("_")[1]
    tensors, config = read(path)
    model = conversion.from_upstream(weights(tensors), config)
    model.set_attn_implementation(attention)
    assert model.config.preset == preset
    targets = tensors["targets"].long()
    with torch.no_grad():
        output = model(tensors["input_ids"].long(), shift_labels=targets.masked_fill(targets == -1, -100))
    assert output.logits.shape == tensors["logits"].shape
    torch.testing.assert_close(output.logits, tensors["logits"], atol=LOGITS_ATOL[preset], rtol=0)
    loss_atol = 1e-5 if preset == "modern" else 1e-3
    torch.testing.assert_close(output.loss, tensors["loss"].squeeze(), atol=loss_atol, rtol=0)


@pytest.mark.parametrize("path", MODERN + CLASSIC, ids=lambda path: path.stem)
def test_gradient_norms_are_upstreams(path):
    tensors, _ = read(path)
    expected = {n.removeprefix("grad_norm."): v.item() for n, v in tensors.items() if n.startswith("grad_norm.")}
    if not expected:
        pytest.skip("this file holds no gradient norms")
    model, output, _ = run(path)
    output.loss.backward()
    names = conversion.upstream_names(model.config)
    assert set(expected) == set(names)
    parameters = dict(model.named_parameters())
    for theirs, norm in expected.items():
        assert parameters[names[theirs]].grad.norm().item() == pytest.approx(norm, rel=1e-3), theirs


@pytest.mark.parametrize("path", MODERN + CLASSIC, ids=lambda path: path.stem)
def test_upstream_round_trip_is_bit_exact(path):
    tensors, config = read(path)
    original = weights(tensors)
    exported, fields = conversion.to_upstream(conversion.from_upstream(original, config))
    expanded = {**config, "window_pattern": fields.get("window_pattern")}
    assert fields == {key: value for key, value in expanded.items() if value is not None}
    assert set(exported) == set(original)
    for name, tensor in exported.items():
        rows = config["vocab_size"] if tensor.shape[0] > config["vocab_size"] else tensor.shape[0]
        assert tensor.shape == original[name].shape, name
        assert torch.equal(tensor[:rows], original[name][:rows]), name
