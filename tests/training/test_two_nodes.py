"""Two machines with addresses of their own, as two network namespaces joined by a virtual cable."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from ranks import STEPS, TOY, launch, result


def why_not() -> str:
    """Why this machine cannot make network namespaces; empty where it can."""
    missing = [tool for tool in ("unshare", "nsenter", "ip") if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)} not installed"
    for inner in (["unshare", "-n", "true"], ["ip", "link", "add", "one", "type", "veth", "peer", "name", "two"]):
        tried = subprocess.run(["unshare", "-rn", *inner], capture_output=True, text=True)
        if tried.returncode:
            return tried.stderr.strip()
    return ""


def test_two_machines_train_as_one_process(tmp_path):
    if reason := why_not():
        pytest.skip(f"no network namespaces here: {reason}")
    one = result(launch(tmp_path / "one", 6, 1))
    config = TOY.parents[2] / "training" / "accelerate_cpu.yaml"
    command = ["unshare", "-rn", "bash", str(TOY.with_name("two_nodes.sh")), str(config)]
    command += [str(TOY), str(tmp_path / "two"), str(STEPS), "3", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    two = result(done)
    assert two["world"] == 2 and not two["wrapped"]
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-3)
    sent = int(re.search(r"cable: (\d+)", done.stdout)[1])
    assert sent > STEPS * 4 * two["parameters"]  # half of the gradients go and half of the weights, 4 bytes each
    states = sorted(path.name for path in (tmp_path / "two" / "checkpoint-6").glob("optimizer-*"))
    assert states == ["optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"]
