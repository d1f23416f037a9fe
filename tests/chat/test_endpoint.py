"""A model behind a server: both protocols, tools, errors, retries and keys; and `nanochat-hf serve` for real."""

import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from started_server import started

from nanochat_hf.chat import Answer, RemoteModel
from nanochat_hf.cli import terminal_chat
from nanochat_hf.settings import UserError
from nanochat_hf.tools.presentation import plain_text

ASK = [{"role": "user", "content": "Hi"}]
SAMPLING = dict(max_new_tokens=32, temperature=0.0, top_k=None, top_p=None, seed=1)


def chunk(**delta):
    reason = delta.pop("finish_reason", None)
    return {
        "id": "x",
        "created": 0,
        "model": "m",
        "system_fingerprint": "",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": reason}],
    }


def token(text, special=False, **more):
    return {"index": 1, "token": {"id": 1, "text": text, "logprob": 0.0, "special": special}, **more}


class StandIn(BaseHTTPRequestHandler):
    """Answers each request as the test's plan says: (status, headers, body), the body a list of events or JSON."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        status, headers, content = self.server.plan.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        events = isinstance(content, list)
        self.send_header("Content-Type", "text/event-stream" if events else "application/json")
        self.end_headers()
        if events:
            for event in content:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            self.wfile.write(json.dumps(content).encode())


@pytest.fixture
def server(monkeypatch):
    for name in ("NANOCHAT_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    running = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    running.seen, running.plan = [], []
    running.url = f"http://127.0.0.1:{running.server_port}"
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def say(model, messages=ASK, **changed):
    *pieces, answer = model.answer(messages, **{**SAMPLING, **changed})
    assert isinstance(answer, Answer)
    return pieces, answer


def test_chat_streams(server):
    server.plan = [(200, {}, [chunk(content="Hel"), chunk(content="lo"), chunk(content="", finish_reason="length")])]
    pieces, answer = say(RemoteModel(server.url, "m1"))
    assert [piece.text for piece in pieces] == ["Hel", "lo"]
    assert (answer.content, answer.finish_reason) == ("Hello", "length")
    ((path, headers, body),) = server.seen
    assert path == "/v1/chat/completions" and body["model"] == "m1" and body["messages"] == ASK
    assert body["max_tokens"] == 32 and body["temperature"] == 0 and body["seed"] == 1 and "top_k" not in body
    assert not any(name.lower() == "authorization" for name in headers)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_address_may_end_in_v1(server, suffix):
    server.plan = [(200, {}, [chunk(content="x")])]
    say(RemoteModel(server.url + suffix))
    assert server.seen[0][0] == "/v1/chat/completions"
    server.plan = [(200, {}, [token("x", generated_text="x", details=None)])]
    say(RemoteModel(server.url + suffix, protocol="text-generation"))
    assert "chat" not in server.seen[1][0]


def test_text_generation_streams(server):
    details = {"finish_reason": "eos_token", "generated_tokens": 2, "prefill": [], "tokens": [], "seed": None}
    last = token("</s>", True, generated_text="Hello", details=details)
    server.plan = [(200, {}, [token("Hel"), token("lo"), last])]
    pieces, answer = say(RemoteModel(server.url, protocol="text-generation"), temperature=0.7, top_k=5, top_p=0.9)
    assert [piece.text for piece in pieces] == ["Hel", "lo"] and answer.content == "Hello"
    ((_, _, body),) = server.seen
    asked = body["parameters"]
    assert body["inputs"] == "Hi" and body["stream"] is True
    assert (asked["max_new_tokens"], asked["temperature"], asked["top_k"], asked["top_p"]) == (32, 0.7, 5, 0.9)


def test_a_top_k_is_sent_only_if_the_user_chose_it(server, capsys):
    server.plan = [(200, {}, [chunk(content="x")])] * 2
    for options in ([], ["--top-k", "7"]):
        terminal_chat.main(["--url", server.url, "-p", "Hi", *options])
    assert [body.get("top_k") for _, _, body in server.seen] == [None, 7] and capsys.readouterr().out == "x\nx\n"
    server.plan = [(400, {}, {"error": {"message": "Unrecognized request argument supplied: top_k"}})]
    with pytest.raises(UserError, match="supplied: top_k; leave --top-k out"):
        say(RemoteModel(server.url), top_k=7)


def test_text_generation_takes_no_system_message(server):
    with pytest.raises(UserError, match="has no system message; leave it out"):
        say(RemoteModel(server.url, protocol="text-generation"), [{"role": "system", "content": "Rhyme."}, *ASK])
    assert not server.seen


def test_a_server_that_fails_in_its_answer_is_not_called_absent(server):
    failed = {"error": {"message": "generation failed: boom", "type": "server_error"}}
    for protocol, first, error in (
        ("chat", chunk(content="Half"), failed),
        ("text-generation", token("Half"), {"error": "generation failed: boom", "error_type": "generation"}),
    ):
        model = RemoteModel(server.url, protocol=protocol)
        server.plan = [(200, {}, [first, error])]
        with pytest.raises(
            UserError, match=r"broke off in the middle of its answer \(generation failed: boom\); its own log"
        ):
            say(model)
        server.plan = [(200, {}, [error])]
        with pytest.raises(UserError, match=r"failed \(generation failed: boom\); its own log"):
            say(model)
    server.plan = [(422, {}, {"error": "top_k is odd", "error_type": "validation"})]
    with pytest.raises(UserError, match="refused the request: top_k is odd"):
        say(model)


def test_tools_are_run_here_and_travel_as_structure(server):
    call = {"index": 0, "id": "c1", "type": "function"}
    first = {**call, "function": {"name": "calculator", "arguments": '{"expres'}}
    second = {**call, "function": {"name": "", "arguments": 'sion": "12*3"}'}}
    server.plan = [
        (200, {}, [chunk(content="It is "), chunk(tool_calls=[first]), chunk(tool_calls=[second])]),
        (200, {}, [chunk(content="36."), chunk(finish_reason="stop")]),
    ]
    pieces, answer = say(RemoteModel(server.url, tools=True))
    assert plain_text(answer.content) == "It is ⟨12*3 = 36⟩."
    assert [piece.kind for piece in pieces] == ["text", "python", "python_output", "text"]
    asked, told = server.seen[0][2], server.seen[1][2]
    assert asked["tools"][0]["function"]["name"] == "calculator"
    assert told["messages"][-1]["role"] == "tool" and told["messages"][-1]["content"] == "36"
    assert told["messages"][-2]["tool_calls"][0]["function"]["name"] == "calculator"
    server.plan = [(200, {}, [chunk(content="ok")])]
    say(RemoteModel(server.url), [*ASK, answer.message(), *ASK])
    assert server.seen[2][2]["messages"][1]["content"] == "It is 36."  # what a server without our parts understands


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (400, {"error": {"message": "top_p is odd"}}, "refused the request: top_p is odd"),
        (422, {"detail": "no such field"}, "refused the request: no such field"),
        (401, {"error": "no"}, "refuses the key.*NANOCHAT_API_KEY or HF_TOKEN"),
        (404, {}, "does not speak the protocol chat.*try text-generation"),
        (500, {"error": "oh"}, "failed .HTTP 500: oh"),
    ],
)
def test_errors_say_what_to_do(server, status, body, says):
    server.plan = [(status, {}, body)]
    with pytest.raises(UserError, match=says):
        say(RemoteModel(server.url))
    assert len(server.seen) == 1


def test_a_busy_server_is_asked_again(server, monkeypatch):
    waits = []
    monkeypatch.setattr("nanochat_hf.chat.endpoint.time.sleep", waits.append)
    server.plan = [(503, {}, {}), (429, {"Retry-After": "3"}, {}), (200, {}, [chunk(content="there")])]
    assert say(RemoteModel(server.url))[1].content == "there"
    assert waits == [0.5, 3.0]
    server.plan = [(503, {}, {})] * 4
    with pytest.raises(UserError, match="is busy"):
        say(RemoteModel(server.url))
    assert not server.plan


def test_the_key_comes_from_the_environment(server, monkeypatch):
    server.plan = [(200, {}, [chunk(content="x")])] * 2
    monkeypatch.setenv("HF_TOKEN", "hf_one")
    say(RemoteModel(server.url))
    monkeypatch.setenv("NANOCHAT_API_KEY", "two")
    say(RemoteModel(server.url))
    sent = [{name.lower(): value for name, value in headers.items()}["authorization"] for _, headers, _ in server.seen]
    assert sent == ["Bearer hf_one", "Bearer two"]


def test_nobody_there_and_no_address():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="does not answer"):
            say(RemoteModel(f"http://127.0.0.1:{nobody.getsockname()[1]}"))
    with pytest.raises(UserError, match="http://HOST:PORT"):
        RemoteModel("localhost:8000")
    with pytest.raises(UserError, match="no protocol"):
        RemoteModel("http://localhost", protocol="smoke signals")


# ---- the project's own server ------------------------------------------------------


@pytest.fixture(scope="module")
def served(trained_run, tmp_path_factory):
    pytest.importorskip("openai")
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = ["-m", "nanochat_hf.cli", "serve", trained_run / "rl", "--device", "cpu"]
    with started(command, log) as url:
        yield url


def test_nanochat_hf_serve_speaks_both_protocols(served):
    question = [{"role": "user", "content": "How do you spell tosar?"}]
    pieces, answer = say(RemoteModel(served), question)
    assert answer.content == "t-o-s-a-r" and len(pieces) > 1
    pieces, answer = say(RemoteModel(served, protocol="text-generation"), [{"role": "user", "content": "Thornton"}])
    assert isinstance(answer.content, str) and answer.content
    with pytest.raises(UserError, match="refused the request"):
        say(RemoteModel(served), [{"role": "user", "content": "word " * 400}])


def test_the_terminal_talks_to_it(served):
    command = [sys.executable, "-m", "nanochat_hf.cli", "chat", "--url", served, "--temperature", "0"]
    done = subprocess.run([*command, "-p", "How do you spell tosar?"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "t-o-s-a-r\n", "")
