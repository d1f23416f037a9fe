"""The tools that a model can call, each declared once: rollouts, chats, the server and templates read this list.

A tool is a function with type hints and a docstring with `Args:`, of which transformers makes the JSON schema. Its
arguments are what the model wrote, so it must not trust them. It returns the result as text, or None where it refuses;
then the model goes on without a result.

    from nanochat_hf.tools.registry import tool

    @tool
    def reverse(text: str) -> str:
        '''Writes a text from its end.

        Args:
            text: the text.
        '''
        return text[::-1]

Set `NANOCHAT_TOOLS=my_tools` for tools of your own: every command then imports the module `my_tools`, found in the
current folder or installed.

The model calls the calculator by its bare expression, and all other tools by a JSON object:
`{"name": "weekday", "arguments": {"date": "2026-11-27"}}`.
"""

import datetime
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from nanochat_hf.settings import load_module
from nanochat_hf.tools.calculator import calculate

Tool = Callable[..., str | None]
TOOLS: dict[str, Tool] = {}
_complained: set[str] = set()


def tool(function: Tool) -> Tool:
    """Declares a tool; for use as a decorator. A second one of the same name replaces the first."""
    TOOLS[function.__name__] = function
    return function


@tool
def calculator(expression: str) -> str | None:
    """Computes arithmetic exactly, or counts a letter in a word.

    Args:
        expression: arithmetic such as "12 * (3 + 4)", or "'banana'.count('a')".
    """
    return calculate(str(expression))


@tool
def weekday(date: str) -> str | None:
    """Says on which day of the week a date falls.

    Args:
        date: year, month and day, such as "2026-11-27".
    """
    return datetime.date.fromisoformat(str(date).strip()).strftime("%A")


def called_tool(call: str) -> tuple[str, dict[str, Any]]:
    """Returns the name of the tool that the model calls, and its arguments.

    Args:
        call: what the model wrote between `<|python_start|>` and `<|python_end|>`.
    """
    try:
        read = json.loads(call)
        json_text(read)
    except (ValueError, RecursionError):
        read = None
    if isinstance(read, dict) and isinstance(read.get("name"), str) and isinstance(read.get("arguments"), dict):
        return read["name"], read["arguments"]
    return "calculator", {"expression": call}


def json_text(value: Any) -> str:
    """Returns a value as JSON text.

    Raises:
        ValueError: it holds what no JSON text can hold: NaN, infinity or half of a surrogate pair.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()
    return text


def written_call(name: str, arguments: dict[str, Any]) -> str:
    """Returns a call as the model writes it; the inverse of `called_tool`."""
    if name == "calculator" and isinstance(arguments.get("expression"), str):
        return arguments["expression"]
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def run_tool(name: str, arguments: dict[str, Any]) -> str | None:
    """Returns a tool's result as text; None where there is no such tool or it refuses these arguments.

    A tool that fails on what a model wrote must not end a training or a server. The failure is printed once per tool.
    """
    if name not in TOOLS:
        return None
    try:
        result = TOOLS[name](**arguments)
        text = None if result is None else str(result)
        if text is not None:
            text.encode()
    except (TypeError, ValueError):  # arguments of other names or of another form, or a result that is no text
        return None
    except Exception as error:
        if name not in _complained:
            _complained.add(name)
            print(f"warning: the tool {name} failed ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
        return None
    return text


def run_call(call: str) -> str | None:
    """Runs the call that the model wrote and returns its result, or None; see `run_tool`."""
    return run_tool(*called_tool(call))


def schemas() -> list[dict[str, Any]]:
    """Returns the JSON schemas of all tools, as OpenAI's protocol and chat templates take them."""
    from transformers.utils import get_json_schema

    return [get_json_schema(function) for function in TOOLS.values()]


for _name in filter(None, os.environ.get("NANOCHAT_TOOLS", "").split(",")):
    load_module(_name.strip(), "NANOCHAT_TOOLS")
