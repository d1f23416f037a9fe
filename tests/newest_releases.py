"""Runs the tests against the newest releases of the libraries. The upper bounds of pyproject.toml are ignored.

    python tests/newest_releases.py --dry-run                              show what would be installed
    python tests/newest_releases.py                                        every library at its newest release
    python tests/newest_releases.py --packages transformers trl accelerate only these, and what they require
    python tests/newest_releases.py --tests tests/model tests/optim        only some tests

The script makes a virtual environment and removes it at the end; `--environment DIR` keeps it. The tried versions are
those of requirements.lock. Run the script with the Python that has them (`make setup` installs them into .venv/). It
runs each failed test once more with that Python: if the test fails there too, the new releases are not the cause.

The exit code is 0 if no test broke, 1 if one did, 2 if the releases cannot be installed or tested.
It needs the network, Rust and a C compiler as `make setup` does, and about 8 GB of disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
OWN_NAME = "nanochat-hf"
LEFT_OUT = "tests/packaging"  # compares the repository's files with requirements.lock


class NewestReleasesError(Exception):
    """The releases cannot be installed or tested."""


@dataclass(frozen=True)
class Row:
    """One line of the table: the version of a package in requirements.lock, and the newest one."""

    package: str
    tried: str | None
    newest: str | None


def without_upper_bounds(requirement: Requirement) -> Requirement:
    """Returns the requirement with its lower bounds and exclusions only. `~=1.4` and `==1.4` become `>=1.4`."""
    kept = []
    for one in requirement.specifier:
        if one.operator in (">", ">=", "!="):
            kept.append(str(one))
        elif one.operator in ("~=", "=="):
            kept.append(f">={one.version.removesuffix('.*')}")
    free = Requirement(str(requirement))
    free.specifier = SpecifierSet(",".join(kept))
    return free


def declared(pyproject: str, extra: str = "dev") -> list[Requirement]:
    """Returns the requirements of the build and of an install with an extra. Extras of extras are followed.

    Args:
        pyproject: the text of pyproject.toml.
        extra: the extra that the tests need.
    """
    content = tomllib.loads(pyproject)
    project = content["project"]
    todo = [*content["build-system"]["requires"], *project["dependencies"], *project["optional-dependencies"][extra]]
    found: list[Requirement] = []
    while todo:
        requirement = Requirement(todo.pop(0))
        if canonicalize_name(requirement.name) == OWN_NAME:
            for name in sorted(requirement.extras):
                todo += project["optional-dependencies"][name]
        elif requirement not in found:
            found.append(requirement)
    return found


def to_install(requirements: Iterable[Requirement], packages: Sequence[str] = ()) -> list[str]:
    """Returns the arguments for pip: all requirements, or those of `packages`, without upper bounds.

    Raises:
        NewestReleasesError: pyproject.toml does not require one of the packages.
    """
    requirements = list(requirements)
    names = {canonicalize_name(name) for name in packages}
    known = {canonicalize_name(requirement.name) for requirement in requirements}
    if names - known:
        raise NewestReleasesError(
            f"pyproject.toml does not require {', '.join(sorted(names - known))}; "
            f"--packages takes any of {', '.join(sorted(known))}"
        )
    chosen = [one for one in requirements if not names or canonicalize_name(one.name) in names]
    return sorted({str(without_upper_bounds(one)) for one in chosen})


def read_lock(text: str) -> dict[str, str]:
    """Returns the versions of a lock file, by canonical name."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pins = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in pins}


def reported_versions(report: str) -> dict[str, str]:
    """Returns the versions in the JSON report of `pip install --report`, by canonical name."""
    found = (item["metadata"] for item in json.loads(report)["install"])
    return {canonicalize_name(one["name"]): one["version"] for one in found}


def listed_versions(listing: str) -> dict[str, str]:
    """Returns the versions in the output of `pip list --format json`, by canonical name."""
    return {canonicalize_name(one["name"]): one["version"] for one in json.loads(listing)}


def compare(tried: dict[str, str], newest: dict[str, str]) -> list[Row]:
    """Returns a row for each package whose versions differ, in order of their names."""
    names = sorted((tried.keys() | newest.keys()) - {OWN_NAME, "pip"})
    return [Row(name, tried.get(name), newest.get(name)) for name in names if tried.get(name) != newest.get(name)]


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table. A package that one side does not have shows as "-"."""
    cells = [("package", "tried", "newest"), *((row.package, row.tried or "-", row.newest or "-") for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def failed_tests(cache: Path) -> list[str]:
    """Returns the tests that failed in the last run with this cache folder, as pytest names them."""
    path = cache / "v" / "cache" / "lastfailed"
    return sorted(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def summary(rows: Sequence[Row], failed: Sequence[str], failed_before: Sequence[str]) -> str:
    """Returns the result: the table, the tests that broke, and those that fail with the tried versions too.

    Args:
        rows: packages whose versions differ.
        failed: tests that fail with the newest releases.
        failed_before: those of them that fail with the tried versions too.
    """
    broken = [test for test in failed if test not in failed_before]
    parts = [table(rows) if rows else "No package has a newer release than the tried one."]
    parts.append("\n".join(["Broken by the newest releases:", *broken]) if broken else "No test broke.")
    if failed_before:
        parts.append("\n".join(["Failing with the tried versions too:", *failed_before]))
    return "\n\n".join(parts)


def run(command: Sequence[str | os.PathLike], failure: str, **options) -> subprocess.CompletedProcess:
    """Runs a command.

    Raises:
        NewestReleasesError: it exits with another code than 0; the message is `failure`.
    """
    result = subprocess.run(command, cwd=ROOT, text=True, **options)
    if result.returncode:
        raise NewestReleasesError(f"{failure} (the command was: {' '.join(map(str, command))})")
    return result


def resolve(requests: Sequence[str], limited: bool) -> dict[str, str]:
    """Returns the versions that pip would install, without installing them.

    Args:
        requests: the arguments for pip.
        limited: only these change. The others are as in this Python's environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        how = ["--upgrade", "--upgrade-strategy", "only-if-needed"] if limited else ["--ignore-installed"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", report, *how]
        run([*pip, *requests], "pip finds no set of releases that fit together; its reason is above")
        return reported_versions(report.read_text(encoding="utf-8"))


def install(environment: Path, requests: Sequence[str], limited: bool) -> dict[str, str]:
    """Makes the virtual environment with the newest releases and this package; returns what is installed."""
    run([sys.executable, "-m", "venv", environment], f"cannot make a virtual environment in {environment}")
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet"]
    run([*pip, "--upgrade", "pip"], "pip cannot be upgraded; its reason is above")
    if limited:
        run([*pip, "-r", "requirements.lock"], "the tried versions cannot be installed; pip's reason is above")
    upgrade = ["--upgrade", "--upgrade-strategy", "only-if-needed"]
    run([*pip, *upgrade, *requests], "the newest releases cannot be installed; pip's reason is above")
    build = ["--no-deps", "--no-build-isolation", "--editable", "."]
    run([*pip, *build], "this package cannot be built; the reason is above")
    listing = run([python, "-m", "pip", "list", "--format", "json"], "pip list failed", stdout=subprocess.PIPE)
    return listed_versions(listing.stdout)


def run_tests(python: Path | str, cache: Path, *options: str) -> list[str]:
    """Runs pytest and returns the tests that failed.

    Raises:
        NewestReleasesError: pytest did not run the tests.
    """
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [python, "-m", "pytest", "-o", f"cache_dir={cache}", "--continue-on-collection-errors", *options]
    code = subprocess.run(command, cwd=ROOT, env=variables).returncode
    if code not in (0, 1):
        raise NewestReleasesError(f"pytest ended with exit code {code} before all tests had run; its output is above")
    return failed_tests(cache)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", nargs="+", default=[], metavar="NAME", help="upgrade only these (default: all)")
    parser.add_argument("--tests", nargs="+", default=["tests"], metavar="PATH", help="tests to run (default: tests)")
    parser.add_argument(
        "--environment", type=Path, metavar="DIR", help="new folder for the environment, which is kept"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be installed, and stop")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    limited = bool(options.packages)
    requests = to_install(declared((ROOT / "pyproject.toml").read_text(encoding="utf-8")), options.packages)
    tried = read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    if options.dry_run:
        newest = resolve(requests, limited)
        print(f"pip install {' '.join(requests)}\n")
        print(summary(compare(tried, {**tried, **newest} if limited else newest), [], []).partition("\n\n")[0])
        return 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = options.environment.resolve() if options.environment else folder / "environment"
        if environment.exists() and any(environment.iterdir()):
            raise NewestReleasesError(f"the folder {environment} is not empty; name a new one with --environment")
        newest = install(environment, requests, limited)
        rows = compare(tried, newest)
        print(table(rows) if rows else "No package has a newer release than the tried one.", flush=True)
        cache = folder / "cache"
        parallel = ("-n", "2", "--dist", "loadfile", f"--ignore={LEFT_OUT}")
        failed = run_tests(environment / "bin" / "python", cache, *parallel, *options.tests)
        failed_before = run_tests(sys.executable, cache, "--last-failed") if failed else []
    print(f"\n{summary(rows, failed, failed_before)}")
    return 1 if set(failed) - set(failed_before) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NewestReleasesError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
