"""Checks of folders, checkpoints and devices that need no torch, so that a mistake is said at once."""

import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Any

from nanochat_hf.settings.errors import UserError
from nanochat_hf.settings.run_files import load_run

DTYPES = ("auto", "float32", "bfloat16", "float16")  # what a model can be loaded in; auto: see the command
# How chats sample a model whose generation configuration does not say it.
CHAT_SAMPLING: dict[str, Any] = {"temperature": 0.6, "top_k": 50, "top_p": None, "min_p": None}
DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?")


def check_output_dir(folder: str | os.PathLike, *, unfinished: bool = True, option: str = "--output_dir") -> None:
    """Refuses a folder into which a stage could not write its result.

    Args:
        folder: it need not exist.
        unfinished: also refuse the folder of a finished stage.
        option: the setting that names it, for the error.

    Raises:
        UserError: there is no name, the folder is a file, or it cannot be made or written to, or a stage finished in
            it.
    """
    if not str(folder):
        raise UserError(f"give {option}, the folder that receives the result")
    try:
        place = Path(folder).absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise UserError(f"{place} is a file, where a folder belongs; give another {option} or move the file")
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write to {folder} ({reason}); give another {option}, or change the permissions"
        ) from None
    if unfinished and load_run(folder):
        raise UserError(f"{folder} is finished; delete that folder to train it again")


def check_checkpoint(checkpoint: str | Path) -> None:
    """Checks, without loading anything, that this is a checkpoint folder or a possible Hub id.

    Raises:
        UserError: the folder holds no checkpoint, or there is no folder and the name cannot be a Hub id.
    """
    folder, name = Path(checkpoint), str(checkpoint)
    if not name.strip():
        raise UserError("a checkpoint has an empty name; give its folder, such as runs/quickstart/rl, or a Hub id")
    if folder.exists() and not (folder / "config.json").exists():
        stages = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f"; it holds {', '.join(stages)}: name one of these" if stages else "; give the folder of a stage"
        raise UserError(f"{checkpoint} is not a checkpoint folder (no config.json in it){hint}")
    if not folder.exists() and not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name):
        raise UserError(
            f"there is no folder {checkpoint}, and no model on the Hub can have that name; give a checkpoint folder "
            "such as runs/quickstart/rl, or a Hub id"
        )


def check_device(name: str | None) -> None:
    """Raises UserError where `name` cannot be a device. Whether this machine has it is not checked."""
    if name is not None and not DEVICE.fullmatch(name):
        raise UserError(f"there is no device {name!r}; use auto, cpu, cuda, cuda:1 (another GPU) or mps")


def find_checkpoint(checkpoint: str | Path, revision: str | None = None) -> None:
    """Checks quickly that a checkpoint exists, so that a mistyped path is answered at once.

    A name that could be an id of the Hub is looked up there once, for a few seconds, unless it is in the cache.

    Raises:
        UserError: there is no such folder, and no such model on the Hub.
    """
    check_checkpoint(checkpoint)
    folder, name = Path(checkpoint), str(checkpoint)
    if folder.exists():
        return
    first, _, rest = name.partition("/")
    if rest and Path(first).is_dir():
        inside = sorted(path.name for path in Path(first).iterdir() if path.is_dir() and path.name[:1] != ".")
        hint = f"{first} holds {', '.join(inside[:8])}" if inside else f"{first} is empty"
        raise UserError(f"there is no folder {name}: {hint}; give a checkpoint folder, or the id of a Hub model")
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    advice = "give a checkpoint folder such as runs/quickstart/rl, or the id of a Hub model"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"there is no folder {name}, and the Hub is switched off (HF_HUB_OFFLINE); {advice}")
    from huggingface_hub import get_token
    from huggingface_hub.utils import get_session

    address = f"{constants.ENDPOINT}/api/models/{name}" + (f"/revision/{revision}" if revision else "")
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        status = get_session().get(address, headers=headers, timeout=5, follow_redirects=True).status_code
    except Exception as error:  # of the client that huggingface_hub uses: no network, no such host, a timeout
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"there is no folder {name}, and the Hub cannot be reached ({reason}); {advice}") from None
    if status in (401, 403, 404):
        raise UserError(f"there is no folder {name}, and no such model on the Hub that you may read; {advice}")


def check_address(host: str, port: int) -> None:
    """Raises UserError where no server can listen on an address: it is in use, or not one of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen on {host}:{port} ({reason}); give another --port or --host") from None
