"""Prompt lookup and assisted generation give the tokens of plain greedy decoding, with and without sliding layers."""

import pytest
import torch
from tiny_models import classic_fields, randomized, tiny_config

LAYERS = {
    "sliding": {},
    "full only": {"layer_types": ["full_attention"] * 4, "sliding_window": None},
    "one sliding": {"layer_types": ["sliding_attention", *["full_attention"] * 3]},
    "classic": classic_fields(),
}


@pytest.mark.parametrize("fields", LAYERS.values(), ids=LAYERS.keys())
def test_assisted_equals_greedy(fields):
    model, assistant = randomized(tiny_config(**fields)), randomized(tiny_config(**fields), seed=7)
    with torch.no_grad():  # an assistant that is often right, not always
        for mine, other in zip(assistant.parameters(), model.parameters(), strict=True):
            mine.mul_(0.05).add_(other)
    prompt = torch.tensor([[5, 9, 77, 5, 9, 77, 5, 9]])
    plain = dict(max_new_tokens=40, do_sample=False, eos_token_id=-1, pad_token_id=0)
    expected = model.generate(prompt, **plain)
    assert expected.shape == (1, 48)
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=3, **plain), expected)
    assert torch.equal(model.generate(prompt, assistant_model=assistant, **plain), expected)
