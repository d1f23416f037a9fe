"""Fields of settings: which values a setting may have, and how a text becomes one of them."""

import argparse
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, field
from typing import Any

from nanochat_hf.settings.errors import UserError

MAX_SEED = 2**32 - 1  # NumPy's
# Far above anything that fits into memory; what is larger is a mistake.
MAX_DEPTH, MAX_TOKENS, MAX_ROWS = 1024, 2**24, 2**20  # layers; tokens of a row, or of a vocabulary; rows at once
MAX_STEPS, MAX_RATE = 10**9, 1000.0  # of a run; of a learning rate, a factor on one, or a decay
NEGATIVE = re.compile(r"-(\d|\.\d)\S*")
TRUTHS = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True) | dict.fromkeys(
    ("false", "f", "no", "n", "off", "0"), False
)


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
    commas: bool = False,
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
        commas: the items of a list may be joined by commas, as they always may where there are `choices`.
    """
    rules = {"at_least": at_least, "above": above, "at_most": at_most, "also": tuple(also), "off": off}
    rules |= {"help": help, "choices": tuple(choices), "path": path, "commas": commas}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=rules)
    return field(default=default, metadata=rules)


def default_of(one: Field) -> Any:
    """Returns the default of a field that `setting` made; None where it has none."""
    if one.default_factory is not MISSING:
        return one.default_factory()
    return None if one.default is MISSING else one.default


def did_you_mean(word: str, known: Iterable[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""


def kind_of(annotation: Any) -> tuple[Any, bool]:
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
    kind, optional = kind_of(annotation)
    if value is None:
        if optional:
            return None
        remedy = "[] for none" if typing.get_origin(kind) is list else "a value"
        raise UserError(f"{name} has no value (null); write {remedy}, or remove the line")
    if typing.get_origin(kind) is list:
        items = value if isinstance(value, list) else [value]
        if rules.get("commas") or rules.get("choices"):
            items = [part for item in items for part in split_at_commas(item)]
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


def split_at_commas(item: Any) -> list[Any]:
    """Splits `a,b`. A name that exists on disk stays whole, and what is no text stays as it is."""
    if not isinstance(item, str) or "," not in item or os.path.exists(os.path.expanduser(item)):
        return [item]
    return [part.strip() for part in item.split(",")]


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
        words += f" from {_digits(at_least)} to {_digits(at_most)}"
    elif at_least is not None:
        words += f" of at least {_digits(at_least)}"
    elif above is not None:
        words += f" above {_digits(above)}" + (f" and at most {_digits(at_most)}" if at_most is not None else "")
    return words + "".join(f", or {_digits(number)}" for number in rules.get("also", ()))


def _digits(number: float) -> str:
    return f"{int(number):,}" if 1e6 <= abs(number) < 1e15 and number == int(number) else f"{number:g}"


def checked(kind: type, **rules: Any) -> Callable[[str], Any]:
    """Returns what `add_argument` takes as `type` for a number that is held to the rules of `setting`.

    Args:
        kind: int or float.
        rules: `at_least`, `above`, `at_most` and `also`, as in `setting`.
    """

    def read(text: str) -> Any:
        try:
            return convert(text, kind, rules, "")
        except UserError:
            raise argparse.ArgumentTypeError(f"{_description(kind, rules)} is expected, not {text!r}") from None

    return read
