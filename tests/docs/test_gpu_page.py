"""The page "On GPUs": the plan it quotes, its list of checks, the Slurm script and the container file."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from pages import FENCE, ROOT, commands, section, tables

from nanochat_hf.scaling.plan import plan

PAGE = (ROOT / "docs" / "gpu.md").read_text()


def test_the_quoted_plan_is_what_the_command_prints():
    (quoted,) = [body for language, body in FENCE.findall(section(PAGE, "what-a-run-costs")) if language == "text"]
    assert plan(24, param_data_ratio=8, fp8=True).endswith(quoted.rstrip("\n"))


def test_every_check_is_explained(monkeypatch):
    listing = [sys.executable, "-c", "import gpu; print(*gpu.CHECKS)"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
    done = subprocess.run(listing, env=environment, capture_output=True, text=True, check=True)
    (table,) = tables(section(PAGE, "the-check-of-ten-minutes"))
    assert sorted(re.findall(r"`(\w+)`", " ".join(row[0] for row in table))) == sorted(done.stdout.split())


def run_slurm_script(
    folder: Path, *words: str, nodes: int, node: int, gpus: int | None, options: str | None = None
) -> list[str]:
    """The words of the `accelerate launch` line that one node runs; Slurm's programs are stand-ins."""
    stubs = {
        "scontrol": "printf 'alpha\\nbeta\\n'",
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "accelerate": 'printf "%s\\0" "$@"',
    }
    (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    for name, body in stubs.items():
        path = folder / ".venv" / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_NODELIST": "alpha,beta", "SLURM_NNODES": str(nodes)}
    environment |= {"SLURM_NODEID": str(node)} | ({} if gpus is None else {"SLURM_GPUS_ON_NODE": str(gpus)})
    environment |= {} if options is None else {"LAUNCH_OPTIONS": options}
    command = ["bash", str(ROOT / "training" / "slurm.sh"), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\0").split("\0")


def test_the_slurm_script_starts_accelerate_on_each_node(tmp_path):
    from accelerate.commands.launch import launch_command_parser

    asked = ["training/pretrain.py", "--data", "a folder", "--depth", "26"]
    for gpus, node in ((None, 0), (4, 1)):
        words = run_slurm_script(tmp_path, *asked, nodes=2, node=node, gpus=gpus)
        assert words[0] == "launch" and words[-len(asked) :] == asked
        parsed = launch_command_parser().parse_args(words[1:])
        assert (parsed.num_machines, parsed.num_processes) == (2, 2 * (gpus or 8))
        assert (parsed.machine_rank, parsed.main_process_ip, parsed.main_process_port) == (node, "alpha", 29500)
        assert (ROOT / parsed.config_file).exists() and parsed.training_script == "training/pretrain.py"


def test_the_slurm_script_takes_options_of_accelerate(tmp_path):
    from accelerate.commands.launch import launch_command_parser

    (shown,) = re.findall(r'export LAUNCH_OPTIONS="(.*)"', (ROOT / "training" / "slurm.sh").read_text())
    words = run_slurm_script(tmp_path, "training/sft.py", nodes=2, node=1, gpus=8, options=shown)
    parsed = launch_command_parser().parse_args(words[1:])
    assert parsed.config_file == "training/accelerate_fsdp.yaml" and parsed.parallelism_config_dp_replicate_size == 2
    assert parsed.training_script == "training/sft.py" and (ROOT / parsed.config_file).exists()


def test_the_page_shows_the_line_of_the_slurm_script():
    script = (ROOT / "training" / "slurm.sh").read_text()
    (shown,) = [command for command in commands(PAGE) if "--machine_rank" in command.launcher_options]
    assert set(shown.launcher_options) == set(re.findall(r"(?<=\s)--(?!kill)\w+", script.split("srun", 1)[1]))


def test_the_container_file_copies_what_exists():
    text = (ROOT / "training" / "Dockerfile.cuda").read_text()
    copied = [shlex.split(line)[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    names = [name for words in copied for name in words if not words[0].startswith("--from")]
    assert {"nanochat_hf", "rustbpe", "training", "requirements.lock"} <= set(names)
    assert [name for name in names if not (ROOT / name).exists()] == []
