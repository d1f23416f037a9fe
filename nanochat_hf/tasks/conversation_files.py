"""Your own conversations, from a file, a folder or a data set of the Hub.

The plainest form is JSON lines, one conversation per line, as an array of messages:

    [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am nanochat."}]

`formats.py` reads the other common formats, too. docs/your-own-data.md lists them with the rules of conversion.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from nanochat_hf.data.files import file_format
from nanochat_hf.settings import UserError, split_at_commas
from nanochat_hf.tasks.base import Task, message_text
from nanochat_hf.tasks.formats import NotAConversation, Notes, rows_of_value, to_conversation, to_preference
from nanochat_hf.tasks.reading import Numbered, read_source, shuffled
from nanochat_hf.tools.registry import TOOLS

WARN_SHARE = 0.05  # a larger share of conversations left out is a warning


class ConversationFiles(Task):
    """Conversations of a file, a folder or a data set of the Hub, in any format of `formats.py`.

    What was read is printed: the format, the number of conversations, and what the rules changed or left out.

    Args:
        source: see `reading.read_source`; several are joined by commas.
        split: which split to read, where the source has splits; a single file is read whole.
        limit: use only the first so many conversations.
        shuffle: takes them from a fixed random order instead of the file's.

    Raises:
        UserError: there is no such source, or a row is in no known format; the message names the file and the place.
    """

    name = "conversations"

    def __init__(
        self,
        source: str | os.PathLike | None = None,
        split: str = "train",
        limit: int | None = None,
        shuffle: bool = False,
    ):
        files, note = _open_sources(self.name, source, split)
        notes = Notes()
        conversations = [row for name, rows in files for row in read_conversations(name, rows, notes)]
        if not conversations:
            raise UserError(f"{source} holds no conversation to train on: {_why_none(notes)}")
        _report(str(source), len(conversations), notes, note)
        super().__init__(shuffled(conversations) if shuffle else conversations, limit)

    def example(self, row: list[dict[str, Any]]) -> dict[str, Any]:
        return {"messages": row}

    def score(self, example: dict[str, Any], completion: str) -> float:
        """Returns 1.0 for the reference answer word for word. This fits only data with one right answer each."""
        return float(completion.strip() == message_text(example["messages"][-1]).strip())


class PreferenceFiles(Task):
    """Pairs of answers, of which one is preferred, from a file, a folder or a data set of the Hub.

    An example has the conversation with the preferred answer as `messages`, and the other answer as `rejected`.

    Args:
        source, split, limit, shuffle: as in `ConversationFiles`.

    Raises:
        UserError: there is no such source, or a row is no pair; the message names the file and the place.
    """

    name = "preferences"
    has_score = False

    def __init__(
        self,
        source: str | os.PathLike | None = None,
        split: str = "train",
        limit: int | None = None,
        shuffle: bool = False,
    ):
        files, note = _open_sources(self.name, source, split)
        pairs = [pair for name, rows in files for pair in _converted(name, rows, to_preference)]
        if os.environ.get("RANK", "0") == "0":
            print(f"{source}: {len(pairs):,} pairs" + (f"; {note}" if note else ""), flush=True)
        super().__init__(shuffled(pairs) if shuffle else pairs, limit)

    def example(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [*row["prompt"], *row["chosen"]], "rejected": row["rejected"][0]}


def read_conversations(name: str, rows: Iterable[Numbered], notes: Notes) -> list[list[dict[str, Any]]]:
    """Converts the rows of one file.

    Args:
        name: the file, for error messages.
        rows: (place, row) pairs, as `reading.read_numbered` yields them.
        notes: receives what was seen and done.

    Returns:
        The messages of each conversation.

    Raises:
        UserError: a row is in no known format; the message names the file, the place and the remedy.
    """
    found = _converted(name, rows, lambda row: to_conversation(row, notes))
    return [messages for messages in found if messages is not None]


def _open_sources(
    task: str, source: str | os.PathLike | None, split: str
) -> tuple[Iterator[tuple[str, Iterable[Numbered]]], str]:
    """Returns the files of a task's sources, which commas join, with their numbered rows; and what there is to say.

    Raises:
        UserError: no source is given, or there is none of that name.
    """
    if source is None:
        raise UserError(f"the task '{task}' needs a file: {task}=PATH.jsonl")
    read = [read_source(one, split) for one in split_at_commas(str(source)) if one]
    return chain.from_iterable(files for files, _ in read), "; ".join(note for _, note in read if note)


def _converted(name: str, rows: Iterable[Numbered], convert: Callable[[Any], Any]) -> Iterator[Any]:
    """Converts each row of a file; a row that `convert` cannot take is an error that names file and place."""
    for place, value in rows:
        items = rows_of_value(value)
        for index, row in enumerate(items, 1):
            try:
                yield convert(row)
            except NotAConversation as error:
                where = place if len(items) == 1 else f"{place}, item {index}"
                hint = " (the first line of the file names the columns)" if file_format(name) == "csv" else ""
                raise UserError(f"{name}, {where}: {error}{hint}") from None


def _why_none(notes: Notes) -> str:
    if not notes.left_out:
        return "there are no rows; give a file that has some"
    reasons = "; ".join(f"{reason} ({count:,})" for reason, count in notes.left_out.items())
    return f"{reasons}, in the format {', '.join(notes.formats)}; check which side is the assistant"


def _report(source: str, count: int, notes: Notes, note: str) -> None:
    """Prints what was read, on one process; a large share that was left out is a warning."""
    if os.environ.get("RANK", "0") != "0":
        return
    several = len(notes.formats) > 1
    formats = ", ".join(f"{name} ({n:,})" if several else name for name, n in notes.formats.items())
    print(f"{source}: {count:,} conversations, format {formats}" + (f"; {note}" if note else ""))
    total = sum(notes.formats.values())
    for rule, changed in notes.changed.items():
        print(f"  {rule}: {changed:,} conversations ({changed / total:.1%})")
    if notes.other_tools:
        print(
            f"  calls of other tools than ours are written as JSON ({_few(notes.other_tools)}); when chatting, only "
            f"{', '.join(TOOLS)} give a result"
        )
    if notes.unused:
        print(f"  not used: {_few(notes.unused)}")
    for reason, left in notes.left_out.items():
        line = f"{left:,} of {total:,} conversations ({left / total:.1%}) are left out: {reason}"
        if left / total > WARN_SHARE:
            print(f"warning: {source}: {line}; mend the data", file=sys.stderr)
        else:
            print(f"  {line}")
    sys.stdout.flush()


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:6]) + (f" and {len(ordered) - 6} more" if len(ordered) > 6 else "")
