"""What requests may contain: each field is honoured, or refused with a sentence that names it."""

import asyncio
import copy
import json
import math
from types import SimpleNamespace

import pytest

from nanochat_hf.generation.row_sampling import RowSettings
from nanochat_hf.generation.tool_loop import ControlTokens
from nanochat_hf.serving import requests
from nanochat_hf.serving.engine import Event, Job, TokenScore, default_settings
from nanochat_hf.serving.fields import BadRequest, Fields
from nanochat_hf.serving.openai_api import Answer, OpenAIRoutes, read_stream
from nanochat_hf.serving.prompts import PromptReader
from nanochat_hf.tokenizer import train
from nanochat_hf.tools.registry import run_call

HELLO = [{"role": "user", "content": "Hello!"}]
CALCULATOR = {"type": "function", "function": {"name": "calculator", "parameters": {}}}


@pytest.fixture(scope="module")
def engine():
    tokenizer = train(["What is 12*3? It is 36. Hello! "] * 20, 275)
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=320))
    control = ControlTokens.from_tokenizer(tokenizer)
    parts = {"tokenizer": tokenizer, "control": control, "context_length": 256, "defaults": RowSettings(0)}
    return SimpleNamespace(model=SimpleNamespace(config=config), **parts)


def read(engine, **body):
    fields = Fields({"messages": HELLO, **body})
    job, _ = requests.chat_job(fields, engine)
    read_stream(fields)
    fields.done(requests.DESCRIPTIONS)
    return job


def test_sampling_is_what_the_request_says(engine):
    (settings,) = read(
        engine,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        frequency_penalty=-2,
        presence_penalty=1.5,
        repetition_penalty=1.2,
        logit_bias={"5": 3, "6": -100},
        seed=-(2**80),
    ).settings
    assert settings == RowSettings(0.5, 7, 0.9, 0.1, -2.0, 1.5, 1.2, {5: 3.0, 6: -math.inf}, -(2**80))


def test_what_the_request_does_not_say_is_as_in_the_checkpoint(engine):
    assert read(engine).settings == [RowSettings(0)]
    assert read(engine, top_p=0.5).settings[0].temperature == 1.0  # whoever filters samples wants samples
    assert [each.temperature for each in read(engine, n=2).settings] == [1.0, 1.0]
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 5, "repetition_penalty": 1.2}
    checkpoint = SimpleNamespace(generation_config=SimpleNamespace(**sampling))
    assert default_settings(checkpoint) == RowSettings(0.7, 5, repetition_penalty=1.2)
    other = SimpleNamespace(**{**vars(engine), "defaults": default_settings(checkpoint)})
    assert read(other, temperature=0.2).settings == [RowSettings(0.2, 5, repetition_penalty=1.2)]
    assert read(other, top_k=0).settings[0].top_k is None


def test_several_answers_with_a_seed_differ_and_repeat(engine):
    first, second = read(engine, n=2, seed=4).settings
    assert first.seed != second.seed and read(engine, n=2, seed=4).settings == [first, second]


def test_nulls_are_absent(engine):
    names = ("temperature", "tools", "tool_choice", "stop", "logit_bias", "n", "response_format", "functions", "sing")
    assert read(engine, **dict.fromkeys(names)) == read(engine)
    assert read(engine, stop=[], tools=[], logit_bias={}) == read(engine)


REFUSED = [
    ({"temperature": -1}, "temperature must be a number between 0"),
    ({"temperature": "hot"}, "temperature must be a number between 0"),
    ({"temperature": float("nan")}, "temperature must be a number"),
    ({"temperature": True}, "temperature must be a number"),
    ({"top_p": 0}, "top_p must be a number above 0"),
    ({"top_p": 2}, "top_p must be a number above 0"),
    ({"min_p": -0.1}, "min_p must be a number between 0 and 1"),
    ({"top_k": 1.5}, "top_k must be a whole number of at least 0"),
    ({"frequency_penalty": -2.1}, "frequency_penalty must be a number between -2 and 2"),
    ({"presence_penalty": 3}, "presence_penalty must be a number between -2 and 2"),
    ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0"),
    ({"seed": "one"}, "seed must be a whole number"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1"),
    ({"max_completion_tokens": -1}, "max_completion_tokens must be"),
    ({"max_completion_tokens": 5, "max_tokens": "x"}, "max_tokens must be"),
    ({"n": 0}, "n must be a whole number of at least 1 and at most 128"),
    ({"n": 10**6}, "n must be a whole number"),
    ({"stop": ""}, "stop must be text, or a list of at most 16"),
    ({"stop": [1]}, "stop must be text"),
    ({"stop": ["x"] * 17}, "stop must be text"),
    ({"stream": "yes"}, "stream must be true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options needs stream"),
    ({"stream": True, "stream_options": {"x": 1}}, "unknown field stream_options.x"),
    ({"logit_bias": []}, "logit_bias must be an object"),
    ({"logit_bias": {"x": 1}}, "logit_bias must have token ids"),
    ({"logit_bias": {"320": 1}}, "logit_bias must have token ids below 320"),
    ({"logit_bias": {"5": 101}}, "logit_bias[5] must be a number between -100 and 100"),
    ({"logit_bias": dict.fromkeys(map(str, range(320)), -100)}, "logit_bias forbids every token"),
    ({"logprobs": 3}, "logprobs must be true or false"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be a whole number"),
    ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
    ({"functions": [{}]}, "functions is not supported: send tools"),
    ({"function_call": "auto"}, "function_call is not supported"),
    ({"audio": {}}, "audio is not supported: the model reads and writes text"),
    ({"modalities": ["audio"]}, "modalities is not supported"),
    ({"prediction": {}}, "prediction is not supported"),
    ({"reasoning_effort": "high"}, "reasoning_effort is not supported"),
    ({"web_search_options": {}}, "web_search_options is not supported"),
    ({"store": True}, "store is not supported"),
    ({"service_tier": "flex"}, "service_tier is not supported"),
    ({"generation_config": "{}"}, "generation_config is not supported"),
    ({"tools": "calculator"}, "tools must be a list of objects"),
    ({"tools": [{"type": "function"}]}, "tools[0] must be a function with a name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0] must be a function with a name"),
    ({"tools": [CALCULATOR] * 129}, "tools may hold 128 functions, not 129"),
    ({"tools": [{"function": {"name": "\ud800"}}]}, "tools[0] cannot be written as JSON"),
    ({"tools": [{"function": {"name": "x", "parameters": {"least": -math.inf}}}]}, "tools[0] cannot be written"),
    ({"tool_choice": "required"}, "tool_choice is required, but tools names none"),
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice must be none, auto"),
    ({"tool_choice": "maybe"}, "tool_choice must be none, auto"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls must be true or false"),
    ({"sing": True}, "unknown field sing"),
    ({"best_of": 2}, "unknown field best_of"),
    ({"messages": []}, "messages must be a list of at least one message"),
    ({"messages": {"role": "user"}}, "messages must be a list"),
    ({"messages": ["Hi"]}, "messages[0] must be an object whose role"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0] must be an object whose role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0] must be an object whose role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content must be text"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be text"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content holds half of a surrogate pair"),
    ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "unknown field messages[0].mood"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls[0] must have"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0] must be a part"),
    (
        {"messages": [{"role": "user", "content": [{"type": "python", "text": "1"}]}]},
        "messages[0].content must be text",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "[1]"}}]}]},
        "messages[0].tool_calls[0].function.arguments must be text that holds a JSON object",
    ),
]


@pytest.mark.parametrize(("body", "words"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_refusals_name_the_field(body, words, engine):
    with pytest.raises(BadRequest) as refused:
        read(engine, **body)
    assert words in refused.value.message and refused.value.status == 400


def test_tools_and_choices(engine):
    job = read(engine)
    assert (job.tool, job.client_tools, job.begin) == (run_call, frozenset(), [])
    assert read(engine, tools=[CALCULATOR]).client_tools == {"calculator"}
    start = engine.control.call_start
    none = read(engine, tools=[CALCULATOR], tool_choice="none")
    assert none.settings[0].bias == {start: -math.inf} and not none.client_tools and none.tool is None
    assert read(engine, tools=[CALCULATOR], tool_choice="required").begin == [[start]]
    named = {"type": "function", "function": {"name": "calculator"}}
    assert read(engine, tools=[CALCULATOR], tool_choice=named).begin == [[start]]
    search = {"type": "function", "function": {"name": "search"}}
    (begin,) = read(engine, tools=[search], tool_choice=search).begin
    assert begin[0] == start and engine.tokenizer.decode(begin[1:]) == '{"name": "search", "arguments": {'
    required = read(engine, tools=[search, CALCULATOR], tool_choice="required")
    assert required.begin == [begin, [start]] and required.client_tools == {"search", "calculator"}


def test_what_clients_name_changes_no_setting_of_the_tokenizer(engine):
    """Prompts are encoded in another thread at the same time."""
    name = "<|bos|>x<|python_end|>"
    function = {"type": "function", "function": {"name": name}}
    (begin,) = read(engine, tools=[function], tool_choice=function).begin
    assert engine.tokenizer.decode(begin[1:]) == f'{{"name": "{name}", "arguments": {{'
    assert not set(begin[1:]) & set(engine.tokenizer.all_special_ids)
    assert not engine.tokenizer.backend_tokenizer.encode_special_tokens


def test_messages_come_back_as_they_were_given_out():
    """What `model_dump()` of OpenAI's client makes of an answer, and this server's own parts."""
    nulls = {"refusal": None, "audio": None, "function_call": None, "annotations": [], "tool_calls": None}
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "calculator", "arguments": '{"expression": "1+1"}'},
    }
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "2."}]
    given = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
        {"role": "assistant", "content": None, **nulls, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "call_1", "name": "calculator"},
        {"role": "assistant", "content": "2.", **nulls, "parts": parts},
    ]
    read = requests.read_messages(given)
    arguments = {"expression": "1+1"}
    assert [message["role"] for message in read] == ["system", "user", "assistant", "tool", "assistant"]
    assert read[2] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "calculator", "arguments": arguments}}],
    }
    assert read[1] == {"role": "user", "content": "1+1?"}  # templates of other models take text only
    assert read[4] == {"role": "assistant", "content": parts}


def test_a_call_that_is_sent_back_as_received_is_rendered_once(engine):
    """After the calculator, the answer called the client's function: it is in `parts` and in `tool_calls`."""
    answer = Answer()
    call = '{"name": "f", "arguments": {}}'
    pieces = [("python", "1+1"), ("python_output", "2"), ("text", "two "), ("python", call)]
    for number, (kind, text) in enumerate(pieces):
        reason = "tool_calls" if number == 3 else None
        answer.add(Event(0, TokenScore(1, None), False, [(number, kind, text)], reason))
    received = OpenAIRoutes._message(answer)
    messages = requests.read_messages([*HELLO, received, {"role": "tool", "content": "ok"}])
    text = engine.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    after = f"<|output_start|>2<|output_end|>two <|python_start|>{call}<|python_end|><|output_start|>ok<|output_end|>"
    assert text.endswith(f"<|assistant_start|><|python_start|>1+1<|python_end|>{after}")


TEMPLATES = {
    "+": "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' }}{% endfor %}",
    "~": "{% for message in messages %}{{ message['role'] ~ ': ' ~ message['content'] | trim ~ ' ' }}{% endfor %}",
    "broken": "{% for message in messages %}{{ message['content'] + 5 }}{% endfor %}",
}


def rendered(engine, template, messages):
    tokenizer = copy.deepcopy(engine.tokenizer)
    tokenizer.chat_template = TEMPLATES[template]
    other = SimpleNamespace(**{**vars(engine), "tokenizer": tokenizer, "check_room": lambda: None})
    return tokenizer.decode(asyncio.run(PromptReader(other).chat(requests.read_messages(messages))))


@pytest.mark.parametrize("template", ["+", "~"])
def test_templates_of_other_models_get_text(template, engine):
    content = [{"type": "text", "text": "Hel"}, {"type": "input_text", "text": "lo!"}]
    assert rendered(engine, template, [{"role": "user", "content": content}]).strip() == "user: Hello!"
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    with pytest.raises(BadRequest, match="template has no calls inside a message: send text"):
        rendered(engine, template, [*HELLO, {"role": "assistant", "content": "", "parts": parts}])


def test_whatever_a_template_raises_is_named(engine):
    with pytest.raises(BadRequest, match=r"chat template refuses this conversation \(can only concatenate"):
        rendered(engine, "broken", HELLO)


def test_a_text_is_shortened_before_it_is_too_long(engine):
    reader = PromptReader(SimpleNamespace(**vars(engine), check_room=lambda: None))
    text = "What is 12*3? " * 10_000
    with pytest.raises(BadRequest, match="please shorten"):
        asyncio.run(reader.completion(text))
    assert asyncio.run(reader.completion(text, 20)) == engine.tokenizer(text)["input_ids"][-20:]
    short = engine.tokenizer("Hello!")["input_ids"]
    assert asyncio.run(reader.completion("Hello!", 20)) == short


def test_an_answer_ends_where_the_context_does(engine):
    def limit(prompt, tokens):
        return requests.fit(Job([1] * prompt, tokens), engine).max_tokens

    assert (limit(250, 1024), limit(250, 3), limit(256, 0)) == (6, 3, 0)
    for prompt, tokens, words in (
        (256, 1, "256 tokens, and the model reads 256"),
        (257, 0, "257"),
        (0, 1, "no tokens"),
    ):
        with pytest.raises(BadRequest, match=words):
            limit(prompt, tokens)


@pytest.mark.parametrize("prompt", ["text", ["a", "b"], [1, 2], [[1, 2], [3]], ["a", [1]]], ids=str)
def test_prompts_in_every_form(prompt, engine):
    expected = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    assert requests.read_prompts(prompt, engine) == expected


@pytest.mark.parametrize("prompt", [None, [], 5, [5, "a"], [[320]], [[-1]], [[True]], [None], {"a": 1}], ids=str)
def test_what_is_no_prompt(prompt, engine):
    with pytest.raises(BadRequest, match="prompt"):
        requests.read_prompts(prompt, engine)
