"""Text of models and visitors as Markdown that cannot fetch, run or navigate.

Gradio's Chatbot renders Markdown, and with it HTML, links and pictures. Its sanitiser removes scripts, but a picture
is still fetched and a link still followed. So what would begin one of these is split by U+2060, a character of no
width: the text looks the same and means nothing to the browser. Code, tables and formulas stay what they are. The
page's script takes the character out of what a visitor copies.

This is the first of three guards. The other two are a Content-Security-Policy (no picture, frame, font or request from
another server) and a script that follows no link inside a message.
"""

import re

BREAK = "\u2060"  # WORD JOINER
_BEGINNINGS = re.compile(
    r"(?P<tag><)(?=[A-Za-z/!?])"  # an HTML tag or comment, or an autolink
    r"|(?P<link>\])(?=[(\[:])"  # [text](address), [text][name], [name]: address; pictures too
    r"|(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*:)(?=//)|(?P<www>\bwww)(?=\.)|(?P<mail>@)(?=[\w.-])"  # bare addresses
    r"|(?P<fence>(?:`{3,}|~{3,})[ \t]*)(?=mermaid\b)"  # a diagram, which may hold HTML and links
    r"|(?P<macro>\\)(?=href|url\b|includegraphics|html[A-Z])",  # of formulas
    re.IGNORECASE,
)
_PROGRAM = re.compile(r"(?:def|class) \w+.*:\s*(?:#.*)?$|(?:import \w|from \w[\w.]* import )", re.MULTILINE)


def safe_markdown(text: str) -> str:
    """Returns text as Markdown without live HTML, links, pictures or diagrams. It looks as the text did."""
    return _BEGINNINGS.sub(lambda found: found[0] + BREAK, text.replace(BREAK, ""))


def original(text: str) -> str:
    """Returns the text from which [`safe_markdown`] made this."""
    return text.replace(BREAK, "")


def message_markdown(text: str) -> str:
    """Returns a whole message as safe Markdown. A message that is a program is shown as one."""
    if _PROGRAM.match(text.lstrip()) and "```" not in text:
        return code_block(text.strip("\n"), "python")
    return safe_markdown(text)


def code_block(text: str, language: str = "") -> str:
    """Returns text as a Markdown block of code, whatever it holds."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{safe_markdown(text)}\n{fence}"


def code_span(text: str) -> str:
    """Returns text as Markdown code within a line."""
    text = " ".join(text.split())
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{safe_markdown(text)}{space}{fence}"
