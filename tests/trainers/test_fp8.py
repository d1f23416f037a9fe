"""8-bit products, emulated on the CPU: what is converted, how far off it is, and that it leaves no trace."""

import pytest
import torch

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.optim import build_optimizer, parameter_roles
from nanochat_hf.settings import UserError
from nanochat_hf.trainers import fp8


def toy():
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(2, vocab_size=256, head_dim=64, aspect_ratio=64, sequence_length=64)
    model = NanochatHFForCausalLM(config)
    for layer in model.model.layers:  # upstream begins with zeros, behind which nothing would be multiplied
        torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=0.05)
        torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.05)
    return model


def batch(seed=0):
    ids = torch.randint(0, 256, (4, 65), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:], "use_cache": False}


def test_large_projections_and_the_head_are_converted_and_gates_are_not():
    model, plain = toy(), toy()
    assert fp8.convert(model, emulate=True) == 2 * 6 + 1
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if hasattr(module, "in_features")}
    assert {name for name, kind in kinds.items() if kind == "Linear"} == {
        "model.smear_gate",
        "model.layers.1.self_attn.ve_gate",
    }
    assert kinds["lm_head"] == "Float8Linear"
    assert list(model.state_dict()) == list(plain.state_dict())
    assert parameter_roles(model) == parameter_roles(plain)
    assert not fp8.fits(torch.nn.Linear(128, 136)) and not fp8.fits(torch.nn.Linear(112, 256))


def test_products_are_rounded_to_eight_bits_in_all_three_directions():
    """Against the same computed by hand: one scale per tensor, e4m3 forwards, e5m2 for the gradient of the output."""

    def rounded(x, dtype):
        scale = (torch.finfo(dtype).max / x.abs().max().double()).float()
        return (x * scale).to(dtype).float() / scale

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(128, 256, bias=False))
    weight, x = model[0].weight.detach().clone(), torch.randn(32, 128, requires_grad=True)
    fp8.convert(model, emulate=True)
    back = torch.randn(32, 256)
    out = model(x)
    out.backward(back)
    x8, weight8 = rounded(x.detach(), torch.float8_e4m3fn), rounded(weight, torch.float8_e4m3fn)
    back8 = rounded(back, torch.float8_e5m2)
    torch.testing.assert_close(out.detach(), x8 @ weight8.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x.grad, back8 @ weight8, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(model[0].weight.grad, back8.T @ x8, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(out.detach(), x.detach() @ weight.T, atol=1e-3)  # it did round


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_it_learns_as_well_as_without(autocast):
    losses = {}
    for name in ("plain", "fp8"):
        model = toy()
        if name == "fp8":
            fp8.convert(model, emulate=True)
        optimizer, losses[name] = build_optimizer(model), []
        for _ in range(12):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**batch()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())
    assert losses["plain"][-1] < losses["plain"][0] - 0.5
    assert losses["fp8"] == pytest.approx(losses["plain"], abs=0.1)
    assert losses["fp8"] != losses["plain"]


def test_evaluation_is_exact_and_the_checkpoint_plain(tmp_path):
    model, plain = toy().eval(), toy().eval()
    fp8.convert(model, emulate=True)
    inputs = batch()
    with torch.no_grad():
        expected = plain(**inputs).logits
        with fp8.full_precision(model):
            assert torch.equal(model(**inputs).logits, expected)
        assert not torch.equal(model(**inputs).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = NanochatHFForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), plain.parameters(), strict=True))
    assert type(loaded.lm_head).__name__ == "Linear"


def test_where_it_cannot_be_it_is_said(monkeypatch):
    with pytest.raises(UserError, match="no CUDA GPU in use here; leave out --fp8"):
        fp8.require_hardware("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    with pytest.raises(UserError, match="a NVIDIA A100 of compute capability 8.0 here"):
        fp8.require_hardware()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    fp8.require_hardware()
    with pytest.raises(UserError, match="multiples of 16"):
        fp8.convert(torch.nn.Sequential(torch.nn.Linear(64, 64)), emulate=True)
    with pytest.raises(UserError, match="3 × 33 tokens"):
        fp8.check_rows(3, 33)
