"""`docs/ecosystem.md` is true: its versions are those of the lock file, and its tests and scripts exist."""

import ast
import re

import pytest
from packaging.utils import canonicalize_name
from pages import ROOT, section, tables

PAGE = (ROOT / "docs" / "ecosystem.md").read_text()
LOCKED = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)
LOCKED = {canonicalize_name(name): version for name, version in LOCKED.items()}
SECTIONS = ("in-python", "other-forms", "over-http", "evaluation")
ROWS = [row for anchor in SECTIONS for table in tables(section(PAGE, anchor)) for row in table[1:]]


def existing_tests() -> set[str]:
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add(node.name)
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_versions_are_those_of_the_lock_file(row):
    named = re.match(r"([\w-]+) (\d[\w.]*)", row[0])
    if named is None:
        assert row[0].split(",")[0] in ("nanochat", "llama.cpp"), "a tool without a version is no package"
    elif canonicalize_name(named[1]) in LOCKED:
        assert named[2] == LOCKED[canonicalize_name(named[1])]
    else:
        assert "by hand" in row[2], f"{named[1]} is not in the lock file, so no test runs it"


def test_each_row_names_what_tried_it():
    known = existing_tests()
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(ROWS) > 25 and set(named) <= known, set(named) - known
    for row in ROWS:
        scripts = re.findall(r"`(tests/[\w/]+/by_hand/\w+\.py)`", row[2])
        assert scripts or re.search(r"`test_\w+`", row[2]), row
        assert all((ROOT / script).is_file() for script in scripts)


def test_scripts_by_hand_have_their_output_on_the_page():
    outputs = section(PAGE, "what-the-scripts-said")
    for script in {script for row in ROWS for script in re.findall(r"`(tests/[\w/]+/by_hand/\w+\.py)`", row[2])}:
        assert f"$ {script}\n" in outputs, script
