"""The script that tries newer releases: what it asks pip for, and what it makes of the answers."""

import json
import subprocess
import sys

import newest_releases
import pytest
from newest_releases import NewestReleasesError, Row
from packaging.requirements import Requirement
from packaging.version import Version

PYPROJECT = """
[build-system]
requires = ["maturin>=1.9,<2"]
[project]
name = "nanochat-hf"
dependencies = ["torch>=2.9,<2.14", "Jinja2<4"]
[project.optional-dependencies]
train = ["trl>=1.16,<1.17", "torch>=2.9,<2.14"]
serve = ["transformers[serving]>=5.3,!=5.4,<5.24"]
dev = ["nanochat-hf[train,serve]", "pytest"]
"""


@pytest.mark.parametrize(
    ("line", "free"),
    [
        ("torch>=2.9,<2.14", "torch>=2.9"),
        ("numpy<3", "numpy"),
        ("numpy<=2.4", "numpy"),
        ("pytest", "pytest"),
        ("transformers[serving]>=5.3,!=5.4.1,<6", "transformers[serving]!=5.4.1,>=5.3"),
        ("trl~=1.16.2", "trl>=1.16.2"),
        ("evaluate==0.4.6", "evaluate>=0.4.6"),
        ("gradio==6.*", "gradio>=6"),
        ("tomli<2; python_version < '3.11'", 'tomli; python_version < "3.11"'),
    ],
)
def test_upper_bounds_go_and_the_rest_stays(line, free):
    assert str(newest_releases.without_upper_bounds(Requirement(line))) == free


def test_everything_is_asked_for_or_what_is_named():
    requirements = newest_releases.declared(PYPROJECT)
    assert newest_releases.to_install(requirements) == [
        "Jinja2",
        "maturin>=1.9",
        "pytest",
        "torch>=2.9",
        "transformers[serving]!=5.4,>=5.3",
        "trl>=1.16",
    ]
    assert newest_releases.to_install(requirements, ["TRL", "jinja2"]) == ["Jinja2", "trl>=1.16"]
    with pytest.raises(NewestReleasesError, match="does not require tlr; --packages takes any of jinja2, maturin"):
        newest_releases.to_install(requirements, ["tlr", "torch"])


def test_the_repositorys_own_requirements_have_no_upper_bound_left():
    text = (newest_releases.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    requests = [Requirement(line) for line in newest_releases.to_install(newest_releases.declared(text))]
    far_away = Version("9999")
    assert len(requests) > 20 and all(one.specifier.contains(far_away) for one in requests)


def test_versions_are_read_and_compared():
    tried = newest_releases.read_lock("# a comment\nPyYAML==6.0.3\ntrl==1.16.0\n\ntorch==2.13.0  # big\ngone==1\n")
    assert tried == {"pyyaml": "6.0.3", "trl": "1.16.0", "torch": "2.13.0", "gone": "1"}
    metadata = [{"name": "PyYAML", "version": "6.0.3"}, {"name": "TRL", "version": "1.17.1"}]
    report = json.dumps({"install": [{"metadata": one} for one in metadata]})
    newest = newest_releases.reported_versions(report)
    assert newest == newest_releases.listed_versions(json.dumps(metadata)) == {"pyyaml": "6.0.3", "trl": "1.17.1"}
    rows = newest_releases.compare(
        tried, {**newest, "torch": "2.13.0", "new_one": "3", "nanochat-hf": "1", "pip": "9"}
    )
    assert rows == [Row("gone", "1", None), Row("new_one", None, "3"), Row("trl", "1.16.0", "1.17.1")]
    assert newest_releases.table(rows) == (
        "| package | tried  | newest |\n"
        "| ------- | ------ | ------ |\n"
        "| gone    | 1      | -      |\n"
        "| new_one | -      | 3      |\n"
        "| trl     | 1.16.0 | 1.17.1 |"
    )


def test_the_summary_tells_what_broke_from_what_was_broken():
    rows = [Row("trl", "1.16.0", "1.17.1")]
    shown = newest_releases.summary(rows, ["a::b", "c::d"], ["c::d"])
    assert shown.endswith(
        "Broken by the newest releases:\na::b\n\nFailing with the tried versions too:\nc::d"
    ) and shown.startswith("| package")
    assert newest_releases.summary([], [], []) == (
        "No package has a newer release than the tried one.\n\nNo test broke."
    )


def test_failed_tests_are_found_and_run_again(tmp_path, monkeypatch):
    """Failures, errors of fixtures and files that cannot be imported; with two processes, as the script runs them."""
    monkeypatch.setattr(newest_releases, "ROOT", tmp_path)
    (tmp_path / "test_one.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.parametrize('x', ['a::b', 1])\ndef test_fails(x): assert os.environ.get('TRIED')\n"
        "@pytest.fixture\ndef broken(): raise ValueError\n"
        "def test_cannot_start(broken): pass\n"
        "def test_passes(): pass\n"
    )
    (tmp_path / "test_two.py").write_text("import no_such_module\n")
    cache = tmp_path / "cache"
    failed = newest_releases.run_tests(
        sys.executable, cache, "-n", "2", "--dist", "loadfile", "test_one.py", "test_two.py"
    )
    one = "test_one.py::test_"
    assert failed == [f"{one}cannot_start", f"{one}fails[1]", f"{one}fails[a::b]", "test_two.py"]
    monkeypatch.setenv("TRIED", "1")
    again = newest_releases.run_tests(sys.executable, cache, "--last-failed")
    assert again == [f"{one}cannot_start", "test_two.py"]
    with pytest.raises(NewestReleasesError, match="exit code 4"):
        newest_releases.run_tests(sys.executable, cache, "no_such_folder")


def test_a_package_that_is_not_required_is_named():
    command = [sys.executable, newest_releases.__file__, "--packages", "tlr", "--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: pyproject.toml does not require tlr; ")
    assert len(result.stderr.splitlines()) == 1
