"""`docs/architecture.md` says which package may import which: the code keeps to it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from pages import ROOT, section, tables

PACKAGE = ROOT / "nanochat_hf"
SHARED = {"settings", "progress", "openmp"}  # what every package but `model` may import


def allowed_imports() -> dict[str, set[str]]:
    """The table "Who imports whom": package → the packages that it may import, in the table's order."""
    (table,) = tables(section((ROOT / "docs" / "architecture.md").read_text(), "who-imports-whom"))
    packages = [name.strip("`") for name, _ in table[1:]]
    return {
        name.strip("`"): set(packages) if may == "any package" else {one for one in packages if f"`{one}`" in may}
        for name, may in table[1:]
    }


def imported_packages(path: Path) -> Iterator[str]:
    """The packages of nanochat_hf that a file imports, at its head or within functions."""
    home = ("nanochat_hf", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*home[: len(home) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        yield from (name[1] for name in names if name[0] == "nanochat_hf" and len(name) > 1)


def test_the_code_imports_only_what_the_page_allows():
    allowed = allowed_imports()
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        owner = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if owner in {"__init__", *SHARED}:
            continue
        may = allowed[owner] | {owner} | (set() if owner == "model" else SHARED)
        for name in sorted(set(imported_packages(path))):
            name = "model" if name.startswith("NanochatHF") else name
            if name not in may and (PACKAGE / name).exists() | (PACKAGE / f"{name}.py").exists():
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_imports_go_downwards():
    """Each package comes before those that it may import, so there is no circle."""
    allowed = allowed_imports()
    order = list(allowed)
    for name, may in allowed.items():
        assert all(order.index(other) >= order.index(name) for other in may)


def test_nobody_imports_a_script():
    scripts = {"training", "evaluation", "benchmarks", "space"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & scripts, path


def test_what_is_shared_imports_no_package():
    shared = [
        path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in SHARED
    ]
    assert len(shared) >= len(SHARED)
    for path in shared:
        found = set(imported_packages(path)) - SHARED
        assert not {other for other in found if (PACKAGE / other).is_dir()}, path
