"""Every attention implementation honours the windows: each against attention spelled out over an explicit mask."""

import types

import pytest
import torch
from tiny_models import classic_fields, randomized, tiny_config
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations import hub_kernels
from transformers.integrations.flex_attention import WrappedFlexAttention

LENGTH, PAD = 40, 6
ATOL = 2e-5


class Reference:
    """An attention implementation of transformers' interface that is told which tokens may see which."""

    def __init__(self, allowed: torch.Tensor):
        self.allowed = allowed  # [B, T, T], as in full attention

    def __call__(self, module, query, key, value, attention_mask, scaling, sliding_window=None, **kwargs):
        places = torch.arange(key.shape[2])
        allowed = self.allowed
        if sliding_window is not None:
            allowed = allowed & (places[:, None] - places < sliding_window)
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        scores = torch.einsum("bhtd,bhsd->bhts", query, key) * scaling
        weights = scores.masked_fill(~allowed.unsqueeze(1), -1e9).softmax(-1)
        return torch.einsum("bhts,bhsd->bthd", weights, value), weights


def causal(rows=1, length=LENGTH):
    return torch.ones(rows, length, length, dtype=torch.bool).tril()


def whole():
    return {}, causal(3), slice(None)


def left_padded():
    """The rows begin 6, 0 and 3 tokens late."""
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    for row, pad in enumerate((PAD, 0, 3)):
        mask[row, :pad] = 0
    return {"attention_mask": mask}, causal(3) & mask.bool()[:, None, :], slice(PAD, None)


def packed():
    """Documents of 15, 1 and 24 tokens in each row."""
    lengths = torch.tensor([15, 1, 24])
    document = torch.arange(3).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(3, -1)
    return {"position_ids": positions}, causal(3) & (document[:, None] == document), slice(None)


CASES = {"whole rows": whole, "left padding": left_padded, "packed": packed}


def reference_logits(model, tokens, arguments, allowed):
    AttentionInterface.register("reference", Reference(allowed))
    AttentionMaskInterface.register("reference", lambda *_, **__: None)
    used = model.config._attn_implementation
    model.set_attn_implementation("reference")
    logits = model(tokens, use_cache=False, **arguments).logits
    model.set_attn_implementation(used)
    return logits


@pytest.fixture(params=["eager", "sdpa", "flex_attention"])
def implementation(request, monkeypatch):
    """The name; flex is not compiled, which would take most of a minute a case."""
    if request.param == "flex_attention":
        monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda _: flex_attention)
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return request.param


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@torch.no_grad()
def test_windows(tokens, implementation, case):
    model, tokens = randomized(tiny_config()), tokens[:, :LENGTH]
    arguments, allowed, compared = case()
    expected = reference_logits(model, tokens, arguments, allowed)
    everything = reference_logits(randomized(tiny_config(sliding_window=99)), tokens, arguments, allowed)
    assert (expected - everything)[:, compared].abs().max() > 0.1, "the window does not matter here"
    model.set_attn_implementation(implementation)
    logits = model(tokens, use_cache=False, **arguments).logits
    torch.testing.assert_close(logits[:, compared], expected[:, compared], atol=ATOL, rtol=0)


@torch.no_grad()
def test_windows_through_a_cache(tokens, implementation):
    model = randomized(tiny_config())
    expected = reference_logits(model, tokens, {}, causal(3, 90))
    model.set_attn_implementation(implementation)
    cache, found = DynamicCache(config=model.config), []
    for piece in tokens.split([20, 1, 1, 30, 1, 37], dim=1):
        found.append(model(piece, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("length", [8, 9, 10, 16, 17, 60, 90])
@pytest.mark.parametrize("window", [2, 9, 33])
def test_blocks_of_windows_at_every_length(tokens, length, window):
    """Shorter and longer than the window, whole blocks and not; values and gradients."""
    model, tokens = randomized(tiny_config(sliding_window=window)), tokens[:, :length]
    gradients = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        model.zero_grad()
        logits = model(tokens, use_cache=False).logits
        logits.square().mean().backward()
        gradients[name] = logits.detach(), [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(gradients["sdpa"], gradients["eager"], atol=ATOL, rtol=1e-3)


class SquareTensors(TorchDispatchMode):
    """Notes the shapes of all tensors that have a length by a length."""

    def __init__(self, length: int):
        super().__init__()
        self.length, self.shapes = length, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tuple(tensor.shape[-2:]) == (self.length, self.length):
                self.shapes.append(tuple(tensor.shape))
        return result


@pytest.mark.parametrize("fields", [{}, {"sliding_window": 200}, classic_fields()], ids=["windows", "wide", "classic"])
def test_training_makes_no_square_mask(fields):
    length = 150
    model = randomized(tiny_config(**fields)).train()
    tokens = torch.randint(0, 128, (2, length))
    with SquareTensors(length) as seen:
        model(tokens, labels=tokens).loss.backward()
    assert seen.shapes == []
    with SquareTensors(length) as seen:  # the check can fail
        model(tokens, labels=tokens, position_ids=torch.arange(length).expand(2, -1) % 75).loss.backward()
    assert seen.shapes


def test_a_kernel_of_the_hub_gets_the_windows(tokens, monkeypatch):
    """All of transformers' way to flash attention, around a kernel that computes on CPUs and notes its arguments."""
    seen = []

    def flash_attn_func(q, k, v, causal=False, softmax_scale=None, window_size=(-1, -1)):
        seen.append((k.shape, causal, softmax_scale, window_size))
        allowed = causal_mask if window_size[0] < 0 else causal_mask & ~causal_mask.tril(-window_size[0] - 1)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        options = dict(attn_mask=allowed, scale=softmax_scale, enable_gqa=True)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)

    def get_kernel(name, *_, **__):
        assert name == "kernels-community/vllm-flash-attn3"
        kernel = types.ModuleType("kernel")
        kernel.flash_attn_func = kernel.flash_attn_varlen_func = flash_attn_func
        return kernel

    causal_mask = causal(1, 90)
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", get_kernel)
    model = randomized(tiny_config())
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        model.set_attn_implementation("kernels-community/vllm-flash-attn3")
        logits = model(tokens, use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=ATOL, rtol=0)
    scale = pytest.approx(16**-0.5 * 1.2**2)
    sliding, full = ((3, 90, 2, 16), True, scale, (8, 8)), ((3, 90, 2, 16), True, scale, (-1, -1))
    assert seen == [sliding, sliding, sliding, full]  # causal, so that 8 means 8 before and the token itself
