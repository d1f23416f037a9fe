"""Keeps a second training out of a folder in which one is running: it would overwrite the first one's checkpoints."""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

from nanochat_hf.settings import UserError

LOCK_FILE = ".lock"
_held: dict[Path, IO[str]] = {}  # a closed file would give up the lock


def claim(folder: str | os.PathLike) -> None:
    """Takes a folder for this job until the process ends, however it ends. Only process 0 of a job takes it.

    The lock is one of POSIX: children do not inherit it, and other machines see it on a shared disk. On a disk without
    locks, nothing is kept out.

    Raises:
        UserError: another training runs in the folder.
    """
    path = Path(folder).absolute() / LOCK_FILE
    if os.environ.get("RANK", "0") != "0" or (path in _held and path.exists()):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"another command is training in {folder}; wait until it ends or stop it, or give another --output_dir"
            ) from None
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return
    _held[path] = file
