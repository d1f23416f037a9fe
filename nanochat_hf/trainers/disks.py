"""A run's folder on several machines: shared by all, or one on each machine's own disk.

Where it is shared, process 0 writes what all processes have in common, and each process its own part. Where it is not,
the first process of each machine writes for its machine. Then `spread` copies what only other machines wrote. So every
machine holds the same files as one shared folder would, and saving and resuming know no difference.
"""

import os
import secrets
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from nanochat_hf.settings import UserError

CHUNK = 2**26  # bytes of a file that are sent at once


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(value: Any) -> list[Any]:
    """The value of every process, in their order, on every process."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def is_shared(folder: str | os.PathLike) -> bool:
    """Whether all processes see the same folder; every process has to call it.

    Raises:
        UserError: some machines share it and others do not; on every process.
    """
    if world_size() == 1:
        return True
    name = [secrets.token_hex(8)]
    dist.broadcast_object_list(name)
    marks = [Path(folder, f".seen-{name[0]}-{number}") for number in range(world_size())]
    own = marks[rank()]
    own.parent.mkdir(parents=True, exist_ok=True)
    own.touch()
    dist.barrier()
    for _ in range(50):  # a network file system may show a new file a little later
        if all(mark.exists() for mark in marks):
            break
        time.sleep(0.1)
    first = next(number for number, mark in enumerate(marks) if mark.exists())  # of those that see this disk
    found = gather((first, is_first_of_machine()))
    own.unlink()
    if all(first == 0 for first, _ in found):
        return True
    if any((first == number) != leads for number, (first, leads) in enumerate(found)):
        raise UserError(
            f"some machines share {folder} and others do not; give a folder that all machines share, or one on each "
            "machine's own disk"
        )
    return False


def is_first_of_machine() -> bool:
    """Whether this is the first process of its machine."""
    return PartialState().local_process_index == 0 or world_size() == 1


def writes(shared: bool) -> bool:
    """Whether this process writes what all that see its disk have in common."""
    return rank() == 0 if shared else is_first_of_machine()


def spread(folder: str | os.PathLike, writes: bool) -> None:
    """Copies the files of a folder to the machines that lack them; every process has to call it.

    Files of the same name count as the same. A file appears under its name when it is complete.

    Args:
        writes: whether this process writes for its disk, as `writes` says.
    """
    if world_size() == 1:
        return
    folder = Path(folder)
    here = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    found = gather(here if writes else None)
    disks = {number: files for number, files in enumerate(found) if files is not None}
    sent = False
    for name in sorted(set().union(*disks.values())):
        holder = next(number for number, files in disks.items() if name in files)
        if any(name not in files for files in disks.values()):
            target = folder / name if writes and name not in here else None
            _send(folder / name, target, disks[holder][name], holder)
            sent = True
    if sent:
        dist.barrier()


def _send(source: Path, target: Path | None, size: int, holder: int) -> None:
    """Sends a file of `size` bytes from the process `holder` to all; those with a `target` write it."""
    device = PartialState().device
    part = target and target.with_name(target.name + ".part")
    if part:
        part.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        reading = files.enter_context(source.open("rb")) if rank() == holder else None
        writing = files.enter_context(part.open("wb")) if part else None
        for start in range(0, size, CHUNK):
            length = min(CHUNK, size - start)
            chunk = torch.empty(length, dtype=torch.uint8)
            if reading:
                chunk = torch.frombuffer(bytearray(reading.read(length)), dtype=torch.uint8)
            chunk = chunk.to(device)
            dist.broadcast(chunk, src=holder)
            if writing:
                writing.write(chunk.cpu().numpy().tobytes())
    if part and target:
        part.rename(target)


def check_same(what: str, value: Any, remedy: str) -> None:
    """Checks that all processes have the same value; every process has to call it.

    Raises:
        UserError: they do not; on every process.
    """
    values = gather(value)
    other = next((number for number, found in enumerate(values) if found != values[0]), None)
    if other is not None:
        raise UserError(f"process {other} of {len(values)} has another {what} than process 0; {remedy}")
