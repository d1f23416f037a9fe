"""How a stage is configured and how its result is recorded.

A stage is one dataclass. Its values come from, in rising order of authority: the dataclass defaults, the recipe
(``--config recipe.yaml``: the sections ``common`` and the stage's own name) and the command line. A recipe can leave
paths as variables, ``${name}``, filled from ``--set name=value``. The resolved values are written beside the weights
as ``run.json``, the last file of all: where it is, the stage is finished.
"""

import argparse
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

RUN_FILE = "run.json"
STOPPED_BY_SIGTERM = 128 + signal.SIGTERM  # exit status of a stage that was told to stop and can be continued
# Each training stage and its folder in a run, in the order of training.
STAGE_FOLDERS = {"tokenizer": "tokenizer", "pretrain": "base", "midtrain": "mid", "sft": "sft", "rl": "rl"}
MODEL_FOLDERS = tuple(folder for stage, folder in STAGE_FOLDERS.items() if stage != "tokenizer")
VARIABLE = re.compile(r"\$\{(\w+)\}")
RECORDED_PACKAGES = ("nanochat-hf", "torch", "transformers", "accelerate", "datasets", "trl", "tokenizers")

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


class UserError(Exception):
    """A mistake that the user can correct. The message is one sentence that names the thing and the remedy."""


def read_recipe(
    path: str | os.PathLike, stage: str, known: set[str] | None = None, variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """Returns the values that a recipe gives a stage, with `${name}` filled from `variables`.

    Args:
        path: YAML file of sections. The section `common` holds values that several stages share.
        stage: name of the stage's own section.
        known: the stage's field names. From `common` only these are taken; any other name in the stage's own section
            is an error. None accepts every name.
        variables: name → value.

    Raises:
        UserError: the file cannot be read, is not such a recipe, or has an unknown name or an unset variable.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the recipe {path} ({error.strerror}); --config takes a YAML file") from None
    try:
        recipe = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not valid YAML ({reason}); correct it or start from a file in training/recipes"
        ) from None
    if not isinstance(recipe, dict) or not all(isinstance(section or {}, dict) for section in recipe.values()):
        raise UserError(f"{path} must hold sections such as {stage}:, each with 'name: value' lines below it")
    common, own = recipe.get("common") or {}, recipe.get(stage) or {}
    if known is not None:
        unknown = sorted(set(own) - known)
        if unknown:
            raise UserError(f"{path}: the section {stage}: has no setting named {', '.join(unknown)}; see --help")
        common = {name: value for name, value in common.items() if name in known}
    return {name: _fill(value, variables or {}, path) for name, value in {**common, **own}.items()}


def parse_stage(stage: str, config_class: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Builds the stage's configuration from defaults, recipe and command line.

    Args:
        stage: the name of the stage's section in a recipe, such as `"pretrain"`.
        config_class: a dataclass; every field needs a default, for `--help` and recipes that leave it out.
        argv: command line without the program's name; default `sys.argv[1:]`.

    Raises:
        UserError: an option or a setting of the recipe is unknown.
    """
    from trl import TrlParser

    recipe_path, variables, argv = take_recipe_options(argv)
    parser = TrlParser(config_class, description=sys.modules["__main__"].__doc__, formatter_class=_HelpFormat)
    _add_recipe_options(parser)
    values = {}
    if recipe_path:
        known = {field.name for field in fields(config_class) if field.init}
        values = read_recipe(recipe_path, stage, known, variables)
    parser.set_defaults_with_config(**values)
    config, *_, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        raise UserError(f"{unknown[0]} is not an option of this command; --help lists them")
    return config


def take_recipe_options(argv: Sequence[str] | None) -> tuple[str | None, dict[str, str], list[str]]:
    """Takes `--config RECIPE` and `--set NAME=VALUE …` out of a command line: (recipe, variables, other words)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_recipe_options(parser)
    taken, rest = parser.parse_known_args(argv)
    wrong = [pair for pair in taken.set if "=" not in pair]
    if wrong:
        raise UserError(f"--set takes NAME=VALUE, not {wrong[0]!r}")
    return taken.config, dict(pair.split("=", 1) for pair in taken.set), rest


def save_run(folder: str | os.PathLike, stage: str, config: Any, **facts: Any) -> None:
    """Writes `run.json`: the stage, its resolved configuration, the environment, and `facts`.

    Usual facts: `seconds`, `peak_memory_mb`, `metrics` (flat name → number), `history` (rows with `step`).
    """
    facts.setdefault("peak_memory_mb", peak_memory_mb())
    settings = dict(config) if isinstance(config, dict) else asdict(config)
    write_json(Path(folder) / RUN_FILE, {"stage": stage, "config": settings, "environment": environment(), **facts})


def load_run(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the content of `run.json`, or None where the stage has not finished."""
    path = Path(folder) / RUN_FILE
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged: delete it and run that stage again") from None


def check_checkpoint(checkpoint: str | Path) -> None:
    """Checks, without loading anything, that this is a checkpoint folder or a possible Hub id.

    Raises:
        UserError: the folder holds no checkpoint, or there is no folder and the name cannot be a Hub id.
    """
    folder, name = Path(checkpoint), str(checkpoint)
    if folder.exists() and not (folder / "config.json").exists():
        stages = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f"; it holds {', '.join(stages)}: name one of these" if stages else "; give the folder of a stage"
        raise UserError(f"{checkpoint} is not a checkpoint folder (no config.json in it){hint}")
    if not folder.exists() and not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name):
        raise UserError(
            f"there is no folder {checkpoint}, and no model on the Hub can have that name; give a checkpoint folder "
            "such as runs/quickstart/rl, or a Hub id"
        )


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON so that a reader sees either the old file or the complete new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False, default=str)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def environment() -> dict[str, Any]:
    """What is needed to run the same thing again: versions, hardware, command, git commit."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
    }
    found |= {"world_size": int(os.environ.get("WORLD_SIZE", "1")), "command": sys.argv, "git_commit": _git_commit()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {**found, "versions": versions}


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MiB (Linux counts kilobytes, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def run_main(main: Callable[[], Any]) -> None:
    """Runs a script's `main`. A `UserError` ends in one line and exit status 2, Ctrl-C in exit status 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def _fill(value: Any, variables: dict[str, str], path: str | os.PathLike) -> Any:
    """Replaces `${name}` in every string of a recipe's value."""
    if isinstance(value, list):
        return [_fill(item, variables, path) for item in value]
    if isinstance(value, dict):
        return {name: _fill(item, variables, path) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    missing = [name for name in VARIABLE.findall(value) if name not in variables]
    if missing:
        raise UserError(
            f"{path} has the variable ${{{missing[0]}}}; set it on the command line: --set {missing[0]}=VALUE"
        )
    return VARIABLE.sub(lambda match: variables[match[1]], value)


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="RECIPE.yaml", help="recipe; the sections common: and this stage's own are read"
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="sets the variable ${NAME} of the recipe",
    )


class _HelpFormat(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the script's docstring with its lines as they are."""


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
