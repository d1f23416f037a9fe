"""Command lines of the stages: one dataclass becomes options, a help screen and checked values."""

import argparse
import re
import shlex
import shutil
import sys
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nanochat_hf.settings.errors import UserError
from nanochat_hf.settings.fields import NEGATIVE, convert, default_of, did_you_mean, kind_of
from nanochat_hf.settings.recipes import STAGE_FOLDERS, read_recipe

# Subcommands → the scripts of a clone that run the same code.
SCRIPT_FOLDERS = ("training", "evaluation", "space")
SCRIPTS = {
    "train": "training/speedrun.py",
    "data shards": "training/make_shards.py",
    "evaluate": "evaluation/stages.py",
    "space": "space/app.py",
    **{
        name: f"training/{name}.py"
        for name in (*STAGE_FOLDERS, "miniseries", "scaling_laws", "report", "make_identity")
    },
    **{
        f"evaluate {name}": f"evaluation/{name}.py"
        for name in ("bits_per_byte", "core", "chat", "strangers", "tokenizer")
    },
}
if TYPE_CHECKING:
    from _typeshed import DataclassInstance
Config = TypeVar("Config", bound="DataclassInstance")


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
            near = did_you_mean(unknown[0].split("=")[0], {f"--{one.name}" for one in shown})
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
            kind, _ = kind_of(hints[one.name])
            self.kinds.add(typing.get_origin(kind) or kind)
            self.lines[one.name] = (f"--{one.name} {_typed(one, kind)}", _explanation(one))
            _add_option(self, one, kind)

    def format_help(self) -> str:
        """The text of `--help`, or with `everything` that of `--help-all`."""
        text = as_typed(self.help.text.strip())
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
    """A command as this user types it: `python training/sft.py` after a script of a clone, else `nanochat-hf sft`.

    Args:
        command: the subcommand of `nanochat-hf`, such as `"sft"` or `"evaluate core"`; the running one or another.
    """
    script = Path(sys.argv[0])
    clone = script.parent.parent
    if script.suffix == ".py" and script.parent.name in SCRIPT_FOLDERS and command in SCRIPTS:
        return shlex.join(["python", str(clone / SCRIPTS[command])])
    return f"nanochat-hf {command}"


def as_typed(text: str) -> str:
    """Returns a text whose commands, such as `nanochat-hf sft`, are as this user types them: see [`program`]."""
    names = "|".join(sorted(SCRIPTS, key=len, reverse=True))
    return re.sub(rf"\bnanochat-hf ({names})(?=\s|$)", lambda found: program(found[1]), text)


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
    default = default_of(one)
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
