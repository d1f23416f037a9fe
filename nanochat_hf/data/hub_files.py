"""A data set of the Hub as a list of files that are fetched when they are first read.

The listing is one request; each file goes through `huggingface_hub` into its cache, is compared with the SHA-256 that
the Hub states for it, and is fetched again if it does not agree. While a file is read the next one is fetched.
"""

import fnmatch
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_hf.data import files
from nanochat_hf.settings import UserError

RETRY_SECONDS = (1, 2, 4, 8, 16)  # before the second, third, ... attempt


class DownloadError(UserError):
    """A file could not be fetched. Unlike a bad file it is never skipped: the next attempt may succeed."""


@dataclass(frozen=True)
class HubPart:
    """A file of a data set of the Hub."""

    repo_id: str
    revision: str
    name: str
    sha256: str | None
    text_column: str | None = None

    def num_groups(self) -> int | None:
        return files.num_groups(self.fetch())

    def groups(self, start: int, step: int) -> Iterator[files.Group]:
        return files.read_groups(self.fetch(), self.text_column, start, step)

    def fetch(self) -> Path:
        """Returns the file's place in the cache, after fetching and checking it if it is not there yet.

        Raises:
            DownloadError: it cannot be had, also after waiting and trying again.
        """
        from huggingface_hub import hf_hub_download

        where = {"repo_id": self.repo_id, "filename": self.name, "repo_type": "dataset", "revision": self.revision}
        try:
            return Path(hf_hub_download(**where, local_files_only=True))
        except Exception:  # not in the cache
            pass
        fault: object = None
        for seconds in (0, *RETRY_SECONDS):
            time.sleep(seconds)
            try:
                path = Path(hf_hub_download(**where, endpoint=_endpoint(), force_download=fault == "checksum"))
            except Exception as error:
                fault = error
                if not _may_pass(error):
                    break
                continue
            if self.sha256 is None or _sha256(path) == self.sha256:
                return path
            fault = "checksum"
            os.remove(os.path.realpath(path))
            path.unlink(missing_ok=True)
        if fault == "checksum":
            raise DownloadError(f"{self.name} of {self.repo_id} arrives damaged again and again; check the connection")
        raise DownloadError(
            f"cannot fetch {self.name} of {self.repo_id} ({_first_line(fault)}); check the connection and try again"
        )

    def prefetch(self) -> None:
        """Begins to fetch the file in the background; a failure shows when the file is read."""

        def attempt() -> None:
            try:
                self.fetch()
            except UserError:
                pass

        threading.Thread(target=attempt, name=f"fetch-{self.name}", daemon=True).start()


def find_hub_parts(source: str, text_column: str | None = None) -> tuple[list[HubPart], list[str]]:
    """Lists the files of a data set `owner/name` or `owner/name:config`.

    A config is one that the data set's card names, or a folder in it.

    Returns:
        The files and, for each, the name that says which split it belongs to.

    Raises:
        UserError: the data set does not exist, cannot be reached, or has no such config or no files of text.
    """
    repo_id, _, config = source.partition(":")
    info = _dataset_info(repo_id)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings if files.file_format(sibling.rfilename)}
    names = sorted(name for name in siblings if Path(name).suffix != ".md")
    names, announced = _of_config(repo_id, info, names, config)
    if not names:
        raise UserError(f"the data set {source} holds no {', '.join(files.FORMATS)} file; choose another one")
    parts = [
        HubPart(repo_id, info.sha, name, siblings[name].lfs.sha256 if siblings[name].lfs else None, text_column)
        for name in names
    ]
    return parts, announced


def _dataset_info(repo_id: str) -> Any:
    from huggingface_hub import HfApi

    fault: object = None
    for seconds in (0, *RETRY_SECONDS):
        time.sleep(seconds)
        try:
            return HfApi(endpoint=_endpoint()).dataset_info(repo_id, files_metadata=True)
        except Exception as error:
            fault = error
            if not _may_pass(error):
                break
    raise DownloadError(
        f"there is no file or folder {repo_id}, and as a data set of the Hub it cannot be read "
        f"({_first_line(fault)}); check the name and the connection"
    )


def _of_config(repo_id: str, info: Any, names: list[str], config: str) -> tuple[list[str], list[str]]:
    """Restricts file names to a config; also returns, for each, the name that says which split it is of."""
    card = (info.card_data or {}).get("configs") or []
    configs = {entry.get("config_name", "default"): entry.get("data_files") for entry in card}
    chosen = configs.get(config or "default")
    if not chosen:
        if not config:
            return names, names
        inside = [name for name in names if name.startswith(config.rstrip("/") + "/")]
        if not inside:
            known = ", ".join(sorted(configs)) or "none named"
            raise UserError(f"the data set {repo_id} has no config or folder {config} (configs: {known})")
        return inside, inside
    entries = [{"split": "train", "path": chosen}] if isinstance(chosen, str) else chosen
    found: dict[str, str] = {}
    for entry in entries:
        entry = {"split": "train", "path": entry} if isinstance(entry, str) else entry
        patterns = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
        for name in names:
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                found.setdefault(name, f"{entry['split']}/{Path(name).name}")
    # sorted by name: the last shard is then the validation split where the card names none
    return sorted(found), [found[name] for name in sorted(found)]


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: yes for whatever is not the server's clear refusal."""
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return status >= 500 or status in (408, 425, 429)
        cause = cause.__cause__
    return type(error).__name__ != "OfflineModeIsEnabled"


def _first_line(fault: object) -> str:
    cause = fault.__cause__ if isinstance(fault, Exception) and fault.__cause__ is not None else fault
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
