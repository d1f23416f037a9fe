"""How threads wait: set before torch is imported, by every command, and left alone where the user has set it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_hf.openmp import BLOCK_MS, SPINS, bound_spinning

ROOT = Path(__file__).parents[1]
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


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
def test_what_the_user_has_set_stays(given, added):
    environment = dict(given)
    bound_spinning(environment)
    assert environment == given | added


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


@pytest.mark.parametrize(("given", "expected"), [({}, SPINS), ({"GOMP_SPINCOUNT": "123"}, 123)])
def test_openmp_itself_says_the_setting(given, expected):
    code = "from nanochat_hf.settings import run_main\ndef main():\n    import torch\n    torch.ones(1)\n"
    command = [sys.executable, "-c", code + "run_main(main)"]
    environment = clean_environment(OMP_DISPLAY_ENV="VERBOSE", **given)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    if "GOMP_CPU_AFFINITY" not in done.stderr:
        pytest.skip("this torch does not use GNU's OpenMP")
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
