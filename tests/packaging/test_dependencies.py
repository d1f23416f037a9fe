"""What is imported is declared, what is declared is used, and the lock file holds just what that needs."""

import pytest
from distributions import OWN_NAME, PYPROJECT, ROOT, SourceTree, module_owners, needed, required, undeclared
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = PYPROJECT["project"]["optional-dependencies"]
TREE = SourceTree(ROOT, ["nanochat_hf", "training", "evaluation", "space", "benchmarks", "tests"])

# Extra of the scripts in a folder, and modules that only functions reach that no script of that folder calls.
SCRIPTS = {
    "training": ("train", {"tiktoken"}),  # conversion to upstream's format
    "evaluation": ("eval", set()),
    "space": ("space", set()),
}
# A checkout of upstream, and a module that it imports; what tests are run against by hand (tests/*/by_hand).
BROUGHT_ALONG = {"benchmarks": {"nanochat", "scripts", "wandb"}, "tests": {"lm_eval", "text_generation"}}
# Declared, but imported by another library: kernels by transformers, onnx by torch's exporter, the plugins of pytest
# by pytest; or a program.
IMPORTED_BY_OTHERS = {
    "kernels", "mypy", "onnx", "pytest-timeout", "pytest-xdist", "ruff", "types-psutil", "types-pyyaml", "types-tqdm"
}  # fmt: skip
NOT_LOCKED = {"kernels"}  # for GPUs; not in the extra `dev`
# The platform that the lock file is for.
LOCKED_FOR = {
    "python_version": "3.11",
    "python_full_version": "3.11.9",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
}


@pytest.mark.parametrize("folder", SCRIPTS)
def test_scripts_reach_only_what_their_extra_declares(folder):
    extra, unused = SCRIPTS[folder]
    missing = undeclared(TREE.third_party(folder), required(extra))
    assert set(missing) == unused, missing


def test_the_package_imports_only_what_is_declared():
    extras = [extra for extra in EXTRAS if extra != "dev"]
    assert not undeclared(TREE.third_party("nanochat_hf"), required(*extras))


@pytest.mark.parametrize("folder", ["benchmarks", "tests"])
def test_tests_and_benchmarks_import_only_what_is_declared(folder):
    missing = undeclared(TREE.third_party(folder, follow=False), required("dev"))
    assert set(missing) == BROUGHT_ALONG[folder], missing


def test_what_is_declared_is_imported():
    modules = set().union(*(TREE.third_party(folder) for folder in ("nanochat_hf", *SCRIPTS, "benchmarks", "tests")))
    imported = set().union(*(module_owners().get(module, set()) for module in modules))
    declared = {canonicalize_name(requirement.name) for requirement in required(*EXTRAS)}
    assert declared - imported == IMPORTED_BY_OTHERS


def test_an_undeclared_import_is_found(tmp_path):
    """At module level, inside a function, and behind another module of the tree."""
    (tmp_path / "package").mkdir()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import torch\n")
    (tmp_path / "package" / "deep.py").write_text("from . import other\ndef f():\n    from yaml.nodes import Node\n")
    (tmp_path / "package" / "other.py").write_text("import os.path, numpy.linalg\n")
    (tmp_path / "scripts" / "one.py").write_text(
        "from package import deep\nimport two\nif TYPE_CHECKING:\n    import trl\n"
    )
    (tmp_path / "scripts" / "two.py").write_text("import PIL.Image as image, no_such_module\n")
    tree = SourceTree(tmp_path, ["package", "scripts"])
    imported = tree.third_party("scripts")
    assert imported == {
        "torch": {"package"},
        "yaml": {"package.deep"},
        "numpy": {"package.other"},
        "PIL": {"scripts.two"},
        "no_such_module": {"scripts.two"},
    }
    assert set(tree.third_party("scripts", follow=False)) == {"PIL", "no_such_module"}
    declared = [Requirement("PyYAML"), Requirement("numpy>=2"), Requirement("torch")]
    assert undeclared(imported, declared) == {"PIL": {"scripts.two"}, "no_such_module": {"scripts.two"}}


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert len({canonicalize_name(name) for name in pins}) == len(lines)
    return {canonicalize_name(name): version for name, version in pins.items()}


def test_the_lock_file_holds_what_is_needed_and_nothing_else():
    roots = required("dev") + [Requirement(line) for line in PYPROJECT["build-system"]["requires"]]
    wanted = needed(roots, LOCKED_FOR)
    absent = sorted(name for name, distribution in wanted.items() if distribution is None)
    assert not absent, f"not installed, so what they need is not known: {absent}"
    assert sorted(lock()) == sorted(wanted)


def test_the_locked_versions_are_within_the_declared_bounds():
    pins = lock()
    outside = {}
    for requirement in required(*EXTRAS):
        if requirement.name in NOT_LOCKED:
            continue
        version = pins[canonicalize_name(requirement.name)]
        if not requirement.specifier.contains(version):
            outside[str(requirement)] = version
    assert not outside


def test_the_space_asks_for_versions_that_are_allowed():
    lines = (ROOT / "space" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = lock()
    allowed = {canonicalize_name(one.name) for one in required("space")}
    for requirement in (Requirement(line) for line in lines if line.strip() and not line.startswith("#")):
        name = canonicalize_name(requirement.name)
        assert name in allowed | {OWN_NAME}, f"{name} is not a dependency of the extra `space`"
        assert name == OWN_NAME or requirement.specifier.contains(pins[name])


def test_the_extras_are_about_different_things():
    """An extra that equals another one, or only stands for it, is a name too many."""
    contents = {extra: frozenset(map(str, required(extra))) for extra in EXTRAS}
    assert len(set(contents.values())) == len(contents)
