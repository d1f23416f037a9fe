"""A batch whose rows come and go gives each row the logits that it would have alone."""

import math
import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nanochat_hf.generation import graphed_decoder
from nanochat_hf.generation.fast_decoder import FastDecoder
from nanochat_hf.generation.live_batch import GraphedLiveBatch, LiveBatch, SeparateRows, live_batch
from nanochat_hf.generation.row_sampling import RowSampler, RowSettings, draw_rows

FIELDS = [{}, {"num_key_value_heads": 1}, {"window_pattern": "L"}, {"preset": "classic"}]


def full_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0, -1]


KINDS = [*((LiveBatch, each) for each in FIELDS), *((GraphedLiveBatch, each) for each in FIELDS), (SeparateRows, {})]


@pytest.mark.parametrize(("kind", "fields"), KINDS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_rows_that_come_and_go(kind, fields, make_model, captures, monkeypatch):
    """As a graph, too: it is captured few times, and its replays run nothing of Python."""
    monkeypatch.setattr(graphed_decoder, "SLOTS_PER_GRAPH", 16)
    updates, update = [], GraphedLiveBatch._update
    monkeypatch.setattr(GraphedLiveBatch, "_update", lambda self: updates.append(update(self)))
    model = make_model(**fields)
    batch = SeparateRows(model) if kind is SeparateRows else kind(model, 192)
    generator = random.Random(0)
    rows: list[list[int]] = []
    steps = 0
    while steps < 24:
        if len(rows) < 6 and generator.random() < 0.3:
            prompts = [[generator.randrange(320) for _ in range(generator.choice([1, 3, 12, 40]))] for _ in range(2)]
            copies = [1, generator.choice([1, 2])]
            logits = batch.add(prompts, copies)
            new = [list(prompt) for prompt, number in zip(prompts, copies, strict=True) for _ in range(number)]
            for row, tokens in zip(logits, new, strict=True):
                torch.testing.assert_close(row, full_logits(model, tokens), atol=1e-4, rtol=0)
            rows += new
        if not rows:
            continue
        chosen = [generator.randrange(320) for _ in rows]
        logits = batch.step(chosen)
        steps += 1
        for row, tokens, token in zip(logits, rows, chosen, strict=True):
            tokens.append(token)
            torch.testing.assert_close(row, full_logits(model, tokens), atol=1e-4, rtol=0)
        if generator.random() < 0.25:
            leaving = generator.randrange(len(rows))
            batch.remove(leaving)
            rows[leaving] = rows[-1]
            rows.pop()
        assert len(batch) == len(rows)
    if kind is GraphedLiveBatch:
        # A graph takes one update and one recording; other steps are replays.
        assert len(captures) >= 2 and steps - (len(updates) - len(captures)) >= 8


@torch.no_grad()
def test_a_refused_capture_is_said_once_and_the_server_goes_on(make_model, monkeypatch, caplog):
    def refuse(function):
        function.__self__.previous = torch.zeros(0)  # half of a recording, before CUDA notices
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphed_decoder, "capture", refuse)
    model = make_model()
    batches = [kind(model, 192) for kind in (GraphedLiveBatch, LiveBatch)]
    for batch in batches:
        batch.add([[1, 2, 3], [4]], [1, 2])
    for turn in range(6):
        ours, theirs = (batch.step([turn, 7, 8]) for batch in batches)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert len(caplog.records) == 1 and "not permitted" in caplog.text


def test_the_server_takes_graphs_on_a_gpu(make_model, monkeypatch):
    model = make_model()
    assert type(live_batch(model, 64)) is LiveBatch
    monkeypatch.setattr(FastDecoder, "supports", lambda model: True)
    monkeypatch.setattr(GraphedLiveBatch, "__init__", lambda self, *_: None)
    assert type(live_batch(SimpleNamespace(device=torch.device("cuda")), 64)) is GraphedLiveBatch


@pytest.mark.parametrize("kind", [LiveBatch, GraphedLiveBatch])
def test_a_row_may_fill_the_whole_context(kind, make_model, captures):
    model = make_model()
    batch = kind(model, 192)
    tokens = list(range(190))
    batch.add([tokens, [5]], [1, 1])
    for token in (7, 8):
        logits = batch.step([token, token])
        tokens.append(token)
    torch.testing.assert_close(logits[0], full_logits(model, tokens), atol=1e-4, rtol=0)
    batch.remove(0)
    batch.remove(0)
    assert not batch.keys  # the memory is given back


def frequencies(logits, settings, draws=4000):
    sampler = RowSampler(settings, [0])
    rows = logits.expand(draws, -1).clone()
    counts = Counter(draw_rows(rows, [sampler] * draws))
    return {token: count / draws for token, count in counts.items()}


@pytest.mark.parametrize(
    "settings",
    [
        RowSettings(seed=1),
        RowSettings(temperature=0.5, seed=1),
        RowSettings(top_k=3, seed=1),
        RowSettings(top_p=0.7, seed=1),
        RowSettings(min_p=0.3, seed=1),
        RowSettings(temperature=1.5, top_k=4, top_p=0.8, min_p=0.1, seed=1),
        RowSettings(bias={2: 1.0, 0: -math.inf}, seed=1),
    ],
    ids=str,
)
def test_a_row_draws_from_its_own_distribution(settings):
    """Against the probabilities computed one filter after the other, in the documented order."""
    logits = torch.tensor([[2.0, 1.5, 0.5, 0.0, -1.0, -3.0]])
    expected = logits[0].clone()
    for token, bias in settings.bias.items():
        expected[token] += bias
    expected = (expected / settings.temperature).tolist()
    order = sorted(range(6), key=lambda token: -expected[token])
    kept = order[: settings.top_k or 6]
    weights = {token: math.exp(expected[token]) for token in kept}
    total = sum(weights.values())
    weights = {token: weight / total for token, weight in weights.items()}
    weights = {t: weight for t, weight in weights.items() if weight >= (settings.min_p or 0) * weights[order[0]]}
    total, before, nucleus = sum(weights.values()), 0.0, {}
    for token in sorted(weights, key=lambda token: -weights[token]):
        if before < (settings.top_p or 1) * total:
            nucleus[token] = weights[token]
        before += weights[token]
    total = sum(nucleus.values())
    seen = frequencies(logits, settings)
    assert set(seen) <= {token for token, weight in nucleus.items() if weight > 0}
    assert set(seen) >= {token for token, weight in nucleus.items() if weight > 0.005}
    for token, weight in nucleus.items():
        assert seen.get(token, 0) == pytest.approx(weight / total, abs=0.03)


def test_each_row_has_settings_and_random_numbers_of_its_own():
    generator = torch.Generator().manual_seed(0)
    every = [
        RowSettings(temperature=0),
        RowSettings(top_k=5, seed=3),
        RowSettings(top_p=0.5, seed=4),
        RowSettings(seed=2**200),
        RowSettings(min_p=0.2, seed=-1, frequency_penalty=-2, presence_penalty=1, repetition_penalty=1.3),
    ]
    steps = [torch.randn(5, 50, generator=generator) for _ in range(40)]

    def run(chosen):
        samplers = [RowSampler(every[row], [1, 2]) for row in chosen]
        drawn = []
        for logits in steps:
            tokens = draw_rows(logits[list(chosen)].clone(), samplers)
            for sampler, token in zip(samplers, tokens, strict=True):
                sampler.add(token)
            drawn.append(tokens)
        return [list(row) for row in zip(*drawn, strict=True)]

    together = run(range(5))
    assert together[0] == [int(logits[0].argmax()) for logits in steps]
    for row in range(5):
        assert run([row]) == [together[row]]
    assert run([4, 0, 2]) == [together[4], together[0], together[2]]


def test_penalties_are_those_of_the_formulas():
    sampler = RowSampler(RowSettings(0, frequency_penalty=0.5, presence_penalty=0.25, repetition_penalty=2.0), [3])
    for token in (1, 1, 2):
        sampler.add(token)
    logits = torch.tensor([1.0, 1.0, -1.0, 4.0])
    sampler.adjust(logits)
    assert logits.tolist() == [1.0, 0.5 - 2 * 0.5 - 0.25, -2.0 - 0.5 - 0.25, 2.0]


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_p": 5e-324}], ids=str)
@pytest.mark.parametrize("temperature", [0, 1e-310, 1e-20, 1e-6, 1])
def test_extreme_settings_still_choose_a_token(temperature, filters):
    """And what a neighbour draws stays the same."""
    settings = RowSettings(temperature, **filters)
    never = dict.fromkeys(range(5), -math.inf)
    extreme = [
        settings,
        replace(settings, repetition_penalty=1e-40),
        replace(settings, repetition_penalty=1e-40, bias={1: -math.inf}),
        replace(settings, repetition_penalty=1e-310, bias={1: 100.0}, frequency_penalty=-2.0),
        replace(settings, bias=never),
    ]
    neighbour = RowSettings(seed=1, **filters)
    logits = torch.tensor([[3.0, 5.0, -2.0, 0.0, 5.5]])
    (alone,) = draw_rows(logits.clone(), [RowSampler(neighbour, [])])
    tokens = draw_rows(logits.repeat(6, 1), [RowSampler(each, [0, 1, 2]) for each in [*extreme, neighbour]])
    assert all(0 <= token < 5 for token in tokens) and tokens[-1] == alone
    assert (
        tokens[1] in (0, 1) and tokens[2] == 0
    )  # what the prompt holds is as likely as can be, but for what is forbidden
    if 0 < temperature < 1:
        assert tokens[0] == 4


def test_a_row_of_a_broken_model_leaves_the_others_alone():
    logits = torch.tensor([[3.0, 5.0, 4.0], [math.nan] * 3])
    for filters in ({}, {"top_k": 2}, {"top_p": 0.9}):
        good, broken = RowSettings(seed=1, **filters), RowSettings(**filters)
        (alone,) = draw_rows(logits[:1].clone(), [RowSampler(good, [])])
        tokens = draw_rows(logits.clone(), [RowSampler(good, []), RowSampler(broken, [])])
        assert tokens[0] == alone and 0 <= tokens[1] < 3
