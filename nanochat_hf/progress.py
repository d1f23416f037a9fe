"""Progress of long work: a bar on a terminal, one line every 30 seconds in a file."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_PER_LINE = 30.0  # the quickstart's whole output is some 150 lines
LINE = "{desc}: {percentage:.0f}%, {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_fmt}{postfix}]"


def progress_bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """tqdm on a terminal. Where stderr is no terminal, it prints lines, and nothing for work of less than 30 seconds.

    Args:
        iterable: what to count; None where the caller counts with `update`.
        options: tqdm's own. A `unit` begins with a space.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, **options)
    seldom = {"mininterval": SECONDS_PER_LINE, "maxinterval": SECONDS_PER_LINE, "delay": SECONDS_PER_LINE}
    line = LINE if options.get("total") or hasattr(iterable, "__len__") else LINE_WITHOUT_TOTAL
    return tqdm(iterable, file=_Lines(sys.stderr), bar_format=line, **(options | seldom))


def quiet_transformers() -> None:
    """Switches off transformers' bars for reading and writing weights.

    transformers switches the Hub's download bars off too. On a terminal they are switched on again.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    keep = sys.stderr.isatty() and not are_progress_bars_disabled()
    disable_progress_bar()
    if keep:
        enable_progress_bars()


class _Lines:
    """A text file for tqdm that turns every drawing of the bar into a line of its own."""

    def __init__(self, file: TextIO):
        self.file, self.encoding = file, getattr(file, "encoding", None)

    def write(self, text: str) -> None:
        text = text.strip()
        if text:
            self.file.write(text + "\n")

    def flush(self) -> None:
        self.file.flush()
