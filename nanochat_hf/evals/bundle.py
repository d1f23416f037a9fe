"""The bundle of CORE: a folder with tasks, read without torch.

It holds `core.yaml` (the list of tasks), `eval_meta_data.csv` (chance accuracies in percent) and `eval_data/` (JSON
lines). Upstream's bundle is downloaded where `core` is given in place of a folder.
"""

import csv
import json
import math
import os
import random
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_hf.settings import UserError

PUBLISHED = "core"  # in place of a folder: upstream's bundle
BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"  # upstream's, 162 MB
SHUFFLE_SEED = 1337
TASK_KINDS = ("multiple_choice", "schema", "language_modeling")
OPTION_FIELDS = {"multiple_choice": "choices", "schema": "context_options"}  # where an item lists its options
TEXT_FIELDS = {
    "multiple_choice": ["query"],
    "schema": ["continuation"],
    "language_modeling": ["context", "continuation"],
}

Item = dict[str, Any]


@dataclass(frozen=True)
class CoreTask:
    """One task of a bundle, its items already shuffled and cropped as nanochat does it.

    Attributes:
        label: the task's name in the bundle.
        kind: one of `TASK_KINDS`.
        num_fewshot: solved examples shown before each item.
        delimiter: text between a question and its answer.
        published_baseline: chance accuracy from the bundle, 0 to 1.
        items: one JSON object per item.
    """

    label: str
    kind: str
    num_fewshot: int
    delimiter: str
    published_baseline: float
    items: list[Item]

    @property
    def corrected_baseline(self) -> float:
        """Chance accuracy from the data itself: the mean of one over the number of options; 0 without options."""
        key = OPTION_FIELDS.get(self.kind)
        return sum(1 / len(item[key]) for item in self.items) / len(self.items) if key else 0.0


def bundle_folder(name: str | Path) -> Path:
    """Returns the folder of a bundle. Upstream's is downloaded once, into the download folder of `datasets`.

    Args:
        name: the folder, or `PUBLISHED`.

    Raises:
        UserError: the download failed.
    """
    if str(name) != PUBLISHED:
        return Path(name)
    from datasets import DownloadConfig, DownloadManager

    manager = DownloadManager(download_config=DownloadConfig(use_etag=False), record_checksums=False)
    try:
        archive = Path(manager.download(BUNDLE_URL))
        folder = archive.with_name(f"{archive.name}.unpacked")
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=archive.parent) as partial, zipfile.ZipFile(archive) as files:
                files.extractall(partial)
                try:
                    os.replace(Path(partial, "eval_bundle"), folder)
                except OSError:
                    if not folder.exists():  # else another process of the run was first
                        raise
    except zipfile.BadZipFile:
        archive.unlink()
        raise UserError(f"what came from {BUNDLE_URL} is no intact ZIP file; run the same command again") from None
    except Exception as error:  # of the disk, or of one of several network libraries
        reason = str(error).replace(BUNDLE_URL, "").strip(" :,") or "no such file, or no network"
        raise UserError(
            f"{BUNDLE_URL} could not be downloaded ({reason}); get it by other means, unpack it, and give the folder "
            "eval_bundle in place of core"
        ) from error
    return folder


def load_bundle(folder: str | Path, *, max_per_task: int = -1, labels: Sequence[str] | None = None) -> list[CoreTask]:
    """Reads a bundle.

    Args:
        folder: the bundle's folder, or `PUBLISHED`.
        max_per_task: items per task, taken after the fixed shuffle; -1 takes all.
        labels: the tasks to read; None reads all.

    Raises:
        UserError: the folder is no bundle, a label is unknown, a file is missing, empty or not JSON in
            UTF-8, or an item lacks what its kind of task needs.
    """
    folder = bundle_folder(folder)
    entries = check_bundle(folder, labels)
    with open(folder / "eval_meta_data.csv", encoding="utf-8", newline="") as file:
        chances = {row.get("Eval Task"): row.get("Random baseline") for row in csv.DictReader(file)}
    tasks = []
    for entry in entries:
        label = entry["label"]
        try:
            baseline = float(chances[label]) / 100
        except (KeyError, TypeError, ValueError):
            baseline = math.nan
        if not 0 <= baseline < 1:
            raise UserError(
                f"eval_meta_data.csv of {folder} has no chance accuracy for {label}; give it in percent, from 0 to "
                "below 100, in the columns Eval Task and Random baseline"
            )
        tasks.append(_load_task(folder, entry, baseline, max_per_task))
    return tasks


def check_bundle(folder: str | Path, labels: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Checks that a folder is a bundle with all files of these tasks, without reading them.

    Args:
        folder: the bundle's folder, or `PUBLISHED`.
        labels: the tasks; None: all.

    Returns:
        The tasks' entries in `core.yaml`.

    Raises:
        UserError: the folder is no bundle, a label is unknown or stands there twice, or a file is missing.
    """
    import yaml

    folder = bundle_folder(folder)
    if not (folder / "core.yaml").exists():
        raise UserError(
            f"{folder} is not a CORE bundle: it has no core.yaml; give the folder of an unpacked bundle, or "
            f"{PUBLISHED}, which downloads nanochat's (162 MB)"
        )
    try:
        entries = yaml.safe_load((folder / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
        fit = bool(entries) and all(map(_is_entry, entries))
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        fit = False
    if not fit:
        raise UserError(
            f"{folder / 'core.yaml'} is no list icl_tasks of tasks with label, dataset_uri, icl_task_type and "
            "num_fewshot (a list of one number); see the bundle of nanochat"
        )
    known = [entry["label"] for entry in entries]
    if twice := [label for label, count in Counter(known).items() if count > 1]:
        raise UserError(f"{folder / 'core.yaml'} has two tasks {twice[0]}; rename or remove one")
    unknown = sorted(set(labels or []) - set(known))
    if unknown:
        raise UserError(f"the bundle has no task {', '.join(unknown)}; it has {', '.join(known)}")
    if not (folder / "eval_meta_data.csv").exists():
        raise UserError(f"{folder} has no eval_meta_data.csv with the chance accuracies; unpack the bundle again")
    entries = [entry for entry in entries if not labels or entry["label"] in labels]
    for entry in entries:
        path = _data_path(folder, entry)
        if not path.exists():
            raise UserError(f"task {entry['label']} needs {path}, which is missing from the bundle")
    return entries


def _is_entry(entry: Any) -> bool:
    """Whether an entry of `core.yaml` has what a task needs."""
    if not isinstance(entry, dict):
        return False
    texts = [entry.get(name) for name in ("label", "dataset_uri", "icl_task_type")]
    shots = entry.get("num_fewshot")
    return (
        all(isinstance(text, str) for text in (*texts, entry.get("continuation_delimiter", " ")))
        and isinstance(shots, list)
        and bool(shots)
        and type(shots[0]) is int
        and shots[0] >= 0
    )


def _data_path(folder: Path, entry: dict[str, Any]) -> Path:
    return folder / "eval_data" / entry["dataset_uri"]


def _load_task(folder: Path, entry: dict[str, Any], baseline: float, max_per_task: int) -> CoreTask:
    label, kind = entry["label"], entry["icl_task_type"]
    if kind not in TASK_KINDS:
        raise UserError(f"task {label} has the kind {kind!r}; known are {', '.join(TASK_KINDS)}")
    path = _data_path(folder, entry)
    try:
        with open(path, encoding="utf-8") as file:
            items = [json.loads(line) for line in file if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} has a line that is not JSON ({error}); unpack the bundle again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); unpack the bundle again") from None
    if not items:
        raise UserError(f"{path} is empty; task {label} needs at least one item")
    for item in items:
        if missing := _missing(item, kind):
            raise UserError(
                f"an item in {path} has no {missing}, which a task of kind {kind} needs: {str(item)[:100]}"
            )
    random.Random(SHUFFLE_SEED).shuffle(items)
    if max_per_task > 0:
        items = items[:max_per_task]
    delimiter = entry.get("continuation_delimiter", " ")
    return CoreTask(label, kind, entry["num_fewshot"][0], delimiter, baseline, items)


def _missing(item: Any, kind: str) -> str:
    """What an item lacks for a kind of task; "" where it is complete."""
    if not isinstance(item, dict):
        return "fields"
    if missing := [name for name in TEXT_FIELDS[kind] if item.get(name) is None]:
        return missing[0]
    if field := OPTION_FIELDS.get(kind):
        options, gold = item.get(field), item.get("gold")
        if not isinstance(options, list) or len(options) < 2 or None in options:
            return f"{field} with at least two options"
        if type(gold) is not int or not 0 <= gold < len(options):
            return f"gold that is the number of an option, from 0 to {len(options) - 1}"
    return ""


def write_tasks(folder: Path, name: str, tasks: dict[str, tuple[list[Item], str, int, str, float]]) -> Path:
    """Writes tasks as a bundle and returns its folder.

    Args:
        folder: is made where it is missing.
        name: of the folder in it that receives the items.
        tasks: label → items, kind, few-shot examples, delimiter, chance in percent.
    """
    import yaml

    data = folder / "eval_data" / name
    data.mkdir(parents=True, exist_ok=True)
    entries = []
    for label, (items, kind, num_fewshot, delimiter, _) in tasks.items():
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
        (data / f"{label}.jsonl").write_text("".join(lines), encoding="utf-8")
        entry = {"label": label, "dataset_uri": f"{name}/{label}.jsonl", "num_fewshot": [num_fewshot]}
        entries.append(entry | {"icl_task_type": kind, "continuation_delimiter": delimiter})
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": entries}, sort_keys=False), encoding="utf-8")
    with open(folder / "eval_meta_data.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Eval Task", "Task Type", "#shots", "#datapoints", "Random baseline"])
        for label, (items, kind, num_fewshot, _, chance) in tasks.items():
            table.writerow([label, kind, num_fewshot, len(items), chance])
    return folder
