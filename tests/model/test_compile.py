"""Training compiles to one graph, once."""

import pytest
import torch
from tiny_models import classic_fields, randomized, tiny_config
from torch._dynamo.testing import CompileCounterWithBackend

CASES = {"modern": ({}, False), "modern in bf16": ({}, True), "classic": (classic_fields(), False)}


def train(model, batches):
    """A few steps of plain gradient descent."""
    losses = []
    for tokens in batches:
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        losses.append(loss.item())
    return losses


@pytest.fixture
def batches(tokens):
    """Three batches of one shape."""
    return tokens[:, :60].view(3, 2, 30)


@pytest.mark.parametrize(("fields", "autocast"), CASES.values(), ids=CASES.keys())
def test_one_graph_and_never_another(batches, fields, autocast):
    """Up to the code itself, of which making takes a minute; benchmarks/model.py runs that."""
    torch._dynamo.reset()
    model = randomized(tiny_config(**fields)).train()
    counter = CompileCounterWithBackend("aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        compiled = train(torch.compile(model, backend=counter, fullgraph=True), batches)
        assert counter.frame_count == 1
    (graph,) = counter.graphs
    made = [node.meta.get("example_value") for node in graph.graph.nodes]
    shapes = {tuple(each.shape[-2:]) for each in made if isinstance(each, torch.Tensor)}
    assert (30, 30) not in shapes and (30, 64) in shapes, "a mask of all tokens by all tokens is made"
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = train(randomized(tiny_config(**fields)).train(), batches)
    assert compiled == pytest.approx(plain, rel=5e-3 if autocast else 1e-5)
