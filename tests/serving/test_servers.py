"""Real servers on this machine: ours, ours with continuous batching, and plain `transformers serve`."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch
from huggingface_hub import InferenceClient

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.cli import terminal_chat
from nanochat_hf.conversion import convert_folder
from nanochat_hf.generation import generate_with_tools, load_checkpoint
from nanochat_hf.serving import command
from nanochat_hf.settings import UserError
from nanochat_hf.tokenizer import train

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
    """Name → address of a running server. All three start at once, because their imports take seconds."""
    ours = [sys.executable, "-m", "nanochat_hf.cli", "serve", str(checkpoints / "modern"), "--host", "127.0.0.1"]
    stock = "from transformers.cli.transformers import main; main()"
    commands = {
        "ours": [*ours, "--device", "cpu"],
        "ours, continuous": [*ours, "--device", "cpu", "--continuous-batching"],
        "transformers": [sys.executable, "-c", stock, "serve", str(checkpoints / "export"), "--device", "cpu"],
    }
    logs = tmp_path_factory.mktemp("logs")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    running, addresses = {}, {}
    try:
        for name, command in commands.items():
            addresses[name] = f"http://127.0.0.1:{(port := free_port())}"
            if name == "transformers":
                command = [*command, "--host", "127.0.0.1"]
            with (logs / name).open("w") as log:
                running[name] = subprocess.Popen(
                    [*command, "--port", str(port)], stdout=log, stderr=log, env=environment
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


@pytest.mark.parametrize("name", ["ours", "ours, continuous", "transformers"])
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


@pytest.mark.parametrize("name", ["ours", "ours, continuous", "transformers"])
def test_two_requests_at_once(name, servers, checkpoints):
    folder = checkpoints / ("export" if name == "transformers" else "modern")
    answers = {}

    def ask(index, messages):
        body = {"model": str(folder), "messages": messages, "max_tokens": 40, "temperature": 0}
        answers[index] = post(f"{servers[name]}/v1/chat/completions", body)

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate((HELLO, SYSTEM, HELLO))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [answers[index][1]["choices"][0]["message"]["content"] for index in range(3)]
    assert said == [greedy(folder, messages, 40) for messages in (HELLO, SYSTEM, HELLO)]


BAD_REQUESTS = [
    ("/v1/chat/completions", {}, 400, "messages must be a list"),
    ("/v1/chat/completions", {"messages": []}, 400, "messages must be a list"),
    ("/v1/chat/completions", {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0] must be"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content must be text"),
    ("/v1/chat/completions", {"messages": [*HELLO, {"role": "system", "content": "x"}]}, 400, "at the beginning"),
    ("/v1/chat/completions", {"messages": HELLO, "temperature": -1}, 400, "temperature must be a number between"),
    ("/v1/chat/completions", {"messages": HELLO, "temperature": "hot"}, 400, "temperature must be a number between"),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 0}, 400, "max_tokens must be a whole number"),
    ("/v1/chat/completions", {"messages": HELLO, "top_p": 2}, 400, "top_p must be a number above 0"),
    ("/v1/chat/completions", {"messages": HELLO, "sing": True}, 422, "sing"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 300}]}, 400, "the model reads 256"),
    ("/v1/chat/completions", {"messages": HELLO, "generation_config": "{"}, 400, "generation_config must be text"),
    ("/v1/chat/completions", b"{not json", 422, "JSON"),
    ("/v1/completions", {"prompt": ["x"]}, 400, "prompt must be text"),
    ("/v1/completions", {"prompt": "x" * 300}, 400, "the model reads 256"),
    ("/", {"inputs": 5}, 400, "inputs: text"),
    ("/generate", {"inputs": "x", "parameters": {"top_p": 0}}, 400, "top_p must be"),
]


@pytest.mark.parametrize(("route", "body", "status", "complaint"), BAD_REQUESTS)
def test_bad_requests_are_the_clients_fault(route, body, status, complaint, servers):
    for name in ("ours", "ours, continuous"):
        got, answer = post(servers[name] + route, body)
        assert got == status and complaint in json.dumps(answer)
        assert post(f"{servers[name]}/v1/chat/completions", {"messages": HELLO, "max_tokens": 1})[0] == 200


def test_sampling_is_followed(servers):
    def say(**options):
        body = {"messages": HELLO, "max_tokens": 24, **options}
        return post(f"{servers['ours']}/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]

    greedy_answer = say(temperature=0)
    assert say(temperature=1.5, top_k=1) == greedy_answer
    sampled = {say(temperature=1.5, seed=seed) for seed in (1, 1, 2)}
    assert len(sampled) == 2  # a seed repeats, another differs


def test_a_long_answer_ends_where_the_context_does(servers):
    body = {"messages": HELLO, "temperature": 0}
    _, answer = post(f"{servers['ours']}/v1/chat/completions", body)
    assert answer["usage"]["total_tokens"] <= 256


def test_text_generation_clients(servers):
    """huggingface_hub's client for text-generation-inference, in its four ways."""
    client = InferenceClient(servers["ours"])
    options = dict(max_new_tokens=12)
    whole = client.text_generation("What is", **options)
    assert whole and client.text_generation("What is", return_full_text=True, **options) == "What is" + whole
    detailed = client.text_generation("What is", details=True, **options)
    assert detailed.generated_text == whole
    assert (detailed.details.finish_reason, detailed.details.generated_tokens) == ("length", 12)
    assert "".join(client.text_generation("What is", stream=True, **options)) == whole
    events = list(client.text_generation("What is", stream=True, details=True, **options))
    assert events[-1].generated_text == whole and events[-1].details.generated_tokens == 12
    status, answer = post(f"{servers['ours']}/generate", {"inputs": "What is", "parameters": options})
    assert (status, answer) == (200, {"generated_text": whole})


def test_models_are_listed(servers, checkpoints):
    with urllib.request.urlopen(f"{servers['ours']}/v1/models", timeout=10) as response:
        assert [model["id"] for model in json.load(response)["data"]] == [str(checkpoints / "modern")]


def test_the_terminal_talks_to_a_server(servers, capsys):
    terminal_chat.main(["--url", servers["ours"], "--prompt", "Hello!", "--temperature", "0", "--max-new-tokens", "8"])
    assert len(capsys.readouterr().out) == 9  # and a newline
    with pytest.raises(UserError, match="does not answer.*is a server running there"):
        terminal_chat.main(["--url", f"http://127.0.0.1:{free_port()}", "--prompt", "Hello!"])


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        command.main([str(tmp_path)])
    with pytest.raises(UserError, match="there is no folder"):
        command.main([str(tmp_path / "nothing")])
