"""Processes of a training job, forked from a server that has imported what takes long."""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TOY = Path(__file__).with_name("pretrain_toy.py")
STEPS = 8
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_servers: dict[str, subprocess.Popen] = {}  # what they have imported → the server


class Ended(NamedTuple):
    """What a process wrote, and its exit status."""

    stdout: str
    stderr: str
    returncode: int


def toy(output, rows, accumulation, mishap=""):
    """The words of the toy training: `rows` are per micro-batch and process, `pretrain_toy.Mishap` reads `mishap`."""
    return [TOY, output, STEPS, rows, accumulation, *[mishap] * bool(mishap)]


def launch(output, rows, accumulation, mishap="", prefix=(), config_file=None):
    """Trains the toy on one process, or by accelerate's launcher on those of `config_file`; `prefix` starts it."""
    words = toy(output, rows, accumulation, mishap)
    if not (prefix or config_file):
        return start([words])[0]
    command = [sys.executable]
    if config_file:
        command += ["-m", "accelerate.commands.launch", "--config_file", str(config_file), "--main_process_port", "0"]
    command += [str(word) for word in words]
    return subprocess.run([*prefix, *command], capture_output=True, text=True, env=ENVIRONMENT, timeout=900)


def launch_apart(output, rows, accumulation, mishap="", ranks=3, env=None):
    """Each rank of the toy as a process of its own, see `start_apart`."""
    return start_apart(toy(output, rows, accumulation, mishap), [None] * ranks, env)


def start_apart(command, machines, env=None, imports="nanochat_hf.trainers.pretraining"):
    """Starts the ranks of a job without a launcher that would end the others after one has ended.

    Args:
        command: a script and its words.
        machines: for each rank the folder of its machine, in which it works; None: all are on this machine.
        env: environment variables that a launcher would set besides.
        imports: what the script imports, once for all jobs of this test process.

    Returns:
        What became of each.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks, apart = len(machines), machines[0] is not None
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": "1" if apart else str(ranks)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | (env or {})
    variables = []
    for rank, machine in enumerate(machines):
        variables.append(shared | {"RANK": str(rank), "LOCAL_RANK": "0" if apart else str(rank)})
        if apart:
            machine.mkdir(parents=True, exist_ok=True)
    return start([command] * ranks, variables, machines, imports)


def start(commands, variables=None, folders=None, imports="nanochat_hf.trainers.pretraining"):
    """Runs commands side by side, each in a process of its own; see `start_apart`."""
    with tempfile.TemporaryDirectory() as written:
        job = []
        for number, command in enumerate(commands):
            files = {name: str(Path(written, f"{name}-{number}")) for name in ("stdout", "stderr")}
            folder = str(folders[number]) if folders and folders[number] else None
            words = [str(word) for word in command]
            job.append({"command": words, "env": variables[number] if variables else {}, "cwd": folder, **files})
        statuses = _ask(imports, job)
        texts = [[Path(process[name]).read_text() for name in ("stdout", "stderr")] for process in job]
    return [Ended(*both, status) for both, status in zip(texts, statuses, strict=True)]


def _ask(imports, job):
    if imports not in _servers:
        command = [sys.executable, str(TOY.with_name("forked_ranks.py")), imports]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        _servers[imports] = subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **pipes)
    server = _servers[imports]
    try:
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())
    except BaseException:  # a test that takes too long is interrupted here by pytest's time limit
        _end(_servers.pop(imports))
        raise


def _end(server):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@atexit.register
def _end_all():
    for server in _servers.values():
        _end(server)


def result(run):
    """What the toy training measured, of a process that has ended well."""
    lines = [line for line in run.stdout.splitlines() if line.startswith('{"world"')]
    assert run.returncode == 0 and lines, run.stderr[-2000:]
    return json.loads(lines[-1])
