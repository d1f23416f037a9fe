"""Real servers on this machine: ours, ours with a key, and plain `transformers serve`; through real clients."""

import gc
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import openai
import pytest
import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.cli import terminal_chat
from nanochat_hf.conversion import convert_folder
from nanochat_hf.generation import generate_with_tools, load_checkpoint
from nanochat_hf.serving import command
from nanochat_hf.settings import UserError
from nanochat_hf.tokenizer import train

KEY = "a secret"
HELLO = [{"role": "user", "content": "Hello!"}]
SYSTEM = [{"role": "system", "content": "Be kind."}, *HELLO, {"role": "assistant", "content": "Hi."}, *HELLO]


def make_checkpoint(folder, preset):
    tokenizer = train(["What is 12*3? It is 36. Hello! Who are you? I am nanochat. "] * 20, 290)
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(
        2, vocab_size=320, sequence_length=256, head_dim=16, aspect_ratio=16, preset=preset, sliding_window=9
    )
    model = NanochatHFForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        for silent in (slice(0, 32), slice(127, None)):  # it speaks ASCII, and never ends a turn
            model.lm_head.weight[silent] = 0
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config.update(**tokens)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    make_checkpoint(folder / "modern", "modern")
    make_checkpoint(folder / "classic", "classic")
    convert_folder(folder / "classic", folder / "export", to="transformers")
    return folder


@pytest.fixture(scope="module")
def servers(checkpoints, tmp_path_factory):
    """Name → address of a running server. All start at once, because their imports take seconds."""
    ours = [sys.executable, "-m", "nanochat_hf.cli", "serve", str(checkpoints / "modern"), "--host", "127.0.0.1"]
    stock = "from transformers.cli.transformers import main; main()"
    commands = {
        "ours": [*ours, "--device", "cpu"],
        "guarded": [*ours, "--device", "cpu", "--cors", "https://example.org"],
        "transformers": [sys.executable, "-c", stock, "serve", str(checkpoints / "export"), "--device", "cpu"],
    }
    commands["guarded"] += ["--max-batch", "2", "--max-waiting", "6"]
    logs = tmp_path_factory.mktemp("logs")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    running, addresses = {}, {}
    try:
        for name, command in commands.items():
            addresses[name] = f"http://127.0.0.1:{(port := free_port())}"
            if name == "transformers":
                command = [*command, "--host", "127.0.0.1"]
            own = {"NANOCHAT_API_KEY": KEY} if name == "guarded" else {}
            with (logs / name).open("w") as log:
                running[name] = subprocess.Popen(
                    [*command, "--port", str(port)], stdout=log, stderr=log, env={**environment, **own}
                )
        for name, address in addresses.items():
            wait_for(address, running[name], logs / name)
        yield addresses
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait(30)


def wait_for(address, process, log):
    for _ in range(1200):
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    raise RuntimeError(f"no answer: {log.read_text()}")


def post(address, body):
    """Returns status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def greedy(folder, messages, length):
    model, tokenizer = load_checkpoint(folder, device="cpu")
    ((rollout,),) = generate_with_tools(model, tokenizer, [messages], max_new_tokens=length, temperature=0, tool=None)
    return tokenizer.decode(rollout.token_ids, skip_special_tokens=True)


@pytest.fixture
def client(servers):
    return openai.OpenAI(base_url=f"{servers['ours']}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.mark.parametrize("name", ["ours", "transformers"])
def test_chat_streams_or_not_and_says_what_the_model_says(name, servers, checkpoints):
    folder = checkpoints / ("export" if name == "transformers" else "modern")
    client = InferenceClient(base_url=servers[name])
    extra = {"model": str(folder)} if name == "transformers" else None
    options = dict(max_tokens=24, temperature=0.0, extra_body=extra)
    for messages in (HELLO, SYSTEM):
        expected = greedy(folder, messages, 24)
        whole = client.chat_completion(messages, **options)
        assert whole.choices[0].message.content == expected
        assert whole.usage.completion_tokens == 24 and whole.choices[0].finish_reason == "length"
        pieces = [event.choices[0] for event in client.chat_completion(messages, stream=True, **options)]
        assert "".join(piece.delta.content or "" for piece in pieces) == expected
        assert len(pieces) > 5 and pieces[-1].finish_reason == "length"


def test_many_requests_at_once_and_each_gets_its_own_answer(servers, checkpoints):
    """More than the batch has rows, of different lengths, each with settings of its own."""
    chats = [[{"role": "user", "content": text}] for text in ("Hello!", "Who are you?", "What is 12*3?", "a" * 60)]
    bodies, answers = {}, {}
    for index in range(48):
        settings = [{"temperature": 0}, {"temperature": 1.3, "seed": index}, {"temperature": 1, "top_k": 3, "seed": 5}]
        chosen = {**settings[index % 3], "max_tokens": 5 + index % 17}
        bodies[index] = {"messages": chats[index % 4], **chosen}

    def ask(index):
        answers[index] = say(servers["ours"], **bodies[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(0, 48, 3):
        assert answers[index] == greedy(checkpoints / "modern", chats[index % 4], 5 + index % 17)
    alone = {index: say(servers["ours"], **bodies[index]) for index in (1, 2, 4, 5)}
    assert alone == {index: answers[index] for index in alone}  # a seed gives the same tokens in any company


def say(address, **body):
    status, answer = post(f"{address}/v1/chat/completions", body)
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"]


# -- OpenAI's client


def test_openais_client_chats(client):
    asked = dict(model="any", messages=HELLO, max_tokens=12, temperature=0)
    whole = client.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=3)
    first, second = whole.choices
    assert first.message.content == second.message.content and len(first.logprobs.content) == 12
    assert "".join(each.token for each in first.logprobs.content) == first.message.content
    assert first.logprobs.content[0].top_logprobs[0].token == first.logprobs.content[0].token
    assert bytes(first.logprobs.content[0].bytes).decode() == first.logprobs.content[0].token
    events = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].delta.content or "" for event in events[:-1]) == first.message.content
    assert events[-1].usage.completion_tokens == 12 and not events[-1].choices
    stop = first.message.content[4:6]
    before = first.message.content.split(stop)[0]
    shorter = client.chat.completions.create(**asked, stop=stop).choices[0]
    assert (shorter.message.content, shorter.finish_reason) == (before, "stop")
    streamed = list(client.chat.completions.create(**asked, stop=stop, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in streamed) == before


def test_openais_client_calls_tools_and_sends_everything_back(client, checkpoints):
    """`model_dump()` writes out every field that is null."""
    _, tokenizer = load_checkpoint(checkpoints / "modern", device="cpu")
    ending = tokenizer.convert_tokens_to_ids("<|python_end|>")
    tools = [{"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}]
    asked = dict(model="any", tools=tools, tool_choice="required", max_tokens=30, temperature=0)
    asked["logit_bias"] = {str(ending): 100}
    answer = client.chat.completions.create(messages=HELLO, **asked).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    (call,) = answer.message.tool_calls
    assert call.function.name == "calculator" and json.loads(call.function.arguments) == {"expression": ""}
    history = [*HELLO, answer.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "36"}]
    after = client.chat.completions.create(model="any", messages=history, max_tokens=4, temperature=0)
    expected = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]}, history[-1]]
    expected[1]["tool_calls"][0]["function"]["arguments"] = {"expression": ""}
    assert after.choices[0].message.content == greedy(checkpoints / "modern", expected, 4)
    again = [*history, after.choices[0].message.model_dump(), *HELLO]
    assert client.chat.completions.create(model="any", messages=again, max_tokens=2).choices[0].message.content
    streamed = list(client.chat.completions.create(messages=HELLO, stream=True, **asked))
    assert [event.choices[0].finish_reason for event in streamed][-1] == "tool_calls"
    made = [event.choices[0].delta.tool_calls for event in streamed if event.choices[0].delta.tool_calls]
    assert len(made) == 1 and made[0][0].function.name == "calculator"


def test_completions_in_every_form(client, checkpoints):
    model, tokenizer = load_checkpoint(checkpoints / "modern", device="cpu")
    text = "What is"
    tokens = tokenizer(text)["input_ids"]
    asked = dict(model="any", max_tokens=6, temperature=0)
    both = client.completions.create(prompt=[text, "Hello"], n=2, echo=True, logprobs=2, **asked)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    first = both.choices[0]
    assert first.text.startswith(text) and first.text == both.choices[1].text
    assert len(first.logprobs.tokens) == len(tokens) + 6 and first.logprobs.token_logprobs[0] is None
    assert client.completions.create(prompt=[tokens], **asked).choices[0].text == first.text[len(text) :]
    written = tokenizer(first.text[len(text) :])["input_ids"]
    row = torch.tensor([tokens + written])
    with torch.no_grad():
        expected = model(row).logits[0].log_softmax(-1)
    for place in range(1, len(tokens)):
        score = float(expected[place - 1, row[0, place]])
        assert first.logprobs.token_logprobs[place] == pytest.approx(score, abs=1e-4)
    scored = client.completions.create(prompt=text, model="any", max_tokens=0, echo=True, logprobs=1).choices[0]
    assert scored.text == text and len(scored.logprobs.tokens) == len(tokens)
    events = list(client.completions.create(prompt=[text, "Hello"], stream=True, echo=True, logprobs=1, **asked))
    for index, choice in ((0, both.choices[0]), (1, both.choices[2])):
        pieces = [event.choices[0] for event in events if event.choices and event.choices[0].index == index]
        assert "".join(piece.text for piece in pieces) == choice.text and pieces[-1].finish_reason == "length"
    for echo in (False, True):
        events = list(client.completions.create(prompt=text, model="any", max_tokens=0, n=2, echo=echo, stream=True))
        choices = [event.choices[0] for event in events]
        assert [(choice.index, choice.text) for choice in choices] == [(row, text * echo) for row in range(2)]
        assert {choice.finish_reason for choice in choices} == {"length"}
    best = client.completions.create(prompt=text, model="any", max_tokens=4, best_of=8, n=1, seed=1, temperature=2.0)
    assert len(best.choices) == 1 and best.usage.completion_tokens == 32
    assert client.completions.create(prompt="", model="any", max_tokens=2).choices[0].text


def test_responses(client):
    whole = client.responses.create(model="any", input="Hello!", max_output_tokens=12, temperature=0)
    assert whole.status == "incomplete" and whole.usage.output_tokens == 12
    chat = client.chat.completions.create(model="any", messages=HELLO, max_tokens=12, temperature=0)
    assert whole.output_text == chat.choices[0].message.content
    events = list(client.responses.create(model="any", input=HELLO, max_output_tokens=12, temperature=0, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.incomplete" and events[-1].response.output_text == whole.output_text
    assert (whole.tools, whole.tool_choice, whole.parallel_tool_calls) == ([], "auto", True)
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}]
    asked = {"tools": tools, "tool_choice": {"type": "function", "name": "look"}, "parallel_tool_calls": False}
    status, answer = post(f"{client.base_url}responses", {"input": "Hello!", "max_output_tokens": 3, **asked})
    assert status == 200 and {name: answer[name] for name in asked} == asked
    history = [*HELLO, *[item.model_dump() for item in whole.output], *HELLO]
    assert client.responses.create(
        model="any", input=history, instructions="Be kind.", max_output_tokens=3
    ).output_text
    with pytest.raises(
        openai.BadRequestError, match="previous_response_id is not supported: the server stores nothing"
    ):
        client.responses.create(model="any", input="Hello!", previous_response_id="resp_1")


def test_models_and_tokens(client, servers, checkpoints):
    name = str(checkpoints / "modern")
    assert [model.id for model in client.models.list()] == [name]
    assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.models.retrieve("gpt")
    _, tokenizer = load_checkpoint(checkpoints / "modern", device="cpu")
    ids = tokenizer("What is")["input_ids"]
    assert post(f"{servers['ours']}/tokenize", {"prompt": "What is"})[1]["tokens"] == ids
    places = post(f"{servers['ours']}/tokenize", {"inputs": "What is"})[1]
    assert [place["id"] for place in places] == ids and "".join(place["text"] for place in places) == "What is"
    chat = post(f"{servers['ours']}/tokenize", {"messages": HELLO})[1]
    assert chat["tokens"] == tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    assert post(f"{servers['ours']}/detokenize", {"tokens": ids})[1] == {"prompt": "What is"}


# -- what is refused


BAD_REQUESTS = [
    ("/v1/chat/completions", {}, 400, "messages must be a list"),
    ("/v1/chat/completions", {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0] must be"),
    ("/v1/chat/completions", {"messages": [*HELLO, {"role": "system", "content": "x"}]}, 400, "at the beginning"),
    ("/v1/chat/completions", {"messages": HELLO, "temperature": "hot"}, 400, "temperature must be a number between"),
    ("/v1/chat/completions", {"messages": HELLO, "sing": True}, 400, "unknown field sing"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 300}]}, 400, "the model reads 256"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 10**6}]}, 400, "the model reads 256"),
    ("/v1/chat/completions", b"{not json", 400, "not valid JSON"),
    ("/v1/chat/completions", b"[" * 100_000, 400, "not valid JSON"),
    ("/v1/chat/completions", b"[]", 400, "must be a JSON object"),
    ("/v1/chat/completions", b"\xff\xfe", 400, "not valid JSON"),
    ("/v1/completions", {"prompt": "x" * 300}, 400, "the model reads 256"),
    ("/v1/completions", {"prompt": "x", "suffix": "y"}, 400, "suffix is not supported"),
    ("/v1/completions", {"prompt": "x", "best_of": 2, "stream": True}, 400, "best_of cannot be streamed"),
    ("/v1/completions", {"prompt": "x", "best_of": 1, "n": 2}, 400, "best_of must be at least n"),
    ("/v1/completions", {"prompt": ["x"] * 600}, 400, "may ask for 512 answers"),
    ("/v1/completions", {"prompt": [[10**9]]}, 400, "token ids below 320"),
    ("/v1/chat/completions", {"messages": HELLO, "\ud800": 1}, 400, "unknown field \\ud800"),
    ("/v1/responses", {"input": []}, 400, "input must be text"),
    ("/v1/responses", {"input": [{"role": "wizard"}], "instructions": "x"}, 400, "input[0] must be an object whose"),
    ("/v1/embeddings", {"input": "x"}, 404, "there is no route /v1/embeddings"),
    ("/tokenize", {}, 400, "send one of"),
    ("/detokenize", {}, 400, "tokens must be a list of token ids below 320"),
    ("/detokenize", {"tokens": [320]}, 400, "tokens must be a list of token ids below 320"),
    ("/", {"inputs": 5}, 400, "inputs must be text"),
    ("/", {"inputs": ""}, 400, "inputs must be text"),
    ("/generate", {"inputs": "x", "parameters": {"top_p": 0}}, 400, "top_p must be"),
    ("/generate", {"inputs": "x", "parameters": {"watermark": True}}, 400, "parameters.watermark is not supported"),
    ("/generate", {"inputs": "x", "parameters": {"grammar": {}}}, 400, "parameters.grammar is not supported"),
    ("/generate", {"inputs": "x", "parameters": 5}, 400, "parameters must be a JSON object"),
    ("/generate_stream", {"inputs": "x", "parameters": {"best_of": 2}}, 400, "best_of cannot be streamed"),
    ("/generate_stream", {"inputs": "x", "parameters": {"decoder_input_details": True}}, 400, "cannot be streamed"),
]


@pytest.mark.parametrize(("route", "body", "status", "complaint"), BAD_REQUESTS)
def test_bad_requests_are_the_clients_fault(route, body, status, complaint, servers):
    got, answer = post(servers["ours"] + route, body)
    assert got == status and complaint in json.dumps(answer)
    if route in ("/", "/generate", "/generate_stream"):  # text-generation-inference's own form
        assert answer["error_type"] == "validation"
    else:
        assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}


def test_no_request_whatever_it_holds_makes_the_server_fail(servers):
    """Fields in any combination with values of any kind: an answer, or an error that names something."""
    generator = random.Random(0)
    values = [None, True, False, 0, 1, -1, 0.5, 10**400, -(2**63), 1e308, "", "x", "\u0000", [], {}, [None], {"a": 1}]
    values += [[[]], ["x"], {"type": "text"}, [1, 2], HELLO, "none", "auto", {"5": 3}]
    names = """messages prompt inputs parameters max_tokens max_completion_tokens temperature top_p top_k min_p n stop
        seed frequency_penalty presence_penalty repetition_penalty logit_bias logprobs top_logprobs echo best_of tools
        tool_choice response_format stream_options user metadata model input instructions tokens suffix"""
    routes = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize", "/", "/generate")
    required = {"messages": HELLO, "prompt": "Hello", "inputs": "Hello", "input": "Hello", "tokens": [1]}
    of_route = ("messages", "prompt", "input", "prompt", "tokens", "inputs", "inputs")
    seen = set()
    for _ in range(250):
        choice = generator.randrange(len(routes))
        body = {of_route[choice]: required[of_route[choice]]}
        for name in generator.sample(names.split(), k=generator.randrange(4)):
            body[name] = generator.choice(values)
        if choice < 3:  # short answers
            body.setdefault("max_output_tokens" if choice == 2 else "max_tokens", 3)
        if choice >= 5 and generator.random() < 0.7:
            given = generator.choices(["max_new_tokens", "seed", "stop", "top_n_tokens", "truncate", "details"], k=2)
            body = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}}
            body["parameters"] |= {name: generator.choice(values) for name in given}
        status, answer = post(servers["ours"] + routes[choice], body)
        assert status in (200, 400), (routes[choice], body, answer)
        assert status == 200 or answer["error"], (routes[choice], body)
        seen.add((choice, status))
    assert len(seen) == 2 * len(routes)


def test_a_large_body_is_refused_at_once_and_holds_nobody_up(servers):
    body = json.dumps({"messages": [{"role": "user", "content": "x " * 5_000_000}]}).encode()
    answers, waits = [], []
    threads = [
        threading.Thread(target=lambda: answers.append(post(f"{servers['ours']}/v1/chat/completions", body)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        begun = time.monotonic()
        urllib.request.urlopen(f"{servers['ours']}/health", timeout=5).close()
        waits.append(time.monotonic() - begun)
    assert [status for status, _ in answers] == [413] * 3
    assert "body is larger than" in answers[0][1]["error"]["message"] and waits


def test_a_body_without_a_length_is_limited_too(servers):
    host = servers["ours"].removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    pieces = (b"x" * 2**16 for _ in range(80))
    connection.request("POST", "/v1/completions", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413 and b"body is larger than" in answer.read()


# -- text-generation-inference


def test_text_generation_clients(servers, checkpoints):
    """huggingface_hub's client for text-generation-inference, in its four ways."""
    client = InferenceClient(servers["ours"])
    options = dict(max_new_tokens=12)
    whole = client.text_generation("What is", **options)
    assert whole and client.text_generation("What is", return_full_text=True, **options) == "What is" + whole
    detailed = client.text_generation("What is", details=True, decoder_input_details=True, top_n_tokens=2, **options)
    assert detailed.generated_text == whole
    assert (detailed.details.finish_reason, detailed.details.generated_tokens) == ("length", 12)
    model, tokenizer = load_checkpoint(checkpoints / "modern", device="cpu")
    prompt = tokenizer("What is")["input_ids"]
    assert [token.id for token in detailed.details.prefill] == prompt
    tokens = [token.id for token in detailed.details.tokens]
    with torch.no_grad():
        expected = model(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
    for place, token in enumerate(detailed.details.tokens, len(prompt) - 1):
        assert token.logprob == pytest.approx(float(expected[place, token.id]), abs=1e-4)
    assert tokenizer.decode(tokens) == whole
    assert [top[0]["id"] for top in detailed.details.top_tokens] == tokens  # greedy
    assert "".join(client.text_generation("What is", stream=True, **options)) == whole
    events = list(client.text_generation("What is", stream=True, details=True, **options))
    assert events[-1].generated_text == whole and events[-1].details.generated_tokens == 12
    assert [event.token.id for event in events] == tokens and "".join(event.token.text for event in events) == whole
    stopped = client.text_generation("What is", details=True, stop=[whole[3:6]], **options)
    assert (stopped.generated_text, stopped.details.finish_reason) == (whole.split(whole[3:6])[0], "stop_sequence")
    best = client.text_generation("What is", details=True, best_of=3, do_sample=True, seed=1, **options)
    assert len(best.details.best_of_sequences) == 2
    status, answer = post(f"{servers['ours']}/generate", {"inputs": "What is", "parameters": options})
    assert (status, answer) == (200, {"generated_text": whole})
    with pytest.raises(ValidationError, match="top_p must be a number above 0"):
        client.text_generation("What is", top_p=7.0)
    assert client.text_generation("x" * 100_000 + "What is", truncate=len(prompt), **options) == whole
    with urllib.request.urlopen(f"{servers['ours']}/info", timeout=10) as response:
        assert json.load(response)["max_total_tokens"] == 256


# -- running a server


def test_who_goes_away_frees_the_place(servers):
    """Streamed or not, running or waiting: the batch of the guarded server has two rows."""
    address, headers = servers["guarded"], {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    host = address.removeprefix("http://")

    def leave(stream):
        connection = http.client.HTTPConnection(host, timeout=30)
        body = {"messages": HELLO, "max_tokens": 240, "n": 2, "stream": stream}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        if stream:
            connection.getresponse().read(300)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()

    for stream in (True, False, False, False, True):
        leave(stream)
    for _ in range(200):
        metrics = guarded_get(address, "/metrics")
        if "nanochat_running 0\n" in metrics and "nanochat_waiting 0\n" in metrics:
            break
        time.sleep(0.05)
    assert "nanochat_running 0\n" in metrics and "nanochat_waiting 0\n" in metrics
    cancelled = [line for line in metrics.splitlines() if line.startswith("nanochat_requests_cancelled_total ")]
    assert cancelled and float(cancelled[0].split()[1]) >= 4


def test_a_full_queue_is_an_error_that_clients_try_again(servers):
    """Six prompts may wait in the guarded server, whose batch has two rows; a request alone may have more."""
    address, headers = servers["guarded"], {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    long = json.dumps({"prompt": ["a"] * 60, "max_tokens": 240, "stream": True})
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    connection.request("POST", "/v1/completions", long, headers)
    connection.getresponse().read(100)  # two are being written, 58 wait
    body = {"messages": HELLO, "max_tokens": 1}
    for route, asked in (("/v1/chat/completions", body), ("/v1/completions", {"prompt": [1]}), ("/", {"inputs": "x"})):
        request = urllib.request.Request(address + route, json.dumps(asked).encode(), headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        answer = json.loads(refused.value.read())
        assert refused.value.code == 503 and 1 <= int(refused.value.headers["retry-after"]) <= 60
        error = {"message": answer["error"], "type": answer["error_type"]} if route == "/" else answer["error"]
        assert "requests wait already" in error["message"] and error["type"].startswith("overloaded")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=8)
    threading.Timer(0.5, lambda: (connection.sock.shutdown(socket.SHUT_RDWR), connection.close())).start()
    answer = client.chat.completions.create(model="any", **body)  # OpenAI's client waits and asks again
    assert answer.usage.completion_tokens == 1


def guarded_get(address, route):
    request = urllib.request.Request(address + route, headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read().decode()


def test_a_key_opens_the_server(servers):
    address = servers["guarded"]
    status, answer = post(f"{address}/v1/chat/completions", {"messages": HELLO, "max_tokens": 1})
    assert status == 401 and answer["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
    assert client.chat.completions.create(model="any", messages=HELLO, max_tokens=1).usage.completion_tokens == 1
    assert InferenceClient(base_url=address, token=KEY).chat_completion(HELLO, max_tokens=1).choices
    with urllib.request.urlopen(f"{address}/health", timeout=10) as response:
        assert json.load(response) == {"status": "ok"}


def test_pages_of_a_named_origin_may_ask(servers):
    def ask(address, origin, method="OPTIONS"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"{address}/v1/models", headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.headers.get("access-control-allow-origin")
        except urllib.error.HTTPError as error:
            return error.code, error.headers.get("access-control-allow-origin")

    assert ask(servers["guarded"], "https://example.org") == (204, "https://example.org")
    assert ask(servers["guarded"], "https://example.org", "GET") == (200, "https://example.org")
    assert ask(servers["guarded"], "https://else.org") == (403, None)
    assert ask(servers["ours"], "https://example.org", "GET") == (200, None)


def test_metrics_have_prometheus_form(servers):
    say(servers["ours"], messages=HELLO, max_tokens=5)
    with urllib.request.urlopen(f"{servers['ours']}/metrics", timeout=10) as response:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = response.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['nanochat_requests_total{route="/v1/chat/completions",status="200"}']) > 0
    assert float(values["nanochat_generated_tokens_total"]) >= 5
    first = "nanochat_time_to_first_token_seconds"
    counts = [float(value) for name, value in values.items() if name.startswith(f"{first}_bucket")]
    assert counts == sorted(counts) and counts[-1] == float(values[f"{first}_count"]) > 0


def test_nobody_fills_the_metrics_with_names(servers):
    large = b"x" * (4 * 2**20 + 1)
    for route in ("/whatever", "/v1/models/whatever", "/v1/completions"):
        assert post(servers["ours"] + route, large)[0] == 413
        assert post(servers["ours"] + route, {})[0] in (400, 404, 405)
    with urllib.request.urlopen(f"{servers['ours']}/metrics", timeout=10) as response:
        text = response.read().decode()
    assert "whatever" not in text and 'nanochat_requests_total{route="other",status="413"}' in text
    assert 'nanochat_requests_total{route="/v1/completions",status="413"}' in text


def test_who_leaves_while_sending_is_no_failure_of_the_server(servers):
    address = servers["guarded"]
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f'{head}Content-Length: 100\r\n\r\n{{"mess'.encode())
    counted = 'nanochat_requests_total{route="/v1/chat/completions",status="499"} '
    for _ in range(200):
        metrics = guarded_get(address, "/metrics")
        if counted in metrics or 'status="500"' in metrics:
            break
        time.sleep(0.05)
    assert counted in metrics and 'status="500"' not in metrics


def test_a_stopped_server_finishes_what_it_writes(checkpoints, tmp_path):
    port = free_port()
    run = [sys.executable, "-m", "nanochat_hf.cli", "serve", str(checkpoints / "modern"), "--host", "127.0.0.1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        command = [*run, "--device", "cpu", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}", process, tmp_path / "log")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = {"messages": HELLO, "max_tokens": 200, "stream": True, "temperature": 0}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        beginning = answer.read(400)
        process.send_signal(signal.SIGTERM)
        whole = (beginning + answer.read()).decode()
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
    events = [line.removeprefix("data: ") for line in whole.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert text == greedy(checkpoints / "modern", HELLO, 200)


def test_the_terminal_talks_to_a_server(servers, capsys):
    terminal_chat.main(["--url", servers["ours"], "--prompt", "Hello!", "--temperature", "0", "--max-new-tokens", "8"])
    assert len(capsys.readouterr().out.splitlines()[0]) == 8
    with pytest.raises(UserError, match="does not answer.*is a server running there"):
        terminal_chat.main(["--url", f"http://127.0.0.1:{free_port()}", "--prompt", "Hello!"])


def test_garbage_collections_under_load_leave_the_libraries_alone(checkpoints, monkeypatch):
    """They once kept /health waiting for seconds: the libraries have hundreds of thousands of objects."""
    import uvicorn

    left = []
    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: left.append(len(gc.get_objects())))
    before = len(gc.get_objects())
    try:
        command.main([str(checkpoints / "modern"), "--device", "cpu"])
    finally:
        gc.unfreeze()
    assert before > 100_000 and left[0] < 5_000


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        command.main([str(tmp_path)])
    with pytest.raises(UserError, match="there is no folder"):
        command.main([str(tmp_path / "nothing")])


@pytest.mark.parametrize("key", ["schlüssel", "key\n", " ", "a\tb"])
def test_a_key_that_no_client_can_send_is_refused(key, monkeypatch, tmp_path):
    monkeypatch.setenv("NANOCHAT_API_KEY", key)
    with pytest.raises(UserError, match="NANOCHAT_API_KEY must be printable ASCII without spaces around it"):
        command.main([str(tmp_path)])


@pytest.mark.parametrize("words", [("serve",), ("chat", "--prompt", "Hi"), ("space",)], ids=" ".join)
def test_a_mistyped_checkpoint_is_refused_before_torch_is_imported(words):
    program = (
        "import sys\n"
        "from nanochat_hf.cli.main import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    assert not {'torch', 'transformers', 'uvicorn', 'gradio'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program, words[0], "no/such/folder", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: there is no folder no/such/folder") and done.stderr.count("\n") == 1
