"""Reads data sets of the Hub. In: `owner/name[:config]`. Out: a list of files, each fetched when it is first read.

One request lists the files. `huggingface_hub` fetches each into its cache. Where its SHA-256 differs from the one that
the Hub states, the file is fetched again. While one file is read, the next one is fetched.
"""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_hf.data import files, splits
from nanochat_hf.settings import UserError

RETRY_SECONDS = (1, 2, 4, 8, 16)  # before the second, third, ... attempt


class DownloadError(UserError):
    """A file could not be fetched. It is never skipped as a bad file is, because a later attempt may succeed."""


@dataclass(frozen=True)
class HubFile:
    """A file of a data set of the Hub; see `nanochat_hf.data.found.DataFile`.

    Attributes:
        repo_id: the data set, `owner/name`.
        revision: the commit.
        name: the file's path in the data set.
        sha256: the checksum that the Hub states, None where it states none.
        text_column: the column or key of the text; default: found.
        size: bytes, None where the Hub does not say.
    """

    repo_id: str
    revision: str
    name: str
    sha256: str | None
    text_column: str | None = None
    size: int | None = None

    def num_groups(self) -> int | None:
        """Returns how many groups the file has, as `files.num_groups`; fetches the file."""
        return files.num_groups(self.fetch(), self.text_column)

    def groups(self, start: int, step: int) -> Iterator[files.Group]:
        """Yields the groups `start`, `start + step`, ..., as `files.read_groups`; fetches the file."""
        return files.read_groups(self.fetch(), self.text_column, start, step)

    def fetch(self) -> Path:
        """Returns the file's path in the cache. A file that is not there yet is fetched and checked first.

        Raises:
            DownloadError: the file cannot be fetched, or stays damaged, after several attempts.
        """
        from huggingface_hub import hf_hub_download

        where = {"repo_id": self.repo_id, "filename": self.name, "repo_type": "dataset", "revision": self.revision}
        try:
            return Path(hf_hub_download(**where, local_files_only=True))
        except Exception:  # not in the cache
            pass
        failure: Exception | None = None
        damaged = False
        for seconds in (0, *RETRY_SECONDS):
            time.sleep(seconds)
            try:
                path = Path(hf_hub_download(**where, endpoint=_endpoint(), force_download=damaged))
            except Exception as error:
                failure, damaged = error, False
                if not _is_temporary(error):
                    break
                continue
            if self.sha256 is None or _sha256(path) == self.sha256:
                return path
            damaged = True
            os.remove(os.path.realpath(path))
            path.unlink(missing_ok=True)
        if damaged:
            raise DownloadError(f"{self.name} of {self.repo_id} arrives damaged again and again; check the connection")
        raise DownloadError(
            f"cannot fetch {self.name} of {self.repo_id} ({_first_line(failure)}); check the connection and try again"
        )

    def prefetch(self) -> None:
        """Starts to fetch the file in the background. A failure is reported when the file is read."""

        def attempt() -> None:
            try:
                self.fetch()
            except UserError:
                pass

        threading.Thread(target=attempt, name=f"fetch-{self.name}", daemon=True).start()


def find_hub_files(
    source: str, text_column: str | None = None
) -> tuple[list[HubFile], list[str], list[tuple[str, str]]]:
    """Lists the files of a data set.

    Args:
        source: `owner/name` or `owner/name:config`. A config is one that the data set's card names, or a folder.
        text_column: the column or key of the text; default: found.

    Returns:
        The files, for each a name from which `splits.divide` tells its split, and the files that are left out with the
        reason.

    Raises:
        UserError: the data set does not exist, cannot be reached, or has no such config or no files of text.
    """
    repo_id, _, config = source.partition(":")
    info = _dataset_info(repo_id)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    whys = {name: _why_left_out(name, siblings[name].size) for name in sorted(siblings)}
    names, split_names = splits.files_of_config(
        repo_id, info.card_data, [n for n, why in whys.items() if not why], config
    )
    if not names:
        raise UserError(f"the data set {source} holds no {', '.join(files.FORMATS)} file; choose another one")
    found = [
        HubFile(
            repo_id,
            info.sha,
            name,
            siblings[name].lfs.sha256 if siblings[name].lfs else None,
            text_column,
            siblings[name].size,
        )
        for name in names
    ]
    chosen = set(names)
    left_out = [(name, why or "not in the config") for name, why in whys.items() if name not in chosen]
    return found, split_names, left_out


def _why_left_out(name: str, size: int | None) -> str | None:
    """As in a local folder; see `files.list_folder`. A data set's other .md files are about it, too."""
    if any(part.startswith(".") for part in name.split("/")):
        return "hidden"
    if Path(name).suffix == ".md":
        return "describes the data"
    if size == 0 and files.is_plain_text(name):
        return "empty"
    return files.description(name) or (None if files.file_format(name) else "no known format")


def _dataset_info(repo_id: str) -> Any:
    from huggingface_hub import HfApi

    failure: Exception | None = None
    for seconds in (0, *RETRY_SECONDS):
        time.sleep(seconds)
        try:
            return HfApi(endpoint=_endpoint()).dataset_info(repo_id, files_metadata=True)
        except Exception as error:
            failure = error
            if not _is_temporary(error):
                break
    raise DownloadError(
        f"there is no file or folder {repo_id}, and as a data set of the Hub it cannot be read "
        f"({_first_line(failure)}); check the name and the connection"
    )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _is_temporary(error: Exception) -> bool:
    """Returns whether trying again may help. It cannot where the server refuses the request or offline mode is on."""
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return status >= 500 or status in (408, 425, 429)
        cause = cause.__cause__
    return type(error).__name__ != "OfflineModeIsEnabled"


def _first_line(error: Exception | None) -> str:
    """Returns the first line of what caused an error, as the reason to name in a sentence."""
    cause = error.__cause__ if error is not None and error.__cause__ is not None else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
