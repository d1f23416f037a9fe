"""How a stage is configured and how its result is recorded.

A stage is one dataclass. Its values come from, in rising order of authority: the dataclass defaults, the recipe
(``--config recipe.yaml``: the sections ``common`` and the stage's own name) and the command line. ``--config
quickstart`` names a recipe of the package. A recipe can leave paths as variables, ``${name}``, filled from ``--set
name=value``. The resolved values are written beside the weights as ``run.json``, the last file of all: where it is,
the stage is finished.

A field made by `setting` says which values it may have. Recipes and command lines are held to it before anything else
is imported, so a mistake is said within a second.
"""

import argparse
import difflib
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

RUN_FILE = "run.json"
RECIPES = Path(__file__).with_name("recipes")
LAUNCH_FILES = RECIPES / "accelerate"  # files for `accelerate launch --config_file`
STOPPED_BY_SIGTERM = 128 + signal.SIGTERM  # exit status of a stage that was told to stop and can be continued
# Each training stage and its folder in a run, in the order of training.
STAGE_FOLDERS = {"tokenizer": "tokenizer", "pretrain": "base", "midtrain": "mid", "sft": "sft", "rl": "rl"}
MODEL_FOLDERS = tuple(folder for stage, folder in STAGE_FOLDERS.items() if stage != "tokenizer")
# What a recipe's sections may be called.
SECTIONS = ("common", *STAGE_FOLDERS, "evaluation", "tokenizer_evaluation", "speedrun", "report")
# The settings that two or more stages have: what a recipe's section `common` may hold.
SHARED_SETTINGS = frozenset(
    "allow_code_execution attention compile core_bundle data default_sampling device_batch_size dtype embedding_lr "
    "epochs eval_every "
    "final_lr_frac init_lr_frac matrix_lr max_new_tokens max_seq_len model momentum_peak momentum_start "
    "momentum_warmup_steps num_iterations num_threads output_dir run_dir save_every save_minutes save_total_limit "
    "scalar_lr seed sequence_length stages tasks temperature text_column top_k total_batch_size unembedding_lr "
    "val_tasks warmdown_ratio warmup_ratio weight_decay".split()
)
# How chats sample a model whose generation configuration does not say it.
CHAT_SAMPLING: dict[str, Any] = {"temperature": 0.6, "top_k": 50, "top_p": None, "min_p": None}
VARIABLE = re.compile(r"\$\{(\w+)\}")
NEGATIVE = re.compile(r"-(\d|\.\d)\S*")
TRUTHS = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True) | dict.fromkeys(
    ("false", "f", "no", "n", "off", "0"), False
)
# Packages that a plain install does not have → the extra that brings them.
EXTRAS = dict.fromkeys(
    ("accelerate", "datasets", "fsspec", "matplotlib", "psutil", "pyarrow", "torchao", "trl"), "train"
) | {"evaluate": "eval", "gradio": "space", "onnx": "onnx", "onnxscript": "onnx", "tiktoken": "tiktoken"}
RECORDED_PACKAGES = ("nanochat-hf", "torch", "transformers", "accelerate", "datasets", "trl", "tokenizers")

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


class UserError(Exception):
    """A mistake that the user can correct. The message is one sentence that names the thing and the remedy."""


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    also: Sequence[float] = (),
    off: int | None = None,
    choices: Sequence[str] = (),
    path: bool = False,
) -> Any:
    """A field of a stage's dataclass, with the values that it may have.

    Args:
        default: its default; a list is copied.
        help: one line for `--help`.
        at_least, above, at_most: bounds of a number.
        also: numbers outside of the bounds that have a meaning of their own, such as -1.
        off: the number that `false`, `no` and `off` stand for, where there is one.
        choices: the words that a text, or each item of a list, may be.
        path: the text is a path, in which `~` is the home folder.
    """
    rules = {"at_least": at_least, "above": above, "at_most": at_most, "also": tuple(also), "off": off}
    rules |= {"help": help, "choices": tuple(choices), "path": path}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=rules)
    return field(default=default, metadata=rules)


# -- recipes ---------------------------------------------------------------------------------------------------------


def read_recipe(
    path: str | os.PathLike, stage: str, known: set[str] | None = None, variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """Returns the values that a recipe gives a stage, with `${name}` filled from `variables`.

    Args:
        path: YAML file of sections, or the name of a recipe of the package. The section `common` holds values that
            several stages share.
        stage: name of the stage's own section.
        known: the stage's field names. From `common` only these are taken; any other name in the stage's own section
            is an error. None accepts every name.
        variables: name → value.

    Raises:
        UserError: the file cannot be read, is not such a recipe, or has a section, a name or a variable that nothing
            uses, or an unset variable.
    """
    try:
        text = find_recipe(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"cannot read the recipe {path} ({error.strerror}); --config takes a YAML file, or one of "
            f"{', '.join(recipe_names())}"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"the recipe {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    recipe = _parse_yaml(text, path) or {}
    if not isinstance(recipe, dict) or not all(isinstance(section or {}, dict) for section in recipe.values()):
        raise UserError(f"{path} must hold sections such as {stage}:, each with 'name: value' lines below it")
    sections = {*SECTIONS, stage}
    for name in recipe:
        if name not in sections:
            raise UserError(f"{path}: no stage reads a section {name}:{_did_you_mean(str(name), sections)}")
    unused = sorted(set(variables or {}) - set(VARIABLE.findall(text)))
    if unused:
        raise UserError(
            f"{path} has no variable ${{{unused[0]}}} for --set {unused[0]}=...; --set fills variables, "
            "and a setting is an option of its own, such as --depth 4"
        )
    common, own = recipe.get("common") or {}, recipe.get(stage) or {}
    if known is not None:
        for name in own:
            if name not in known:
                raise UserError(
                    f"{path}: the section {stage}: has no setting named {name}{_did_you_mean(str(name), known)}; "
                    "see --help"
                )
        for name in common:
            if name not in known | SHARED_SETTINGS:
                raise UserError(
                    f"{path}: the section common: has {name}, which several stages do not share"
                    f"{_did_you_mean(str(name), known | SHARED_SETTINGS)}; put it into the section of its stage"
                )
        common = {name: value for name, value in common.items() if name in known}
        if stage in STAGE_FOLDERS and stage not in recipe and os.environ.get("RANK", "0") == "0":
            print(f"{path} has no section {stage}: defaults and the command line count", file=sys.stderr, flush=True)
    return {name: _fill(value, variables or {}, path) for name, value in {**common, **own}.items()}


def find_recipe(name: str | os.PathLike, folder: Path = RECIPES) -> Path:
    """Returns the path of a YAML file: `name` itself, or where there is no such file, the package's file of that name.

    Args:
        name: a path, or a bare name with or without `.yaml`, such as `quickstart`.
        folder: where the package keeps such files: `RECIPES` or `LAUNCH_FILES`.
    """
    path = Path(os.path.expanduser(name))
    packaged = folder / f"{path.name.removesuffix('.yaml')}.yaml"
    return packaged if len(path.parts) == 1 and not path.is_file() and packaged.is_file() else path


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """The names of the package's recipes."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _parse_yaml(text: str, path: str | os.PathLike) -> Any:
    """Parses YAML. The same name twice in one section is an error; YAML readers would take the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict:
        names = [loader.construct_object(key, deep=True) for key, _ in node.value]
        for number, name in enumerate(names):
            if not isinstance(name, str | int | float | bool | None):
                raise UserError(f"{path}, line {node.start_mark.line + 1}: a name cannot be a list or a section")
            if name in names[:number]:
                line = node.value[number][0].start_mark.line + 1
                raise UserError(f"{path}, line {line}: {name} is given a second time; remove one of the two")
        loader.flatten_mapping(node)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).split("\n")[0] or type(error).__name__
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{where} is not valid YAML ({reason}); correct it or start from one of `nanochat-hf recipes`"
        ) from None


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""


# -- values ----------------------------------------------------------------------------------------------------------


def _kind_of(annotation: Any) -> tuple[Any, bool]:
    """Returns the type of a field without `None`, and whether it may be None."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return kinds[0], len(kinds) < len(typing.get_args(annotation))
    return annotation, False


def convert(value: Any, annotation: Any, rules: typing.Mapping[str, Any], name: str) -> Any:
    """Returns a value of a recipe or a command line as the type of its field.

    YAML's words count: `"2"` is a number where a number belongs, `false` is false, one text is a list of one.

    Args:
        value: text, or what YAML read.
        annotation: the field's type: bool, int, float, str or a list of one of these, perhaps `| None`.
        rules: the metadata of the field, see `setting`.
        name: what to call it in an error, such as `--depth`.

    Raises:
        UserError: the value has another type or is not allowed.
    """
    kind, optional = _kind_of(annotation)
    if value is None:
        if optional:
            return None
        remedy = "[] for none" if typing.get_origin(kind) is list else "a value"
        raise UserError(f"{name} has no value (null); write {remedy}, or remove the line")
    if typing.get_origin(kind) is list:
        items = value if isinstance(value, list) else [value]
        return [convert(item, typing.get_args(kind)[0], rules, name) for item in items]
    if isinstance(value, dict) and len(value) == 1 and kind is str:
        (key, inner), *_ = value.items()
        raise UserError(f"{name} has the pair '{key}: {inner}', where a text belongs; write {key}={inner}")
    if isinstance(value, list | dict):
        found = "a list" if isinstance(value, list) else "a section"
        raise UserError(f"{name} is {_description(kind, rules)}, not {found}")
    if kind is bool:
        return _to_bool(value, name)
    if kind in (int, float):
        return _to_number(value, kind, rules, name)
    return _to_text(value, rules, name)


def _to_bool(value: Any, name: str) -> bool:
    found = TRUTHS.get(str(value).strip().lower())
    if found is None:
        raise UserError(f"{name} is true or false, not {value!r}")
    return found


def _to_number(value: Any, kind: type, rules: typing.Mapping[str, Any], name: str) -> float:
    off = rules.get("off")
    if off is not None and (value is False or str(value).strip().lower() in ("false", "no", "off", "never", "none")):
        return kind(off)
    number = None if isinstance(value, bool) or not isinstance(value, int | float | str) else _parsed(value, kind)
    if number is None or not _allowed(number, rules):
        shown = _yaml(value) if isinstance(value, bool) else repr(value)
        raise UserError(f"{name} is {_description(kind, rules)}, not {shown}")
    return number


def _parsed(value: int | float | str, kind: type) -> float | None:
    """Returns the number that a value stands for, None where it stands for none; 1e6 is a whole number."""
    try:
        if kind is int and isinstance(value, int | str) and re.fullmatch(r"\s*[+-]?\d[\d_]*\s*", str(value)):
            return int(value) if abs(int(value)) < 2**63 else None
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (kind is int and (abs(number) >= 2**53 or number != int(number))):
        return None
    return kind(number)


def _allowed(number: float, rules: typing.Mapping[str, Any]) -> bool:
    at_least, above, at_most = (rules.get(rule) for rule in ("at_least", "above", "at_most"))
    inside = (at_least is None or number >= at_least) and (above is None or number > above)
    return (inside and (at_most is None or number <= at_most)) or number in rules.get("also", ())


def _to_text(value: Any, rules: typing.Mapping[str, Any], name: str) -> str:
    choices = rules.get("choices", ())
    if isinstance(value, bool) and str(value).lower() in choices:
        value = str(value).lower()
    if not isinstance(value, str):
        if choices:
            raise UserError(f"{name} {_yaml(value)} is not known; use {', '.join(choices)}")
        raise UserError(f"{name} is a text, not {_yaml(value)}; put it into quotes if it is meant")
    if choices and value not in choices:
        raise UserError(f"{name} {value or repr(value)} is not known; use {', '.join(choices)}")
    if "\0" in value:
        raise UserError(f"{name} has a zero byte; remove it")
    return os.path.expanduser(value) if rules.get("path") else value


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _description(kind: Any, rules: typing.Mapping[str, Any]) -> str:
    """What a field takes, such as `a whole number of at least 1, or -1`."""
    if kind is str:
        return "a text"
    if kind is bool:
        return "true or false"
    words = "a whole number" if kind is int else "a number"
    at_least, above, at_most = (rules.get(rule) for rule in ("at_least", "above", "at_most"))
    if at_least is not None and at_most is not None:
        words += f" from {at_least:g} to {at_most:g}"
    elif at_least is not None:
        words += f" of at least {at_least:g}"
    elif above is not None:
        words += f" above {above:g}" + (f" and at most {at_most:g}" if at_most is not None else "")
    return words + "".join(f", or {number:g}" for number in rules.get("also", ()))


# -- command lines ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageHelp:
    """What `--help` and `--help-all` of a stage show.

    Args:
        command: the subcommand of `nanochat-hf`, such as `"sft"`.
        text: what the stage does, with commands to paste that begin with `nanochat-hf` and `command`.
        main: the settings that `--help` shows, as words.
        groups: title → settings, as words. `--help-all` shows them in this order, and all others last.
        options: the settings that the command line may have, as words; None for all. A recipe may have all.
    """

    command: str
    text: str
    main: str
    groups: Mapping[str, str] = field(default_factory=dict)
    options: str | None = None


def parse_stage(
    stage: str, config_class: type[Config], argv: Sequence[str] | None = None, help: StageHelp | None = None
) -> Config:
    """Builds the stage's configuration from defaults, recipe and command line.

    Args:
        stage: the name of the stage's section in a recipe, such as `"pretrain"`.
        config_class: a dataclass; every field needs a default, for `--help` and recipes that leave it out.
        argv: command line without the program's name; default `sys.argv[1:]`.
        help: what `--help` shows; None shows every setting.

    Raises:
        UserError: an option or a setting of the recipe is unknown, or has a value that it cannot have.
    """
    recipe_path, variables, argv = take_recipe_options(argv)
    own = [one for one in fields(config_class) if one.init]
    hints = typing.get_type_hints(config_class)
    shown = own if help is None or help.options is None else [one for one in own if one.name in help.options.split()]
    parser = StageParser(help or StageHelp(stage, "", " ".join(one.name for one in own)), shown, hints)
    given, unknown = parser.parse_known_args(_normalized(argv))
    if unknown:
        near = ""
        if unknown[0].startswith("-"):
            near = _did_you_mean(unknown[0].split("=")[0], {f"--{one.name}" for one in shown})
        raise UserError(f"{unknown[0]} is not an option of this command{near}; --help-all lists them")
    if variables and not recipe_path:
        raise UserError("--set fills the variables of a recipe; give the recipe as --config RECIPE.yaml")
    recipe = read_recipe(recipe_path, stage, {one.name for one in own}, variables) if recipe_path else {}
    values = {}
    for one in own:
        if one.name in recipe:
            where = f"{recipe_path}: {one.name}"
            values[one.name] = convert(recipe[one.name], hints[one.name], one.metadata, where)
        if (value := getattr(given, one.name, None)) is not None:
            value = [] if value == ["[]"] else value
            values[one.name] = convert(value, hints[one.name], one.metadata, f"--{one.name}")
    return config_class(**values)


def take_recipe_options(argv: Sequence[str] | None) -> tuple[str | None, dict[str, str], list[str]]:
    """Takes `--config RECIPE` and `--set NAME=VALUE …` out of a command line: (recipe, variables, other words)."""
    parser = Parser(add_help=False, allow_abbrev=False)
    _add_recipe_options(parser)
    taken, rest = parser.parse_known_args(argv)
    wrong = [pair for pair in taken.set if not re.fullmatch(r"\w+=.*", pair, flags=re.DOTALL)]
    if wrong:
        raise UserError(f"--set takes NAME=VALUE, not {wrong[0]!r}")
    return taken.config, dict(pair.split("=", 1) for pair in taken.set), rest


# -- folders ---------------------------------------------------------------------------------------------------------


def check_output_dir(folder: str | os.PathLike, *, unfinished: bool = True) -> None:
    """Refuses a folder into which a stage could not write its result.

    Args:
        folder: it need not exist.
        unfinished: also refuse the folder of a finished stage.

    Raises:
        UserError: there is no name, the folder is a file, or it cannot be made or written to, or a stage finished in
            it.
    """
    if not str(folder):
        raise UserError("give --output_dir, the folder that receives the result")
    try:
        place = Path(folder).absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise UserError(f"{place} is a file, where a folder belongs; give another --output_dir or move the file")
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write to {folder} ({reason}); give another --output_dir, or change the permissions"
        ) from None
    if unfinished and load_run(folder):
        raise UserError(f"{folder} is finished; delete that folder to train it again")


# -- the record of a run ---------------------------------------------------------------------------------------------


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
    """Runs a script's `main`. A `UserError` ends in one line and exit status 2, Ctrl-C in exit status 130.

    A package that an extra brings and that is not installed is a `UserError`, too.
    """
    try:
        try:
            main()
        except ModuleNotFoundError as error:
            check_extra(error.name)
            raise
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def check_extra(module: str | None) -> None:
    """Raises UserError with the command that installs `module`, where an extra brings it."""
    extra = EXTRAS.get((module or "").split(".")[0])
    if extra:
        raise UserError(f"this needs more packages ({module} is missing): pip install 'nanochat-hf[{extra}]'")


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


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one sentence."""

    all_options = "--help"  # the option that shows all others

    def error(self, message: str) -> typing.NoReturn:
        """Raises UserError."""
        raise UserError(f"{message.removeprefix('argument ')}; {self.all_options} shows what each option takes")


class StageParser(Parser):
    """The options of a stage. `--help` shows one screen: the main ones; `--help-all` shows all, in groups."""

    all_options = "--help-all"

    def __init__(self, help: StageHelp, settings: Sequence[Field], hints: Mapping[str, Any]):
        super().__init__(prog=program(help.command), allow_abbrev=False)
        self.help, self.everything = help, False
        self.lines = {"config": ("--config RECIPE", RECIPE_HELP), "set": ("--set NAME=VALUE ...", VARIABLES_HELP)}
        self.kinds: set[Any] = set()
        _add_recipe_options(self)
        self.add_argument("--help-all", "--help_all", action=_ShowAll, nargs=0)
        for one in settings:
            kind, _ = _kind_of(hints[one.name])
            self.kinds.add(typing.get_origin(kind) or kind)
            self.lines[one.name] = (f"--{one.name} {_typed(one, kind)}", _explanation(one))
            _add_option(self, one, kind)

    def format_help(self) -> str:
        """The text of `--help`, or with `everything` that of `--help-all`."""
        text = self.help.text.strip().replace(f"nanochat-hf {self.help.command} ", f"{self.prog} ")
        parts = [f"usage: {self.prog} [--config RECIPE] [--SETTING VALUE ...]"] + ([text] if text else [])
        parts += [
            f"{title}\n" + "\n".join(line for name in names for line in self._option(*self.lines[name]))
            for title, names in self._groups().items()
        ]
        return "\n\n".join([*parts, *self._notes()]) + "\n"

    def _groups(self) -> dict[str, list[str]]:
        main = ["config", "set", *(name for name in self.help.main.split() if name in self.lines)]
        groups = {"options" if not self.everything else "main options": main}
        if self.everything:
            left = {name for name in self.lines if name not in main}
            for title, names in self.help.groups.items():
                groups[title] = [name for name in names.split() if name in left]
                left -= set(groups[title])
            groups["other options"] = [name for name in self.lines if name in left]
        return {title: names for title, names in groups.items() if names}

    def _notes(self) -> list[str]:
        notes = ["A list takes several words: --name one two; [] is the empty list."] if list in self.kinds else []
        notes += ["An option of [true|false] alone means true."] if bool in self.kinds else []
        if not self.everything:
            left = len(self.lines) - len(self._groups()["options"])
            return [f"--help-all shows {left} more options, and what they take."] if left else []
        return [" ".join(notes)] if notes else []

    def _option(self, words: str, explanation: str) -> list[str]:
        indent = " " * 29
        width = max(60, min(shutil.get_terminal_size((110, 24)).columns, 119))
        lines = textwrap.wrap(explanation, width, initial_indent=indent, subsequent_indent=indent) or [""]
        if len(words) > 26:
            return [f"  {words}", *lines]
        return [f"  {words:<26} {lines[0].strip()}", *lines[1:]]


class _ShowAll(argparse.Action):
    """Prints the help with every option, and ends the program."""

    def __call__(self, parser: Any, *_: Any) -> None:
        parser.everything = True
        parser.print_help()
        parser.exit()


def program(command: str) -> str:
    """How this process was called: `python training/sft.py`, or `nanochat-hf` and the subcommand."""
    script = Path(sys.argv[0])
    if script.suffix == ".py" and script.parent.name in ("training", "evaluation"):
        return f"python {sys.argv[0]}"
    return f"nanochat-hf {command}"


RECIPE_HELP = "YAML file, or a name that `nanochat-hf recipes` lists; its sections common: and this stage's are read"
VARIABLES_HELP = "sets the variable ${NAME} of the recipe"


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config")
    parser.add_argument("--set", nargs="+", action="extend", default=[])


def _add_option(parser: argparse.ArgumentParser, one: Field, kind: Any) -> None:
    """Adds the option of one field. Its words are kept as text; `convert` reads them."""
    if typing.get_origin(kind) is list:
        parser.add_argument(f"--{one.name}", nargs="*", action="extend")
    elif kind is bool:
        parser.add_argument(f"--{one.name}", nargs="?", const="true")
        if one.default is True:
            parser.add_argument(f"--no_{one.name}", dest=one.name, action="store_const", const="false")
    else:
        parser.add_argument(f"--{one.name}")


def _typed(one: Field, kind: Any) -> str:
    """What follows the option's name: `N`, `[true|false]`, `PATH`, `TASK ...`."""
    choices = "|".join(one.metadata.get("choices", ()))
    word = "PATH" if one.metadata.get("path") else one.name.split("_")[-1].upper()
    if typing.get_origin(kind) is list:
        return f"{choices or word.removesuffix('S')} ..."
    if kind is bool:
        return "[true|false]"
    return choices or {int: "N", float: "X"}.get(kind, word)


def _explanation(one: Field) -> str:
    """The help of a field, with its default where the words do not say it."""
    default = one.default if one.default_factory is MISSING else one.default_factory()
    words = str(one.metadata.get("help", ""))
    if default not in (None, "", []) and "default" not in words:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        words += f" (default: {str(shown).lower() if isinstance(default, bool) else shown})"
    return words


def _normalized(argv: Sequence[str]) -> list[str]:
    """`--output-dir` → `--output_dir`; `--rate -1e-3` → `--rate=-1e-3`, which argparse would take for an option."""
    words: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            words.append("--" + name[2:].replace("-", "_") + equals + value)
        elif words and words[-1].startswith("--") and "=" not in words[-1] and NEGATIVE.fullmatch(word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _git_commit() -> str | None:
    """The commit of the clone that holds this package; None for an installed wheel, whatever folder it lies in."""
    package = Path(__file__).resolve().parent
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return found[1] if Path(found[0]).resolve() == package.parent else None
