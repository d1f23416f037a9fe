"""The closed forms of norm and squared ReLU are what PyTorch computes, in first and second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import randomized, tiny_config
from torch.func import grad, jacrev, vmap

from nanochat_hf.model import pointwise_nanochat_hf as pointwise

EPS = 1e-6
FUNCTIONS = {
    "norm": (lambda x: pointwise.rms_norm(x, EPS), lambda x: F.rms_norm(x, x.shape[-1:], eps=EPS)),
    "activation": (pointwise.squared_relu, lambda x: F.relu(x).square()),
}


@pytest.fixture
def x():
    return torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)


@pytest.fixture
def closed_forms(monkeypatch):
    """In fp64 too, so that derivatives can be compared closely."""
    monkeypatch.setattr(pointwise, "_trains_eagerly_on_cpu", lambda x: True)


@pytest.mark.parametrize("function, expected", FUNCTIONS.values(), ids=FUNCTIONS)
def test_values_and_derivatives(function, expected, x, closed_forms):
    torch.testing.assert_close(function(x), expected(x))
    assert type(function(x).grad_fn).__name__ != type(expected(x).grad_fn).__name__
    assert torch.autograd.gradcheck(function, (x,)) and torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize("function, expected", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("transform", [grad, lambda f: vmap(grad(f)), lambda f: jacrev(grad(f))])
def test_transforms_of_torch_func(function, expected, transform, x, closed_forms):
    found, wanted = (transform(lambda x, one=one: one(x).pow(3).sum())(x.detach()) for one in (function, expected))
    torch.testing.assert_close(found, wanted)


def test_a_step_of_the_model_is_that_of_the_plain_operations(tokens, monkeypatch):
    def step():
        model = randomized(tiny_config()).train()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        return loss, {name: p.grad for name, p in model.named_parameters()}

    loss, gradients = step()
    monkeypatch.setattr(pointwise, "_trains_eagerly_on_cpu", lambda x: False)
    plain_loss, plain = step()
    torch.testing.assert_close(loss, plain_loss, atol=0, rtol=1e-6)
    assert any(not torch.equal(gradients[name], gradient) for name, gradient in plain.items())  # other roundings
    for name, gradient in plain.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-7, rtol=1e-4)


def test_only_eager_training_in_fp32_takes_them():
    x = torch.ones(2, requires_grad=True)
    assert pointwise._trains_eagerly_on_cpu(x)
    assert not pointwise._trains_eagerly_on_cpu(x.detach()) and not pointwise._trains_eagerly_on_cpu(x.bfloat16())
    assert not pointwise._trains_eagerly_on_cpu(torch.ones(2, device="meta", requires_grad=True))
    with torch.no_grad():
        assert not pointwise._trains_eagerly_on_cpu(x)
