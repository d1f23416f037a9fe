"""Which files are for training and which for validation. In: the names of a source's files. Out: each split's files.

Three rules, tried in this order:

1. The data set's card (the front matter of README.md) names its configs and their files, as `datasets` reads it.
2. File and folder names. A split is the whole name between separators, beside numbers of shards: `train.jsonl`,
   `validation-00000-of-00001.parquet`, `test/part-3.csv`. Other words may be there only if another file has the same
   words with another split: `stories-train.txt` beside `stories-valid.txt`. `the_great_train_robbery.txt` is a title.
3. Where the names do not give training and held-out files, the last file is for validation. Where all files are notes
   and the last is small, so are those before it, until they hold a twentieth of the text. A single file is divided.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from nanochat_hf.settings import UserError

# The words of `datasets.data_files.SPLIT_KEYWORDS`.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
BESIDE = {
    "data",
    "set",
    "dataset",
    "split",
    "shard",
    "shards",
    "part",
    "chunk",
    "file",
    "of",
}  # say nothing of a title
# Endings of names, as words.
ENDINGS = set(
    "parquet arrow feather jsonl ndjson jsonlines json csv tsv txt text md markdown rst tokens raw gz zst bz2 xz lz4 "
    "snappy".split()
)
SEPARATOR = re.compile(r"[-._ ]+")
NUMBERED = re.compile(r"([a-z]+)\d+")
VALIDATION_SHARE, MOST_SHARE = 1 / 20, 1 / 5  # of the text, for validation
ENOUGH_BYTES = 2**20  # of validation text: a last file of this size is not small
HASH = re.compile(r"(?=.*\d)[0-9a-f]{8,}")


@dataclass(frozen=True)
class Division:
    """The files of a source by split, as indices in the list of names.

    Attributes:
        train, validation: the files of each split. One file alone is in both: its documents are divided.
        left_out: the files in neither, each with the reason.
    """

    train: list[int]
    validation: list[int]
    left_out: dict[int, str]

    @property
    def is_divided_file(self) -> bool:
        """Whether the source is one file, whose documents are divided."""
        return self.train == self.validation


def divide(names: Sequence[str], sizes: Sequence[int | None]) -> Division:
    """Applies rules 2 and 3 to all files of a source, given in reading order.

    Args:
        names: of the files.
        sizes: of the files in bytes, where they may be small notes; else None.
    """
    words = splits_of(names)
    held_out = next((word for word in ("validation", "test") if word in words), None)
    if "train" in words and held_out:
        chosen = {split: [i for i, word in enumerate(words) if word == split] for split in ("train", held_out)}
        left_out = {
            i: f"{word} split" if word else "its name says no split, and other names do"
            for i, word in enumerate(words)
            if word not in chosen
        }
        return Division(chosen["train"], chosen[held_out], left_out)
    everything = list(range(len(names)))
    if len(names) == 1:
        return Division(everything, everything, {})
    first = len(names) - 1
    if None not in sizes:
        bytes_of = [size or 0 for size in sizes]
        enough, most = min(ENOUGH_BYTES, VALIDATION_SHARE * sum(bytes_of)), MOST_SHARE * sum(bytes_of)
        while first > 1 and sum(bytes_of[first:]) < enough and sum(bytes_of[first - 1 :]) <= most:
            first -= 1
    return Division(everything[:first], everything[first:], {})


def splits_of(names: Sequence[str]) -> list[str | None]:
    """Returns the split that each name says (train, validation or test), None where it says none."""
    found = [_candidates(name) for name in names]
    partners: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for candidates in found:
        for _, split, rest in candidates:
            partners[rest].add(split)
    return [
        next((split for certain, split, rest in candidates if certain or len(partners[rest]) > 1), None)
        for candidates in found
    ]


def _candidates(name: str) -> list[tuple[bool, str, tuple[str, ...]]]:
    """Returns the splits that a name may say, the likeliest first: (whether it is certain, split, other words)."""
    parts = PurePosixPath(name.lower()).parts
    candidates = []
    for depth, part in reversed(list(enumerate(parts))):
        is_file = depth == len(parts) - 1
        words = [word for word in map(_without_number, SEPARATOR.split(part)) if word]
        places = [i for i, word in enumerate(words) if word in SPLIT_WORDS]
        if len({SPLIT_WORDS[words[i]] for i in places}) != 1:
            continue
        # The ending says nothing; what follows it is compression.
        before_ending = [word for word in words if word not in ENDINGS] if is_file else words
        rest = [word for word in before_ending if word not in SPLIT_WORDS and word not in BESIDE]
        split = SPLIT_WORDS[words[places[0]]]
        candidates.append((not rest, split, (*parts[:depth], "/" if is_file else "", *rest)))
    return candidates


def _without_number(word: str) -> str:
    """`train3` → `train`; numbers and hashes → nothing."""
    if word.isdigit() or HASH.fullmatch(word):
        return ""
    numbered = NUMBERED.fullmatch(word)
    return numbered[1] if numbered and numbered[1] in SPLIT_WORDS else word


def read_card(folder: Any) -> dict[str, Any] | None:
    """Returns the front matter of `README.md` in a folder; None where there is none.

    Raises:
        UserError: it names configs, but is not YAML.
    """
    import yaml

    path = folder / "README.md"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, flags=re.DOTALL)
    if not found:
        return None
    try:
        card = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        if "configs:" not in found[1]:
            return None
        reason = str(error).splitlines()[0]
        raise UserError(f"the front matter of {path} is not YAML ({reason}); mend it or remove the file") from None
    return card if isinstance(card, dict) else None


def files_of_config(where: str, card: Any, names: list[str], config: str) -> tuple[list[str], list[str]]:
    """Applies rule 1: chooses the files of a config.

    Args:
        where: the source, to name in errors.
        card: the front matter of the data set's card, None where there is none.
        names: the names of all files of text, in order.
        config: the config that is asked for, "" for the default one. A folder is a config too.

    Returns:
        The names of the files that belong to it, and for each a name that tells its split.

    Raises:
        UserError: there is no such config, or none is the default.
    """
    configs = _configs(where, card)
    if not config and configs:
        config = _default_config(where, configs)
    if config in configs:
        chosen = configs[config]
        if chosen.get("data_files"):
            return _files_of_patterns(where, config, chosen, names)
        if not chosen.get("data_dir"):
            return names, names
        config = str(chosen["data_dir"])
    if not config:
        return names, names
    folder = config.strip("/") + "/"
    inside = [name for name in names if name.startswith(folder)]
    if not inside:
        known = ", ".join(sorted(configs)) or "none named"
        raise UserError(f"the data set {where} has no config or folder {config} (configs: {known})")
    return inside, [name.removeprefix(folder) for name in inside]


def _configs(where: str, card: Any) -> dict[str, dict[str, Any]]:
    if not card or not card.get("configs"):
        return {}
    from datasets.utils.metadata import MetadataConfigs

    try:
        return MetadataConfigs.from_dataset_card_data(card)
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(". ")
        raise UserError(f"the configs in the card of {where} cannot be read ({reason}); mend its README.md") from None


def _default_config(where: str, configs: Any) -> str:
    try:
        default = configs.get_default_config_name()
    except ValueError as error:
        raise UserError(f"the card of {where} is wrong: {str(error).rstrip('.')}; mend its README.md") from None
    if default is None:
        known = ", ".join(configs)
        raise UserError(f"{where} has several configs ({known}); name one, as {where}:{next(iter(configs))}")
    return default


def _files_of_patterns(
    where: str, config: str, chosen: dict[str, Any], names: list[str]
) -> tuple[list[str], list[str]]:
    from datasets.data_files import sanitize_patterns
    from fsspec.utils import glob_translate

    folder = str(chosen.get("data_dir") or "").strip("/")
    found: dict[str, str] = {}
    for split, patterns in sanitize_patterns(chosen["data_files"]).items():
        for pattern in patterns:
            pattern = f"{folder}/{pattern}" if folder else str(pattern)
            matches = re.compile(glob_translate(pattern.removeprefix("./"))).match
            for name in names:
                if matches(name):
                    found.setdefault(name, split)
    if not found:
        raise UserError(
            f"the card of {where} names files for the config {config}, and none of them is there or can be read; "
            "fetch them, or remove README.md to read all files of text"
        )
    # In order of names: where the card names no splits, the last shard is the validation split.
    chosen_names = sorted(found)
    # `data_files: "*.parquet"` says no more than train: then the names of the files may say more.
    if set(found.values()) == {"train"}:
        return chosen_names, chosen_names
    return chosen_names, [found[name] for name in chosen_names]
