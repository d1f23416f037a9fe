"""Master weights in fp32, products and residual stream in the compute dtype, as upstream's."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import randomized, tiny_config

from nanochat_hf.model.modeling_nanochat_hf import Linear


@pytest.fixture(params=["autocast", "bf16 weights"])
def run(request, tokens):
    """Runs a step in bf16: (model, output of the fp32 model, output in bf16, dtypes of what modules gave)."""
    model = randomized(tiny_config()).train()
    exact = model(tokens, labels=tokens, return_logits=True)
    autocast = request.param == "autocast"
    model = model if autocast else model.to(torch.bfloat16)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear) or name.split(".")[-1].isdigit() or name == "model":
            module.register_forward_hook(
                lambda _, __, out, name=name: seen.update({name: getattr(out, "last_hidden_state", out).dtype})
            )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(tokens, labels=tokens, return_logits=True)
    return model, exact, output, seen


def test_everything_but_the_loss_is_in_the_compute_dtype(run):
    model, _, output, seen = run
    embeddings = {name for name in seen if "embed" in name}
    assert {seen[name] for name in seen.keys() - embeddings} == {torch.bfloat16}
    assert {"model", "model.layers.3", "model.layers.0.mlp.up_proj", "lm_head"} <= seen.keys()
    assert output.logits.dtype == output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(parameter.grad.dtype == parameter.dtype for parameter in model.parameters())


def test_bfloat16_is_near_fp32(run):
    _, exact, output, _ = run
    error = (output.logits - exact.logits).abs().mean()
    assert 0 < error < 0.02 * exact.logits.abs().mean()
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_a_model_leaves_its_rotary_positions_exact(dtype):
    """After a long text, rounded frequencies would turn queries and keys by whole radians."""
    model = randomized(tiny_config())
    position = torch.tensor([[2047]])
    states = torch.zeros(1)
    expected = model.model.rotary_emb(states, position)
    model.to(dtype).float()
    assert all(map(torch.equal, model.model.rotary_emb(states, position), expected))
    assert model.to(dtype).model.layers[0].mlp.up_proj.weight.dtype == dtype


def test_autocast_does_not_reach_the_norms(tokens, monkeypatch):
    """On GPUs it would make them fp32; on CPUs it leaves norms alone, so what is looked at is whether it is on."""
    seen, norm = [], F.rms_norm

    def spy(x, *arguments, **options):
        seen.append((torch.is_autocast_enabled("cpu"), x.dtype))
        return norm(x, *arguments, **options)

    monkeypatch.setattr(F, "rms_norm", spy)
    with torch.autocast("cpu", torch.bfloat16):
        randomized(tiny_config())(tokens)
    assert len(seen) == 2 + 4 * 4 and set(seen) == {(False, torch.bfloat16)}
