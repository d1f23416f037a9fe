"""benchmarks/gpu.py in miniature on a CPU: every check runs, and whatever goes wrong in one becomes its row."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(SCRIPT.parent))  # for its neighbour benchmark_tools
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture
def run_one(gpu, tmp_path, monkeypatch):
    """Runs a function as a check called `fake`; returns its row."""

    def run(function, *, limit=60.0, needs=(), left=100.0):
        monkeypatch.setitem(gpu.CHECKS, "fake", gpu.Check(function, limit, needs, ""))
        options = argparse.Namespace(dry=True, scratch=str(tmp_path), text=None, output=tmp_path)
        return gpu.run_one("fake", options, left)

    return run


@pytest.mark.timeout(1200)
def test_every_check_in_miniature(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from nanochat_hf.data.sources import open_documents

    texts = open_documents("microworld").next_batch(2400)
    (tmp_path / "text").mkdir()
    for number in range(2):
        pq.write_table(pa.table({"text": texts[number::2]}), tmp_path / "text" / f"shard_{number:05d}.parquet")
    command = [sys.executable, str(SCRIPT), "--dry", "--output", str(tmp_path / "out"), "--budget", "1000"]
    command += ["--text", str(tmp_path / "text")]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    rows = {
        row["check"]: row for row in map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    }
    assert {name: (row["outcome"], row.get("error")) for name, row in rows.items() if row["outcome"] != "ok"} == {}
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for part in done.stdout.splitlines()[: len(rows)]:
        assert json.loads(part)["check"] in rows

    assert rows["attention"]["varlen_attn, window"]["kernels"]
    assert rows["pretrain"]["resumed"] == "identical weights"
    assert rows["pretrain"]["graph_breaks"] == {} and rows["pretrain"]["graphs"] > 0
    assert len(rows["pretrain"]["samples"]) == 3
    assert len(rows["generation"]) >= 6
    assert rows["text"]["data"] == str(tmp_path / "text") and len(rows["text"]["curve"]) == 2
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert page in done.stdout and "no figure counts" in page
    assert all(f"| {name} | ok |" in page for name in rows)


def test_a_failure_becomes_a_row_and_keeps_what_was_measured(run_one):
    def broken(results):
        results["before"] = 1
        raise RuntimeError("the card is on fire")

    row = run_one(broken)
    assert row["outcome"] == "failed with status 1" and row["before"] == 1
    assert "the card is on fire" in row["error"]


def test_a_measurement_that_raises_is_named(run_one):
    def partly(results):
        results.measure("first", lambda: 1 / 0)
        results.measure("second", lambda: 2)

    row = run_one(partly)
    assert row["outcome"] == "failed in part: first" and row["second"] == 2
    assert row["first"].startswith("raises ZeroDivisionError")


def test_an_unmet_expectation_is_said(run_one):
    row = run_one(lambda results: results.expect(False, "it is slow"))
    assert row["outcome"] == "not as expected" and row["not as expected"] == ["it is slow"]


def test_a_check_that_hangs_is_ended_with_what_it_started(run_one, gpu, tmp_path):
    def hangs(results):
        results["before"] = 1
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (tmp_path / "child").write_text(str(child.pid))
        time.sleep(600)

    row = run_one(hangs, limit=0.5)  # ten times as much in the miniature
    assert row["outcome"].startswith("out of time after") and row["before"] == 1
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the process that the check started is still running")


def test_the_history_of_a_stopped_run_is_in_its_newest_checkpoint(gpu, tmp_path):
    assert gpu.history_of(tmp_path) == []
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step, "loss": 2.5}]}))
    assert gpu.history_of(tmp_path) == [{"step": 10, "loss": 2.5}]


def test_absent_packages_and_a_spent_budget_are_said(run_one):
    def never(results):
        raise AssertionError

    assert run_one(never, needs=("torch", "nowhere_to_be_found"))["outcome"] == "needs nowhere_to_be_found: absent"
    assert run_one(never, left=3.0)["outcome"] == "not run: 3 s of the budget are left"


def test_scripts_run_without_trl_and_datasets(tmp_path):
    hide = "import runpy, sys; sys.modules['trl'] = sys.modules['datasets'] = None; "
    run = f"sys.path.insert(0, {str(SCRIPT.parent)!r}); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    words = ["--script", "training/tokenizer.py", "--facts", tmp_path / "facts.json", "--vocab_size", 400]
    words += ["--max_chars", 100000, "--data", "microworld", "--output_dir", tmp_path / "tokenizer"]
    command = [sys.executable, "-c", hide + run, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "tokenizer" / "run.json").read_text())["config"]["vocab_size"] == 400
    assert json.loads((tmp_path / "facts.json").read_text())["graph_breaks"] == {}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "everything"], "there is no check everything; the checks are environment"),
        (["--text", "."], "holds no parquet files; give a folder with at least two"),
    ],
)
def test_bad_options_are_named(gpu, tmp_path, monkeypatch, words, sentence):
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "empty") if word == "." else word for word in words]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path), *words])
    with pytest.raises(gpu.UserError, match=sentence):
        gpu.parse_arguments()


def test_without_a_gpu_it_says_so(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path / "out")])
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    monkeypatch.chdir(ROOT)
    with pytest.raises(gpu.UserError, match="no NVIDIA GPU here"):
        gpu.main()
    assert not (tmp_path / "out").exists()
