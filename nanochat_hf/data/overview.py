"""What a run reads, said before it starts. In: sources. Out: a table of files and splits, and warnings.

A small source on disk (below `COUNTED_BYTES`) is read once for it: its documents are counted, and where there is a
tokenizer, also its rows. Of a larger source, and of one on the Hub, only names and sizes are known.
"""

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_hf.data.files import file_format
from nanochat_hf.data.found import (
    MICROWORLD,
    VALIDATION_EVERY,
    DataFile,
    FoundSource,
    SplitOfFile,
    find_source,
    is_local,
    local_path,
    split_column,
)
from nanochat_hf.data.packing import (
    BUFFER_DOCUMENTS,
    REFILL_DOCUMENTS,
    Packing,
    pack_best_fit,
    pack_pass,
)
from nanochat_hf.data.sources import DocumentStream, OnBadFile, check_on_bad_file, parse_sources
from nanochat_hf.settings import UserError

COUNTED_BYTES = 1 << 26  # a source of more bytes, or of more characters, is not counted
# Text that is seen up to four times teaches almost as much as new text (Muennighoff et al., arXiv:2305.16264).
FEW_TIMES = 4
BYTES_PER_TOKEN = 4  # about; only for sources that are not counted
COMPRESSED = (".parquet", ".gz", ".zst", ".bz2", ".xz", ".lz4")
COMPRESSION = 2.5  # about; bytes of text per byte of such a file
FULL_SHARE = 0.95  # rows that hold a smaller share of the tokens are said
CHECKED_FILES = 100  # of plain text, whose first line is looked at
NAMED_FILES = 5  # files that are left out are named up to this number for each reason


@dataclass(frozen=True)
class SplitCount:
    """What one split of a source holds; None where it is not known.

    Attributes:
        split: `"train"` or `"validation"`.
        files: its files.
        size: bytes on disk; for a part of a file its share.
        documents: the documents themselves.
    """

    split: str
    files: list[DataFile]
    size: int | None
    documents: list[str] | None


@dataclass(frozen=True)
class SurveyedSource:
    """One source of a run.

    Attributes:
        found: its files.
        share: its share of the training rows.
        counts: its training and its validation split.
        tokens: of its training split; None where that is not known.
        rows: rows that one pass over its training split fills; None where that is not known.
        kept: share of its training tokens in these rows.
    """

    found: FoundSource
    share: float
    counts: tuple[SplitCount, SplitCount]
    tokens: int | None
    rows: int | None
    kept: float


@dataclass(frozen=True)
class Survey:
    """What a run would read, counted before it starts; see `survey`."""

    sources: list[SurveyedSource]
    tokenizer: Any
    sequence_length: int
    packing: Packing

    @property
    def text_tokens(self) -> int | None:
        """Tokens of the rows that one pass over the training text fills; None where they are not known.

        Of several sources it is what can be read until the first of them begins again.
        """
        if self.shortest is None:
            return None
        return round(max(1, (self.shortest.rows or 0) / self.shortest.share) * self.sequence_length)

    @property
    def shortest(self) -> SurveyedSource | None:
        """The source that begins again before the others; None where no source's rows are known."""
        known = [one for one in self.sources if one.rows is not None]
        return min(known, key=lambda one: (one.rows or 0) / one.share, default=None)

    @property
    def whole_tokens(self) -> int | None:
        """Tokens of the whole training text, in rows or not; None where they are not known."""
        known = [one.tokens for one in self.sources if one.tokens is not None]
        return sum(known) if len(known) == len(self.sources) else None

    @property
    def sizes(self) -> list[tuple[str, int, int | None]]:
        """Split, number of files and bytes of all splits: what machines with disks of their own have to agree on."""
        return [(count.split, len(count.files), count.size) for one in self.sources for count in one.counts]

    def describe(self, rows: int = 0, validate: bool = False) -> str:
        """Returns the table of files and splits, and a warning for each source that is read too often.

        Args:
            rows: rows that the whole run asks for; 0: not known.
            validate: the run measures its loss on the validation split.

        Raises:
            UserError: a source has too little text for validation.
        """
        table: list[tuple[str, ...]] = [("source", "split", "files", "documents", "bytes", "share")]
        notes: list[str] = []
        for one in self.sources:
            table += _table_rows(one.found.name, one.counts)
            notes += _left_out(one.found)
            notes += _rows_named_as_text(one.found)
            if len(self.sources) > 1:
                notes.append(f"{one.found.name}: {one.share:.0%} of the training text")
            where = f"{one.found.name}: " if len(self.sources) > 1 else ""
            notes += self._notes(one, rows * one.share, validate, where)
        return "\n".join([*_aligned(table), *notes])

    def _notes(self, one: SurveyedSource, wanted: float, validate: bool, where: str) -> Iterator[str]:
        train, validation = one.counts
        if self.tokenizer is None:
            return
        if train.documents is None or validation.documents is None or one.rows is None:
            if note := _estimated_repetition(one, wanted * self.sequence_length):
                yield f"warning: {where}{note}"
            return
        length = self.sequence_length + 1
        if validate and not _fills_row(validation.documents, self.tokenizer, length):
            held_out = ", ".join(file.name for file in validation.files[:NAMED_FILES])
            raise UserError(
                f"the validation split of {one.found.name} ({held_out}) does not fill one row of {length} tokens; "
                "give more text for validation, a shorter --sequence_length, or --eval_every 0, which measures nothing"
            )
        if self.packing == "best_fit" and one.kept < FULL_SHARE:
            yield (
                f"{where}left out by --packing best_fit: {1 - one.kept:.0%} of the training tokens, the ends of texts "
                f"that do not fit into rows of {length}; --packing keep_tails keeps them"
            )
        for note in _repetition(train.documents, self.tokenizer, length, one.rows, wanted, self.packing):
            yield f"warning: {where}{note}"


def survey(
    source: str | Path | Sequence[str],
    tokenizer: Any = None,
    *,
    sequence_length: int = 0,
    packing: Packing = "best_fit",
    text_column: str | None = None,
    on_bad_file: OnBadFile = "stop",
    num_threads: int | None = None,
) -> Survey:
    """Finds the files of a run and counts those that are small.

    Args:
        source: one source or several, see `nanochat_hf.data.sources`.
        tokenizer: a tokenizer of `nanochat_hf.tokenizer`, or its encoder; None where only the table is wanted.
        sequence_length: tokens of a row that the model sees.
        packing: see `nanochat_hf.data.packing`.
        text_column, on_bad_file: see `open_documents`.
        num_threads: threads that encode; default: all cores.

    Raises:
        UserError: there is no such source, or a small one cannot be read.
    """
    from nanochat_hf.data.row_stream import as_encoder

    check_on_bad_file(on_bad_file)
    named = parse_sources(source)
    total = sum(weight for _, weight in named)
    surveyed, encoder = [], None
    for name, weight in named:
        found = find_source(name, text_column)
        counts = _count(found, on_bad_file)
        train, tokens, rows, kept = counts[0].documents, None, None, 1.0
        if train is not None and tokenizer is not None:
            encoder = encoder or as_encoder(tokenizer, num_threads)
            tokens, rows, kept = _tokens_and_rows(train, encoder, sequence_length + 1, packing)
        surveyed.append(SurveyedSource(found, weight / total, counts, tokens, rows, kept))
    return Survey(surveyed, encoder or tokenizer, sequence_length, packing)


def is_on_disk(source: str | Path | Sequence[str]) -> bool:
    """Whether all of a run's text is on this machine, so that `survey` fetches nothing."""
    names = [split_column(name)[0] for name, _ in parse_sources(source)]
    return all(name == MICROWORLD or is_local(name) or glob.has_magic(name) for name in names)


def describe_data(
    source: str | Path | Sequence[str],
    tokenizer: Any = None,
    *,
    rows: int = 0,
    validate: bool = False,
    **reading: Any,
) -> str:
    """Returns the table of a run's data, and a warning for each source whose rows repeat more than `FEW_TIMES`.

    Args:
        source, tokenizer, reading: see `survey`.
        rows, validate: see `Survey.describe`.

    Raises:
        UserError: there is no such source; or a small one cannot be read, or has too little text for validation.
    """
    return survey(source, tokenizer, **reading).describe(rows, validate)


def _count(found: FoundSource, on_bad_file: OnBadFile) -> tuple[SplitCount, SplitCount]:
    sizes = {id(file): file.size for file in (*found.train, *found.validation)}
    known = sum(size or 0 for size in sizes.values())
    counted = known <= COUNTED_BYTES and all(local_path(file) for file in (*found.train, *found.validation))
    parts = []
    for split, data_files in (("train", found.train), ("validation", found.validation)):
        called = f"the {split} split of {found.name}"
        documents = _read(data_files, on_bad_file, called) if counted else None
        own = [sizes[id(file)] for file in data_files]
        size = None if None in own else sum(size or 0 for size in own)
        parts.append(SplitCount(split, data_files, size, documents))
    if isinstance(found.train[0], SplitOfFile) and parts[0].size is not None:
        chars: list[int] = [VALIDATION_EVERY - 1, 1]  # expected, where the documents are not counted
        if parts[0].documents is not None and parts[1].documents is not None:
            chars = [sum(map(len, part.documents or [])) for part in parts]
        held_out = round(parts[0].size * chars[1] / max(1, sum(chars)))
        halves = zip(parts, (parts[0].size - held_out, held_out), strict=True)
        parts = [SplitCount(part.split, part.files, size, part.documents) for part, size in halves]
    return parts[0], parts[1]


def _read(data_files: list[DataFile], on_bad_file: OnBadFile, called: str) -> list[str] | None:
    """Returns the documents; None where they turn out to be many."""
    documents: list[str] = []
    chars = 0
    stream = DocumentStream(data_files, on_bad_file=on_bad_file, called=called)
    while batch := stream.next_batch(REFILL_DOCUMENTS):
        documents += batch
        chars += sum(map(len, batch))
        if chars > COUNTED_BYTES:
            return None
    return documents


def _table_rows(name: str, counts: tuple[SplitCount, SplitCount]) -> Iterator[tuple[str, ...]]:
    sizes = [part.size for part in counts]
    for part in counts:
        share = "" if None in sizes or not sum(sizes) else f"{part.size / sum(sizes):.1%}"  # type: ignore[arg-type,operator]
        documents = "" if part.documents is None else f"{len(part.documents):,}"
        size = "" if part.size is None else f"{part.size:,}"
        files = f"part of {len(part.files)}" if isinstance(part.files[0], SplitOfFile) else f"{len(part.files):,}"
        yield name if part.split == "train" else "", part.split, files, documents, size, share


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        words = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        words += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(words).rstrip())
    return lines


def _left_out(found: FoundSource) -> Iterator[str]:
    """Yields a line for each reason for which files are left out."""
    for why in dict.fromkeys(why for _, why in found.left_out):
        names = [name for name, reason in found.left_out if reason == why]
        more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
        line = f"left out ({why}): {', '.join(names[:NAMED_FILES])}{more}"
        yield line.encode(errors="replace").decode()  # a name may have bytes that are not UTF-8


def _rows_named_as_text(found: FoundSource) -> Iterator[str]:
    """Yields a warning if files of plain text hold JSON lines, whose keys and quotes would be learned as text."""
    paths = dict.fromkeys(path for file in (*found.train, *found.validation) if (path := local_path(file)))
    texts = [path for path in paths if file_format(path) == "text"]
    names = [path.name for path in texts[:CHECKED_FILES] if _begins_with_json(path)]
    if names:
        line = f"warning: {names[0]} looks like JSON lines and is read as plain text; "
        line += "name it .jsonl to train on its texts"
        yield line.encode(errors="replace").decode()


def _begins_with_json(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8-sig") as file:
            line = file.readline(1 << 20)
        return isinstance(json.loads(line), dict)
    except (OSError, ValueError, RecursionError):
        return False


def _repetition(
    documents: list[str], encoder: Any, row_length: int, distinct: int, wanted: float, packing: Packing
) -> Iterator[str]:
    """Yields a sentence if the `distinct` rows of these documents are seen more than `FEW_TIMES` in `wanted` rows."""
    distinct = max(1, distinct)
    times = wanted / distinct
    if times <= FEW_TIMES:
        return
    line = (
        f"{len(documents):,} documents give {distinct:,} distinct rows; {wanted:,.0f} are asked for: each is "
        f"seen {times:,.0f} times. Give more text, fewer --num_iterations or a smaller --depth"
    )
    if packing == "best_fit":
        others = _num_rows(documents, encoder, row_length, "keep_tails")
        if others >= 2 * distinct:
            line += f", or --packing keep_tails, which gives {others:,} rows because it drops no ends of documents"
    yield line


def _estimated_repetition(one: SurveyedSource, wanted: float) -> str | None:
    """A sentence if `wanted` tokens are more than `FEW_TIMES` over a source that was not read, by its size."""
    size = one.counts[0].size
    if not size:
        return None
    packed = any(Path(file.name).suffix in COMPRESSED for file in one.found.train)
    tokens = size * (COMPRESSION if packed else 1) / BYTES_PER_TOKEN
    if wanted <= FEW_TIMES * tokens:
        return None
    return (
        f"{size:,} bytes of text have about {tokens:.2g} tokens; {wanted:.2g} are asked for: each is seen about "
        f"{wanted / tokens:,.0f} times. Give more text, fewer --num_iterations or a smaller --depth"
    )


def _num_rows(documents: list[str], encoder: Any, row_length: int, packing: Packing) -> int:
    """Returns how many rows the documents fill in the first pass of a run."""
    return _tokens_and_rows(documents, encoder, row_length, packing)[1]


def _tokens_and_rows(documents: list[str], encoder: Any, row_length: int, packing: Packing) -> tuple[int, int, float]:
    """Returns the tokens of the documents, how many rows they fill in one pass, and the share of tokens in these."""
    tokens = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal tokens
        for document in _encoded(documents, encoder):
            tokens += len(document)
            yield document

    if len(documents) < BUFFER_DOCUMENTS:  # as `RowStream`, of which this is the first pass on one process
        if not documents:
            return 0, 0, 1.0
        rows = len(pack_pass(list(counted()), row_length, packing, np.random.default_rng(0)))
        return tokens, rows, min(1.0, rows * row_length / tokens)
    rows = sum(1 for _ in pack_best_fit(counted(), row_length, packing=packing))
    # The last row, which is not filled, is hardly a loss.
    return tokens, rows, min(1.0, (rows + 1) * row_length / max(1, tokens))


def _encoded(documents: list[str], encoder: Any) -> Iterator[np.ndarray]:
    for start in range(0, len(documents), REFILL_DOCUMENTS):
        ids, offsets = encoder.encode_batch(documents[start : start + REFILL_DOCUMENTS])
        ids = ids.astype(np.int32)
        yield from (ids[first:last] for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))


def _fills_row(documents: list[str], encoder: Any, row_length: int) -> bool:
    """Whether the documents fill a row of the validation split."""
    return next(pack_best_fit(_encoded(documents, encoder), row_length), None) is not None
