"""Whatever the cache and however the text is cut, the logits are those of the one full forward."""

import pytest
import torch
from tiny_models import randomized, tiny_config
from transformers import DynamicCache, StaticCache
from transformers.utils import logging

CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "dynamic without config": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config=config, max_cache_len=100),
}
CHUNKS = {
    "prefill and decode": [40] + [1] * 50,
    "token by token": [1] * 90,
    "two tokens first": [2] + [1] * 88,
    "ragged chunks": [7, 1, 30, 5, 1, 1, 45],
    "within the window": [1, 2, 1, 3, 1, 82],
}
ATOL = 2e-5


@pytest.fixture(scope="module")
def full(model, tokens):
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


def run_chunks(model, tokens, cache, chunks):
    outputs, start = [], 0
    with torch.no_grad():
        for size in chunks:
            piece = tokens[:, start : start + size]
            outputs.append(model(piece, past_key_values=cache, use_cache=True).logits)
            start += size
    assert start == tokens.shape[1]
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES.keys())
def test_cached_equals_full(model, tokens, full, make, chunks):
    torch.testing.assert_close(run_chunks(model, tokens, make(model.config), chunks), full, atol=ATOL, rtol=0)


@pytest.mark.parametrize("pattern", ["L", "SL", "SSL"])
@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES.keys())
def test_cached_equals_full_for_every_window_pattern(tokens, make, pattern):
    config = tiny_config(layer_types=[{"S": "sliding_attention", "L": "full_attention"}[c] for c in (pattern * 4)[:4]])
    model = randomized(config)
    with torch.no_grad():
        full = model(tokens, use_cache=False).logits
    cached = run_chunks(model, tokens, make(config), [20, 1, 1, 30, 38])
    torch.testing.assert_close(cached, full, atol=ATOL, rtol=0)


def test_cached_equals_full_in_bfloat16(tokens):
    model = randomized(tiny_config()).to(torch.bfloat16)
    with torch.no_grad():
        full = model(tokens, use_cache=False).logits
    cached = run_chunks(model, tokens, DynamicCache(config=model.config), [20, 1, 1, 30, 38])
    assert (cached - full).abs().mean() < 0.02 and full.abs().mean() > 0.5


def test_smear_matters_here(model, tokens, full):
    """Without the previous token's state the second chunk would be visibly wrong."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens[:, :40], past_key_values=cache, use_cache=True)
        cache.layers[-1].keys.zero_()
        broken = model(tokens[:, 40:41], past_key_values=cache, use_cache=True).logits
    assert (broken[:, 0] - full[:, 40]).abs().max() > 0.05


def test_sliding_layers_do_not_grow_past_the_window(model, tokens):
    cache = DynamicCache(config=model.config)
    run_chunks(model, tokens, cache, [1] * 90)
    lengths = [layer.keys.shape[-2] for layer in cache.layers]
    assert lengths == [8, 8, 8, 90, 1]


@pytest.mark.parametrize("give_positions", [True, False], ids=["positions given", "positions from the mask"])
def test_left_padding_changes_nothing(model, tokens, full, give_positions):
    padding = [6, 0, 3]
    length = 40
    padded = torch.full((3, length + 6), 5)
    mask = torch.zeros_like(padded)
    for row, pad in enumerate(padding):
        padded[row, pad : pad + length] = tokens[row, :length]
        mask[row, pad:] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0) if give_positions else None
    with torch.no_grad():
        logits = model(padded, attention_mask=mask, position_ids=positions).logits
    for row, pad in enumerate(padding):
        torch.testing.assert_close(logits[row, pad : pad + length], full[row, :length], atol=ATOL, rtol=0)


def test_left_padded_batch_through_a_cache(model, tokens, full):
    pad, cache = 6, DynamicCache(config=model.config)
    padded = torch.cat((torch.full((3, pad), 5), tokens), dim=1)
    mask = torch.ones_like(padded)
    mask[:, :pad] = 0
    outputs, start = [], 0
    with torch.no_grad():
        for size in [20, 1, 1, 30, 44]:
            end = start + size
            piece = model(padded[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            outputs.append(piece.logits)
            start = end
    torch.testing.assert_close(torch.cat(outputs, 1)[:, pad:], full, atol=ATOL, rtol=0)


def test_packed_documents_do_not_see_each_other(model, tokens):
    first, second = tokens[:1, :20], tokens[:1, 20:50]
    positions = torch.cat((torch.arange(20), torch.arange(30))).unsqueeze(0)
    with torch.no_grad():
        packed = model(tokens[:1, :50], position_ids=positions, use_cache=False).logits
        alone = torch.cat((model(first).logits, model(second).logits), dim=1)
    torch.testing.assert_close(packed, alone, atol=ATOL, rtol=0)


def test_rollback_is_exact(model, tokens, full):
    """What assisted generation does: look ahead, crop, go on."""
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    with torch.no_grad():
        model(tokens[:, :30], past_key_values=cache, use_cache=True)
        cache.crop(0)
        for start in (30, 31, 35, 50):
            guesses = torch.cat((tokens[:, start : start + 1], torch.full((3, 4), 7)), dim=1)
            logits = model(guesses, past_key_values=cache, use_cache=True).logits
            torch.testing.assert_close(logits[:, 0], full[:, start], atol=ATOL, rtol=0)
            cache.crop(-5)
            accepted = tokens[:, start : {30: 31, 31: 35, 35: 50, 50: 90}[start]]
            logits = model(accepted, past_key_values=cache, use_cache=True).logits
            cache.crop(0)
            torch.testing.assert_close(logits, full[:, start : start + accepted.shape[1]], atol=ATOL, rtol=0)


def test_batch_can_shrink_repeat_and_reorder(model, tokens, full):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens[:, :40], past_key_values=cache, use_cache=True)
        cache.batch_select_indices(torch.tensor([0, 2]))
        rows = [0, 2]
        logits = model(tokens[rows, 40:41], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(logits[:, 0], full[rows, 40], atol=ATOL, rtol=0)
        cache.batch_repeat_interleave(2)
        rows = [0, 0, 2, 2]
        logits = model(tokens[rows, 41:42], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(logits[:, 0], full[rows, 41], atol=ATOL, rtol=0)
        cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
        rows = [2, 0, 0, 2]
        logits = model(tokens[rows, 42:45], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(logits, full[rows, 42:45], atol=ATOL, rtol=0)


GENERATION = {
    "dynamic cache": dict(),
    "static cache": dict(cache_implementation="static", disable_compile=True),
    "prefill in chunks": dict(prefill_chunk_size=7),
    "prompt lookup": dict(prompt_lookup_num_tokens=3),
}


@pytest.mark.parametrize("options", GENERATION.values(), ids=GENERATION.keys())
def test_generate_equals_generate_without_cache(model, tokens, options):
    prompt = tokens[:1, :30]
    settings = dict(max_new_tokens=40, do_sample=False)
    expected = model.generate(prompt, use_cache=False, **settings)
    assert torch.equal(model.generate(prompt, **settings, **options), expected)


def test_generation_past_the_trained_length_goes_on_and_says_so(model, tokens, caplog):
    """64 positions were trained; there is no table of angles that ends there."""
    logging.get_logger().warning_once.cache_clear()  # it is said once per process
    with caplog.at_level("WARNING", logger="transformers"):
        generated = model.generate(tokens[:1, :60], max_new_tokens=40, min_new_tokens=40, do_sample=False)
    assert generated.shape == (1, 100)
    with torch.no_grad():
        logits = model(generated, use_cache=False).logits
    assert torch.equal(logits[0, 59:-1].argmax(-1), generated[0, 60:])
    assert "predefined maximum length (64)" in caplog.text


def test_beam_search_equals_beam_search_without_cache(model, tokens):
    settings = dict(max_new_tokens=20, do_sample=False, num_beams=3, num_return_sequences=2)
    expected = model.generate(tokens[:, :30], use_cache=False, **settings)
    assert torch.equal(model.generate(tokens[:, :30], **settings), expected)


def test_assisted_generation_equals_greedy(model, tokens):
    assistant = randomized(tiny_config(num_hidden_layers=2, layer_types=None), seed=3)
    prompt, settings = tokens[:1, :30], dict(max_new_tokens=30, do_sample=False)
    expected = model.generate(prompt, use_cache=False, **settings)
    assert torch.equal(model.generate(prompt, assistant_model=assistant, **settings), expected)


@pytest.mark.parametrize("options", [dict(), dict(cache_implementation="static", disable_compile=True)])
def test_left_padded_generation_equals_one_by_one(model, tokens, options):
    lengths, longest = (34, 20, 27), 34
    padded = torch.zeros(3, longest, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, length in enumerate(lengths):
        padded[row, -length:] = tokens[row, :length]
        mask[row, -length:] = 1
    settings = dict(max_new_tokens=24, do_sample=False)
    batch = model.generate(padded, attention_mask=mask, **settings, **options)
    for row, length in enumerate(lengths):
        alone = model.generate(tokens[row : row + 1, :length], **settings)
        assert torch.equal(batch[row, longest:], alone[0, length:])
