"""Checkpoints to resume from: complete or ignored, verified by checksums, independent of the number of processes.

`checksums.json` is written last. A folder without it is what an interrupted write left behind.
"""

import hashlib
import json
import os
import random
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from nanochat_hf.optim.muon_adamw import MuonAdamW, index_pieces
from nanochat_hf.settings import UserError

MANIFEST = "checksums.json"
PREFIX = "checkpoint-"


def check_shared(folder: str | os.PathLike) -> None:
    """Checks that all processes see the same output folder; every process has to call it.

    Each process writes its part of the optimizer there, and packed rows are made by one process for all.

    Raises:
        UserError: some do not, because the machines have no shared file system there; on every process.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    name = [secrets.token_hex(8)]
    dist.broadcast_object_list(name)
    path = Path(folder, f".shared-{name[0]}")
    if dist.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    dist.barrier()
    for _ in range(50):  # a network file system may show a new file a little later
        if path.exists():
            break
        time.sleep(0.1)
    seen: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(seen, path.exists())
    if dist.get_rank() == 0:
        path.unlink()
    if not all(seen):
        blind = ", ".join(str(rank) for rank, sees in enumerate(seen) if not sees)
        raise UserError(
            f"{folder} is not the same folder for all processes: process {blind} of {len(seen)} cannot see what "
            "process 0 writes there; give an --output_dir on a file system that all machines share"
        )


def save_optimizer(optimizer: MuonAdamW, folder: str | os.PathLike, rank: int, world_size: int) -> None:
    """Writes this process's part of the optimizer state; every process has to call it."""
    tensors = {piece.key: piece.tensor.detach().clone().contiguous() for piece in optimizer.state_pieces()}
    save_file(tensors, Path(folder) / f"optimizer-{rank + 1:05d}-of-{world_size:05d}.safetensors")


def load_optimizer(optimizer: MuonAdamW, folder: str | os.PathLike) -> None:
    """Fills the optimizer's state from the parts of any number of processes; each process reads what it needs.

    Raises:
        FileNotFoundError: there is no optimizer state in the folder.
        KeyError: parts are missing.
    """
    files = sorted(Path(folder).glob("optimizer-*-of-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no optimizer state")
    read: dict[str, Callable[[], torch.Tensor]] = {}
    for path in files:
        file = safe_open(path, "pt")
        read |= {key: lambda file=file, key=key: file.get_tensor(key) for key in file.keys()}
    optimizer.load_state_pieces(index_pieces(read))


def save_random_state(folder: str | os.PathLike, rank: int) -> None:
    """Writes the states of Python's, NumPy's and torch's random generators of this process, as JSON."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    state = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state().tolist()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().tolist()
    Path(folder, f"random-{rank:05d}.json").write_text(json.dumps(state), encoding="utf-8")


def load_random_state(folder: str | os.PathLike, rank: int) -> None:
    """Restores what `save_random_state` wrote; does nothing where this rank has no file."""
    path = Path(folder, f"random-{rank:05d}.json")
    if not path.exists():
        return
    state = json.loads(path.read_text(encoding="utf-8"))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    state["numpy"]["state"]["key"] = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


def save_loader(state: dict, folder: str | os.PathLike, rank: int) -> None:
    torch.save(state, Path(folder) / f"loader-{rank:05d}.pt")


def load_loaders(folder: str | os.PathLike) -> list[dict]:
    """The data loader states of all processes of the interrupted run."""
    return [torch.load(path, weights_only=True) for path in sorted(Path(folder).glob("loader-*.pt"))]


def seal(checkpoint: Path) -> None:
    """Writes the checksum of every file into the manifest and flushes everything to disk."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    sums = {str(path.relative_to(checkpoint)): _checksum(path) for path in files}
    manifest = checkpoint / MANIFEST
    for path in files:
        _flush(path)
    manifest.write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for path in (manifest, checkpoint, checkpoint.parent):
        _flush(path)


def damage_in(checkpoint: Path) -> str | None:
    """Says what is wrong with a checkpoint, or None if every file is as it was written."""
    try:
        sums = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or damaged"
    for name, expected in sums.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _checksum(path) != expected:
            return f"{name} is not what was written"
    return None


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints in a folder, newest first, intact or not."""
    found = [path for path in Path(folder).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def newest_intact(folder: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes its checksums, and a sentence on each newer one that does not."""
    complaints: list[str] = []
    for checkpoint in checkpoints(folder):
        damage = damage_in(checkpoint)
        if damage is None:
            return checkpoint, complaints
        complaints.append(f"{checkpoint} is not used: {damage}")
    return None, complaints


def to_resume(folder: str | os.PathLike, verbose: bool = True) -> str | None:
    """The checkpoint to resume from, or None. `verbose` prints it, and why newer ones are not used."""
    checkpoint, complaints = newest_intact(folder)
    if verbose:
        for complaint in complaints:
            print(f"warning: {complaint}", file=sys.stderr)
        if checkpoint:
            print(f"resuming from {checkpoint}", flush=True)
    return str(checkpoint) if checkpoint else None


def rotate(folder: str | os.PathLike, keep: int | None) -> None:
    """Deletes all but the newest `keep` checkpoints; None keeps all."""
    for checkpoint in checkpoints(folder)[keep:] if keep else []:
        shutil.rmtree(checkpoint, ignore_errors=True)


def is_write_error(error: Exception) -> bool:
    """Whether an error means a full disk or the like; torch and safetensors wrap the operating system's error."""
    words = ("No space left", "File too large", "Disk quota", "write failed", "PytorchStreamWriter")
    return isinstance(error, OSError) or any(word in str(error) for word in words)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
