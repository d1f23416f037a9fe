"""What a run read, by content: so that other files under the same name are noticed. In: names. Out: fingerprints.

A fingerprint is a dict that `started.json` and `run.json` keep:

- `source`: the name as given, without the column;
- `column`: the column of text, where the source names one;
- `share`: of text, the source's share of the rows;
- `files`, `bytes`, `sha256`: of what is on disk. The hash is over name, size, first and last `EDGE` bytes of each
  file, in reading order. So a change in the middle of a long file that keeps its size is not noticed.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nanochat_hf.data import files
from nanochat_hf.data.found import MICROWORLD, find_source, is_local, local_path, split_column
from nanochat_hf.data.sources import parse_sources
from nanochat_hf.settings import UserError

EDGE = 1 << 16  # bytes; reading them takes no noticeable time, however large the file is

Fingerprint = dict[str, Any]


def of_text(source: str | Path | Sequence[str]) -> list[Fingerprint]:
    """The fingerprint of each source of text, in their order. Of a data set of the Hub it is the name alone.

    Args:
        source: one source or several, see `nanochat_hf.data.sources`.

    Raises:
        UserError: a source cannot be read or its files cannot be divided into splits.
    """
    named = parse_sources(source)
    total = sum(weight for _, weight in named)
    return [_of_source(*split_column(name)) | {"share": weight / total} for name, weight in named]


def of_files(source: str) -> Fingerprint:
    """The fingerprint of a file, or of the files of rows in a folder. A task names it, perhaps as `FOLDER:config`."""
    path = Path(os.path.expanduser(source))
    if not path.exists():
        path = Path(os.path.expanduser(source.rpartition(":")[0]) or path)
    paths: list[Path] = []
    if path.is_file():
        paths = [path]
    elif path.is_dir():
        try:
            paths = [one for one in files.list_folder(path)[0] if files.file_format(one) != "text"]
        except UserError:  # a task of one's own may read other formats
            pass
    return {"source": source, **(_of_paths((one.name, one) for one in paths) if paths else {})}


def contents(read: Sequence[Fingerprint]) -> list[tuple[Any, ...]]:
    """What is equal where the same was read, wherever it lies."""
    parts = [(one.get("share"), one.get("sha256") or one["source"], one.get("column")) for one in read]
    return [part if part[2] else part[:2] for part in parts]


def difference(before: Sequence[Fingerprint], now: Sequence[Fingerprint]) -> str | None:
    """Says what has changed: `the data in texts has changed (3 files of 900 bytes; before: 2 files of 600 bytes)`.

    None where nothing has. What is not on disk any more counts as unchanged.
    """
    for old, new in zip(before, now, strict=False):
        gone = "sha256" in old and "sha256" not in new and old["source"] == new["source"]
        if contents([old]) != contents([new]) and not gone:
            found, known = _size(new), _size(old)
            words = "other content of the same size" if found == known else f"{found}; before: {known}"
            if old.get("column") != new.get("column"):
                words = f"column: {new.get('column', 'found')}; before: {old.get('column', 'found')}"
            return f"the data in {new['source']} has changed ({words})"
    return None if len(before) == len(now) else "there are other sources of data"


def _size(one: Fingerprint) -> str:
    if "sha256" not in one:
        return "not on this disk"
    return f"{one['files']:,} file{'s' * (one['files'] != 1)} of {one['bytes']:,} bytes"


def _of_source(name: str, column: str | None) -> Fingerprint:
    named = {"source": name} | ({"column": column} if column else {})
    if name == MICROWORLD or not is_local(name):
        return named
    found = find_source(name)
    paths: dict[Path, str] = {}
    for split, data_files in (("train", found.train), ("validation", found.validation)):
        for file in data_files:
            if path := local_path(file):
                paths.setdefault(path, f"{split} {file.name}")
    return named | _of_paths((title, path) for path, title in paths.items())


def _of_paths(titled: Iterable[tuple[str, Path]]) -> Fingerprint:
    """Counts and hashes files; the titles are hashed with them."""
    digest = hashlib.sha256()
    count = total = 0
    for title, path in titled:
        size = path.stat().st_size
        digest.update(f"{title}\0{size}\0".encode(errors="surrogateescape"))
        digest.update(_edges(path, size))
        count, total = count + 1, total + size
    return {"files": count, "bytes": total, "sha256": digest.hexdigest()}


def _edges(path: Path, size: int) -> bytes:
    if not path.is_file():
        return b""
    try:
        with open(path, "rb") as file:
            beginning = file.read(EDGE)
            file.seek(max(EDGE, size - EDGE))
            return beginning + file.read(EDGE)
    except OSError:  # where it is read for training this is an error, or the file is skipped
        return b""
