"""`nanochat-hf push --space`: what was pushed is started in a folder of its own, and answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import hub
from started_server import started

from nanochat_hf import hub as publishing


@pytest.fixture(scope="module")
def pushed(trained_run, tmp_path_factory):
    """A Hub that the trained model was pushed to, with its Space, and the Space's files in a folder."""
    with hub() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        patch.setenv("HF_TOKEN", "hf_test")
        address = publishing.push(trained_run / "rl", "me/tiny", space=True)
        assert address == f"{server.address}/spaces/me/tiny"
        folder = tmp_path_factory.mktemp("space")
        for name, content in server.repos["spaces", "me/tiny"][-1][1].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        yield server, folder


def test_the_space_has_what_it_needs_and_pins_its_model(pushed):
    server, folder = pushed
    number, model_files = server.repos["models", "me/tiny"][-1]
    settings = json.loads((folder / "space.json").read_text())
    assert (settings["model"], settings["revision"], settings["title"]) == ("me/tiny", number, "tiny")
    assert {one["task"] for one in settings["suggestions"]} >= {"microworld-identity", "microworld-problems"}
    assert any(one.get("sdk") == "gradio" and one.get("type") == "space" for one in server.created)
    assert "model.safetensors" in model_files and "app.py" not in model_files
    assert 'title: "tiny"' in (folder / "README.md").read_text()
    assert (folder / "report" / "plots" / "loss.png").is_file()
    assert not [path for path in folder.rglob("*") if path.suffix in (".so", ".pyc", ".bin", ".pt")]
    assert all("==" in line for line in (folder / "requirements.txt").read_text().split())


def test_an_older_report_loses_its_paths(tmp_path):
    from nanochat_hf.page.deploy import space_files

    (tmp_path / "rl").mkdir()
    sample = "Training took (/data/run1) 3/4 of the time; [notes](../notes/a.md) and 1/2.\n\n"
    sample += "[user] How much is 8 / (4/2) and/or 1/2, 3/4?\n\n[assistant] ⟨8/(4/2) = 4⟩\n\n</details>\n"
    setting = '{\n  "model": "%ssft",\n  "tasks": [\n    "conversations=%sa b.jsonl@5"\n  ]\n}\n'
    (tmp_path / "report.md").write_text(sample + setting % ("/home/me/secret/", "/home/me/secret/"))
    found = space_files(tmp_path / "rl", "me/tiny", "0" * 40)["report/report.md"].decode()
    assert found == sample + setting % ("", "")


def test_the_pushed_folder_starts_by_itself_and_answers(pushed, tmp_path):
    """It runs with its own copy of the package, without the Rust extension, and loads the pinned commit."""
    from gradio_client import Client

    server, folder = pushed
    publishing_changed = dict(server.repos["models", "me/tiny"][-1][1])
    publishing_changed["model.safetensors"] = b"a later, broken commit"
    server.repos["models", "me/tiny"].append(("f" * 40, publishing_changed))
    bare = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "hub"),
        "SPACE_ID": "me/tiny",
    }
    where = subprocess.run(
        [sys.executable, "-c", "import nanochat_hf; print(nanochat_hf.__file__)"],
        cwd=folder, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(folder)
    with started(["app.py", "--device", "cpu"], tmp_path / "space.log", cwd=folder, **bare) as url:
        client = Client(url, verbose=False)
        assert client.predict("How do you spell tosar?", temperature=0.0, api_name="/chat") == "t-o-s-a-r"
        labels = {part.get("props", {}).get("label") for part in client.config["components"]}
        assert {"Chat", "Tokens", "Report"} <= labels
        assert client.config["title"] == "tiny"
    assert {revision for _, revision, name in server.read if name == "model.safetensors"} <= {
        server.repos["models", "me/tiny"][0][0]
    }


def test_a_dry_run_lists_the_spaces_files(trained_run, capsys):
    publishing.push(trained_run / "rl", "me/tiny", space=True, dry_run=True)
    shown = capsys.readouterr().out
    assert "space.json" in shown and "nanochat_hf/page/app.py" in shown and "model.safetensors" in shown
