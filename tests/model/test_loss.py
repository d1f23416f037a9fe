"""The loss that never holds all logits is the plain loss, and steps aside where it cannot be."""

import peft
import pytest
import torch
from tiny_models import randomized, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat_hf.model import loss_nanochat_hf as losses
from nanochat_hf.model import shape_nanochat_hf

IGNORED = losses.IGNORE_INDEX


@pytest.fixture
def many_chunks(monkeypatch):
    """Chunks of 7 tokens, the last one of another size."""
    monkeypatch.setattr(shape_nanochat_hf, "MAX_CHUNKS", 1000)
    monkeypatch.setattr(shape_nanochat_hf, "LOGITS_PER_CHUNK", 7 * 128)


@pytest.fixture
def labels(tokens):
    """[3, 90], some of them ignored."""
    return tokens.masked_fill(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.3, IGNORED)


def step(model, tokens, **arguments):
    """Loss and gradients of one step."""
    model.zero_grad()
    output = model(tokens, **arguments)
    output.loss.backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model, tokens, **arguments):
    plain, expected = step(model, tokens, return_logits=True, **arguments)
    chunked, found = step(model, tokens, **arguments)
    assert plain.logits is not None and chunked.logits is None
    torch.testing.assert_close(chunked.loss, plain.loss, atol=0, rtol=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("cap", [15.0, 0.5, None])
@pytest.mark.parametrize("num_items", [None, 40, torch.tensor(40)], ids=["counted", "int", "tensor"])
def test_loss_and_every_gradient_are_the_plain_ones(tokens, labels, many_chunks, cap, num_items):
    model = randomized(tiny_config(final_logit_softcapping=cap)).train()
    assert_same_step(model, tokens, labels=labels, num_items_in_batch=num_items)


def test_shifted_labels_and_whole_batches_at_once(tokens, labels):
    model = randomized(tiny_config()).train()
    assert_same_step(model, tokens, shift_labels=labels)


@pytest.mark.parametrize("frozen", ["lm_head", "model"])
def test_frozen_parts_get_no_gradient(tokens, labels, many_chunks, frozen):
    model = randomized(tiny_config()).train()
    model.get_submodule(frozen).requires_grad_(False)
    assert_same_step(model, tokens, labels=labels)


@pytest.mark.parametrize("return_logits", [False, True])
@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)], ids=["counted", "int", "tensor"])
def test_nothing_supervised_is_zero(tokens, many_chunks, num_items, return_logits):
    """`Trainer` counts the supervised tokens itself and passes 0."""
    model = randomized(tiny_config()).train()
    labels = torch.full_like(tokens, IGNORED)
    output, gradients = step(model, tokens, labels=labels, num_items_in_batch=num_items, return_logits=return_logits)
    assert output.loss == 0
    assert all(gradient.eq(0).all() for gradient in gradients.values())


@pytest.mark.parametrize("label", [-1, 128], ids=["upstream's mark of an ignored token", "past the vocabulary"])
@pytest.mark.parametrize("return_logits", [False, True])
def test_labels_that_are_no_tokens_are_refused(tokens, label, return_logits):
    model = randomized(tiny_config()).train()
    labels = tokens.clone()
    labels[0, 5] = label
    with pytest.raises((IndexError, RuntimeError), match=rf"{label} is out of bounds"):
        model(tokens, labels=labels, return_logits=return_logits)


@pytest.mark.parametrize("masters", [torch.float32, torch.bfloat16], ids=["fp32 weights", "bf16 weights"])
def test_bfloat16_errs_no_more_than_the_plain_loss(tokens, labels, many_chunks, masters):
    exact_model = randomized(tiny_config()).to(masters).float().train()
    _, exact = step(exact_model, tokens, labels=labels)
    model = exact_model.to(masters)

    def error(**arguments):
        with torch.autocast("cpu", torch.bfloat16, enabled=masters == torch.float32):
            _, gradients = step(model, tokens, labels=labels, **arguments)
        gap = gradients["lm_head.weight"].float() - exact["lm_head.weight"]
        return (gap.norm() / exact["lm_head.weight"].norm()).item()

    plain, chunked = error(return_logits=True), error()
    assert 1e-4 < plain < 0.05
    assert chunked < 1.1 * plain


def test_logits_are_there_where_they_are_wanted(tokens, labels):
    model = randomized(tiny_config()).train()
    assert model(tokens).logits.shape == (3, 90, 128)
    assert model(tokens, labels=labels, return_logits=True).logits.shape == (3, 90, 128)
    assert model.eval()(tokens, labels=labels).logits.shape == (3, 90, 128)
    with torch.no_grad():
        output = model(tokens, labels=labels, return_logits=False)
        assert output.logits is None
        torch.testing.assert_close(output.loss, model(tokens, labels=labels).loss)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("masters", [torch.float32, torch.bfloat16])
def test_training_never_holds_all_logits(many_chunks, masters):
    model = randomized(tiny_config(vocab_size=2048)).to(masters).train()
    tokens = torch.randint(0, 2048, (2, 100))
    every_logit = tokens.numel() * 2048
    with Largest() as plain:
        step(model, tokens, labels=tokens, return_logits=True)
    with Largest() as chunked:
        step(model, tokens, labels=tokens)
    assert plain.elements == every_logit
    assert chunked.elements <= max(parameter.numel() for parameter in model.parameters())


def test_one_batch_of_eight_is_eight_batches_of_one(tokens, labels):
    model = randomized(tiny_config()).train()
    tokens, labels = tokens.view(-1)[:264].view(8, 33), labels.reshape(-1)[:264].view(8, 33).clone()
    labels[2] = IGNORED
    count = (labels[:, 1:] != IGNORED).sum()
    whole, expected = step(model, tokens, labels=labels, num_items_in_batch=count)
    model.zero_grad()
    total = 0.0
    for row in range(8):
        rows = slice(row, row + 1)
        loss = model(tokens[rows], labels=labels[rows], num_items_in_batch=count).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(tokens, labels):
    model = randomized(tiny_config()).train()
    _, expected = step(model, tokens, labels=labels)
    model.activation_checkpointing_enable()
    calls = []
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    _, found = step(model, tokens, labels=labels)
    assert len(calls) == 2, "the block was not computed again"
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=1e-5)


def lora(model):
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False))


def hooked(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def another_class(model):
    model.lm_head = torch.nn.Sequential(model.lm_head, torch.nn.Tanh())
    return model


@pytest.mark.parametrize("change", [lora, hooked, another_class])
def test_a_head_that_is_more_than_its_weight_is_called(tokens, labels, change):
    model = randomized(tiny_config()).train()
    bare = step(model, tokens, labels=labels)[0].loss
    model = change(model).train()
    output, expected = step(model, tokens, labels=labels)
    assert output.logits is not None and not torch.isclose(output.loss, bare)
    plain = model(tokens, labels=labels, return_logits=True)
    torch.testing.assert_close(output.loss, plain.loss)
