"""What transformers checks of each of its models (see test_transformers_common.py), in a few lines for this one."""

import logging

import pytest
import torch
from tiny_models import classic_fields, randomized, tiny_config
from transformers import AutoModel, AutoModelForCausalLM

from nanochat_hf import NanochatHFForCausalLM, NanochatHFModel

ATOL = 2e-5


@torch.no_grad()
def run(model, tokens, **options):
    return model(tokens, use_cache=False, **options)


@pytest.mark.parametrize("fields", [{}, classic_fields()], ids=["modern", "classic"])
def test_nothing_is_lost_or_said_on_the_way_to_a_folder_and_back(fields, tokens, tmp_path, caplog):
    model = randomized(tiny_config(**fields))
    with caplog.at_level(logging.WARNING):
        model.save_pretrained(tmp_path)
        loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        said = list(caplog.messages)
    base, base_report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and not said
    assert base_report["unexpected_keys"] == {"lm_head.weight"} and not base_report["missing_keys"]
    assert type(loaded) is NanochatHFForCausalLM and type(base) is NanochatHFModel
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(run(loaded, tokens).logits, run(model, tokens).logits)
    assert torch.equal(run(base, tokens).last_hidden_state, run(model.model, tokens).last_hidden_state)
    kept = dict(loaded.config.to_dict(), dtype=None, auto_map=None, _name_or_path=None)
    assert kept == dict(model.config.to_dict(), dtype=None, auto_map=None, _name_or_path=None)


def test_a_model_made_on_the_meta_device_is_filled(model, tokens):
    with torch.device("meta"):
        empty = NanochatHFForCausalLM(model.config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    empty.model.rotary_emb = model.model.rotary_emb  # its buffers are no part of a state
    assert torch.equal(run(empty.eval(), tokens).logits, run(model, tokens).logits)


def test_hidden_states_and_attentions_are_recorded(model, tokens):
    """One state before each layer and the final one; weights that sum to one inside the window."""
    eager = randomized(tiny_config())
    eager.set_attn_implementation("eager")
    output = run(eager, tokens, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(3, 90, 64)] * 5
    assert torch.equal(output.hidden_states[-1], run(eager.model, tokens).last_hidden_state)
    assert [tuple(weights.shape) for weights in output.attentions] == [(3, 4, 90, 90)] * 4
    query, key = torch.arange(90)[:, None], torch.arange(90)[None]
    for kind, weights in zip(model.config.layer_types, output.attentions, strict=True):
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 90))
        reach = 9 if kind == "sliding_attention" else 90
        assert torch.equal((weights > 0).any(0).any(0), (key <= query) & (query - key < reach))
    assert torch.equal(output.logits, run(eager, tokens).logits)
    torch.testing.assert_close(output.logits, run(model, tokens).logits, atol=ATOL, rtol=0)  # as sdpa says
    assert run(model, tokens).hidden_states is None


def test_gradients_of_recorded_states(tokens):
    model = randomized(tiny_config()).train()
    model.set_attn_implementation("eager")
    output = model(tokens, labels=tokens, output_hidden_states=True, output_attentions=True)
    recorded = [*output.hidden_states[:-1], *output.attentions]
    for tensor in recorded:
        tensor.retain_grad()
    output.loss.backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in recorded)


def test_same_again_and_alone_as_in_a_batch(model, tokens):
    whole = run(model, tokens).logits
    assert torch.equal(run(model, tokens).logits, whole)
    for row in range(3):
        torch.testing.assert_close(run(model, tokens[row : row + 1]).logits[0], whole[row], atol=ATOL, rtol=0)


def test_states_by_name_or_as_a_tuple(model, tokens):
    named, plain = run(model, tokens), run(model, tokens, return_dict=False)
    assert isinstance(plain, tuple) and torch.equal(plain[0], named.logits)


def test_a_tied_head_is_refused_not_ignored():
    with pytest.raises(ValueError, match="embedding and head of this model cannot be tied"):
        tiny_config(tie_word_embeddings=True)


def test_embeddings_instead_of_ids(tokens):
    classic = randomized(tiny_config(**classic_fields()))
    embedded = classic.get_input_embeddings()(tokens)
    with torch.no_grad():
        assert torch.equal(classic(inputs_embeds=embedded).logits, classic(tokens).logits)
    with pytest.raises(ValueError, match="value embeddings, which need input_ids"):
        randomized(tiny_config())(inputs_embeds=embedded)


SCALED = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0},
]


@pytest.mark.parametrize("rope", SCALED, ids=lambda rope: rope["rope_type"])
def test_scaled_rotary_positions(rope, model, tokens):
    """transformers' ways to stretch a context change the model; "dynamic" only past the trained length."""
    scaled = randomized(tiny_config(rope_parameters=rope))
    ours, plain = ((run(each, tokens[:, :60]).logits, run(each, tokens).logits) for each in (scaled, model))
    assert torch.equal(ours[0], plain[0]) == (rope["rope_type"] == "dynamic")
    assert (ours[1] - plain[1]).abs().max() > 1e-3
