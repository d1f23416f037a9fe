"""The command line of `nanochat-hf space` and `space/app.py`.

On a Space the same settings come from `space.json` and the environment.
"""

import argparse
import importlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nanochat_hf.settings import (
    MODEL_FOLDERS,
    Parser,
    UserError,
    as_typed,
    check_address,
    check_checkpoint,
    check_device,
    checked,
    find_checkpoint,
    program,
    stage_folder,
)

SPACE_FILE = "space.json"  # beside app.py; written by `nanochat-hf push --space`
DESCRIPTION = """\
Serves a chat page for a model.

    nanochat-hf space runs/quickstart/rl                          then open http://127.0.0.1:7860
    nanochat-hf space --url http://localhost:8000                 a model behind a server
    NANOCHAT_MODEL=user/model nanochat-hf space                   the settings from the environment, as on a Space

Each option has a variable of the same name: NANOCHAT_MODEL, NANOCHAT_URL, NANOCHAT_SECONDS, ... The command line wins.
"""


def main(argv: Sequence[str] | None = None, home: Path | None = None) -> None:
    """Loads the model and serves the page.

    Args:
        argv: command line; default that of the process.
        home: the folder of app.py, in which `space.json` may be.

    Raises:
        UserError: no model is named, it cannot be loaded, or an option is wrong.
    """
    given = _space_file(home)
    options = _parse(argv, given)
    if not options.model and not options.url:
        raise UserError(
            "no model is named: give a checkpoint folder or a Hub id, as the argument or in NANOCHAT_MODEL; or a "
            "server with --url"
        )
    unused = ("compare", "device", "revision") if options.url else ("tools", "protocol")
    unused = [f"--{name}" for name in unused if getattr(options, name) not in (None, False, "chat", given.get(name))]
    if unused:
        raise UserError(f"{' and '.join(unused)} would have no effect here; leave it out")
    check_device(options.device)
    if options.model and not options.url:  # before the libraries are imported, which takes seconds
        find_checkpoint(options.model, options.revision)
        for spec in options.compare or ():
            check_checkpoint(_name_and_revision(spec)[0])
    check_address(options.host, options.port)
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the page needs Gradio: pip install 'nanochat-hf[space]'") from None
    from nanochat_hf.page.app import build, launch

    page = _page(options, given)
    launch(build(page, gpu_wrapper()), options.host, options.port)


def gpu_wrapper() -> Callable[[Callable], Callable]:
    """Returns `spaces.GPU` on ZeroGPU hardware, which lends a GPU per call; elsewhere a function that does nothing."""
    if os.environ.get("SPACES_ZERO_GPU"):
        return importlib.import_module("spaces").GPU  # the hardware brings this package along
    return lambda function: function


def _page(options: argparse.Namespace, given: dict[str, Any]) -> Any:
    from nanochat_hf.chat import LocalModel, RemoteModel, Suggestion, suggestions
    from nanochat_hf.page.app import Page
    from nanochat_hf.page.report_view import find_report
    from nanochat_hf.page.visits import Feedback, Limits

    limits = Limits(
        characters=options.characters,
        messages=options.messages,
        seconds=options.seconds,
        per_minute=options.per_minute,
        queue=options.queue,
        at_once=options.at_once,
    )
    report = Path(options.report) if options.report else None
    if report is not None and not report.is_file():
        raise UserError(f"there is no report {report}; give a report.md, or leave --report out")
    questions: Sequence[Suggestion] = [Suggestion(**one) for one in given.get("suggestions", [])]
    others: dict[str, Callable[[], Any]] = {}
    if options.url:
        model: Any = RemoteModel(options.url, options.model, protocol=options.protocol, tools=options.tools)
        title = options.model or options.url.split("//")[-1]
    else:
        model = LocalModel(options.model, options.device, revision=options.revision)
        title = _title(options.model)
        questions = questions or suggestions(options.model)
        report = report or find_report(options.model)
        others = _others(options, model)
    feedback = Feedback(options.feedback) if options.feedback else None
    on_space = bool(os.environ.get("SPACE_ID"))
    return Page(model, options.title or title, questions, others, report, feedback, limits, trust_proxy=on_space)


def _title(model: str) -> str:
    """The last parts of a path that tell models apart: run and stage, or the Hub's name."""
    folder = stage_folder(model) if Path(model).is_dir() else Path(model)
    parts = [part for part in folder.parts if part not in ("/", "..", ".")]
    if folder.is_dir() and len(parts) > 1 and parts[-1] in MODEL_FOLDERS:
        return f"{parts[-2]} · {parts[-1]}"
    return parts[-1] if parts else model


def _name_and_revision(spec: str) -> tuple[str, str | None]:
    """Folder or Hub id, and revision, of a checkpoint to compare."""
    name, _, revision = (spec, "", "") if Path(spec).is_dir() else spec.partition("@")
    return name, revision or None


def _others(options: argparse.Namespace, model: Any) -> dict[str, Callable[[], Any]]:
    """The checkpoints to compare, name → loader, in the order of training. The page's own model is among them."""
    from nanochat_hf.chat import LocalModel

    found: dict[str, Callable[[], Any]] = {}
    folder = stage_folder(options.model)
    if options.compare:
        for spec in options.compare:
            name, revision = _name_and_revision(spec)
            found[spec] = partial(LocalModel, name, options.device, revision=revision)
        own = f"{options.model}@{options.revision}" if options.revision else options.model
        found[own] = lambda: model
        return found
    if folder.is_dir():
        for stage in MODEL_FOLDERS:
            sibling = folder.parent / stage
            if sibling.is_dir() and folder.is_dir() and sibling.samefile(folder):
                found[stage] = lambda: model
            elif (sibling / "config.json").is_file() and (sibling / "tokenizer.json").is_file():
                found[stage] = partial(LocalModel, str(sibling), options.device)
        if folder.name in found:
            return found
    return {}


def _space_file(home: Path | None) -> dict[str, Any]:
    path = home / SPACE_FILE if home is not None else None
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "report": str(home / found["report"])} if found.get("report") else dict(found)
    except (ValueError, AttributeError):
        raise UserError(f"{path} is damaged; write it again with nanochat-hf push --space") from None


def _parse(argv: Sequence[str] | None, given: dict[str, Any]) -> argparse.Namespace:
    from nanochat_hf.page.visits import Limits

    defaults = vars(Limits())
    parser = Parser(
        prog=program("space"),
        description=as_typed(DESCRIPTION),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def from_environment(variable: str, kind: Callable[[str], Any]) -> Any:
        text = os.environ.get(variable)
        try:
            return kind(text) if text else None
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{variable}: {error}") from None

    def default(name: str, otherwise: Any = None, kind: Callable[[str], Any] = str) -> Any:
        found = from_environment(f"NANOCHAT_{name.upper()}", kind)
        return given.get(name, otherwise) if found is None else found

    def number(name: str, kind: type, words: str, least: float) -> None:
        read, fallback = checked(kind, at_least=least, at_most=1_000_000_000), defaults[name]
        parser.add_argument(
            f"--{name}", type=read, default=default(name, fallback, read), help=f"{words} (default {fallback})"
        )

    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default=default("model"), help="checkpoint folder or Hub id"
    )
    parser.add_argument("--revision", default=default("revision"), help="of a Hub model: a commit, branch or tag")
    parser.add_argument("--url", default=default("url"), help="talk to a model behind a server instead")
    parser.add_argument("--protocol", choices=("chat", "text-generation"), default=default("protocol", "chat"))
    parser.add_argument("--tools", action="store_true", help="with --url: run the calculator here")
    parser.add_argument("--title", default=default("title"), help="heading of the page")
    parser.add_argument(
        "--compare",
        metavar="MODEL",
        nargs="+",
        default=default("compare", None, str.split),
        help="checkpoints for the tab Compare, as FOLDER, ID or ID@REVISION (default: those of the same run)",
    )
    parser.add_argument("--report", default=default("report"), help="report.md to show (default: that of the run)")
    parser.add_argument(
        "--feedback",
        metavar="FILE",
        default=default("feedback"),
        help="show thumbs, and write what visitors think here",
    )
    number("characters", int, "of one message, at most", 1)
    number("messages", int, "of one conversation, at most", 2)
    number("seconds", float, "of one answer, at most", 1)
    number("per_minute", int, "messages of one visitor per minute, at most; 0 is any number", 0)
    number("queue", int, "visitors that may wait", 1)
    number("at_once", int, "answers that are written at the same time", 1)
    parser.add_argument(
        "--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="address (default 127.0.0.1)"
    )
    port = checked(int, at_least=0, at_most=65535)
    found = from_environment("GRADIO_SERVER_PORT", port)
    parser.add_argument("--port", type=port, default=7860 if found is None else found, help="port (default 7860)")
    parser.add_argument("--device", default=default("device"), help="such as cpu or cuda:0 (default: the GPU, if any)")
    return parser.parse_args(argv)
