"""The Rust crate: its files import each other in one direction, and its dependencies have exact versions."""

import re
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from distributions import ROOT

CRATE = ROOT / "rustbpe"


def files_used(source: Path) -> set[str]:
    """Returns the files of the crate that a file names: `crate::words`, or in lib.rs `words::`."""
    text = re.sub(r"//.*|\"(?:[^\"\\\n]|\\.)*\"", "", source.read_text(encoding="utf-8"))
    names = set(re.findall(r"\bcrate::(\w+)", text))
    if source.stem == "lib":
        names |= set(re.findall(r"^mod (\w+);", text, re.MULTILINE))
    return names


def order_of(folder: Path) -> list[str]:
    """Returns the files in an order in which each one uses earlier ones only.

    Raises:
        CycleError: there is no such order.
    """
    return list(TopologicalSorter({path.stem: files_used(path) for path in folder.glob("*.rs")}).static_order())


def test_no_file_imports_itself_through_others():
    order = order_of(CRATE / "src")
    assert set(order) == {path.stem for path in (CRATE / "src").glob("*.rs")}
    assert order[-1] == "lib"


def test_a_circle_is_found(tmp_path):
    (tmp_path / "lib.rs").write_text("mod one;\nmod two;\n")
    (tmp_path / "one.rs").write_text("use crate::two::Thing;\n")
    (tmp_path / "two.rs").write_text("// not crate::three\nfn f() { crate::one::g() }\n")
    with pytest.raises(CycleError):
        order_of(tmp_path)


def test_versions_are_exact():
    manifest = tomllib.loads((CRATE / "Cargo.toml").read_text(encoding="utf-8"))
    for name, wanted in manifest["dependencies"].items():
        version = wanted if isinstance(wanted, str) else wanted["version"]
        assert re.fullmatch(r"=\d+\.\d+\.\d+", version), f"{name} = {version!r} is not exact"
