"""Publishing: what leaves the machine, what the card says, and a whole push to a Hub on this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM, hub, settings
from nanochat_hf.report.stages import load_stage
from nanochat_hf.settings import UserError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A stage folder as training leaves it, with things in it that must not be published."""
    folder = tmp_path_factory.mktemp("run") / "rl"
    config = NanochatHFConfig.from_depth(2, vocab_size=128, sequence_length=64, head_dim=16, aspect_ratio=16)
    NanochatHFForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "training_args.bin").write_bytes(b"\x80\x04pickle")
    (folder / "optimizer-00001-of-00001.safetensors").write_bytes(b"state")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "rng_state.pth").write_bytes(b"pickle")
    row = {"kind": "generative", "baseline": 0.0, "centered": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
    chat = {"evaluation": "chat", "metrics": {"chatcore": 0.5}, "config": {"split": "test", "tasks": ["gsm8k"]}}
    asked = [{"role": "user", "content": "What is 2+3?"}]
    parts = [{"type": "text", "text": "It is "}, {"type": "python", "text": "2+3"}]
    parts += [{"type": "python_output", "text": "5"}, {"type": "text", "text": "5."}]
    samples = [
        {"index": 0, "prompt": asked, "answer": "It is 2+3 5, I guess ```", "score": 1.0},
        {"index": 1, "prompt": asked, "answer": "It is 2+355.", "parts": parts, "score": 1.0},
        {"index": 2, "prompt": asked, "answer": "It is 6", "parts": [], "score": 0.0},
    ]
    rows = [{"task": "gsm8k", "items": 1319, "accuracy": 0.5, **row}]
    chat["details"] = {"tasks": rows, "samples": {"gsm8k": samples}}
    chat["date"] = "2026-11-27"
    settings.write_json(folder / "eval" / "chat.json", chat)
    config = {
        "learning_rate": 0.02,
        "model": "/home/me/secret/sft",
        "tasks": ["gsm8k=/home/me/my client/gsm8k@200", "conversations=~/secret/a.jsonl,/home/me/b.jsonl", "mmlu"],
        "reward": {"code": "/home/me/rewards.py:score", "data": "../../secret/data/"},
        "base": "https://example.org/model",
    }
    settings.save_run(folder, "rl", config, seconds=90.0)
    history = [{"step": step, "loss": 9 - step / 20} for step in range(100)]
    settings.save_run(folder.parent / "base", "pretrain", {}, seconds=600, history=history)
    return folder


def test_only_safe_files_are_published(checkpoint):
    names = {path.name for path in hub.files_to_publish(checkpoint)}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert {"configuration_nanochat_hf.py", "modeling_nanochat_hf.py"} <= names
    assert not names & {"training_args.bin", "optimizer-00001-of-00001.safetensors", "run.json", "rng_state.pth"}


def test_card_has_front_matter_usage_results_and_no_paths(checkpoint):
    card = hub.model_card(checkpoint, "me/tiny")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    result = front["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "gsm8k" and result["metrics"][0]["value"] == 0.5
    assert result["dataset"]["type"] == "openai/gsm8k" and result["dataset"]["config"] == "main"
    assert result["dataset"]["split"] == "test" and "95 % interval 40.0 to 60.0 %" in result["metrics"][0]["name"]
    assert front["model-index"][0]["results"][1]["metrics"][0]["type"] == "chatcore"
    titles = [line for line in card.splitlines() if line.startswith("## ")]
    assert titles == [f"## {one}" for one in ("Use", "A conversation", "Results", "Recipe", "Intended use", "Limits")]
    assert "| gsm8k | 50.0 % | 40.0 to 60.0 % | 1319 |" in card
    assert "/home/me" not in card and "secret" not in card and "client" not in card and "1.5 minutes" in card
    recipe = json.loads(card.split("```json\n")[1].split("\n```")[0])
    assert recipe["tasks"] == ["gsm8k=gsm8k@200", "conversations=a.jsonl,b.jsonl", "mmlu"]
    assert recipe["reward"] == {"code": "rewards.py:score", "data": "data/"}
    assert recipe["base"] == "https://example.org/model"
    from huggingface_hub import ModelCard

    assert ModelCard(card).data.license == "apache-2.0"


def test_card_shows_a_conversation_with_a_tool_call(checkpoint):
    card = hub.model_card(checkpoint, "me/tiny")
    conversation = card.split("## A conversation")[1].split("## Results")[0]
    assert "[user] What is 2+3?" in conversation and "[assistant] It is ⟨2+3 = 5⟩." in conversation
    assert "the answer is right" in conversation and "a call of the calculator" in conversation


def test_pictures_are_drawn_published_and_linked(checkpoint, capsys):
    files, captions = hub.draw_pictures(checkpoint)
    assert list(files) == ["plots/scores.png", "plots/loss.png"] == [path for path, _ in captions]
    assert all(content.startswith(b"\x89PNG") for content in files.values())
    hub.push(checkpoint, "me/tiny", dry_run=True)
    printed = capsys.readouterr().out
    for path, caption in captions:
        assert f"![{caption}]({path})" in printed and f"{path} " in printed
    renamed = checkpoint.parent / "elsewhere"
    assert hub.draw_pictures(renamed) == ({}, []), "a folder that is no stage has no run to draw"


def test_card_does_not_call_the_microworlds_tasks_core(checkpoint):
    metrics = {"microworld_completion": 0.25, "microworld_completion_low": 0.2, "microworld_completion_high": 0.3}
    result = {"evaluation": "core", "metrics": metrics, "details": {"tasks": []}}
    settings.write_json(checkpoint / "eval" / "core.json", result)
    card = hub.model_card(checkpoint, "me/tiny")
    (checkpoint / "eval" / "core.json").unlink()
    assert "| microworld completion tasks | 0.2500 | 0.2000 to 0.3000 | |" in card
    assert "CORE" not in card.replace("ChatCORE", "")


@pytest.mark.parametrize(
    ("changed", "items", "published", "data_set", "split"),
    [
        ({}, 1319, True, "openai/gsm8k", "test"),
        ({"tasks": ["mmlu,gsm8k/test=openai/gsm8k"], "split": "validation"}, 1319, True, "openai/gsm8k", "test"),
        ({"tasks": ["gsm8k/train"]}, 1319, False, "openai/gsm8k", "train"),
        ({"split": "train"}, 1319, False, "openai/gsm8k", "train"),
        ({"tasks": ["gsm8k=my folder/one.jsonl"]}, 1319, False, "gsm8k", "test"),
        ({"tasks": ["gsm8k@100"]}, 100, False, "openai/gsm8k", "test"),
        ({"max_problems": 100}, 100, False, "openai/gsm8k", "test"),
        ({"tasks": ["my_tasks:Sums"]}, 1319, False, "gsm8k", None),
        ({"tasks": ["gsm8k", "gsm8k/train"]}, 1319, False, "gsm8k", None),
        ({"tasks": None}, 1319, False, "gsm8k", None),
    ],
)
def test_only_the_benchmark_itself_is_published_as_such(checkpoint, changed, items, published, data_set, split):
    stage = load_stage(checkpoint.parent, "rl")
    chat = stage.evaluations["chat"]
    chat["config"] |= changed
    chat["details"]["tasks"][0]["items"] = items
    assert bool(hub.eval_results_files(stage, "me/tiny")) == published
    entry = hub._model_index(stage)[0]
    assert (entry["dataset_type"], entry["dataset_split"]) == (data_set, split)


def test_a_folder_may_be_named_in_any_way(checkpoint, monkeypatch, tmp_path):
    expected = hub.model_card(checkpoint, "me/tiny"), [*hub.draw_pictures(checkpoint)[0]]
    (tmp_path / "best").symlink_to(checkpoint)
    (checkpoint / "eval").mkdir(exist_ok=True)
    monkeypatch.chdir(checkpoint)
    for folder in (".", "eval/..", f"{checkpoint}/", tmp_path / "best"):
        assert (hub.model_card(folder, "me/tiny"), [*hub.draw_pictures(folder)[0]]) == expected
    monkeypatch.chdir(checkpoint.parent)
    assert hub.model_card("rl", "me/tiny") == expected[0]


def test_a_stage_that_is_a_link_to_another_disk_keeps_its_name(checkpoint, tmp_path):
    (tmp_path / "rl").symlink_to(checkpoint.rename(checkpoint.parent / "moved"))
    try:
        assert settings.stage_folder(tmp_path / "rl") == tmp_path / "rl"
        assert "trained with RL" in hub.model_card(tmp_path / "rl", "me/tiny")
        (tmp_path / "best").symlink_to(checkpoint.parent / "moved")
        assert settings.stage_folder(tmp_path / "best") == tmp_path / "best", "neither name tells a stage"
    finally:
        (checkpoint.parent / "moved").rename(checkpoint)


def test_incomplete_folders_are_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        hub.files_to_publish(tmp_path / "nowhere")
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(UserError, match="tokenizer.json, model.safetensors, configuration_nanochat_hf.py, modeling"):
        hub.files_to_publish(tmp_path)
    with pytest.raises(UserError, match="owner/name"):
        hub.push(checkpoint, "no-owner")


class FakeHub(BaseHTTPRequestHandler):
    """The few routes of the Hub that a push of small files takes; keeps what was committed."""

    def log_message(self, *_):
        pass

    def reply(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self.reply({"error": "unauthorized"}, 401)
        return self.reply({"id": "me/tiny", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store = self.server.store
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self.reply({"error": "unauthorized"}, 401)
        if self.path.endswith("/api/repos/create"):
            store["repo"] = json.loads(body)
            return self.reply({"url": f"http://{self.headers['Host']}/me/tiny", "name": "me/tiny"})
        if self.path.endswith("/api/validate-yaml"):
            return self.reply({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return self.reply({"files": files})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    store[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"http://{self.headers['Host']}/me/tiny/commit/{'1' * 40}"
            return self.reply({"success": True, "commitOid": "1" * 40, "commitUrl": url})
        return self.reply({"error": self.path}, 404)


@pytest.fixture
def fake_hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.store = {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_push_sends_everything_in_one_commit(checkpoint, fake_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    address = hub.push(checkpoint, "me/tiny", private=True)
    assert address.endswith("/commit/" + "1" * 40)
    store = fake_hub.store
    assert store["repo"]["name"] == "tiny" and store["repo"].get("private", True) and "rl" not in store
    assert store["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert not any(name.endswith((".bin", ".pth", ".pt", ".pkl")) for name in store)
    entry = yaml.safe_load(store[".eval_results/gsm8k.yaml"])[0]
    assert entry["dataset"] == {"id": "openai/gsm8k", "task_id": "gsm8k"} and entry["value"] == 50.0
    assert str(entry["date"]) == "2026-11-27" and entry["source"]["url"] == "https://huggingface.co/me/tiny"
    assert store["plots/scores.png"].startswith(b"\x89PNG") and b"](plots/scores.png)" in store["README.md"]


def test_refused_push_says_how_to_log_in(checkpoint, fake_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="hf auth login"):
        hub.push(checkpoint, "me/tiny")
