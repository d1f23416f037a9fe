"""Engines that load models through transformers and keep keys and values themselves: vLLM, SGLang and their like.

None of them runs here. `run` calls the model as the transformers backends of vLLM and SGLang do: the model is made by
`AutoModel.from_config` with the engine's own attention, tokens come in pieces without a cache of transformers, and the
engine's layers come as `attention_instances`.
"""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import classic_fields, randomized, tiny_config
from transformers import AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nanochat_hf.conversion import to_transformers


class Layer:
    """The memory of one attention layer."""

    def __init__(self):
        self.keys = self.values = None

    def __call__(self, query, key, value, scaling, window):
        if self.keys is not None:
            key, value = torch.cat([self.keys, key], 2), torch.cat([self.values, value], 2)
        self.keys, self.values = key, value
        ends = torch.arange(key.shape[2] - query.shape[2], key.shape[2]).unsqueeze(1)
        places = torch.arange(key.shape[2])
        seen = (places <= ends) & (places > ends - (window or key.shape[2] + 1))
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )


def engine_attention(module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs):
    assert attention_mask is None  # the engine has its own
    output = attention_instances[module.layer_idx](query, key, value, scaling, kwargs.get("sliding_window"))
    return output.transpose(1, 2), None


@pytest.fixture(params=["vllm", "sglang", "tgi", "some_engine"])
def engine(request):
    """The name under which an engine's attention is registered."""
    ALL_ATTENTION_FUNCTIONS[request.param] = engine_attention
    yield request.param
    del ALL_ATTENTION_FUNCTIONS[request.param]


def run(model, tokens, engine):
    """Hidden states of tokens [1, T], read in pieces: a prompt, then one token after the other, then some at once."""
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = engine
    loaded = AutoModel.from_config(config)
    loaded.load_state_dict(model.model.state_dict())
    layers = {index: Layer() for index in range(config.num_hidden_layers)}
    states, start = [], 0
    for end in (20, *range(21, 30), tokens.shape[1]):
        states.append(
            loaded.eval()(
                input_ids=tokens[:, start:end],
                position_ids=torch.arange(start, end).unsqueeze(0),
                use_cache=False,
                attention_instances=layers,
                return_dict=False,
            )[0]
        )
        start = end
    return torch.cat(states, 1)


@pytest.mark.parametrize("form", ["ours", "ours with windows", "transformers"])
@torch.no_grad()
def test_classic_models_run(form, engine, tokens):
    windows = {"sliding_window": 9} if form == "ours with windows" else {}
    if windows:
        windows["layer_types"] = ["sliding_attention"] * 3 + ["full_attention"]
    model = randomized(tiny_config(**{**classic_fields(), **windows}))
    if form == "transformers":
        model = to_transformers(model).eval()
    row = tokens[:1, :40]
    torch.testing.assert_close(run(model, row, engine), model.model(row).last_hidden_state, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_smear_is_refused_before_it_reads_a_wrong_token(engine, model, tokens):
    names = {"vllm": "vLLM", "sglang": "SGLang", "tgi": "text-generation-inference", "some_engine": "this engine"}
    with pytest.raises(ValueError, match=f"{names[engine]} cannot run this model: it mixes the previous token"):
        run(model, tokens[:1, :40], engine)
    if engine != "some_engine":  # refused while the engine starts, not at its first request
        config = type(model.config).from_dict(model.config.to_dict())
        config._attn_implementation = engine
        with torch.device("meta"), pytest.raises(ValueError, match="train a model of the classic preset"):
            AutoModel.from_config(config)


@torch.no_grad()
def test_without_the_refusal_answers_would_be_wrong(engine, model, tokens, monkeypatch):
    """The refusal is needed: nothing else fails, and the states differ from the first step on."""
    monkeypatch.setattr("nanochat_hf.model.modeling_nanochat_hf.check_engine", lambda *_: None)
    row = tokens[:1, :40]
    wrong, right = run(model, row, engine), model.model(row).last_hidden_state
    torch.testing.assert_close(wrong[:, :20], right[:, :20], rtol=1e-4, atol=1e-5)
    assert (wrong[:, 20:30] - right[:, 20:30]).abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_a_modern_model_without_smear_runs(engine, tokens):
    model = randomized(tiny_config(smear=False))
    row = tokens[:1, :40]
    torch.testing.assert_close(run(model, row, engine), model.model(row).last_hidden_state, rtol=1e-4, atol=1e-5)
