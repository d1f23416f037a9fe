"""Checkpoints to resume from: complete or ignored, verified by checksums, independent of the number of processes.

`checksums.json` is written last. A folder without it is what an interrupted write left behind.
"""

import hashlib
import json
import os
import random
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nanochat_hf.optim.muon_adamw import MuonAdamW, index_pieces
from nanochat_hf.trainers import disks

MANIFEST = "checksums.json"
PREFIX = "checkpoint-"


def save_optimizer(optimizer: MuonAdamW, folder: str | os.PathLike, rank: int, world_size: int) -> None:
    """Writes this process's part of the optimizer state; every process has to call it.

    Of several copies of a model (HSDP), the first is written.
    """
    pieces = optimizer.state_pieces() if optimizer.holders.copy == 0 else []
    tensors = {piece.key: piece.tensor.detach().clone().contiguous() for piece in pieces}
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
    return sorted(found, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def newest_intact(folder: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes its checksums, and a sentence on each newer one that does not."""
    complaints: list[str] = []
    for checkpoint in checkpoints(folder):
        damage = damage_in(checkpoint)
        if damage is None:
            return checkpoint, complaints
        complaints.append(f"{checkpoint} is not used: {damage}")
    return None, complaints


def to_resume(folder: str | os.PathLike, verbose: bool = True, writes: bool = True) -> str | None:
    """The newest checkpoint that is intact on any machine's disk, or None; every process has to call it.

    A machine whose disk lacks it receives it.

    Args:
        verbose: print it, and why newer ones are not used.
        writes: whether this process writes for its disk, as `disks.writes` says.
    """
    own, complaints = newest_intact(folder) if writes else (None, [])
    step = _step(own) if own else -1
    newest = max(disks.gather(step))
    if verbose:
        for complaint in complaints:
            print(f"warning: {complaint}", file=sys.stderr)
    if newest < 0:
        return None
    checkpoint = Path(folder, f"{PREFIX}{newest}")
    if writes and step < newest:
        shutil.rmtree(checkpoint, ignore_errors=True)  # what an interrupted write left
        print(f"{checkpoint} is not on the disk of {socket.gethostname()}, another machine sends it", flush=True)
    disks.spread(checkpoint, writes)
    if verbose and disks.rank() == 0:
        print(f"resuming from {checkpoint}", flush=True)
    return str(checkpoint)


def rotate(folder: str | os.PathLike, keep: int | None, newest: Path) -> None:
    """Deletes all checkpoints but the last `keep` up to `newest`, which was just written; None keeps all.

    Those of later steps are damaged: else the run would have gone on from them.
    """
    found = checkpoints(folder)
    kept = [checkpoint for checkpoint in found if _step(checkpoint) <= _step(newest)][:keep]
    for checkpoint in found if keep else []:
        if checkpoint not in kept:
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
