"""Checkpoints that are whole or not there: written aside, checked by checksums, independent of the number of ranks."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nanochat_hf.optim.muon_adamw import MuonAdamW, index_pieces

MANIFEST = "checksums.json"
PREFIX = "checkpoint-"


def save_optimizer(optimizer: MuonAdamW, folder: str | os.PathLike, rank: int, world_size: int) -> None:
    """Writes this rank's part of the optimizer state; every rank has to call it."""
    tensors = {piece.key: piece.tensor.detach().clone().contiguous() for piece in optimizer.state_pieces()}
    save_file(tensors, Path(folder) / f"optimizer-{rank + 1:05d}-of-{world_size:05d}.safetensors")


def load_optimizer(optimizer: MuonAdamW, folder: str | os.PathLike) -> None:
    """Fills the optimizer's state from the parts of any number of ranks; each rank reads what it needs.

    Raises:
        FileNotFoundError: there is no optimizer state in the folder.
        KeyError: parts are missing.
    """
    files = sorted(Path(folder).glob("optimizer-*-of-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no optimizer state")
    read = {}
    for path in files:
        file = safe_open(path, "pt")
        read |= {key: lambda file=file, key=key: file.get_tensor(key) for key in file.keys()}
    optimizer.load_state_pieces(index_pieces(read))


def seal(staging: Path, final: Path) -> None:
    """Notes a checksum of every file of `staging`, sees to it that all is on disk, and gives it its final name."""
    files = sorted(path for path in staging.rglob("*") if path.is_file() and path.name != MANIFEST)
    sums = {str(path.relative_to(staging)): _checksum(path) for path in files}
    manifest = staging / MANIFEST
    manifest.write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for path in [*files, manifest, staging]:
        _flush(path)
    if final.exists():
        shutil.rmtree(final)
    os.replace(staging, final)
    _flush(final.parent)


def fault(checkpoint: Path) -> str | None:
    """Says what is wrong with a checkpoint, or None if every file is what it was when it was written."""
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
    complaints = []
    for checkpoint in checkpoints(folder):
        wrong = fault(checkpoint)
        if wrong is None:
            return checkpoint, complaints
        complaints.append(f"{checkpoint} is not used: {wrong}")
    return None, complaints


def to_resume(folder: str | os.PathLike, verbose: bool = True) -> str | None:
    """The checkpoint to go on from, or None; says which newer ones are passed over, and why."""
    checkpoint, complaints = newest_intact(folder)
    if verbose:
        for complaint in complaints:
            print(f"warning: {complaint}", file=sys.stderr)
        if checkpoint:
            print(f"going on from {checkpoint}", flush=True)
    return str(checkpoint) if checkpoint else None


def rotate(folder: str | os.PathLike, keep: int | None) -> None:
    """Deletes all but the newest `keep` checkpoints; None keeps all."""
    for checkpoint in checkpoints(folder)[keep:] if keep else []:
        shutil.rmtree(checkpoint, ignore_errors=True)


def save_loader(state: dict, folder: str | os.PathLike, rank: int) -> None:
    torch.save(state, Path(folder) / f"loader-{rank:05d}.pt")


def load_loaders(folder: str | os.PathLike) -> list[dict]:
    """The data loader states of all ranks of the interrupted run."""
    return [torch.load(path, weights_only=True) for path in sorted(Path(folder).glob("loader-*.pt"))]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
