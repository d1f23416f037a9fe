"""Runs the commands of a guide in `docs/` from first to last, in this process, with the files that the page shows.

A shell block holds commands; any other block behind a line such as "`facts.yml`:" is a file of that name.
"""

import contextlib
import io
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from pages import ROOT

FILE = re.compile(r"`([\w.]+)`[^`\n]*:\n\n```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Sizes for a small model. The rest of a command stays as the page has it.
SMALLER = (
    (r"(microworld-\w+)@\d+", r"\1@6"),
    (r"(my_tasks:\w+)@300", r"\1@60"),
    (r"--val_tasks my_tasks:(\w+)@\d+", r"--val_tasks my_tasks:\1@8"),
    (r"--num_iterations \d+", "--num_iterations 2"),
    (r"--prompts_per_step \d+", "--prompts_per_step 2"),
)


@dataclass(frozen=True)
class Ran:
    """A command as the page has it, and what it printed."""

    command: str
    output: str


def read_guide(name: str) -> tuple[dict[str, str], list[str]]:
    """The files and the commands of `docs/<name>`, in the page's order."""
    page = (ROOT / "docs" / name).read_text()
    blocks = "".join(SHELL.findall(page))
    commands = [line.strip() for line in re.sub(r"\\\n\s*", "", blocks).splitlines() if line.strip()]
    return dict(FILE.findall(page)), [line for line in commands if not line.startswith("#")]


def run_guide(name: str, extra: dict[str, str]) -> list[Ran]:
    """Follows a guide in the current folder.

    Args:
        extra: subcommand → options that are added to it, to suit a small model.
    """
    from nanochat_hf.cli.main import run_command

    files, commands = read_guide(name)
    for path, text in files.items():
        Path(path).write_text(text, encoding="utf-8")
    found = []
    for command in commands:
        smaller = command
        for pattern, value in SMALLER:
            smaller = re.sub(pattern, value, smaller)
        program, subcommand, *words = shlex.split(smaller, comments=True)
        assert program == "nanochat-hf", command
        said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)  # as stdout is, for the chat
        with contextlib.redirect_stdout(said):
            run_command([subcommand, *words, *extra.get(subcommand, "").split()])
        said.seek(0)
        found.append(Ran(command, said.read()))
    return found


def score(folder: str, task: str) -> float:
    """The share of right answers of a task in the last evaluation of a checkpoint."""
    rows = json.loads(Path(folder, "eval", "chat.json").read_text())["details"]["tasks"]
    return next(row["accuracy"] for row in rows if row["task"] == task)
