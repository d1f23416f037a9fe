"""Which files a source consists of and which split each is in: names, cards, folders, paths."""

import os
from pathlib import Path

import pytest
from toy import make_documents, write_jsonl, write_parquet

from nanochat_hf.data import files, splits
from nanochat_hf.data.found import find_source
from nanochat_hf.data.overview import describe_data
from nanochat_hf.data.sources import open_documents, parse_sources
from nanochat_hf.settings import UserError

TITLES = [
    "a_garden.txt",
    "test_pilots_of_the_air.txt",
    "the_great_train_robbery.txt",
    "dev-diary.txt",
    "Train Your Dragon.txt",
    "validation of theories/a.txt",
    "eval.of.things.txt",
    "valid_reasons.jsonl.gz",
    "zebra.txt",
]


@pytest.mark.parametrize("name", TITLES)
def test_a_title_is_no_split(name):
    assert splits.splits_of([*TITLES[:1], name, "the_last_test.txt", "training_days.txt"])[1] is None


NAMED = {
    "train.jsonl": "train",
    "Train.CSV": "train",
    "train-00000-of-00003.parquet": "train",
    "train-00001-of-00003-a09b74b3ef9c3b56.parquet": "train",
    "train_0001.txt.zst": "train",
    "train.3.jsonl": "train",
    "train12.jsonl": "train",
    "training data.csv": "train",
    "train/a.txt": "train",
    "train/deep/er/the_test_of_time.txt": "train",
    "validation.jsonl": "validation",
    "valid-000.json": "validation",
    "dev.tsv": "validation",
    "val/part-0.parquet": "validation",
    "00001-val.parquet": "validation",
    "test.arrow": "test",
    "test_set.txt": "test",
    "data/eval-00000-of-00001.parquet": "test",
    "evaluation/a.txt": "test",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_whole_name_is_a_split(name):
    assert splits.splits_of([name]) == [NAMED[name]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Tiny-GPT4-train.txt", "Tiny-GPT4-valid.txt"], ["train", "validation"]),
        (["wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"], ["train", "validation", "test"]),
        (["web_train_000001.parquet", "web_val_000000.parquet"], ["train", "validation"]),
        (["my-train/a.txt", "my-train/b.txt", "my-test/c.txt"], ["train", "train", "test"]),
        (["web_train_0.parquet", "web_train_1.parquet"], [None, None]),
        (["a_train.txt", "b_test.txt"], [None, None]),
        (["train_test.txt", "b.txt"], [None, None]),
    ],
)
def test_other_words_need_a_partner_of_the_same_name(names, expected):
    assert splits.splits_of(names) == expected


def test_the_words_are_those_of_datasets():
    from datasets.data_files import SPLIT_KEYWORDS

    theirs = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
    assert theirs == splits.SPLIT_WORDS


LAYOUTS = [
    ["data/train-00000-of-00001.parquet", "README.md"],
    ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
    ["data/train-00000-of-00001-ab12cd34ef.parquet", "data/validation-00000-of-00001-ab12cd34ef.parquet"],
    ["train.csv", "test.csv", "validation.csv", "README.md"],
    ["train/0001.jsonl", "train/0002.jsonl", "dev/0001.jsonl", "dataset_infos.json"],
    ["corpus_train.txt", "corpus_test.txt", "corpus_dev.txt"],
    ["en/train.txt", "en/test.txt"],
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout[0])
def test_folders_without_a_card_are_divided_as_datasets_divides_them(tmp_path, layout):
    from datasets.data_files import get_data_patterns, resolve_pattern

    for name in layout:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    theirs: dict[str, list[str]] = {}
    for split, patterns in get_data_patterns(str(tmp_path)).items():
        for pattern in patterns:
            try:
                paths = resolve_pattern(pattern, str(tmp_path))
            except FileNotFoundError:  # one of several patterns that a split may have
                continue
            names = [Path(path).relative_to(tmp_path).as_posix() for path in paths]
            theirs[str(split)] = sorted({*theirs.get(str(split), []), *names})
    names = [path.relative_to(tmp_path).as_posix() for path in files.text_files(tmp_path)]
    ours: dict[str, list[str]] = {}
    for name, split in zip(names, splits.splits_of(names), strict=True):
        ours.setdefault(str(split), []).append(name)
    assert ours == theirs


def card(text: str) -> str:
    return f"---\nlicense: mit\n{text}---\n\n# A data set\n\ntrain on this card\n"


CARDS = {
    "named splits": (
        "configs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: a/*.parquet\n  - split: validation\n    path: [b/x.parquet]\n",
        "",
        ["a/x", "a/y"],
        ["b/x"],
    ),
    "a default config": (
        "configs:\n- config_name: one\n  data_files: b/*\n"
        "- config_name: two\n  default: true\n  data_files:\n  - split: train\n    path: a/**\n  - split: test\n"
        "    path: b/y.parquet\n",
        "",
        ["a/deep/z", "a/x", "a/y"],
        ["b/y"],
    ),
    "a config by name": (
        "configs:\n- config_name: one\n  data_files: b/*\n- config_name: two\n  data_files: a/*\n",
        "two",
        ["a/x"],
        ["a/y"],
    ),
    "a folder": ("configs:\n- config_name: one\n  data_dir: b\n", "", ["b/x"], ["b/y"]),
    "no config": ("size_categories: [1K<n<10K]\n", "", ["a/deep/z", "a/x", "a/y", "b/x"], ["b/y"]),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_card_of_a_local_copy_names_the_files(tmp_path, name):
    """The right files are those of `datasets.load_dataset`."""
    from datasets import load_dataset

    text, config, training, validation = CARDS[name]
    for number, path in enumerate(["a/x", "a/y", "a/deep/z", "b/x", "b/y"]):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        write_parquet(tmp_path / f"{path}.parquet", [f"{path} {i}" for i in range(number + 3)])
    (tmp_path / "README.md").write_text(card(text))
    (tmp_path / "dataset_infos.json").write_text('{"default": {"text": "no data"}}')
    source = f"{tmp_path}:{config}" if config else str(tmp_path)
    read = {split: list(open_documents(source, split)) for split in ("train", "validation")}
    assert {text.split()[0] for text in read["train"]} == set(training)
    assert {text.split()[0] for text in read["validation"]} == set(validation)
    left_out = {name for name, _ in find_source(source).left_out}
    assert {"README.md", "dataset_infos.json"} <= left_out
    if name != "no config":
        theirs = load_dataset(str(tmp_path), config or None, cache_dir=str(tmp_path.parent / "cache"))
        rows = [text for split in theirs.values() for text in split["text"][:]]
        assert sorted(rows) == sorted(read["train"] + read["validation"])


def test_a_card_that_leaves_the_choice_or_is_wrong_is_said(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["one", "two"])
    for text, sentence in [
        (
            "configs:\n- config_name: x\n  data_files: a*\n- config_name: y\n  data_files: a*\n",
            r"configs \(x, y\); name",
        ),
        ("configs:\n- config_name: x\n  data_files: absent/*\n", "none of them is there"),
        ("configs: nonsense\n", "configs in the card of .* cannot be read"),
        ("configs:\n- data_files: [\n", "is not YAML"),
    ]:
        (tmp_path / "README.md").write_text(card(text))
        with pytest.raises(UserError, match=sentence):
            open_documents(str(tmp_path))
    (tmp_path / "README.md").write_text(card("configs:\n- config_name: x\n  data_files: a*\n"))
    with pytest.raises(UserError, match="no config or folder y"):
        open_documents(f"{tmp_path}:y")


def test_a_readme_alone_is_no_data_but_notes_are(tmp_path):
    (tmp_path / "README.md").write_text("about")
    with pytest.raises(UserError, match=r"holds no .parquet.* file \(but README.md: describes the data\)"):
        open_documents(str(tmp_path))
    (tmp_path / "notes.md").write_text("a note")
    assert [file.name for file in find_source(tmp_path).train] == ["notes.md"]
    assert [file.name for file in find_source(tmp_path / "README.md").train] == ["README.md"], "asked for by name"


def test_what_a_folder_holds_beside_text_is_left_out_with_the_reason(tmp_path):
    for name in (
        "a.txt",
        "deep/er/b.text",
        ".hidden.txt",
        "_part.txt",
        "LICENSE",
        "LICENSE.txt",
        "c.docx",
        "more.tar.gz",
        "Makefile",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    found = find_source(tmp_path)
    assert [file.name for file in found.train + found.validation] == ["a.txt", "b.text"]
    assert dict(found.left_out) == {
        ".hidden.txt": "hidden",
        "_part.txt": "hidden",
        "LICENSE": "describes the data",
        "LICENSE.txt": "describes the data",
        "c.docx": "no known format",
        "more.tar.gz": "an archive: unpack it",
        "Makefile": "no ending",
    }


def test_a_folder_of_files_without_endings_is_read(tmp_path):
    for name in ("book1", "deep/book2", "part-00003"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "_SUCCESS").write_text("")
    assert list(open_documents(str(tmp_path))) == ["text of book1", "text of deep/book2"]


def test_empty_notes_are_left_out_and_empty_tables_are_bad(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blank = {"0.txt": b"", "sub/1.md": b"\xef\xbb\xbf \r\n", "z.txt": b"\n\n"}
    for name, content in {"a.txt": b"of a", "b.md": b"of b", **blank}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for source in (".", "**/*.*", "*.*"):
        assert list(open_documents(source)) == ["of a"] and list(open_documents(source, "validation")) == ["of b"]
    assert sorted(find_source(".").left_out) == [(name, "empty") for name in blank]
    assert list(files.read_documents(["*.txt", "sub/../b.md"])) == ["of a", "of b"]
    for name in ("c.jsonl", "c.txt.gz", "c.csv"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=f"{name} is empty; remove it or fetch it again"):
            describe_data(".")
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="0.txt is empty"):
        list(open_documents("0.txt"))
    with pytest.raises(UserError, match=r"the folder sub holds no .* file \(but 1.md: empty\)"):
        open_documents("sub")


def test_links_are_followed_once_and_a_broken_one_is_named(tmp_path):
    data = tmp_path / "data"
    (data / "real").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("of b")
    (data / "real" / "a.txt").write_text("of a")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "real" / "round").symlink_to(data)
    (data / "z.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")
    assert [path.relative_to(data).as_posix() for path in files.text_files(data)] == [
        "linked/b.txt",
        "real/a.txt",
        "z.txt",
    ]
    (data / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="gone.txt is a link to .*nowhere, which does not exist"):
        files.text_files(data)


def test_paths_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for folder in ("corpus@2024", "a,b", "v1:0.5", "plain", "owner/name"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("1.txt", "2.txt"):
            (tmp_path / folder / name).write_text(f"{name} of {folder}")
    for source, folder in [
        ("~/corpus@2024", "corpus@2024"),
        ("corpus@2024", "corpus@2024"),
        ("corpus@2024:0.3", "corpus@2024"),
        ("a,b", "a,b"),
        ("~/a,b:2", "a,b"),
        ("v1:0.5", "v1:0.5"),
        ("./plain/", "plain"),
        ("~/plain/*.txt", "plain"),
        ("pl*n/[12].txt:0.5", "plain"),
        ("**/plain/*.txt", "plain"),
        ("owner/name", "owner/name"),
        (Path("~/plain"), "plain"),
    ]:
        assert list(open_documents(source)) == [f"1.txt of {folder}"], source
        assert list(open_documents(source, "validation")) == [f"2.txt of {folder}"], source
    for source in (
        "plain,corpus@2024",
        ["plain,corpus@2024"],
        ["plain", "~/corpus@2024"],
        [Path("plain"), "corpus@2024"],
    ):
        assert sorted(open_documents(source)) == ["1.txt of corpus@2024", "1.txt of plain"]
    assert len(list(open_documents(["plain,a,b:0.2", "owner/name"]))) == 3
    assert parse_sources("~/x:0.5") == [(os.path.join(tmp_path, "x"), 0.5)]
    assert [path.name for path in files.find_files(["~/plain/*.txt", "~/a,b/1.txt"])] == ["1.txt", "2.txt", "1.txt"]
    (tmp_path / "plain" / "cover.jpg").write_bytes(b"x")
    assert [name for name, _ in find_source("plain/*").left_out] == ["cover.jpg"]
    with pytest.raises(UserError, match="no file that matches .*jpg is text"):
        open_documents("plain/*.jpg")
    with pytest.raises(UserError, match="no file matches absent/"):
        open_documents("absent/*.txt")
    with pytest.raises(UserError, match="no data at ~absent"):
        open_documents("~absent")


def test_names_that_are_no_utf8(tmp_path, capsys):
    for name in (b"caf\xe9.txt", b"b.txt", b"caf\xe9.jpg"):
        with open(os.path.join(os.fsencode(tmp_path), name), "w") as file:
            file.write("some text")
    assert list(open_documents(str(tmp_path))) == ["some text"]
    print(describe_data(str(tmp_path)))
    assert "no known format): caf" in capsys.readouterr().out


def test_all_titles_are_read(tmp_path):
    for name in TITLES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / name, [name]) if ".jsonl" in name else (tmp_path / name).write_text(name)
    found = find_source(tmp_path)
    assert len(found.train) == len(TITLES) - 1 and len(found.validation) == 1 and not found.left_out


@pytest.mark.parametrize(
    ("sizes", "held_out"),
    [
        ({"a.txt": 1000, "b.txt": 1000, "c.txt": 1000}, ["c.txt"]),
        ({f"{number}.md": 1000 for number in range(10, 70)}, ["67.md", "68.md", "69.md"]),
        ({"a.txt": 5000, "b.txt": 5000, "c.txt": 600, "d.txt": 20}, ["c.txt", "d.txt"]),
        ({"a.txt": 90_000, "b.txt": 20}, ["b.txt"]),  # one file is left for training
        ({"a.txt": 1000, "book.txt": 90_000, "c.txt": 900}, ["c.txt"]),  # not most of the text
        ({"a.txt": 900_000, "b.jsonl": 1000, "c.txt": 900}, ["c.txt"]),  # not all are notes
        ({"a.jsonl": 90_000, "b.jsonl": 9000, "c.jsonl": 20}, ["c.jsonl"]),  # shards, whatever their size
        ({"a.txt": 90_000, "train.txt": 9000, "validation.txt": 20}, ["validation.txt"]),  # as the names say
        ({"a.txt": 2**26, "b.txt": 2**21, "c.txt": 2**20}, ["c.txt"]),  # a megabyte is enough
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_of_small_notes_the_last_ones_are_for_validation(tmp_path, sizes, held_out):
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    assert [file.name for file in find_source(tmp_path).validation] == held_out


def test_order_of_files_is_that_of_their_names(tmp_path):
    names = ["b/1.txt", "a-x.txt", "a/2.txt", "a/10.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(make_documents(1)))
    assert files.text_files(tmp_path) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
