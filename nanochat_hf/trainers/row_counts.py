"""Counts what is cut, left out and masked on the way from conversations to rows, and says it."""

import sys

WARN_SHARE = 0.05  # a larger share is a warning


class RowCounts:
    """Counts over the conversations that are packed into rows. A conversation that is used twice counts twice.

    Args:
        row_length: tokens per row, one more than `max_seq_len`.
        title: what is packed, for the printed lines.
    """

    def __init__(self, row_length: int, title: str):
        self.row_length, self.title = row_length, title
        self.conversations = self.pieces = self.cut = self.useless = self.too_late = 0
        self.tokens = self.kept = self.trained = self.trained_kept = 0

    def add(self, kept: int, trained_kept: int, tokens: int, trained: int) -> None:
        """Counts one conversation: its tokens and those of them that are trained on, in the row and in the whole."""
        self.conversations += 1
        self.cut += kept < tokens
        self.useless += not trained
        self.too_late += bool(trained) and not trained_kept
        self.tokens += tokens
        self.kept += kept if trained_kept else 0
        self.trained += trained
        self.trained_kept += trained_kept

    def add_text(self, tokens: int) -> None:
        """Counts a piece of plain text, as the row has it. It is a sample of a longer text: nothing of it is lost."""
        self.pieces += 1
        self.tokens += tokens
        self.kept += tokens
        self.trained += tokens - 1
        self.trained_kept += tokens - 1

    def report(self) -> None:
        """Prints the counts; nothing where nothing was packed."""
        if not self.conversations and not self.pieces:
            return
        masked = _share(self.kept - self.trained_kept, self.kept)
        packed = f"{self.conversations:,} conversations" + (
            f" and {self.pieces:,} pieces of text" if self.pieces else ""
        )
        print(
            f"{self.title}: {packed}, {self.tokens:,} tokens; {self.kept:,} in rows, "
            f"{self.trained_kept:,} of them trained on, the others masked ({masked})",
            flush=True,
        )
        length = self.row_length - 1
        raise_it = "raise --max_seq_len, up to the model's context, or shorten the conversations"
        lost = f"{_share(self.trained - self.trained_kept, self.trained)} of the tokens to train on are lost"
        what = f"conversations are longer than {length} tokens and are cut; {lost}"
        report_share(self.title, self.cut, self.conversations, what, raise_it)
        what = f"conversations are left out: no answer begins within {length} tokens"
        report_share(self.title, self.too_late, self.conversations, what, raise_it)
        what = "conversations are left out: nothing in them is trained on"
        report_share(self.title, self.useless, self.conversations, what, "choose other --tasks, or mend the data")


def report_share(title: str, count: int, total: int, what: str, remedy: str) -> None:
    """Prints that `count` of `total` are cut or left out; above `WARN_SHARE` as a warning that names the remedy."""
    if not count:
        return
    line = f"{title}: {count:,} of {total:,} ({count / total:.1%}) {what}"
    if count / total > WARN_SHARE:
        print(f"warning: {line}; {remedy}", file=sys.stderr, flush=True)
    else:
        print(line, flush=True)


def report_left_over(total: int, used: int, what: str, setting: str) -> None:
    """Prints what does not fill a last step and is left out; above `WARN_SHARE` as a warning that names `setting`."""
    report_share("last step", total - used, total, f"{what} do not fill a step and are left out", f"lower --{setting}")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"
