"""Plain text among the conversations: which pieces are taken, and that all of their tokens are trained."""

import json

import pytest

from nanochat_hf import tokenizer
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError
from nanochat_hf.tasks import check_scorers, check_sources, fingerprints_of, load
from nanochat_hf.tasks.documents import LONGEST
from nanochat_hf.trainers.chat_rows import make_rows

TEXTS = [f"Document {number}. " + f"It has the number {number} in it.\n" * (1 + number % 3) for number in range(200)]


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "my texts"
    folder.mkdir()
    for start in range(0, 200, 50):
        lines = [json.dumps({"text": text}) for text in TEXTS[start : start + 50]]
        (folder / f"{start}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def found(spec: str, split: str = "train") -> list[str]:
    return [example["text"] for example in load(spec, split)[0]]


def test_pieces_are_drawn_from_all_files_and_never_from_the_other_split(texts):
    drawn = found(f"documents={texts}@30")
    assert len(drawn) == 30 and drawn == found(f"documents={texts}@30") and drawn[:5] == found(f"documents={texts}@5")
    training, validation = (set(open_documents(texts, split)) for split in ("train", "validation"))
    assert set(drawn) <= training and drawn != list(open_documents(texts))[:30]
    assert set(found(f"documents={texts}@1000")) == training
    assert set(found(f"documents={texts}@1000", "validation")) == validation and not training & validation


def test_several_sources_and_long_documents(tmp_path, texts):
    lines = [f"Line {number} of a book.\n" for number in range(2000)]
    (tmp_path / "book.txt").write_text("".join(lines), encoding="utf-8")
    drawn = found(f"documents={texts}:0.5,{tmp_path / 'book.txt'}:0.5@20")
    pieces = [text for text in drawn if text.startswith("Line")]
    assert 3 <= len(pieces) <= 17 and all(LONGEST / 2 < len(piece) <= LONGEST for piece in pieces)
    assert all(line + "\n" in lines for piece in pieces for line in piece.rstrip("\n").split("\n"))


@pytest.mark.parametrize("spec", ["documents@3", "documents={}", "documents"])
def test_a_source_and_a_number_are_needed(texts, spec):
    with pytest.raises(UserError, match="needs a source of text and a number: documents=my_texts@300"):
        load(spec.format(texts), "train")


def test_sources_are_checked_and_compared_by_content(tmp_path, texts):
    spec = f"documents={texts}:0.7,{texts / '*.jsonl'}:0.3@9"
    check_sources([spec, "documents=owner/name@4"])
    with pytest.raises(UserError, match="no data at .*nowhere; give a file"):
        check_sources([f"documents={tmp_path / 'nowhere'}@9"])
    before = fingerprints_of([spec])
    assert [one["files"] for one in before] == [4, 4] and before == fingerprints_of([spec, spec])
    (texts / "0.jsonl").write_text('{"text": "Another text."}', encoding="utf-8")
    assert before != fingerprints_of([spec])


def test_the_source_may_name_its_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"title": "T", "body_text": "Text {number}."}}\n' for number in range(40)))
    with pytest.raises(UserError, match="cannot tell which column is the text"):
        check_sources([f"documents={path}@3"])
    check_sources([f"documents={path}#body_text@3"])
    drawn = found(f"documents={path}#body_text@3")
    assert len(drawn) == 3 and all(text.startswith("Text ") for text in drawn)


def test_bad_files_are_skipped_where_others_can_be_read(texts, recwarn):
    for path in (texts / "0.jsonl", texts / "100.jsonl"):
        path.write_text("no JSON", encoding="utf-8")
    check_sources([f"documents={texts}@9"])
    assert not recwarn
    with pytest.warns(UserWarning, match="skipped the rest of a file"):
        assert len(found(f"documents={texts}@1000")) == 50
    (texts / "150.jsonl").write_text("no JSON", encoding="utf-8")
    with pytest.raises(UserError, match=r"\d+\.jsonl, line 1 is not JSON"):
        check_sources([f"documents={texts}@9"])


def test_all_tokens_are_trained_and_names_of_control_tokens_are_text(capsys):
    words = tokenizer.train(["Hello you! Who is <|bos|> there? "] * 20, 280)
    conversation = [{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "you!"}]}]
    text = [{"text": "Who is <|bos|> there?"}]
    rows = make_rows([(conversation, 1), (text, 1)], words, 128, train_on="assistant", packing="none")
    for ids, labels in zip(rows["input_ids"].tolist(), rows["labels"].tolist(), strict=True):
        trained = words.decode([label for label in labels if label != -100])
        if words.decode(ids).startswith("<|bos|>Who"):
            assert trained.removeprefix("<|bos|>") == "Who is <|bos|> there?"
            assert words.bos_token_id not in ids[1 : len(words.encode("Who is there?"))]
        else:
            assert trained == "you!<|assistant_end|>"
    assert "packing: 1 conversations and 1 pieces of text, " in capsys.readouterr().out


def test_a_piece_longer_than_a_row_is_no_loss(capsys):
    words = tokenizer.train(["Hello you! Who is there? "] * 20, 280)
    rows = make_rows([([{"text": "Who is there? " * 50}], 1)], words, 33, train_on="assistant")
    assert rows["input_ids"].shape == (1, 33) and (rows["labels"] != -100).all()
    said = capsys.readouterr()
    assert "cut" not in said.out + said.err


def test_text_has_no_score(texts):
    with pytest.raises(UserError, match="documents has no right answers to score"):
        check_scorers([load(f"documents={texts}@3", "train")[0]])
