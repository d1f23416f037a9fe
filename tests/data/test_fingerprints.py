"""Fingerprints of what a run read: equal for the same files wherever they lie, different for others."""

import shutil

import pytest

from nanochat_hf import tasks
from nanochat_hf.data import fingerprints
from nanochat_hf.data.fingerprints import EDGE, contents, difference, of_files, of_text


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"Text {name}.\n" * 50)
    return folder


def test_the_same_text_has_one_fingerprint_wherever_it_lies(texts, tmp_path, monkeypatch):
    before = of_text(str(texts))
    monkeypatch.chdir(tmp_path)
    shutil.copytree("texts", "copy")
    (texts / ".hidden").write_text("not read")
    for name in ("texts", "texts/", "./texts", "copy", "texts/*.txt", f"{texts}:3"):
        assert difference(before, of_text(name)) is None and contents(of_text([name])) == contents(before), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / "d.txt").write_text("more"),
            "4 files of 1,204 bytes; before: 3 files of 1,200 bytes",
        ),
        (lambda folder: (folder / "b.txt").write_text("less"), "3 files of 804 bytes; before: 3 files of 1,200 bytes"),
        (lambda folder: (folder / "b.txt").write_text("Text B.\n" * 50), "other content of the same size"),
        (lambda folder: (folder / "a.txt").rename(folder / "z.txt"), "other content of the same size"),
    ],
)
def test_changed_files_are_described(texts, change, words):
    before = of_text(str(texts))
    change(texts)
    assert difference(before, of_text(str(texts))) == f"the data in {texts} has changed ({words})"


def test_another_column_is_other_data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "some", "b": "text"}\n' * 50)
    found, named, other = (of_text(f"{path}{column}") for column in ("", "#a", "#b"))
    assert len({tuple(contents(one)) for one in (found, named, other)}) == 3
    assert contents(of_text(f"{path}#a")) == contents(named)
    assert difference(named, other) == f"the data in {path} has changed (column: b; before: a)"
    assert difference(found, other) == f"the data in {path} has changed (column: b; before: found)"


def test_beginning_end_and_size_of_a_long_file_count(tmp_path):
    path = tmp_path / "long.txt"
    path.write_bytes(b"x" * 3 * EDGE)
    before = of_text(str(path))
    for place in (0, EDGE - 1, 2 * EDGE, 3 * EDGE - 1):
        text = bytearray(b"x" * 3 * EDGE)
        text[place] = ord("y")
        path.write_bytes(text)
        assert difference(before, of_text(str(path)))


def test_what_is_not_on_disk_has_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "find_source", None)  # nothing asks the Hub
    read = of_text("owner/name:0.7,microworld:0.3")
    assert [sorted(one) for one in read] == [["share", "source"]] * 2
    assert contents(read) == [(0.7, "owner/name"), (0.3, "microworld")]
    assert difference(read, of_text("owner/name:0.6,microworld:0.4")) and difference(read, of_text("owner/name"))


def test_data_that_is_gone_counts_as_unchanged(texts):
    before = of_text(str(texts))
    shutil.rmtree(texts)
    assert difference(before, of_text(str(texts))) is None


def test_tasks_have_the_fingerprints_of_their_files(tmp_path):
    chats = tmp_path / "chats"
    chats.mkdir()
    (chats / "train.jsonl").write_text("[]\n")
    specs = [f"conversations={chats}@~20*2,microworld-talk@4", f"gsm8k={chats}:config@3", "gsm8k=owner/name"]
    read = tasks.fingerprints_of(specs)
    assert [one.get("files") for one in read] == [1, 1, None]
    (chats / "notes.md").write_text("not read")
    assert difference(read, tasks.fingerprints_of(specs)) is None
    (chats / "train.jsonl").write_text("[]\n[]\n")
    words = f"the data in {chats} has changed (1 file of 6 bytes; before: 1 file of 3 bytes)"
    assert difference(read, tasks.fingerprints_of(specs)) == words
    assert difference([of_files(str(chats))], [of_files(str(chats / "train.jsonl"))]) is None
