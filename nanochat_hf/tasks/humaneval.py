"""HumanEval (Chen et al. 2021, arXiv:2107.03374): complete a Python function so that its tests pass."""

import os
import re
from typing import Any

from nanochat_hf.tasks.base import Task
from nanochat_hf.tasks.reading import load_rows

COLUMNS = dict.fromkeys(("prompt", "canonical_solution", "entry_point", "test"), str)
CODE_BLOCK = re.compile(r"```(?:python)?[ \t]*\n(.*?)\n```", re.DOTALL)


class HumanEval(Task):
    """Functions to complete; scored by running their tests in the sandbox.

    Args:
        source: a folder with HumanEval.jsonl, a file, or a Hub id.
        split: `"test"`; there is no other one on the Hub, and a folder's file is read for any split.
        limit: use only the file's first so many functions; default: all, in upstream's order.
        shuffle: take the first so many of upstream's order instead.

    Raises:
        UserError: see `load_rows`.
    """

    name = "humaneval"
    runs_code = True

    def __init__(
        self,
        source: str | os.PathLike = "openai/openai_humaneval",
        split: str = "test",
        limit: int | None = None,
        shuffle: bool = False,
    ):
        rows = load_rows(
            source,
            "HumanEval*.jsonl",
            subset="openai_humaneval",
            split=split,
            limit=limit,
            shuffle=shuffle,
            columns=COLUMNS,
        )
        super().__init__(rows)

    def example(self, row: dict[str, str]) -> dict[str, Any]:
        return humaneval_example(row)

    def score(self, example: dict[str, Any], completion: str) -> float:
        return score_program(example, completion)


def humaneval_example(row: dict[str, str]) -> dict[str, Any]:
    """Makes an example of a row in HumanEval's format: prompt, canonical_solution, entry_point and test.

    The user's message is the stub (signature and docstring); the assistant answers with the whole function.
    """
    messages = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["prompt"] + row["canonical_solution"]},
    ]
    return {"messages": messages, "entry_point": row["entry_point"], "test": row["test"]}


def score_program(example: dict[str, Any], completion: str) -> float:
    """Runs the completion with the example's tests in the sandbox. Returns 1.0 where they pass, else 0.0."""
    from nanochat_hf.tools.sandbox import run_program

    stub = example["messages"][-2]["content"]
    program = [leading_imports(stub), code_of(completion), example["test"], f"check({example['entry_point']})"]
    return float(run_program("\n\n".join(program) + "\n").ok)


def code_of(completion: str) -> str:
    """Returns the first fenced code block, or the whole completion where there is none."""
    block = CODE_BLOCK.search(completion)
    return block.group(1) if block else completion


def leading_imports(stub: str) -> str:
    """Returns the import lines at the beginning of a stub. Answers often repeat the function but not its imports."""
    imports = []
    for line in map(str.strip, stub.splitlines()):
        if line.startswith(("import ", "from ")):
            imports.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(imports)
