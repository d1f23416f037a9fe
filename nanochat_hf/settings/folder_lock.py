"""Keeps a second command out of a folder in which one is running: it would overwrite what the first one writes."""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO, Any

from nanochat_hf.settings.errors import UserError

LOCK_FILE = ".lock"
_held: dict[Path, IO[str]] = {}  # a closed file would give up the lock


def claim(folder: str | os.PathLike, option: str = "--output_dir") -> None:
    """Takes a folder for this job until the process ends, however it ends. Only process 0 of a job takes it.

    The lock is one of POSIX: children do not inherit it, and other machines see it on a shared disk. On a disk without
    locks, nothing is kept out.

    Args:
        folder: it is made where it does not exist.
        option: the option that names another folder, for the message.

    Raises:
        UserError: another command has the folder.
    """
    path = Path(folder).absolute() / LOCK_FILE
    if os.environ.get("RANK", "0") != "0" or (path in _held and path.exists()):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w", encoding="utf-8")
    try:
        lock(file, folder, option)
    except BaseException:
        file.close()
        raise
    _held[path] = file


def lock(file: IO[Any], place: str | os.PathLike, option: str) -> None:
    """Takes an open file until it is closed; see `claim`.

    Args:
        place: what is written to, for the message.

    Raises:
        UserError: another command has it.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"another command is writing to {place}; wait until it ends or stop it, or give another {option}"
            ) from None
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
