"""Plain text among the conversations, so that a chat stage takes less of what pretraining has taught the model."""

import os
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

from nanochat_hf.data.documents import cut_document
from nanochat_hf.data.found import looks_like_hub_id, split_column
from nanochat_hf.data.overview import is_on_disk
from nanochat_hf.data.sources import OnBadFile, open_documents, parse_sources
from nanochat_hf.settings import UserError
from nanochat_hf.tasks.base import Task

LONGEST = 1500  # characters of an example: in English about 370 tokens of a vocabulary of 8,192
ORDER = 42  # seed of the order


class Documents(Task):
    """Documents in a random order that is always the same; longer ones are cut at line ends or between sentences.

    An example is `{"text": ...}`. All of its tokens are trained on, in midtraining and in SFT.

    Args:
        source: what pretraining takes as `data`, see `nanochat_hf.data.sources`; bad files in it are skipped.
        split: "train", or another for the validation documents.
        limit: how many pieces; it has to be given, because a source can be very long.

    Raises:
        UserError: source or limit are not given, or the source cannot be read.
    """

    name = "documents"
    has_score = False

    def __init__(self, source: str | os.PathLike | None = None, split: str = "train", limit: int | None = None):
        if source is None or limit is None:
            raise UserError("the task 'documents' needs a source of text and a number: documents=my_texts@300")
        super().__init__(list(islice(_pieces(str(source), split), limit)))

    def example(self, row: str) -> dict[str, Any]:
        return {"text": row}


def check_text(source: str) -> None:
    """Reads the beginning of a source of text, to see that it can be read. Ids of the Hub are not looked up.

    Raises:
        UserError: there is no such source, or nothing in it can be read.
    """
    names = [split_column(name)[0] for name, _ in parse_sources(source)]
    if not is_on_disk(names) and any(map(looks_like_hub_id, names)):
        return
    try:
        next(_pieces(source, "train", on_bad_file="stop"), None)
    except UserError as error:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                next(_pieces(source, "train"), None)
            except UserError:
                raise error from None


def _pieces(source: str, split: str, on_bad_file: OnBadFile = "skip") -> Iterator[str]:
    texts = open_documents(source, "train" if split == "train" else "validation", seed=ORDER, on_bad_file=on_bad_file)
    return (piece for text in texts for piece in cut_document(text, LONGEST) if piece.strip())
