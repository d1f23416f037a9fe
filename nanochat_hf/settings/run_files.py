"""What a finished stage leaves beside its weights: `run.json`, with settings, results and versions."""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from nanochat_hf.settings.errors import UserError, peak_memory_mb

RUN_FILE = "run.json"
RECORDED_PACKAGES = ("nanochat-hf", "torch", "transformers", "accelerate", "datasets", "trl", "tokenizers")
# The folders of a path that is absolute or begins with ~ or .., where a value may begin: `smoltalk=/home/me/a.jsonl`.
FOLDERS = re.compile(r'(?:^|(?<=["=,;(\[])|(?<=\| ))(?:file:|~[\w.-]*|\.\.)?/+(?:[^,"|\n]*/)?(?=[^/,"|\s])')


def save_run(folder: str | os.PathLike, stage: str, config: Any, **facts: Any) -> None:
    """Writes `run.json`: the stage, its resolved configuration, the environment, and `facts`.

    Usual facts: `seconds`, `peak_memory_mb`, `metrics` (flat name → number), `history` (rows with `step`).
    """
    facts.setdefault("peak_memory_mb", peak_memory_mb())
    settings = dict(config) if isinstance(config, dict) else asdict(config)
    write_json(Path(folder) / RUN_FILE, {"stage": stage, "config": settings, "environment": environment(), **facts})


def load_run(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the content of `run.json`, or None where the stage has not finished."""
    path = Path(folder) / RUN_FILE
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: delete it and run that stage again")
    return record


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON so that a reader sees either the old file or the complete new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False, default=str)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def without_paths(value: Any) -> Any:
    """Returns text, or a list or dict with text in it, with paths of this machine cut to their last part.

    What is published tells the recipe, not the machine. Relative paths stay as they are.
    """
    if isinstance(value, str):
        return FOLDERS.sub("", value)
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    return [without_paths(one) for one in value] if isinstance(value, list | tuple) else value


def environment() -> dict[str, Any]:
    """What is needed to run the same thing again: versions, hardware, command, git commit."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
    }
    size = os.environ.get("WORLD_SIZE", "1")  # set by a launcher; what needs it has checked it
    found |= {"world_size": int(size) if size.isdecimal() else 1, "command": sys.argv, "git_commit": _git_commit()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {**found, "versions": versions}


def _git_commit() -> str | None:
    """The commit of the clone that holds this package; None for an installed wheel, whatever folder it lies in."""
    package = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return found[1] if Path(found[0]).resolve() == package.parent else None
