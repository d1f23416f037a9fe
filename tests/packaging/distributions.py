"""What pyproject.toml requires, which installed distributions that means, and which modules source files import."""

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OWN_NAME = "nanochat-hf"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def required(*extras: str) -> list[Requirement]:
    """Returns the requirements of a plain install with these extras; extras of extras are followed."""
    project = PYPROJECT["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            if canonicalize_name(requirement.name) == OWN_NAME:
                found += [one for one in required(*requirement.extras) if one not in found]
            else:
                found.append(requirement)
    return found


def needed(
    requirements: Iterable[Requirement], environment: dict[str, str] | None = None
) -> dict[str, metadata.Distribution | None]:
    """Returns the installed distributions that the requirements need, directly or not.

    Args:
        requirements: where to start.
        environment: values for environment markers; default: this interpreter's.

    Returns:
        Canonical name → distribution, or None if it is not installed.
    """
    found: dict[str, metadata.Distribution | None] = {}
    followed: set[tuple[str, str]] = set()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name not in found:
            try:
                found[name] = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                found[name] = None
        distribution = found[name]
        for extra in {"", *requirement.extras} if distribution else ():
            if (name, extra) in followed:
                continue
            followed.add((name, extra))
            for line in distribution.requires or ():
                one = Requirement(line)
                if one.marker is None or one.marker.evaluate({**(environment or {}), "extra": extra}):
                    todo.append(one)
    return found


@cache
def module_owners() -> dict[str, set[str]]:
    """Returns for each top-level module that can be imported the canonical names of its distributions."""
    return {
        module: {canonicalize_name(owner) for owner in owners}
        for module, owners in metadata.packages_distributions().items()
    }


@cache
def imported_names(path: Path, package: str) -> tuple[str, ...]:
    """Returns the names that a file imports when it runs. `package` is where its relative imports start."""

    def nodes(parent: ast.AST) -> Iterator[ast.AST]:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node = ast.Module(node.orelse, [])  # only type checkers read the rest
            yield node
            yield from nodes(node)

    def names() -> Iterator[str]:
        for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")
                start = [*parts[: len(parts) - node.level + 1]] if node.level else []
                start += [node.module] if node.module else []
                yield from (".".join([*start, alias.name]) for alias in node.names)

    return tuple(names())


class SourceTree:
    """The Python files below some folders, and what they import at module level and inside functions."""

    def __init__(self, root: Path, folders: Iterable[str]):
        self.files: dict[str, Path] = {}
        for folder in folders:
            for path in sorted((root / folder).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        # Scripts, which are no package, import the files beside them by their bare names.
        self.scripts = {path.stem for path in self.files.values() if not (path.parent / "__init__.py").exists()}

    def imports_of(self, module: str) -> set[str]:
        """Returns the names that a module imports, with their parents: `from a.b import c` gives a, a.b and a.b.c."""
        path = self.files[module]
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = set()
        for name in imported_names(path, package):
            parts = name.split(".")
            found |= {".".join(parts[: length + 1]) for length in range(len(parts))}
        return found

    def third_party(self, folder: str, *, follow: bool = True) -> dict[str, set[str]]:
        """Returns the third-party modules that a folder's files import, with the files that import them.

        Args:
            folder: one of the folders given to the constructor.
            follow: also look at the modules of this tree that are imported, and at the ones that those import.
        """
        own = {name.split(".")[0] for name in self.files} | self.scripts
        todo = [name for name in self.files if name.split(".")[0] == folder]
        seen, found = set(todo), {}
        while todo:
            module = todo.pop()
            for name in self.imports_of(module):
                top = name.split(".")[0]
                if name in self.files:
                    if follow and name not in seen:
                        seen.add(name)
                        todo.append(name)
                elif top not in own and top not in sys.stdlib_module_names:
                    found.setdefault(top, set()).add(module)
        return found


def undeclared(imported: dict[str, set[str]], requirements: Iterable[Requirement]) -> dict[str, set[str]]:
    """Returns the imported modules that none of the requirements provides itself, with the files that import them."""
    names = {canonicalize_name(requirement.name) for requirement in requirements}
    return {module: files for module, files in imported.items() if not names & module_owners().get(module, {module})}
