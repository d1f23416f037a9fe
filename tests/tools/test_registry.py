"""The list of tools: one declaration serves rollouts, chats, the server and the template."""

import json
import subprocess
import sys

import pytest

from nanochat_hf.settings import UserError, load_function
from nanochat_hf.tools import registry
from nanochat_hf.tools.registry import TOOLS, called_tool, run_call, run_tool, schemas, written_call


@pytest.fixture
def own_tool(monkeypatch):
    monkeypatch.setattr(registry, "TOOLS", TOOLS)
    before = dict(TOOLS)

    @registry.tool
    def reverse(text: str) -> str:
        """Writes a text from its end.

        Args:
            text: the text.
        """
        return text[::-1]

    yield reverse
    TOOLS.clear()
    TOOLS.update(before)


def test_a_call_is_written_and_read_back():
    for name, arguments in (("calculator", {"expression": "12*3"}), ("weekday", {"date": "2026-11-27"})):
        assert called_tool(written_call(name, arguments)) == (name, arguments)
    assert written_call("calculator", {"expression": "12*3"}) == "12*3"
    assert called_tool('{"name": 5}') == ("calculator", {"expression": '{"name": 5}'})
    assert called_tool("[" * 100_000)[0] == "calculator"
    for no_json in (r'"\ud800"', "NaN", "-1e999"):
        call = f'{{"name": "weekday", "arguments": {{"date": {no_json}}}}}'
        assert called_tool(call) == ("calculator", {"expression": call})


def test_calls_are_run_or_refused():
    assert run_call("12*3") == "36" and run_call("'banana'.count('a')") == "3"
    assert run_call('{"name": "calculator", "arguments": {"expression": "20/2"}}') == "10.0"
    assert run_call('{"name": "weekday", "arguments": {"date": "2026-11-27"}}') == "Friday"
    for wrong in ("2026-13-01", "Friday", "", 5):
        assert run_tool("weekday", {"date": wrong}) is None
    assert run_tool("weekday", {"day": "2026-11-27"}) is None and run_tool("weekday", {}) is None
    assert run_tool("search", {"q": "x"}) is None
    assert run_tool("calculator", {"expression": 5}) == "5"


def test_a_tool_that_fails_ends_nothing(own_tool, capsys):
    assert run_tool("reverse", {"text": "abc"}) == "cba"
    assert run_tool("reverse", {"text": 5}) is None  # TypeError: arguments of another form

    @registry.tool
    def broken() -> str:
        """Fails."""
        raise RuntimeError("no network")

    @registry.tool
    def half(code: int) -> str:
        """Writes a character."""
        return chr(code)

    assert run_tool("half", {"code": 65}) == "A" and run_tool("half", {"code": 0xD800}) is None
    assert run_tool("broken", {}) is None and run_tool("broken", {}) is None
    assert capsys.readouterr().err.count("the tool broken failed (RuntimeError: no network)") == 1


def test_the_schema_comes_from_the_function(own_tool):
    found = {one["function"]["name"]: one["function"] for one in schemas()}
    assert set(found) == {"calculator", "weekday", "reverse"}
    assert found["reverse"]["parameters"]["properties"]["text"] == {"type": "string", "description": "the text."}
    assert found["weekday"]["parameters"]["required"] == ["date"]


def test_the_engine_and_the_data_know_a_tool_of_ones_own(own_tool):
    from nanochat_hf.tasks.formats import Notes, to_conversation

    call = {"id": "1", "function": {"name": "reverse", "arguments": '{"text": "abc"}'}}
    notes = Notes()
    messages = [
        {"role": "user", "content": "Reverse abc."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "assistant", "content": "It is cba."},
    ]
    parts = to_conversation(messages, notes)[-1]["content"]
    assert [part["type"] for part in parts] == ["python", "python_output", "text"]
    assert json.loads(parts[0]["text"]) == {"name": "reverse", "arguments": {"text": "abc"}}
    assert parts[1]["text"] == "cba" and not notes.other_tools


def test_modules_are_named_by_the_environment(tmp_path):
    (tmp_path / "my_tools.py").write_text(
        "from nanochat_hf.tools.registry import tool\n\n\n@tool\n"
        "def shout(text: str) -> str:\n    return text.upper()\n"
    )
    code = "from nanochat_hf.tools.registry import run_tool; print(run_tool('shout', {'text': 'hi'}))"
    environment = {"NANOCHAT_TOOLS": "my_tools", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stdout == "HI\n", run.stderr
    environment["NANOCHAT_TOOLS"] = "no_such_tools"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "NANOCHAT_TOOLS: cannot import the module no_such_tools" in run.stderr


def test_functions_are_found_by_path():
    assert load_function("json:dumps", "--reward") is json.dumps
    for path, words in (
        ("json", "is no import path"),
        ("json:nothing", "has no function or class nothing"),
        ("no_such_module:score", "cannot import the module no_such_module"),
    ):
        with pytest.raises(UserError, match=words):
            load_function(path, "--reward")
