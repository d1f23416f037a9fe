"""The script that compares bytes per token, and its table in the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_hf import report, settings

SCRIPT = Path(__file__).parents[2] / "evaluation" / "tokenizer.py"


def evaluate(tmp_path, *arguments):
    # The caches of tiktoken and of the Hub are empty, so there is nothing to compare with. Nothing may be downloaded.
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(tmp_path / "none"), "HF_HUB_CACHE": str(tmp_path / "none")}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture
def run_dir(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    settings.save_run(tmp_path / "run" / "tokenizer", "tokenizer", {}, seconds=1, metrics={"vocab_size": 1024})
    (tmp_path / "mine.txt").write_text("My own words, which nobody else has.")
    return tmp_path / "run"


def test_bytes_per_token_are_measured_and_reported(run_dir, tokenizer, tmp_path):
    mine = tmp_path / "mine.txt"
    compare = ["gpt2", "no/such-tokenizer", run_dir / "tokenizer"]
    done = evaluate(tmp_path, "--run_dir", run_dir, "--files", mine, "--compare", *compare)
    assert done.returncode == 0, done.stderr
    assert "gpt2: absent on this machine" in done.stdout and "no/such-tokenizer: absent" in done.stdout
    written = json.loads((run_dir / "tokenizer" / "eval" / "tokenizer.json").read_text())
    metrics = written["metrics"]
    for row in ("prose", "code", "maths", "korean", "science"):
        text = SCRIPT.with_name("samples").joinpath(f"{row}.txt").read_text(encoding="utf-8")
        expected = len(text.encode()) / len(tokenizer(text)["input_ids"])
        assert metrics[f"bytes_per_token/{row}"] == pytest.approx(expected)
        assert metrics[f"{compare[2]}/bytes_per_token/{row}"] == pytest.approx(expected)
    own = len(mine.read_bytes()) / len(tokenizer(mine.read_text())["input_ids"])
    assert metrics[f"bytes_per_token/{mine}"] == pytest.approx(own)
    page = report.write_report(run_dir)[0].read_text()
    prose = f"{metrics['bytes_per_token/prose']:.2f}"
    assert f"| {prose} | {prose} (+0 %) |" in page and "Absent on the machine that measured: gpt2, no/such-" in page


def test_what_is_missing_is_named(run_dir, tmp_path):
    (tmp_path / "blank.txt").write_text("  \n")
    for arguments, message in [
        ([], "--tokenizer or --run_dir"),
        (["--run_dir", tmp_path / "nowhere"], "nowhere/tokenizer is not a folder"),
        (["--run_dir", run_dir, "--files", tmp_path / "blank.txt"], "blank.txt has no text"),
    ]:
        done = evaluate(tmp_path, *arguments)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
