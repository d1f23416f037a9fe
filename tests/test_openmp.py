"""How threads wait: set before torch is imported, by every command, and left alone where the user has set it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat_hf import openmp
from nanochat_hf.openmp import BLOCK_MS, BUSY_SPINS, RECORDS, SPINS, bound_spinning, cores_are_busy, without_our_choice

ROOT = Path(__file__).parents[1]
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", *RECORDS.values())


def clean_environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    return kept | {"PYTHONPATH": str(ROOT)} | changes


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"GOMP_SPINCOUNT": str(SPINS), "KMP_BLOCKTIME": str(BLOCK_MS)}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),
        ({"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": str(BLOCK_MS)}),
        ({"KMP_BLOCKTIME": "9"}, {"GOMP_SPINCOUNT": str(SPINS)}),
    ],
)
def test_what_the_user_has_set_stays(given, added, monkeypatch):
    monkeypatch.setattr(openmp, "cores_are_busy", lambda environment: False)
    environment = dict(given)
    bound_spinning(environment)
    assert environment == given | added | {RECORDS[name]: value for name, value in added.items()}
    assert without_our_choice(environment) == given, "another program gets what the user has set"


def test_each_command_of_a_pipeline_chooses_again(monkeypatch):
    """A stage inherits the choice of the command that starts it; it is not the user's."""
    environment: dict[str, str] = {}
    for busy, spins in ((False, SPINS), (True, BUSY_SPINS), (False, SPINS)):
        monkeypatch.setattr(openmp, "cores_are_busy", lambda environment, busy=busy: busy)
        bound_spinning(environment)
        assert environment["GOMP_SPINCOUNT"] == str(spins)


@pytest.mark.parametrize(
    ("set_later", "kept"),
    [
        ({"GOMP_SPINCOUNT": "300000"}, {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": str(BLOCK_MS)}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),  # a spin count would outweigh it
    ],
)
def test_what_the_user_sets_within_a_pipeline_counts(set_later, kept, monkeypatch):
    monkeypatch.setattr(openmp, "cores_are_busy", lambda environment: False)
    environment: dict[str, str] = {}
    bound_spinning(environment)
    environment |= set_later
    for _ in range(2):  # for a command and for one that it starts
        bound_spinning(environment)
        assert {name: environment[name] for name in WAITING[:3] if name in environment} == kept
    assert without_our_choice(environment) == set_later


@pytest.mark.parametrize(
    ("running", "threads", "busy"),
    [
        (1, None, False),
        (2, None, True),
        (3, "4", False),
        (4, "4", False),
        (5, "4", False),
        (6, "4", True),
        (4, "8", True),
    ],
)
def test_cores_are_busy_where_other_programs_use_those_that_the_threads_need(
    running, threads, busy, tmp_path, monkeypatch
):
    """A machine of eight cores; the count includes the process that reads it."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "loadavg").write_text(f"9.50 9.50 9.50 {running}/800 12345\n")
    monkeypatch.setattr(openmp, "LOAD", tmp_path / "loadavg")
    environment = {} if threads is None else {"OMP_NUM_THREADS": threads}
    assert cores_are_busy(environment) == busy
    bound_spinning(environment)
    assert environment["GOMP_SPINCOUNT"] == str(BUSY_SPINS if busy else SPINS)


@pytest.mark.parametrize("text", [None, "", "0.1 0.2 0.3 many 5"])
def test_where_the_load_cannot_be_read_the_machine_counts_as_free(text, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "loadavg").write_text(text)
    monkeypatch.setattr(openmp, "LOAD", tmp_path / "loadavg")
    assert not cores_are_busy({})


def test_a_real_neighbour_is_seen():
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        time.sleep(0.3)
        assert cores_are_busy({})
    finally:
        for process in neighbours:
            process.kill()
            process.wait()


IMPORT_ALL_ENTRIES = """
import importlib, pathlib, sys
root = pathlib.Path("nanochat_hf")
names = [f"nanochat_hf.stages.{path.stem}" for path in sorted((root / "stages").glob("[a-z]*.py"))]
for name in [*names, "nanochat_hf.cli.main", "nanochat_hf.page.command", "nanochat_hf.serving.command"]:
    importlib.import_module(name)
    assert "torch" not in sys.modules, f"{name} imports torch before its command has begun"
print(len(names))
"""


def test_no_command_imports_torch_before_it_sets_how_threads_wait():
    command = [sys.executable, "-c", IMPORT_ALL_ENTRIES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean_environment())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12


@pytest.mark.parametrize(
    ("given", "expected"), [({}, {SPINS, BUSY_SPINS}), ({"GOMP_SPINCOUNT": "123"}, {123})], ids=["ours", "the user's"]
)
def test_openmp_itself_says_the_setting(given, expected):
    code = "from nanochat_hf.settings import run_main\ndef main():\n    import torch\n    torch.ones(1)\n"
    command = [sys.executable, "-c", code + "run_main(main)"]
    environment = clean_environment(OMP_DISPLAY_ENV="VERBOSE", **given)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    if "GOMP_CPU_AFFINITY" not in done.stderr:
        pytest.skip("this torch does not use GNU's OpenMP")
    assert any(f"GOMP_SPINCOUNT = '{count}'" in done.stderr for count in expected)
