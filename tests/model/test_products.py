"""fp32 products by oneDNN: taken only where they are faster and as exact, and gone when they are done."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nanochat_hf.model import products_nanochat_hf as products

MKLDNN = torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def _asked_anew():
    """What was found on this processor is not kept from test to test."""
    ask = products.onednn_is_better
    ask.cache_clear()
    yield
    ask.cache_clear()


@pytest.fixture
def allowed(monkeypatch):
    """As on an AMD processor with AVX-512, whatever this one is; one with AMX then rounds factors to bf16."""
    monkeypatch.setattr(products, "onednn_is_better", lambda: True)


def assert_same(found, expected):
    """Equal but for factors rounded to bf16."""
    assert found.shape == expected.shape and (found - expected).norm() < 0.02 * expected.norm()


def on(monkeypatch, vendor, capability="AVX512"):
    monkeypatch.setattr(products, "processor_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


def test_products_in_the_context_are_exact_to_fp32_on_this_processor():
    for rows, inner, columns in ((1, 256, 512), (31, 77, 129), (512, 256, 1024), (256, 512, 256)):
        for left in (torch.randn(rows, inner), torch.randn(inner, rows).t()):
            for right in (torch.randn(inner, columns), torch.randn(columns, inner).t()):
                exact = left.double() @ right.double()
                with products.onednn_products():
                    found = [left @ right, torch.stack([left, left]).bmm(torch.stack([right, right]))[0]]
                assert all((product - exact).norm() < 2e-6 * exact.norm() for product in found)


@pytest.mark.parametrize("frozen", ["nothing", "x", "weight"])
def test_a_linear_layer_and_its_gradients_are_those_of_torch(allowed, frozen):
    x = torch.randn(3, 700, 64, requires_grad=frozen != "x")
    weight = torch.randn(256, 64, requires_grad=frozen != "weight")
    assert products.gains_from_onednn(x, weight)
    inputs = [one for one in (x, weight) if one.requires_grad]
    upstream = torch.randn(3, 700, 256)
    found = torch.autograd.grad(products.linear(x, weight), inputs, upstream)
    expected = torch.autograd.grad(F.linear(x, weight), inputs, upstream)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    with torch.no_grad():
        assert_same(products.linear(x, weight), F.linear(x, weight))


def test_second_derivatives_and_function_transforms(allowed, monkeypatch):
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(products, "LARGE_FOR_THREADS", 1)
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)

    def second(layer):
        (first,) = torch.autograd.grad(layer(x, weight).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, weight))

    for one, other in zip(second(products.linear), second(F.linear), strict=True):
        assert_same(one, other)
    rows = torch.randn(6, 5, 4)
    assert_same(torch.func.vmap(lambda row: products.linear(row, weight))(rows), F.linear(rows, weight))


def test_the_setting_of_torch_is_as_before(allowed):
    before = MKLDNN.fp32_precision
    with pytest.raises(ZeroDivisionError), products.onednn_products():
        assert MKLDNN.fp32_precision == "bf16"
        raise ZeroDivisionError
    assert MKLDNN.fp32_precision == before
    products.linear(torch.randn(2000, 64, requires_grad=True), torch.randn(256, 64)).sum().backward()
    assert MKLDNN.fp32_precision == before
    assert torch.get_float32_matmul_precision() in ("highest", "high", "medium")  # raises where the settings differ


@pytest.mark.parametrize(("vendor", "capability"), [("GenuineIntel", "AVX512"), ("AuthenticAMD", "AVX2"), ("", "")])
def test_elsewhere_nothing_changes(vendor, capability, monkeypatch):
    on(monkeypatch, vendor, capability)
    before = MKLDNN.fp32_precision
    with products.onednn_products():
        assert MKLDNN.fp32_precision == before
    assert not products.gains_from_onednn(torch.randn(4000, 64), torch.randn(256, 64))


def test_rounded_factors_are_noticed(monkeypatch):
    on(monkeypatch, "AuthenticAMD")
    monkeypatch.setattr(products, "EXACT", 1e-9)  # no fp32 product is that exact
    assert not products.onednn_is_better()
    assert MKLDNN.fp32_precision != "bf16"


def test_small_products_other_dtypes_and_autocast_are_left_alone(allowed):
    large, weight = torch.randn(4000, 64), nn.Parameter(torch.randn(256, 64))
    assert products.gains_from_onednn(large, weight)
    assert not products.gains_from_onednn(large[:10], weight)
    assert not products.gains_from_onednn(large.bfloat16(), weight)
    assert not products.gains_from_onednn(large.double(), weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not products.gains_from_onednn(large, weight)
    assert not products.gains_from_onednn(large.to("meta"), weight.to("meta"))
