"""The text that the tokenizer learns from: the beginnings of documents, then, where text is little, the rest."""

import pytest

from nanochat_hf.settings import UserError
from nanochat_hf.stages.tokenizer import clip


def test_all_of_a_long_document_is_seen_where_text_is_little():
    documents = ["a" * 25 + "b" * 7, "c" * 4]
    assert list(clip(lambda: documents, 10, 1000)) == ["a" * 10, "c" * 4, "a" * 10, "a" * 5 + "b" * 5, "bb"]


def test_beginnings_come_first_and_end_as_upstreams_do():
    documents = ["a" * 25, "b" * 25, "c" * 25]
    assert list(clip(lambda: documents, 10, 25)) == ["a" * 10, "b" * 10, "c" * 10]
    assert list(clip(lambda: documents, 10, 35)) == ["a" * 10, "b" * 10, "c" * 10, "a" * 10]
    opened = []

    def open_again():
        opened.append(1)
        yield from ["a" * 10, "b"]

    assert list(clip(open_again, 10, 1000)) == ["a" * 10, "b"] and len(opened) == 1, "nothing is read twice in vain"


def test_a_cap_that_takes_nothing_is_refused():
    with pytest.raises(UserError, match="--doc_cap is a number of characters above 0"):
        list(clip(lambda: ["a"], 0, 10))
