"""Conversations about who the model is: the file of facts, the templates, and a server that writes them."""

import json
import shlex
import signal
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import pytest

from nanochat_hf import tasks
from nanochat_hf.settings import UserError
from nanochat_hf.stages import make_identity
from nanochat_hf.tasks import identity


@pytest.fixture
def facts(tmp_path, capsys):
    """The file that `--example` prints."""
    make_identity.main(["--example"])
    path = tmp_path / "facts.yaml"
    path.write_text(capsys.readouterr().out)
    return path


def made(facts, output, *options):
    make_identity.main(["--facts", str(facts), "--output", str(output), *map(str, options)])
    return [json.loads(line)["messages"] for line in output.read_text().splitlines()]


def said(conversations, role="assistant"):
    return [message["content"] for messages in conversations for message in messages if message["role"] == role]


def test_conversations_from_templates_are_varied_and_say_the_facts(facts, tmp_path, capsys):
    conversations = made(facts, tmp_path / "identity.jsonl", "--number", 600)
    assert len(conversations) == len({identity.key_of(messages) for messages in conversations}) == 600
    assert "600 conversations written" in capsys.readouterr().out
    answers, questions = said(conversations), said(conversations, "user")
    for fact in (
        "Pip",
        "Ada and her class",
        "Elm Street",
        "2026",
        "cheerful and brief",
        "English",
        "homework",
        "moss",
    ):
        assert sum(fact in answer for answer in answers) > 5, fact
    assert any("a test is to show" in answer for answer in answers), "what it declines, with the reason"
    assert len(set(questions)) > 300 and max(Counter(questions).values()) < 60, "thanks come again"
    lengths = Counter(len(messages) // 2 for messages in conversations)
    assert lengths[1] > 50 and lengths[2] > 50 and lengths[3] > 50
    assert not any("{" in text for text in answers + questions)
    for messages in conversations:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    task, _ = tasks.load(f"conversations={tmp_path / 'identity.jsonl'}", "train")
    assert [example["messages"] for example in task] == conversations, "SFT reads them as they are"


def test_a_seed_gives_the_same_file_and_append_goes_on(facts, tmp_path):
    first = made(facts, tmp_path / "a.jsonl", "--number", 50, "--seed", 7)
    assert made(facts, tmp_path / "b.jsonl", "--number", 50, "--seed", 7) == first
    assert made(facts, tmp_path / "c.jsonl", "--number", 50, "--seed", 8) != first
    with pytest.raises(UserError, match="a.jsonl exists; add --append to go on with it"):
        made(facts, tmp_path / "a.jsonl", "--number", 60)
    more = made(facts, tmp_path / "a.jsonl", "--number", 60, "--seed", 7, "--append")
    assert more[:50] == first and len({identity.key_of(messages) for messages in more}) == 60
    assert made(facts, tmp_path / "a.jsonl", "--number", 60, "--append") == more, "nothing is left to do"


def test_append_finds_new_ones_however_many_there_are(facts, tmp_path, monkeypatch):
    monkeypatch.setattr(make_identity, "MAX_DRAWS", 20)
    assert len(made(facts, tmp_path / "a.jsonl", "--number", 100)) == 100
    assert len(made(facts, tmp_path / "a.jsonl", "--number", 120, "--append")) == 120


def test_append_ends_the_last_line_first(facts, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": TALK}))
    assert made(facts, path, "--number", 3, "--append")[0] == TALK


def test_a_second_command_does_not_write_to_the_same_file(facts, tmp_path):
    path = tmp_path / "my chats.jsonl"
    code = "import sys, time; from nanochat_hf.settings import folder_lock; file = open(sys.argv[1], 'a')\n"
    code += "folder_lock.lock(file, sys.argv[1], '--output'); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        try:
            with pytest.raises(UserError, match=f"another command is writing to {path}; .* give another --output"):
                made(facts, path, "--number", 5)
        finally:
            other.kill()
    assert len(made(facts, path, "--number", 5)) == 5


def test_the_task_at_the_end_can_be_pasted(facts, tmp_path, capsys):
    made(facts, tmp_path / "my chats.jsonl", "--number", 5)
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(", beside")[0])
    assert words[-1] == f"conversations={tmp_path / 'my chats.jsonl'}*2"


def test_a_name_alone_is_enough_and_says_nothing_else(tmp_path, capsys):
    (tmp_path / "facts.yaml").write_text("name: Bo\nmaker:\n")
    conversations = made(tmp_path / "facts.yaml", tmp_path / "a.jsonl", "--number", 200)
    answers = " ".join(said(conversations))
    assert "Bo" in answers and "None" not in answers and "made by" not in answers and "trained by" not in answers


def test_few_facts_end_with_what_there_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(identity, "TOPICS", {"name": (("Who?",), ("I am {name}.",))})
    monkeypatch.setattr(identity, "GREETINGS", ("",))
    monkeypatch.setattr(identity, "ENDINGS", ("",))
    (tmp_path / "facts.yaml").write_text("name: Bo\n")
    conversations = made(tmp_path / "facts.yaml", tmp_path / "a.jsonl", "--number", 1000)
    assert 1 <= len(conversations) < 30
    assert "(1,000 were asked for; there are no more)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot read the facts .*--example` prints a file to start from"),
        ("", "must hold lines such as 'name: Pip'"),
        ("maker: Ada\n", "has no name; write one"),
        ("name: 3\n", "name is a text, not 3; put it into quotes"),
        ("name: Pip\ncolour: red\n", "colour is not known; known are name, maker"),
        ("name: Pip\nyear: [2]\n", r"year is a text, not \[2\]"),
        ("name: Pip\nlanguages: [1]\n", "languages is a list of texts"),
        ("name: Pip\nrefuses: [to lie]\n", "each item of refuses: has what: and because: with a text each"),
        ("name: Pip\nfacts: {asks: [1], says: x}\n", "asks: of facts: is a text or a list"),
        ("name: [\n", "is not YAML in UTF-8"),
        (b"name: caf\xe9\n", "is not YAML in UTF-8"),
    ],
)
def test_a_wrong_file_of_facts_is_one_sentence(tmp_path, text, says):
    path = tmp_path / "facts.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=says) as error:
        made(path, tmp_path / "a.jsonl")
    assert "facts.yaml" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "a.jsonl").exists()


def test_a_folder_that_cannot_be_written_to_names_the_option(facts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, where a folder belongs; give another --output or move"):
        made(facts, tmp_path / "file" / "a.jsonl")


def test_what_is_no_file_of_conversations_is_not_touched(facts, tmp_path):
    (tmp_path / "thesis.jsonl").write_text('{"chapter": 1}\n')
    with pytest.raises(UserError, match="holds something else than this command writes"):
        made(facts, tmp_path / "thesis.jsonl", "--append")
    assert (tmp_path / "thesis.jsonl").read_text() == '{"chapter": 1}\n'
    with pytest.raises(UserError, match="give --facts, the file that says who the model is, and --output"):
        make_identity.main([])


def test_requests_vary_and_name_the_facts(facts):
    known = identity.read_facts(facts)
    texts = [identity.request(known, 1, number, 5)[0]["content"] for number in range(60)]
    assert all('"name": "Pip"' in text and "Ada and her class" in text for text in texts)
    assert len(set(texts)) > 50 and texts[:3] == [identity.request(known, 1, n, 5)[0]["content"] for n in range(3)]


TALK = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Pip."}]


@pytest.mark.parametrize(
    ("reply", "good", "bad"),
    [
        (json.dumps({"conversations": [TALK, TALK]}), 2, 0),
        ("Here you are:\n```json\n" + json.dumps({"conversations": [TALK]}) + "\n```\nMore?", 1, 0),
        ("Sure! " + json.dumps({"conversations": [TALK]}) + " Done.", 1, 0),
        (json.dumps({"conversations": [TALK, TALK[:1], "x", [{"role": "wizard", "content": "x"}]]}), 1, 3),
        ("I cannot do that.", 0, 1),
        ('{"conversations": 3}', 0, 1),
        ("[" * 5000, 0, 1),
    ],
)
def test_replies_are_checked(reply, good, bad):
    found, refused = identity.read_reply(reply)
    assert found == [TALK] * good and refused == bad


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server whose replies come from `self.reply(number of the request)`."""

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.asked = reply, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        text = self.server.reply(body["seed"])
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        chunk["choices"] = [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
        data = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def test_a_server_writes_them(facts, tmp_path, capsys):
    def reply(seed):
        talk = [{"role": "user", "content": f"Who are you, number {seed // 2}?"}, TALK[1]]  # each one comes twice
        return json.dumps({"conversations": [talk, TALK[:1]]})

    server = Server(reply)
    conversations = made(facts, tmp_path / "a.jsonl", "--number", 6, "--url", server.url, "--model", "m", "--seed", 0)
    assert [messages[0]["content"] for messages in conversations] == [f"Who are you, number {i}?" for i in range(6)]
    asked = server.asked[0]
    assert (
        asked["model"] == "m"
        and asked["temperature"] == 1.0
        and "Ada and her class" in asked["messages"][0]["content"]
    )
    assert "replies or parts of them were no conversations" in capsys.readouterr().err
    server.shutdown()


def test_a_server_is_not_asked_the_same_again(facts, tmp_path):
    server = Server(lambda seed: json.dumps({"conversations": [[{**TALK[0], "content": f"{seed}?"}, TALK[1]]]}))
    options = ["--url", server.url, "--seed", 0, "--workers", 1]
    made(facts, tmp_path / "a.jsonl", "--number", 3, *options)
    seeds = [body["seed"] for body in server.asked]
    assert len(made(facts, tmp_path / "a.jsonl", "--number", 5, "--append", *options)) == 5
    assert min(body["seed"] for body in server.asked[len(seeds) :]) == 3
    server.shutdown()


def test_interrupting_does_not_wait_for_a_server_that_hangs(facts, tmp_path):
    ended = threading.Event()
    server = Server(lambda seed: ended.wait() and "" if seed else json.dumps({"conversations": [TALK]}))
    command = [sys.executable, "-m", "nanochat_hf.cli", "make_identity", "--facts", facts, "--seed", "0"]
    command += ["--output", tmp_path / "a.jsonl", "--url", server.url]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        while not ((tmp_path / "a.jsonl").exists() and (tmp_path / "a.jsonl").read_text()):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)  # the client would give the server 120 seconds
        finally:
            ended.set()
            process.kill()
    assert process.returncode == 130 and f"interrupted; add --append to go on with {tmp_path / 'a.jsonl'}" in errors
    server.shutdown()


def test_a_server_that_writes_nothing_usable_ends_and_keeps_what_there_is(facts, tmp_path):
    server = Server(lambda seed: json.dumps({"conversations": [TALK]}) if seed == 0 else "I would rather not.")
    with pytest.raises(UserError, match="10 replies of .* in a row held no conversations; try a larger model"):
        made(facts, tmp_path / "a.jsonl", "--number", 6, "--url", server.url, "--seed", 0, "--workers", 1)
    assert (tmp_path / "a.jsonl").read_text() == json.dumps({"messages": TALK}) + "\n"
    server.shutdown()


def test_a_server_that_is_not_there_is_one_sentence(facts, tmp_path):
    with pytest.raises(UserError, match="http://127.0.0.1:9 does not answer"):
        made(facts, tmp_path / "a.jsonl", "--url", "http://127.0.0.1:9")


def test_templates_are_lazy_and_endless(facts):
    known = identity.read_facts(facts)
    assert len(list(islice(identity.from_templates(known, 0), 5000))) == 5000
