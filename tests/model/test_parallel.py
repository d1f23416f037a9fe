"""A model laid over several devices gives what it gives on one: tensor parallelism, and `device_map`."""

import os
import socket

import torch
from safetensors.torch import load_file, save_file
from tiny_models import randomized, tiny_config
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from nanochat_hf import NanochatHFForCausalLM

WATCHED = ("layers.1.self_attn.k_proj", "layers.1.self_attn.ve_gate", "value_embeds.1", "layers.0.mlp.down_proj")
WATCHED += ("smear_gate", "embed_tokens")


def observe(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits, loss, gradients of every kind of weight, and greedy tokens."""
    with torch.no_grad():
        seen = {"logits": model(tokens).logits}
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    seen["loss"] = loss.detach()
    for name in WATCHED:
        gradient = model.get_parameter(f"model.{name}.weight").grad
        seen[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    seen["generated"] = model.generate(tokens[:, :30], max_new_tokens=16, do_sample=False)
    return seen


def one_of_two(rank: int, folder: str, port: int, tokens: torch.Tensor) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    model = NanochatHFForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(tp_size=2, tp_plan="auto")
    )
    share = {
        name: tuple(parameter.to_local().shape) for name, parameter in model.named_parameters() if "_proj" in name
    }
    assert share["model.layers.0.self_attn.k_proj.weight"] == (16, 64)
    assert share["model.layers.0.mlp.down_proj.weight"] == (64, 128)
    save_file(observe(model, tokens), f"{folder}/seen_{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_share_every_layer(model, tokens, tmp_path):
    """The value embeddings are whole in both, and each uses its own heads' columns."""
    model.save_pretrained(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path), port, tokens), nprocs=2)
    expected = observe(randomized(tiny_config()), tokens)
    for rank in range(2):
        seen = load_file(tmp_path / f"seen_{rank}.safetensors")
        for name, tensor in expected.items():
            torch.testing.assert_close(seen[name], tensor, atol=2e-5, rtol=1e-4, msg=f"{name} of rank {rank}")


def test_a_model_that_does_not_fit_is_spread_out(model, tokens, tmp_path):
    """`device_map="auto"` with memory for half of it: whole layers wait on the disk."""
    model.save_pretrained(tmp_path / "whole")
    half = sum(parameter.numel() * 4 for parameter in model.parameters()) // 2
    options = dict(device_map="auto", max_memory={"cpu": half}, offload_folder=tmp_path / "offloaded")
    spread = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", **options)
    places = {name: place for name, place in spread.hf_device_map.items() if name.startswith("model.layers")}
    assert set(places.values()) == {"cpu", "disk"} and set(places) == {f"model.layers.{index}" for index in range(4)}
    assert spread.model.layers[3].mlp.up_proj.weight.is_meta
    with torch.no_grad():
        whole, other = (each(tokens, labels=tokens) for each in (model, spread))
    assert torch.equal(other.logits, whole.logits) and torch.equal(other.loss, whole.loss)
    settings = dict(max_new_tokens=20, do_sample=False)
    assert torch.equal(spread.generate(tokens[:, :30], **settings), model.generate(tokens[:, :30], **settings))
