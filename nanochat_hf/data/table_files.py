"""Reads the rows of tables: parquet, Arrow, JSON and csv. In: a path. Out: the text of each row.

A null is an empty text. Text columns may be dictionary-encoded, string views, or bytes that are UTF-8.
"""

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from nanochat_hf.data.decoding import MAX_ROW_CHARS, without_lone_surrogates
from nanochat_hf.settings import UserError, program

TEXT_COLUMNS = ("text", "content", "document", "raw_content", "body")  # tried in this order
CHAT_COLUMNS = ({"messages"}, {"conversations"}, {"conversation"}, {"instruction", "output"}, {"prompt", "completion"})
PEEK_ROWS = 100  # rows of a csv file from which the columns of text are told
ROW_GROUP_BYTES = 1 << 28  # a row group of parquet whose text is longer is read in several parts
SEPARATORS = ",;\t|"
JSON_SPACE = re.compile(r"[ \t\n\r,]*")


def find_column(
    path: Any, columns: Iterable[str], texts: Iterable[str], wanted: str | None, maybe: Iterable[str] = ()
) -> str:
    """Chooses the column of text: the one asked for, else one of `TEXT_COLUMNS`, else the only one that holds text.

    Args:
        path: the place to name in errors.
        columns: the names of all columns.
        texts: the names of the columns that hold text.
        wanted: the column asked for.
        maybe: the names of columns that may hold text: bytes, or nothing but nulls. Taken only by name.

    Raises:
        UserError: there is no such column, or it cannot be told.
    """
    columns, texts, maybe = list(columns), list(texts), list(maybe)
    names = _few(columns)
    if wanted is not None:
        if wanted in texts or wanted in maybe:
            return wanted
        raise UserError(f"{path} has no text column {wanted!r} (it has: {names}); name one of these")
    for some in (texts, maybe):
        lower = {name.strip().lower(): name for name in reversed(some)}
        for name in TEXT_COLUMNS:
            if name in some:
                return name
            if name in lower:
                return lower[name]
    if any(chat <= set(columns) for chat in CHAT_COLUMNS):
        raise UserError(f"{path} holds conversations (it has: {names}); train on them with {program('sft')} --tasks")
    if len(texts) == 1:
        return texts[0]
    if not texts:
        raise UserError(f"{path}: no column holds text (it has: {names}); write the text itself into a column 'text'")
    raise UserError(
        f"{path}: cannot tell which column is the text (it has: {names}); name it after the source, as in "
        f"my_texts#{texts[0]}"
    )


def _few(names: list[str]) -> str:
    """Some names, for an error."""
    shown = [name if len(name) <= 40 else f"{name[:40]}…" for name in names[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


# ---- parquet and Arrow -------------------------------------------------------------


def arrow_column(path: Any, schema: Any, text_column: str | None) -> str:
    """Returns the name of the text column of an Arrow schema; see `find_column`."""
    kinds = {field.name: _arrow_kind(field.type) for field in schema}
    texts = [name for name, kind in kinds.items() if kind == "text"]
    maybe = [name for name, kind in kinds.items() if kind in ("bytes", "null")]
    return find_column(path, kinds, texts, text_column, maybe)


def arrow_texts(column: Any) -> list[str]:
    """Returns the texts of an Arrow array; null becomes an empty text."""
    values = column.to_pylist()
    return [value.decode("utf-8") if isinstance(value, bytes) else value or "" for value in values]


def _arrow_kind(kind: Any) -> str | None:
    """Returns `"text"`, `"bytes"`, `"null"`, or None for a type that holds no text."""
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            break
    name = str(kind)
    if name in ("string", "large_string", "string_view"):
        return "text"
    if name in ("binary", "large_binary", "binary_view"):
        return "bytes"
    return "null" if name == "null" else None


def open_parquet(path: str | os.PathLike) -> Any:
    """Opens a parquet file. Its metadata is read, its rows are not."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)


def parquet_parts(file: Any, column: str) -> list[tuple[int, int, int]]:
    """Divides a file into parts: its row groups, each of them divided if its text is above `ROW_GROUP_BYTES`.

    Args:
        file: an open parquet file.
        column: the text column.

    Returns:
        For each part the index of its row group, its first row in that row group, and its rows.
    """
    parts = []
    names = None
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        if names is None:
            names = [group.column(i).path_in_schema for i in range(group.num_columns)]
        size = group.column(names.index(column)).total_uncompressed_size if column in names else group.total_byte_size
        count = max(1, -(-size // ROW_GROUP_BYTES))
        rows = max(1, -(-group.num_rows // count))
        starts = range(0, group.num_rows, rows) if count > 1 else [0]
        parts += [(index, start, min(rows, group.num_rows - start)) for start in starts]
    return parts


def parquet_groups(path: Any, text_column: str | None, start: int, step: int) -> Iterator[tuple[int, int, list[str]]]:
    """Yields the parts `start`, `start + step`, ... of a parquet file; see `parquet_parts`."""
    with open_parquet(path) as file:
        column = arrow_column(path, file.schema_arrow, text_column)
        parts = parquet_parts(file, column)
        firsts = [0]
        for _, _, rows in parts:
            firsts.append(firsts[-1] + rows)
        opened = -1  # the row group that is being read in parts
        divided: Iterator[tuple[int, list[str]]] = iter(())  # its parts: first row, texts
        for index in range(start, len(parts), step):
            group, first_row, rows = parts[index]
            if rows == file.metadata.row_group(group).num_rows:
                table = file.read_row_group(group, columns=[column])
                yield index, firsts[index], arrow_texts(table.column(column))
                continue
            if opened != group:
                size = next(rows for other, _, rows in parts if other == group)
                opened, divided = group, _divided_row_group(file, group, column, size)
            yield index, firsts[index], next(texts for first, texts in divided if first == first_row)


def _divided_row_group(file: Any, group: int, column: str, rows: int) -> Iterator[tuple[int, list[str]]]:
    first, waiting = 0, []
    for batch in file.iter_batches(batch_size=min(rows, 1024), row_groups=[group], columns=[column]):
        waiting += arrow_texts(batch.column(0))
        while len(waiting) >= rows:
            yield first, waiting[:rows]
            first, waiting = first + rows, waiting[rows:]
    if waiting:
        yield first, waiting


def arrow_rows(path: str | os.PathLike, text_column: str | None) -> Iterator[str]:
    """Yields the texts of an Arrow file, see `arrow_batches`."""
    column = None
    for batch in arrow_batches(path):
        column = arrow_column(path, batch.schema, text_column) if column is None else column
        values = batch.column(column)
        for start in range(0, len(values), 1024):
            yield from arrow_texts(values.slice(start, 1024))


def arrow_batches(path: str | os.PathLike) -> Iterator[Any]:
    """Yields the record batches of an Arrow file: a stream, as `Dataset.save_to_disk` writes it, or a file (Feather).

    A file without rows yields one batch without rows.
    """
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        with pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source) as reader:
            empty = pa.RecordBatch.from_pylist([], schema=reader.schema)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
            yield from chain(batches, [empty])


def whole_rows(path: str | os.PathLike, kind: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a parquet or an Arrow file with all their columns."""
    if kind == "arrow":
        for batch in arrow_batches(path):
            yield from batch.to_pylist()
        return
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


# ---- JSON --------------------------------------------------------------------------


def json_rows(lines: Iterator[str], path: Any, may_span_lines: bool) -> tuple[str, Iterator[tuple[int, str]]]:
    """Divides a JSON file into rows, without parsing them.

    Args:
        lines: the lines of the file; in parts, where it begins with `[`.
        path: the file to name in errors.
        may_span_lines: an object may take several lines, as in files named .json.

    Returns:
        What a row is called in errors, and the rows: number from 1, JSON text.
    """
    number, first = next(((n, line) for n, line in enumerate(lines, start=1) if line.strip()), (1, ""))
    if first.lstrip().startswith("["):
        between = []  # a list in every line is no array of rows
        for line in lines:
            between.append(line)
            if line.strip():
                break
        spans = not (between and between[-1].lstrip().startswith("[") and _is_json(first))
        lines = chain(between, lines)
    else:
        spans = may_span_lines and (not _is_json(first) or len(_rows_of_value(json.loads(first))) != 1)
    if spans:
        return "item", _spanning_rows(chain([first], lines), path)
    rows = enumerate(chain([first], lines), start=number)
    return "line", ((number, line) for number, line in rows if line.strip())


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _spanning_rows(lines: Iterator[str], path: Any) -> Iterator[tuple[int, str]]:
    """Yields the items of one JSON array, or of several JSON values one after the other."""
    number = 0
    for text in _json_values(lines, path):
        value = json.loads(text)
        for row in _rows_of_value(value):
            number += 1
            yield number, text if row is value else json.dumps(row)


def _rows_of_value(value: Any) -> list[Any]:
    """Returns the rows of `{"text": ["a", "b"]}` or `{"data": [{"text": "a"}, ...]}`; any other value is one row."""
    if not isinstance(value, dict):
        return [value]
    columns = [items for name, items in value.items() if name.lower() in TEXT_COLUMNS and isinstance(items, list)]
    if len(columns) == 1 and all(item is None or isinstance(item, str) for item in columns[0]):
        return [{"text": item} for item in columns[0]]
    tables = [items for items in value.values() if isinstance(items, list) and items and isinstance(items[0], dict)]
    has_text = any(isinstance(value.get(name), str) for name in TEXT_COLUMNS)
    return tables[0] if len(tables) == 1 and not has_text else [value]


def _json_values(lines: Iterator[str], path: Any) -> Iterator[str]:
    """Yields the JSON text of each value; never more than one value and a few lines are held."""
    decoder = json.JSONDecoder()
    text, start, count, array, closed = "", 0, 0, None, False
    ended = False
    while not ended:
        more, size = [], 0
        # Twice as much as could not be parsed, so that a long value is not parsed again for every line.
        while size <= max(1 << 16, len(text) - start):
            line = next(lines, None)
            if line is None:
                ended = True
                break
            more.append(line)
            size += len(line)
        text, start = text[start:] + "".join(more), 0
        while True:
            start = JSON_SPACE.match(text, start).end()  # type: ignore[union-attr]
            if start == len(text):
                break
            if array is None:
                array = text[start] == "["
                if array:
                    start += 1
                    continue
            if closed:
                raise UserError(f"{path} goes on after the end of its JSON array; write one object per line (.jsonl)")
            if array and text[start] == "]":
                closed, start = True, start + 1
                continue
            try:
                _, end = decoder.raw_decode(text, start)
            except json.JSONDecodeError as error:
                if not ended and len(text) - start <= MAX_ROW_CHARS and _is_cut_off(error, len(text)):
                    break  # the value goes on
                what = f"item {count + 1} is not JSON ({error.msg})"
                raise UserError(f"{path}, {what}; is the file whole?") from None
            if end == len(text) and not ended:
                break  # a number may go on
            count += 1
            yield text[start:end]
            start = end
    if array and not closed:
        raise UserError(f"{path} ends inside of its JSON array, after item {count}; is the file whole?")


def _is_cut_off(error: json.JSONDecodeError, length: int) -> bool:
    return error.msg.startswith("Unterminated string") or error.pos > length - 100


def parse_json(rows: list[tuple[int, str]], path: Any, called: str) -> Iterator[Any]:
    """Yields what numbered rows hold: objects, texts or nulls.

    Raises:
        UserError: a row is no JSON, or something else.
    """
    for number, line in rows:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, {called} {number} is not JSON ({error.msg}); is the file whole?") from None
        except RecursionError:
            raise UserError(f"{path}, {called} {number} is nested too deeply; remove it") from None
        if row is not None and not isinstance(row, dict | str):
            what = "a list" if isinstance(row, list) else "a number or a truth value"
            hint = f"; conversations are for {program('sft')} --tasks" if isinstance(row, list) else ""
            raise UserError(f'{path}, {called} {number} is {what}, not an object such as {{"text": "..."}}{hint}')
        yield row


def json_column(rows: list[Any], place: str, text_column: str | None) -> str | None:
    """Returns the key of the text, from the first rows of a file; None where they hold nothing but nulls."""
    objects = [row for row in rows if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in objects for name in row))
    texts = [name for name in names if any(isinstance(row.get(name), str) for row in objects)]
    nulls = [name for name in names if all(_is_null(row.get(name)) for row in objects)]
    if not names or (text_column is None and not texts and len(nulls) == len(names)):
        return None
    return find_column(place, names, texts, text_column, nulls)


def json_texts(rows: list[Any], numbers: list[int], path: Any, called: str, column: str | None) -> Iterator[str]:
    """Yields the text of each parsed row. A null, or a row without text, is empty.

    Raises:
        UserError: a row has something else in that place, or its text under another name.
    """
    for row, number in zip(rows, numbers, strict=True):
        text = row.get(column) if isinstance(row, dict) else row
        if isinstance(row, dict) and column not in row:
            other = next((name for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)
            if other is not None:
                raise UserError(
                    f"{path}, {called} {number} has no {column!r} but {other!r}; give all rows the same key"
                )
        if _is_null(text):
            text = ""
        if not isinstance(text, str):
            raise UserError(f"{path}, {called} {number}: {column!r} is not text but {type(text).__name__}")
        yield text if text.isascii() else without_lone_surrogates(text)


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


# ---- csv ---------------------------------------------------------------------------


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(MAX_ROW_CHARS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def csv_table(lines: Iterator[str], path: Any) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Reads a csv or tsv file, whose first line names the columns.

    Returns:
        The names of the columns, and the rows: number of the line, its fields. A row may have fewer fields.

    Raises:
        UserError: a row has more fields, or the quotes are wrong.
    """
    first = next((line for line in lines if line.strip()), "")
    separator = max(SEPARATORS, key=first.count) if any(mark in first for mark in SEPARATORS) else ","
    if "\t" in first and ".tsv" in "".join(Path(path).suffixes).lower():
        separator = "\t"
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # written by Excel
        separator, first = first.strip()[4], next(lines, "")
    reader = csv.reader(chain([first], lines), delimiter=separator, strict=True)

    def checked() -> Iterator[tuple[int, list[str]]]:
        try:
            with _long_fields():
                for row in reader:
                    if any(row[len(columns) :]):
                        raise UserError(
                            f"{path}, line {reader.line_num} has {len(row)} fields, where the first line names "
                            f"{len(columns)} columns; put text that holds {separator!r} into double quotes"
                        )
                    if row:
                        yield reader.line_num, row
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num} is not csv ({error}); put text that holds quotes into double quotes, "
                "each inner one twice"
            ) from None

    columns: list[str] = [""] * len(first)  # as many as there can be, until the first row is read
    columns = [name.strip() for _, row in islice(checked(), 1) for name in row]
    return columns, checked()


def csv_rows(lines: Iterator[str], path: Any, text_column: str | None) -> Iterator[str]:
    """Yields the text of each row of a csv or tsv file.

    Raises:
        UserError: as `csv_table`; or there are no names of columns, or no such column.
    """
    columns, numbered = csv_table(lines, path)
    peeked = list(islice(numbered, PEEK_ROWS))
    index = columns.index(_csv_column(path, columns, [row for _, row in peeked], text_column))
    for _, row in chain(peeked, numbered):
        yield row[index] if index < len(row) else ""


def _csv_column(path: Any, columns: list[str], rows: list[list[str]], wanted: str | None) -> str:
    def values(index: int) -> list[str]:
        return [row[index] for row in rows if index < len(row) and row[index].strip()]

    texts = [name for i, name in enumerate(columns) if not values(i) or not all(map(_is_number, values(i)))]
    known = wanted is not None or any(name.strip().lower() in TEXT_COLUMNS for name in columns)
    if not known and any(len(name.split()) > 3 or _is_number(name) for name in columns):
        raise UserError(f"{path}, line 1 looks like text, not like names of columns; add a first line such as text")
    return find_column(f"{path}, line 1", columns, texts, wanted, columns)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
