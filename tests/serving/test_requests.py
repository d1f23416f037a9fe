"""What a request asks for, as this project reads it and as transformers' handlers read it."""

import itertools
import json

import pytest
from transformers import GenerationConfig
from transformers.cli.serving.utils import GenerationState

from nanochat_hf.serving import requests
from nanochat_hf.serving.handlers import ChatHandler

DEFAULTS = [
    GenerationConfig(),
    GenerationConfig(do_sample=True, temperature=0.7, top_k=5, eos_token_id=[3, 4], repetition_penalty=1.2),
]
VALUES = {
    "temperature": (None, 0, 0.5),
    "top_k": (None, 0, 7),
    "top_p": (None, 0.9),
    "frequency_penalty": (None, 0.5),
    "stop": (None, [], ["x"]),
    "max_completion_tokens": (None, 12),
}


@pytest.mark.parametrize("defaults", DEFAULTS, ids=["greedy", "sampling"])
def test_both_ways_to_answer_read_a_request_alike(defaults):
    handler = ChatHandler(None, GenerationState())
    for values in itertools.product(*VALUES.values()):
        body = {name: value for name, value in zip(VALUES, values, strict=True) if value is not None}
        body = requests.limit_new_tokens(body, prompt_length=10, context_length=256)
        ours = requests.generation_config(body, defaults)
        sent = requests.for_transformers(body, defaults)
        assert "top_k" not in sent
        theirs = handler._build_generation_config(sent, defaults)
        assert ours.to_dict() == theirs.to_dict(), body
        if body.get("temperature") is not None:
            assert ours.do_sample == (body["temperature"] > 0)
        if body.get("top_k") is not None:
            assert ours.top_k == (body["top_k"] or None)


def test_a_requests_own_generation_config_is_kept():
    body = {"generation_config": json.dumps({"num_beams": 2}), "temperature": 0.5, "max_tokens": 3}
    sent = json.loads(requests.for_transformers(body, GenerationConfig())["generation_config"])
    assert sent == {"num_beams": 2, "do_sample": True}
    for wrong in ("{", "[]", 5):
        with pytest.raises(ValueError, match="generation_config must be text that holds a JSON object"):
            requests.for_transformers({"generation_config": wrong}, GenerationConfig())


def test_an_answer_ends_where_the_context_does():
    def limit(**body):
        return requests.limit_new_tokens(body, prompt_length=250, context_length=256)

    assert limit() == {"max_tokens": 6}
    assert limit(max_tokens=3) == {"max_tokens": 3}
    assert limit(max_completion_tokens=50) == {"max_completion_tokens": 6}
    with pytest.raises(ValueError, match="the prompt has 250 tokens, and the model reads 250"):
        requests.limit_new_tokens({}, prompt_length=250, context_length=250)
