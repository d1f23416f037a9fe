"""The folder of a Hugging Face Space: the page, the package without its training parts' Rust extension, settings."""

import json
from pathlib import Path
from typing import Any

from nanochat_hf.chat.suggestions import suggestions
from nanochat_hf.page.report_view import PICTURE, find_report
from nanochat_hf.settings import without_paths

PACKAGE = Path(__file__).parents[1]
TEMPLATES = Path(__file__).with_name("space")  # the same files as the project's folder space/
SENT = (".py", ".jinja", ".css", ".js", ".svg", ".txt", ".md")


def space_files(checkpoint: str | Path, model: str, revision: str, title: str | None = None) -> dict[str, bytes]:
    """Returns the files of a Space that serves a checkpoint, as path → content.

    Args:
        checkpoint: the checkpoint's folder; its questions and its run's report go into the Space.
        model: id of the model on the Hub, from which the Space loads the weights.
        revision: the commit of that model; the Space keeps to it.
        title: heading of the page; default: the model's name.
    """
    files = {path.name: path.read_bytes() for path in sorted(TEMPLATES.iterdir()) if path.is_file()}
    name = title or model.split("/")[-1]
    readme = files["README.md"].decode()
    files["README.md"] = readme.replace("title: nanochat-hf\n", f"title: {json.dumps(name)}\n", 1).encode()
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in SENT and path.is_file() and "__pycache__" not in path.parts:
            files[f"nanochat_hf/{path.relative_to(PACKAGE).as_posix()}"] = path.read_bytes()
    settings: dict[str, Any] = {"model": model, "revision": revision, "title": name}
    questions = suggestions(checkpoint)
    settings["suggestions"] = [{"task": one.task, "question": one.question} for one in questions]
    report = find_report(checkpoint)
    if report is not None:
        settings["report"] = "report/report.md"
        lines = report.read_text(encoding="utf-8").splitlines(keepends=True)
        # The settings, whose paths an older version did not cut. In other text, a slash need not be part of a path.
        text = "".join(without_paths(line) if line.lstrip().startswith('"') else line for line in lines)
        files["report/report.md"] = text.encode()
        for _, picture in PICTURE.findall(text):
            path = (report.parent / picture).resolve()
            if path.is_file() and path.is_relative_to(report.parent.resolve()):
                files[f"report/{path.relative_to(report.parent.resolve()).as_posix()}"] = path.read_bytes()
    files["space.json"] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    return files
