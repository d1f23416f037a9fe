"""Compiled layers and the choice of attention kernels."""

import itertools

import pytest
import torch
from torch._dynamo.utils import counters

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.model import window_attention_nanochat_hf as window_attention
from nanochat_hf.optim import kernels, muon_adamw
from nanochat_hf.settings import UserError
from nanochat_hf.trainers import compilation

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def varlen_stand_in(query, key, value, starts, _, length, __, scale=None, window_size=(-1, -1)):
    """What `varlen_attn` computes, by its formula, on any device."""
    rows = [part.unflatten(0, (len(starts) - 1, length)).transpose(1, 2) for part in (query, key, value)]
    steps = torch.arange(length)
    behind = steps[:, None] - steps
    seen = (behind >= 0) & (behind <= window_size[0])
    output = torch.nn.functional.scaled_dot_product_attention(*rows, attn_mask=seen, scale=scale)
    return output.transpose(1, 2).flatten(0, 1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(6, vocab_size=128, head_dim=16, sequence_length=64, aspect_ratio=8)
    return NanochatHFForCausalLM(config).train()


@pytest.fixture
def eager_backend(monkeypatch):
    """The compiler traces and generates no code."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, **options, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()  # the compiler counts variants per function, over all tests of a process


def loss_and_gradients(model, ids):
    model.zero_grad()
    loss = model(input_ids=ids, shift_labels=ids, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_compiled_layers_compute_the_same_with_a_few_graphs(model, eager_backend):
    ids = torch.randint(0, 128, (2, 64))
    plain_loss, plain = loss_and_gradients(model, ids)
    compiled = compilation.compiled_layers(model)
    with compiled:
        loss, gradients = loss_and_gradients(model, ids)
    assert loss == plain_loss
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6, msg=name)
    # With and without value embeddings, with and without a window, and the loss.
    assert counters["stats"]["unique_graphs"] <= 5
    assert not counters["graph_break"]


def test_a_compiled_block_hands_over_its_gradients_before_the_next_begins(model, eager_backend):
    """So the optimizer's reductions run beside the backward pass. As one graph all come at its end."""
    events = []
    first, last = model.model.layers[0], model.model.layers[-1]

    def watch(_, __, output):
        output.register_hook(lambda _: events.append("first begins"))

    first.register_forward_hook(watch)
    for parameter in last.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: events.append("last is done"))
    with compilation.compiled_layers(model):
        loss_and_gradients(model, torch.randint(0, 128, (2, 64)))
    assert events == ["last is done"] * len(list(last.parameters())) + ["first begins"]


def test_outside_of_the_context_nothing_is_compiled(model, eager_backend):
    with compilation.compiled_layers(model):
        pass
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)
    assert "supervised_loss" not in model.__dict__
    assert model.model.layers_are_compiled is False
    for length in range(4, 30, 3):
        model(input_ids=torch.randint(0, 128, (1, length)))
    assert not counters["stats"]


@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_window_kernels_agree_with_the_blocks(model, kernel, monkeypatch):
    monkeypatch.setattr(window_attention, "varlen_attn", varlen_stand_in)
    # Without a GPU flex_attention has no backward pass; uncompiled it computes from the formula.
    monkeypatch.setattr(window_attention, "_compiled_flex", lambda: window_attention.flex_attention)
    ids = torch.randint(0, 128, (2, 64))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        model.model.window_kernel = kernel
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5)


def test_varlen_breaks_no_graph_and_has_gradients(model, eager_backend, monkeypatch):
    ids = torch.randint(0, 128, (2, 64))
    _, wanted = loss_and_gradients(model, ids)
    monkeypatch.setattr(window_attention, "varlen_attn", varlen_stand_in)
    model.model.window_kernel = "varlen"
    with compilation.compiled_layers(model):
        _, gradients = loss_and_gradients(model, ids)
    assert not counters["graph_break"]
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_grouped_queries(kernel, monkeypatch):
    monkeypatch.setattr(window_attention, "varlen_attn", varlen_stand_in)
    monkeypatch.setattr(window_attention, "_compiled_flex", lambda: window_attention.flex_attention)
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 4, 50, 16), torch.randn(2, 2, 2, 50, 16).unbind()
    wanted = window_attention.windowed_sdpa(query, key, value, 9, scale=0.3)
    if kernel == "varlen":
        found = window_attention.windowed_varlen(query, key, value, 9, scale=0.3)
    else:
        mask = window_attention.window_mask(50, 9, CPU)
        found = window_attention.windowed_flex(query, key, value, mask, scale=0.3)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "capability, dtype, compiled, has_varlen, wanted",
    [
        ((9, 0), torch.bfloat16, True, True, "flex"),
        ((9, 0), torch.bfloat16, False, True, "varlen"),
        ((9, 0), torch.bfloat16, False, False, "blocks"),
        ((9, 0), torch.float32, True, True, "blocks"),
        ((7, 5), torch.float16, True, True, "blocks"),
    ],
)
def test_the_kernel_follows_card_dtype_and_compiler(capability, dtype, compiled, has_varlen, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(window_attention, "has_varlen", lambda: has_varlen)
    assert window_attention.pick_window_kernel(CUDA, dtype, compiled) == wanted
    assert window_attention.pick_window_kernel(CPU, dtype, compiled) == "blocks"


def test_the_choice_is_said_in_one_line(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    said = compilation.describe_attention(model, CUDA, bf16=True, compiled=True)
    assert said == "attention: flex_attention in 4 layers with a window, SDPA in 2 full layers"
    said = compilation.describe_attention(model, CPU, bf16=False, compiled=False)
    assert said == "attention: SDPA in blocks in 4 layers with a window, SDPA in 2 full layers"
    compilation.set_attention(model, "eager", CPU, bf16=False)
    assert compilation.describe_attention(model, CPU, bf16=False, compiled=False) == "attention: eager"


@pytest.mark.parametrize("setting", ["varlen", "flex"])
def test_a_kernel_that_needs_a_gpu_is_refused_on_a_cpu(model, setting):
    with pytest.raises(UserError, match=f"--attention {setting} needs bf16 on an NVIDIA GPU"):
        compilation.set_attention(model, setting, CPU, bf16=True)


@pytest.mark.parametrize("setting", ["auto", "blocks", "sdpa"])
def test_settings_that_always_work(model, setting):
    compilation.set_attention(model, setting, CPU, bf16=False)
    assert model.config._attn_implementation == "sdpa"
    assert model.model.window_kernel == ("auto" if setting == "sdpa" else setting)


@pytest.mark.parametrize("variant", ["modern", "classic"])
def test_muon_compiles_few_variants_for_any_shapes_and_ranks(variant, eager_backend):
    """Small and large, every kind of matrix with and without GQA, alone and in stacks, also as many as it has rows."""
    muon_adamw._compiled.cache_clear()
    kernel = muon_adamw._compiled(
        {"modern": kernels.muon_modern, "classic": kernels.muon_classic}[variant], torch.float32
    )
    numbers = 4 if variant == "modern" else 3
    for depth, kv_heads in itertools.product((4, 24), (1, 2, None)):
        heads = max(1, depth // 2)
        width = 16 * heads
        kv_width = 16 * min(kv_heads or heads, heads)
        shapes = {(width, width), (kv_width, width), (4 * width, width), (width, 4 * width), (kv_heads or heads, 12)}
        for (rows, cols), count in itertools.product(sorted(shapes), (1, 2, 5, 12, depth)):
            states = [torch.zeros(count, rows, cols, device="meta") for _ in range(3)]
            if variant == "modern":
                second = (count, rows, 1) if rows >= cols else (count, 1, cols)
                states.append(torch.zeros(second, device="meta"))
            kernel(*states, *[0.5] * numbers)
    muon_adamw._compiled.cache_clear()
    assert counters["stats"]["unique_graphs"] <= 8  # more than that and the compiler gives up
