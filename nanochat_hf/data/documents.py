"""Text to documents of bounded length. In: lines or long documents. Out: documents.

Documents of ordinary length stay as they are. What is longer than `MAX_DOCUMENT_CHARS` is cut before anything is
buffered, so that memory does not depend on the length of a document. Plain text that marks no documents is cut into
documents of about `TEXT_DOCUMENT_CHARS`.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator

END_OF_TEXT = "<|endoftext|>"  # what separates documents in text corpora such as TinyStories
TEXT_DOCUMENT_CHARS = 4000  # about the mean length of a web document, for text files that mark no documents
# The longest document, in characters; longer ones are cut into several. Upstream crops a document to one row and drops
# the rest, so cutting at the row's length would train on other tokens than upstream. This bound is 65 times the mean
# of web text: ordinary documents stay as they are, and 1,000 of the longest in a packing buffer are about 2^26 tokens.
MAX_DOCUMENT_CHARS = 1 << 18
# One class of characters comes first, because `re` searches for such a class ten times as fast as for alternatives.
SENTENCE_END = re.compile(r"""[.!?…。！？](?:(?<=[.!?…])["'”’»)\]]*\s+|(?<=[。！？])["'”’»」』)\]]*)""")


def cut_document(text: str, size: int = MAX_DOCUMENT_CHARS) -> Iterator[str]:
    """Yields `text` in pieces of at most `size` characters; joined they are `text` again.

    A piece ends at the last line end in its second half; where there is none, at the last sentence end, then at the
    last space, then anywhere.
    """
    start = 0
    while len(text) - start > size:
        end = cut_point(text, start, size)
        yield text[start:end]
        start = end
    yield text[start:]


def cut_documents(texts: list[str]) -> list[str]:
    """Returns the documents, those longer than `MAX_DOCUMENT_CHARS` in pieces."""
    if all(len(text) <= MAX_DOCUMENT_CHARS for text in texts):
        return texts
    return [piece for text in texts for piece in cut_document(text)]


def split_lines(lines: Iterable[str], marked: bool = False) -> Iterator[str]:
    """Splits plain text into documents at each `END_OF_TEXT`; where there is none, at blank lines.

    In the second case paragraphs are joined until a document has at least `TEXT_DOCUMENT_CHARS` characters. Text that
    goes on for twice as long without a blank line is cut as `cut_document` does.

    Args:
        lines: the lines of a file; a long one may come in several parts.
        marked: there are such marks. Where it is False, they count from the first one on.

    Yields:
        Documents without white space at their ends, none empty.
    """
    waiting: list[str] = []
    chars = 0
    for line in lines:
        *ended, line = line.split(END_OF_TEXT)
        for text in ended:
            marked = True
            yield from _not_blank("".join([*waiting, text]))
            waiting, chars = [], 0
        waiting.append(line)
        chars += len(line)
        if not ended and not marked and not line.strip() and chars - len(line) >= TEXT_DOCUMENT_CHARS:
            yield from _not_blank("".join(waiting))
            waiting, chars = [], 0
        size = MAX_DOCUMENT_CHARS if marked else TEXT_DOCUMENT_CHARS
        if chars >= 2 * size:
            text, start = "".join(waiting), 0
            while len(text) - start >= 2 * size:
                end = cut_point(text, start, size)
                yield from _not_blank(text[start:end])
                start = end
            waiting, chars = [text[start:]], len(text) - start
    yield from _not_blank("".join(waiting))


def _not_blank(text: str) -> Iterator[str]:
    if text := text.strip():
        yield text


def cut_point(text: str, start: int, size: int) -> int:
    """Returns where the piece of at most `size` characters that begins at `start` ends; see `cut_document`."""
    half, end = start + size // 2, start + size
    line_end = text.rfind("\n", half, end)
    if line_end >= 0:
        return line_end + 1
    sentences = deque(SENTENCE_END.finditer(text, half, end), maxlen=1)
    if sentences:
        return sentences[0].end()
    space = text.rfind(" ", half, end)
    return space + 1 if space >= 0 else end
