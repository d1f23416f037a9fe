"""Reads the bytes of a text file. In: a path. Out: decoded text, in parts of bounded size.

Compression is recognised by the first bytes, so a wrong file name does no harm. Text is UTF-8, or UTF-16 or UTF-32
where a byte order mark says so. Line ends `\\r\\n` and `\\r` become `\\n`.
"""

import codecs
import io
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nanochat_hf.settings import UserError

CHUNK_BYTES = 1 << 20  # read and decoded at once
MAX_ROW_CHARS = 1 << 28  # the longest line of JSON and the longest field of csv; longer ones are refused
# The first bytes of a compressed file, and pyarrow's name of the codec. xz is not one of pyarrow's.
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ\x00": "xz",
}
# What unpacks a file in place.
UNPACK = {".gz": "gzip -d", ".bz2": "bzip2 -d", ".xz": "xz -d", ".zst": "zstd -d --rm", ".lz4": "lz4 -d --rm"}
NOT_TEXT = {
    b"PK\x03\x04": "a zip archive or an office document; unpack it, or save its text as .txt",
    b"%PDF": "a PDF; convert it first, for example with pdftotext",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"\x89PNG": "a picture; remove it",
    b"PAR1": "parquet; name it .parquet",
    b"ARROW1": "an Arrow file; name it .arrow",
}
# UTF-32 first: its little-endian mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@contextmanager
def open_bytes(path: str | os.PathLike) -> Iterator[Any]:
    """Opens a file and decompresses it while it is read. A truncated file raises an error where it ends."""
    import lzma

    import pyarrow as pa  # its decompressors report a truncated file; zstandard's do not

    with open(path, "rb") as file:
        head = file.read(10)
        file.seek(0)
        codec = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
        if codec is None or (codec == "bz2" and head[4:10] != b"1AY&SY"):  # text may begin with BZh
            yield file
            return
        with lzma.open(file) if codec == "xz" else pa.input_stream(file, compression=codec) as stream:
            yield stream


def text_chunks(path: str | os.PathLike) -> Iterator[str]:
    """Yields the text of a file in parts of about `CHUNK_BYTES`.

    Raises:
        UserError: the file is not text, or not in an encoding that is recognised.
    """
    with open_bytes(path) as stream:
        head = stream.read(CHUNK_BYTES)
        encoding, start = _encoding(path, head)
        decoder = codecs.getincrementaldecoder(encoding)()
        newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
        chunk, position, lines = head[start:] or stream.read(CHUNK_BYTES), start, 0
        while True:
            pending = len(decoder.getstate()[0])
            try:
                text = newlines.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                lines += error.object[: error.start].count(b"\n")
                offset, byte = position - pending + error.start, error.object[error.start]
                raise UserError(_encoding_sentence(path, encoding, offset, byte, lines + 1)) from None
            lines += text.count("\n")
            position += len(chunk)
            if text:
                yield text
            if not chunk:
                return
            chunk = stream.read(CHUNK_BYTES)


def text_lines(path: str | os.PathLike, whole: bool = True) -> Iterator[str]:
    """Yields the lines of a file, each with its `\\n`.

    Args:
        path: a text file, compressed or not.
        whole: a line of more than `MAX_ROW_CHARS` characters is an error. Where it is False, a line of more than about
            a megabyte comes in several parts, of which only the last ends in `\\n`.

    Raises:
        UserError: as `text_chunks`; or a line is too long.
    """
    waiting: list[str] = []  # parts of a line that has not ended
    size = number = 0
    for chunk in text_chunks(path):
        *ended, rest = chunk.split("\n")
        for line in ended:
            if waiting:
                line = "".join(waiting) + line
                waiting, size = [], 0
            number += 1
            yield line + "\n"
        if not rest:
            continue
        waiting.append(rest)
        size += len(rest)
        if not whole and size > CHUNK_BYTES:
            text = "".join(waiting)
            end = _part_end(text)
            yield text[:end]
            waiting, size = [text[end:]], len(text) - end
        elif size > MAX_ROW_CHARS:
            raise UserError(
                f"{path}, line {number + 1} has more than {MAX_ROW_CHARS:,} characters; write one row per line"
            )
    if waiting:
        yield "".join(waiting)


def _part_end(text: str) -> int:
    """Returns where to end a part of a long line: after the last space, and not inside of a mark such as `<|...|>`."""
    space = text.rfind(" ", len(text) // 2)
    if space >= 0:
        return space + 1
    mark = text.rfind("<", len(text) - 20)
    return mark if mark > 0 else len(text)


def _encoding(path: str | os.PathLike, head: bytes) -> tuple[str, int]:
    """Returns the encoding, and the length of the byte order mark."""
    for magic, what in NOT_TEXT.items():
        if head.startswith(magic):
            raise UserError(f"{path} is not a text file but {what}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path} is not a text file but a tar archive; unpack it first")
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    zeros = head.count(0)
    if zeros > len(head) // 10:
        guess = (
            "UTF-16LE" if head[1::2].count(0) > 0.9 * zeros else "UTF-16BE" if head[::2].count(0) > 0.9 * zeros else ""
        )
        if guess:
            raise UserError(f"{path} looks like {guess} without a byte order mark; " + _conversion(path, guess))
        raise UserError(f"{path} is not a text file: {zeros:,} of its first {len(head):,} bytes are zero; remove it")
    return "utf-8", 0


def _encoding_sentence(path: str | os.PathLike, encoding: str, offset: int, byte: int, line: int) -> str:
    if encoding != "utf-8":
        return f"{path} is not valid {encoding.upper()}, as its first bytes say, at byte {offset}; convert it again"
    return f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset} (line {line}), perhaps Latin-1; " + _conversion(
        path, "latin1"
    )


def _conversion(path: str | os.PathLike, encoding: str) -> str:
    """The remedy for a file in another encoding: a command that keeps the old file under a name that is not read."""
    ending = os.path.splitext(path)[1]
    unpack = UNPACK.get(ending.lower())
    packed = os.path.join(os.curdir, path) if os.fspath(path).startswith("-") else os.fspath(path)
    plain = packed.removesuffix(ending) if unpack else packed
    new, old = shlex.quote(plain), shlex.quote(f"{plain}.old")
    command = f"mv {new} {old} && iconv -f {encoding} -t utf-8 {old} > {new}"
    if unpack:
        return f"unpack and convert it, for example with: {unpack} {shlex.quote(packed)} && {command}"
    return f"convert it, for example with: {command}"


def without_lone_surrogates(text: str) -> str:
    """Halves of an emoji, which JSON can say and UTF-8 cannot, become U+FFFD; two that belong together, the emoji."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
