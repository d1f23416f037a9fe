"""The documentation keeps to the code: links, file names, commands, options and the sources of figures."""

import argparse
import functools
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from pages import FENCE, ROOT, anchors, commands, links, pages, prose, section, sections, spans, tables

from nanochat_hf.scaling import depth_dial

PAGES = pages()
HISTORY = [page for page in PAGES if page.parent.name == "log" or page.name == "CHANGELOG.md"]
README = (ROOT / "README.md").read_text()
FIGURE = re.compile(r"\d[\d.,]*\d|\d")
# Files that a run, upstream's data or another package makes; all other source files must be in the repository.
NOT_OURS = {"core.yaml", "my_chats.jsonl", "my_tasks.py"}
SOURCE_ENDINGS = (".py", ".rs", ".jinja", ".toml", ".yaml", ".sh", ".lock", ".cff")
FOLDERS = ("nanochat_hf/", "training/", "evaluation/", "benchmarks/", "space/", "rustbpe/", "tests/", "docs/", ".ci/")
# Options of other programs that the pages speak of.
FOREIGN_OPTIONS = {
    "--trust-remote-code",
    "--model_args",
    "--config_file",
    "--parallelism_config_dp_replicate_size",
}


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tracked_files() -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    broken = []
    for link in links(page.read_text()):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_named_files_exist(page):
    missing = []
    for word in (word for span in spans(page.read_text()) for word in span.split()):
        name = word.removeprefix("./").rstrip(",;:)")
        if not re.fullmatch(r"[\w./*-]+", name) or name in NOT_OURS:
            continue
        if name.startswith(FOLDERS):
            if not list(ROOT.glob(name.rstrip("/"))):
                missing.append(name)
        elif name.endswith(SOURCE_ENDINGS) and not any(
            Path(file).match(name) or Path(file).match(f"**/{name}") for file in tracked_files()
        ):
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_blocks_compile(page):
    for language, body in FENCE.findall(page.read_text()):
        if language == "python":
            compile(body, str(page), "exec")


def test_every_page_is_in_the_index():
    listed = {(ROOT / "docs" / link).resolve() for link in links((ROOT / "docs" / "README.md").read_text())}
    written = {page for page in PAGES if page.parent == ROOT / "docs" and page.name != "README.md"}
    assert written <= listed


def test_pictures_are_drawn_and_well_formed(tmp_path):
    draw = runpy.run_path(str(ROOT / "docs" / "figures.py"))["draw_depth_dial"]
    draw(tmp_path / "depth-dial.svg")
    for picture in [tmp_path / "depth-dial.svg", *(ROOT / "docs").glob("*.svg")]:
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")


# ---- commands --------------------------------------------------------------------------------------------------


@functools.cache
def options_of(program: str) -> frozenset[str]:
    """The options that `program --help` lists, from its parser: help texts quote other commands' options."""
    known: set[str] = set()
    before, print_help = (sys.argv, list(sys.path), set(sys.modules)), argparse.ArgumentParser.print_help
    argparse.ArgumentParser.print_help = lambda parser, file=None: known.update(parser._option_string_actions)
    try:
        if program.startswith("nanochat-hf"):
            from nanochat_hf.cli.main import main

            main([*program.split()[1:], "--help"])
        else:
            sys.argv = [program, "--help"]
            sys.path.insert(0, str((ROOT / program).parent))  # as for a script: neighbours can be imported
            runpy.run_path(str(ROOT / program), run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, f"{program} --help failed"
    finally:
        argparse.ArgumentParser.print_help = print_help
        sys.argv, sys.path[:] = before[0], before[1]
        for name in set(sys.modules) - before[2]:
            if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(ROOT / program.split("/")[0])):
                del sys.modules[name]
    assert known, f"{program} --help shows no options"
    return frozenset(known)


@functools.cache
def launcher_options() -> frozenset[str]:
    from accelerate.commands.launch import launch_command_parser

    return frozenset(launch_command_parser()._option_string_actions)


@functools.cache
def make_words() -> tuple[frozenset[str], frozenset[str]]:
    """Targets and variables of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    variables = set(re.findall(r"^(\w+) *[:?]?=", makefile, re.MULTILINE)) | set(re.findall(r"\$\((\w+)\)", makefile))
    variables |= set(re.findall(r"\$\((?:if|or) \$?\(?(\w+)", makefile))
    return frozenset(re.findall(r"^(\w[\w-]*):(?!=)", makefile, re.MULTILINE)), frozenset(variables)


def program_exists(program: str) -> bool:
    from nanochat_hf.cli.main import COMMANDS

    name, _, command = program.partition(" ")
    if name != "nanochat-hf":
        return (ROOT / program).exists()
    return command == "--help" or set(command.split(" ")[0].split("|")) <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_their_options_exist(page):
    wrong = []
    for command in commands(page.read_text()):
        if command.program == "make":
            targets, variables = make_words()
            wrong += [
                f"{command.line}: {word}"
                for word in command.words
                if (word.split("=")[0] not in variables if "=" in word else word not in targets)
            ]
        elif not program_exists(command.program):
            wrong.append(f"{command.line}: no such script or command")
        elif command.options:
            program = command.program
            wrong += [f"{command.line}: {word}" for word in command.options if word not in options_of(program)]
        wrong += [f"{command.line}: {word}" for word in command.launcher_options if word not in launcher_options()]
        recipes = [word.split("=")[-1] for word in command.words if word.endswith(".yaml")]
        wrong += [f"{command.line}: {word}" for word in recipes if not (ROOT / word).exists()]
    assert not wrong


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY], ids=page_name)
def test_options_named_alone_exist(page):
    """An option in a code span of its own belongs to some script or command; history may name one that is gone."""
    named = {
        word for span in spans(page.read_text()) if span.startswith("--") for word in re.findall(r"--\w[\w-]*", span)
    }
    scripts = [
        name
        for name in tracked_files()
        if re.fullmatch(r"(training|evaluation|benchmarks|space)/\w+\.py", name)
        and name != "benchmarks/benchmark_tools.py"  # a module, not a script
    ]
    programs = [*scripts, *(f"nanochat-hf {name}" for name in ("chat", "serve", "plan", "convert", "report", "push"))]
    for program in programs:
        if named <= FOREIGN_OPTIONS:
            return
        named -= options_of(program)
    assert named <= FOREIGN_OPTIONS


# ---- figures ---------------------------------------------------------------------------------------------------


def sources(text: str) -> list[tuple[str, str]]:
    """(page, anchor) of the links into docs/."""
    found = [link.partition("#") for link in links(text) if re.match(r"docs/[\w./-]+\.md", link)]
    return [(path, anchor) for path, _, anchor in found]


def figures_in(path: str, anchor: str) -> list[str]:
    return FIGURE.findall(section((ROOT / path).read_text(), anchor))


def test_every_table_of_figures_names_its_source():
    for part in sections(README):
        for table in tables(part):
            cells = [prose(re.sub(r"\[[^\]]*\]\([^)]*\)", "", cell)) for row in table[1:] for cell in row]
            if any(FIGURE.search(re.sub(r"`[^`]*`", "", cell)) for cell in cells):
                assert sources(part), f"no source for the table {table[0]}"


def test_figures_beside_upstream_stand_in_the_pages_they_name():
    (table,) = tables(section(README, "beside-upstream"))
    assert len(table) > 5
    for what, ours, source in table[1:]:
        ((path, anchor),) = sources(source)
        missing = [figure for figure in FIGURE.findall(ours) if figure not in figures_in(path, anchor)]
        assert not missing, f"{what}: {path} does not have {missing}"


def test_scores_of_the_quickstart_stand_in_the_log():
    part = section(README, "what-it-learns")
    (table,) = tables(part)
    logged = [source for source in sources(part) if source[1]]
    rows = [
        row for path, anchor in logged for one in tables(section((ROOT / path).read_text(), anchor)) for row in one
    ]
    rounded = [[[math.floor(x + 0.5) for x in numbers(cell)] for cell in row[-4:]] for row in rows]
    assert len(table) == 9
    for row in table[1:]:
        scores = [numbers(cell) for cell in row[1:]]
        assert any(scores) and scores in rounded, f"the log has no row {row}"


def numbers(cell: str) -> list[float]:
    """The numbers of a cell such as `24.2 [22.0, 27.0]`."""
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)]


def test_the_quickstart_has_one_number_of_parameters():
    recipe = yaml.safe_load((ROOT / "training" / "recipes" / "quickstart.yaml").read_text())
    run = recipe["pretrain"]
    shape = {name: run[name] for name in ("aspect_ratio", "head_dim", "sequence_length", "window_pattern")}
    dial = depth_dial(run["depth"], vocab_size=recipe["tokenizer"]["vocab_size"], num_iterations=1, **shape)
    named = re.findall(r"([\d.]+|a|one) million parameters", README)
    assert named and set(named) == {f"{dial.params / 1e6:.2f}"}
