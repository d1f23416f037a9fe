"""Continuous batching (`generate_batch`, the server, GRPO's flag) gives the tokens that `generate` gives."""

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from nanochat_hf.conversion import to_transformers
from nanochat_hf.model import modeling_nanochat_hf as modeling

LENGTHS = (5, 30, 1, 17, 44, 9)
# Requests wait for each other's blocks, prompts are read in pieces, and sliding layers go round their ring.
TIGHT = dict(num_blocks=40, page_size=8, max_batch_tokens=24)


def random_prompts(lengths=LENGTHS, vocab_size=320):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def settings(**options):
    # No end token: random models must not stop early.
    return GenerationConfig(max_new_tokens=24, eos_token_id=-1, pad_token_id=0, **options)


def one_by_one(model, prompts):
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings())
        outputs.append(output[0, len(prompt) :].tolist())
    return outputs


def all_at_once(model, prompts, generation_config=None, **config):
    outputs = model.generate_batch(
        prompts,
        generation_config=generation_config or settings(),
        continuous_batching_config=ContinuousBatchingConfig(**config),
    )
    assert not any(output.error for output in outputs.values())
    return [output.generated_tokens for output in outputs.values()]


@pytest.mark.parametrize(
    ("attention", "fields"),
    [
        ("sdpa", {}),
        ("eager", {}),
        ("sdpa", {"num_key_value_heads": 1}),
        ("sdpa", {"window_pattern": "L"}),
        ("sdpa", {"preset": "classic"}),
    ],
    ids=str,
)
def test_all_at_once_equals_one_by_one(attention, fields, make_model):
    model = make_model(**fields)
    model.set_attn_implementation(attention)
    prompts = random_prompts()
    assert all_at_once(model, prompts, **TIGHT) == one_by_one(model, prompts)
    assert model.config.num_hidden_layers == len(model.config.layer_types) == 4  # the model itself is unchanged


def test_the_classic_export_too(make_model):
    model = make_model(preset="classic")
    prompts = random_prompts()
    assert all_at_once(to_transformers(model), prompts, **TIGHT) == one_by_one(model, prompts)


@pytest.mark.parametrize("pattern", ["L", "SSSL"])
def test_shared_beginnings_and_forked_samples(pattern, make_model):
    """Blocks of a common beginning are shared and several samples of a prompt are copies of one cache."""
    model = make_model(window_pattern=pattern)
    (beginning,) = random_prompts((40,))
    prompts = [beginning + ending for ending in random_prompts((3, 9, 1))]
    expected = one_by_one(model, prompts)
    config = dict(num_blocks=60, page_size=8, max_batch_tokens=16)
    assert all_at_once(model, prompts, **config) == expected
    sampling = settings(do_sample=True, top_k=1, num_return_sequences=3)  # only the likeliest token can be drawn
    samples = all_at_once(model, prompts, sampling, **config)
    assert sorted(samples) == sorted(expected * 3)


def test_large_ids_survive_bfloat16(make_model, monkeypatch):
    """Whatever is read back as a token's predecessor stood before it in its request."""
    model = make_model(vocab_size=70_016).to(torch.bfloat16)
    prompts = random_prompts((33, 20, 7), vocab_size=70_000)
    seen, read_back = [], modeling.paged_previous_tokens

    def spy(input_ids, layer_idx, kwargs):
        previous = read_back(input_ids, layer_idx, kwargs)
        seen.extend(zip(previous[0].tolist(), input_ids[0].tolist(), strict=True))
        return previous

    monkeypatch.setattr(modeling, "paged_previous_tokens", spy)
    outputs = all_at_once(model, prompts, **TIGHT)
    wanted = set()
    for prompt, output in zip(prompts, outputs, strict=True):
        text = prompt + output[:-1]  # the last token is never read
        wanted |= set(zip(text, text[1:], strict=False))
    assert wanted <= set(seen)
    begun = {prompt[0] for prompt in prompts}
    assert all(token in begun for previous, token in set(seen) - wanted if (previous, token) != (0, 0))


def test_without_the_past_it_would_be_wrong(make_model, monkeypatch):
    model = make_model()
    prompts = random_prompts()
    expected = one_by_one(model, prompts)
    monkeypatch.setattr(modeling, "paged_previous_tokens", lambda input_ids, *_: torch.zeros_like(input_ids))
    assert all_at_once(model, prompts, **TIGHT) != expected
