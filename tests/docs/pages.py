"""Reading Markdown: sections, anchors, links, code, tables and the commands in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
STARTERS = (
    "make",
    "python",
    "accelerate",
    "nanochat-hf",
    "training/",
    "evaluation/",
    "benchmarks/",
    "space/",
    "docs/",
)


def pages() -> list[Path]:
    """README and its neighbours, the pages of docs/ and the entries of the log."""
    named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return named + sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs" / "log").glob("*.md"))


def prose(text: str) -> str:
    """The text without code blocks and comments; code spans stay."""
    return INDENTED.sub("\n", FENCE.sub("\n", COMMENT.sub("", text)))


def spans(text: str) -> list[str]:
    """The code spans, each as one line."""
    return [" ".join(span.split()) for span in SPAN.findall(prose(text))]


def links(text: str) -> list[str]:
    """Targets of links and pictures."""
    return LINK.findall(SPAN.sub("", prose(text)))


def anchors(text: str) -> set[str]:
    """The anchors that the hosting page makes of the headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE):
        plain = LINK.sub(lambda link: re.search(r"\[([^\]]*)\]", link[0])[1], heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return set(found)


def section(text: str, anchor: str) -> str:
    """From the heading with this anchor to the next heading of its level or above; "" gives the whole text."""
    if not anchor:
        return text
    starts = [match for match in re.finditer(r"^(#+) .+$", text, re.MULTILINE) if anchor in anchors(match[0])]
    level, rest = len(starts[0][1]), text[starts[0].end() :]
    end = re.search(rf"^#{{1,{level}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def sections(text: str) -> list[str]:
    """The text cut before each heading."""
    return re.split(r"^(?=#+ )", text, flags=re.MULTILINE)


def tables(text: str) -> list[list[list[str]]]:
    """Tables as rows of cells, the heading first and without the line of dashes."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    rows = [[line.strip("|").split("|") for line in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in row] for row in (table[0], *table[2:])] for table in rows]


@dataclass(frozen=True)
class Command:
    """One command: the words before the program's own options (`accelerate launch …`), the program, its options."""

    line: str
    launcher_options: tuple[str, ...]
    program: str  # a script's path, "make", "nanochat-hf COMMAND" or "nanochat-hf evaluate|data NAME"
    options: tuple[str, ...]
    words: tuple[str, ...]


def commands(text: str) -> list[Command]:
    """Commands of this repository in code blocks and in code spans."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "bash", "sh")]
    lines = [line for body in blocks + INDENTED.findall(FENCE.sub("\n", text)) for line in _joined(body)]
    found = []
    for line in lines + spans(text):
        words = line.split(" #")[0].split()
        if not words:
            continue
        words[0] = words[0].removeprefix(".venv/bin/")
        if words[0].startswith(STARTERS) and len(words) > 1:
            command = _parse(line, words)
            if command is not None:
                found.append(command)
    return found


def _joined(body: str) -> list[str]:
    return [line.strip() for line in re.sub(r"\\\n\s*", "", body).splitlines()]


def _parse(line: str, words: list[str]) -> Command | None:
    if words[0] == "make":
        return Command(line, (), "make", (), tuple(words[1:]))
    if "-m" in words and (module := words[words.index("-m") + 1 :]) and module[0].startswith("nanochat_hf."):
        place = words.index("-m")
        path = f"{module[0].replace('.', '/')}.py"
        return Command(line, _options(words[:place]), path, _options(module[1:]), tuple(module[1:]))
    if words[0] == "nanochat-hf" and words[1] in ("evaluate", "data") and re.match(r"\w", " ".join(words[2:3])):
        program = " ".join(words[:3])
        return Command(line, (), program, _options(words[3:]), tuple(words[3:]))
    if words[0] == "nanochat-hf":
        return Command(line, (), f"nanochat-hf {words[1]}", _options(words[2:]), tuple(words[2:]))
    for place, word in enumerate(words):
        if word.endswith(".py"):
            return Command(line, _options(words[:place]), word, _options(words[place:]), tuple(words[place + 1 :]))
    return None


def _options(words: list[str]) -> tuple[str, ...]:
    return tuple(word.split("=")[0] for word in words if re.match(r"--\w", word))
