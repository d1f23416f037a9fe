"""Reads a request's fields. Each is honoured, or refused with one sentence that names it; none is dropped silently."""

import json
from collections.abc import Iterable, Sequence
from typing import Any


class BadRequest(Exception):
    """The request cannot be answered as it is.

    Attributes:
        message: one sentence that names the field and the remedy.
        param: the field.
        status: of HTTP.
        code: a word for programs, or None.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code


class Fields:
    """The fields of a JSON object. A field that is null counts as absent, as clients write out what they do not set.

    Args:
        body: the object.
        prefix: how error messages name the object, such as "parameters.".
    """

    def __init__(self, body: Any, prefix: str = ""):
        if not isinstance(body, dict):
            raise BadRequest(f"{prefix.rstrip('.') or 'the body'} must be a JSON object, not {shown(body)}")
        self.given = {name: value for name, value in body.items() if value is not None}
        self.prefix, self._read = prefix, set[str]()

    def take(self, name: str, default: Any = None) -> Any:
        """Returns a field as it is."""
        self._read.add(name)
        return self.given.get(name, default)

    def fail(self, name: str, words: str) -> BadRequest:
        """The error of a field whose value must be something else."""
        value = shown(self.given.get(name))
        return BadRequest(f"{self.prefix}{name} must be {words}, not {value}", self.prefix + name)

    def number(self, name: str, default: Any, low: float, high: float, words: str, above: bool = False) -> Any:
        """Returns a number in [low, high], or in (low, high] if `above`."""
        value = self.take(name, default)
        if name in self.given:
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if not numeric or not low <= value <= high or (above and value == low):  # no comparison holds for NaN
                raise self.fail(name, f"a number {words}")
            value = float(value)
        return value

    def integer(self, name: str, default: Any, low: int | None = None, high: int | None = None) -> Any:
        """Returns a whole number; 3.0 is one, too."""
        value = self.take(name, default)
        if name in self.given:
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or (low is not None and value < low) or (high is not None and value > high):
                least = "" if low is None else f" of at least {low}"
                most = "" if high is None else f"{' and' if least else ' of'} at most {high}"
                raise self.fail(name, f"a whole number{least}{most}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Returns true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, "true or false")
        return value

    def text(self, name: str, default: Any = None) -> Any:
        """Returns text."""
        value = self.take(name, default)
        if name in self.given:
            if not isinstance(value, str):
                raise self.fail(name, "text")
            check_text(value, self.prefix + name)
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """Returns a list of texts that are not empty; one text is a list of one."""
        value = self.take(name, [])
        values = [value] if isinstance(value, str) else value
        right = isinstance(values, list) and all(isinstance(each, str) and each for each in values)
        if not right or len(values) > most:
            raise self.fail(name, f"text, or a list of at most {most} texts, none of them empty")
        for each in values:
            check_text(each, self.prefix + name)
        return values

    def objects(self, name: str) -> list[dict[str, Any]]:
        """Returns a list of JSON objects."""
        value = self.take(name, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.fail(name, "a list of objects")
        return value

    def refuse(self, reason: str, allowed: Sequence[Any] = (), *names: str) -> None:
        """Refuses fields, unless they have a value that changes nothing.

        Args:
            reason: why, as the end of the sentence.
            allowed: values that change nothing.
            names: the fields.
        """
        for name in names:
            value = self.take(name)
            if name in self.given and not any(type(value) is type(each) and value == each for each in allowed):
                raise BadRequest(
                    f"{self.prefix}{name} is not supported: {reason}", self.prefix + name, code="unsupported"
                )

    def done(self, ignored: Iterable[str] = ()) -> None:
        """Refuses every field that has not been read.

        Args:
            ignored: fields that describe the request and do not change the answer.
        """
        unknown = sorted(set(self.given) - self._read - set(ignored))
        if unknown:
            names = ", ".join(self.prefix + name for name in unknown)
            raise BadRequest(f"unknown field {names}: leave it out", self.prefix + unknown[0], code="unknown_field")


def check_text(text: str, name: str) -> None:
    """Refuses text that no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{name} holds half of a surrogate pair, which is no text", name) from None


def shown(value: Any) -> str:
    """A value for an error message, shortened."""
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."
