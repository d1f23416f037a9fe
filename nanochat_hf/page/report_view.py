"""A run's report with its plots, for a tab of the page."""

import re
from dataclasses import dataclass
from pathlib import Path

from nanochat_hf.settings import stage_folder

PICTURE = re.compile(r"^!\[([^\]]*)\]\(([^)\s]+)\)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A piece of a report: Markdown, or a picture with its caption."""

    markdown: str = ""
    picture: Path | None = None
    caption: str = ""


def find_report(checkpoint: str | Path) -> Path | None:
    """Returns `report.md` of the run that a checkpoint folder belongs to, or None."""
    path = stage_folder(checkpoint).parent / "report.md"
    return path if Path(checkpoint).is_dir() and path.is_file() else None


def read_report(path: str | Path) -> list[Section]:
    """Cuts a report at its pictures. A picture that is missing, or lies outside the report's folder, is left out."""
    path = Path(path)
    text, home = path.read_text(encoding="utf-8"), path.parent.resolve()
    sections, end = [], 0
    for found in PICTURE.finditer(text):
        if before := text[end : found.start()].strip():
            sections.append(Section(before))
        picture = (home / found[2]).resolve()
        if picture.is_file() and picture.is_relative_to(home):
            sections.append(Section(picture=picture, caption=found[1]))
        end = found.end()
    if rest := text[end:].strip():
        sections.append(Section(rest))
    return sections
