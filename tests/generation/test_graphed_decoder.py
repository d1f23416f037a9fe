"""Decoding steps as CUDA graphs. A recorder stands in for CUDA: it replays operations on the same tensors."""

import logging
from types import SimpleNamespace

import pytest
import torch

from nanochat_hf.generation import graphed_decoder
from nanochat_hf.generation.decoding import pad_left, pick_decoder
from nanochat_hf.generation.fast_decoder import FastDecoder
from nanochat_hf.generation.graphed_decoder import GraphedDecoder

PROMPTS = [[256, 5, 6, 7], [256, *range(40)], [256]]
MODELS = [{}, {"num_key_value_heads": 2}, {"preset": "classic"}, {"sliding_window": 500}, {"smear": False}]


@pytest.mark.parametrize(
    ("fields", "prompts"), [*((fields, PROMPTS) for fields in MODELS), ({}, PROMPTS[1:2]), ({}, PROMPTS[2:])], ids=str
)
@torch.no_grad()
def test_replayed_steps_equal_the_fast_decoder(fields, prompts, captures, make_model, monkeypatch):
    """Over windows that wrap, rows that leave and slots that fill up; a replay runs nothing of Python."""
    monkeypatch.setattr(graphed_decoder, "SLOTS_PER_GRAPH", 16)
    model = make_model(**fields)
    ids, mask = pad_left(prompts, 0, "cpu")
    rows = [0] * 2 + list(range(len(prompts)))
    graphed, plain = (kind(model, ids.shape[1] + 40) for kind in (GraphedDecoder, FastDecoder))
    ours, theirs = graphed.prefill(ids, mask, rows), plain.prefill(ids, mask, rows)
    updates, update = [], GraphedDecoder._update
    monkeypatch.setattr(GraphedDecoder, "_update", lambda self: updates.append(update(self)))
    for turn in range(40):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        if turn in (7, 15) and len(ours) > 2:
            keep = torch.arange(1, len(ours))
            graphed.select(keep)
            plain.select(keep)
        tokens = (torch.arange(len(plain.padding)) * 7 + turn * 13) % 256
        ours, theirs = graphed.step(tokens).clone(), plain.step(tokens)
    assert len(captures) >= 3
    assert len(updates) < 12  # the other steps are replays; each shape takes one update and one recording


@torch.no_grad()
def test_a_refused_capture_is_said_once_and_steps_go_on(make_model, monkeypatch, caplog):
    def refuse(function):
        function.__self__.previous = torch.zeros(0)  # half of a recording, before CUDA notices
        raise RuntimeError("operation not permitted when stream is capturing")

    model = make_model()
    ids, mask = pad_left(PROMPTS, 0, "cpu")
    graphed, plain = (kind(model, ids.shape[1] + 8) for kind in (GraphedDecoder, FastDecoder))
    for decoder in (graphed, plain):
        decoder.prefill(ids, mask, [0, 1, 2])
    monkeypatch.setattr(graphed_decoder, "capture", refuse)
    with caplog.at_level(logging.WARNING):
        for turn in range(8):
            tokens = torch.tensor([turn, 3, 4])
            torch.testing.assert_close(graphed.step(tokens), plain.step(tokens), atol=1e-4, rtol=0)
    assert len(caplog.records) == 1
    assert "not permitted" in caplog.text


def test_steps_on_a_gpu_get_graphs_unless_they_are_compiled(make_model, monkeypatch):
    model = make_model()
    assert type(pick_decoder(model, 64)) is FastDecoder
    monkeypatch.setattr(FastDecoder, "supports", lambda model: True)
    on_gpu = SimpleNamespace(config=model.config, device=torch.device("cuda"))
    assert type(pick_decoder(on_gpu, 64)) is GraphedDecoder
    assert type(pick_decoder(on_gpu, 64, compiled=True)) is FastDecoder
