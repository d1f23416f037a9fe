"""Files, folders and data sets of one's own: how they are read, which split, and what is said of one that is bad."""

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from nanochat_hf.settings import UserError
from nanochat_hf.tasks import load
from nanochat_hf.tasks.reading import files_of_split, hub_split, load_rows, read_file, read_numbered


def chat(answer, question="Is that a café?"):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def gzipped(data: bytes) -> bytes:
    """Without the time of day, so that two collections of these tests agree."""
    return gzip.compress(data, mtime=0)


CHATS = [chat("Yes."), chat("No."), chat("Bücher?\u2028Ja.")]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in CHATS)
LATIN_1_OFFSET = len(LINES.split("\n")[1].encode()) + 1 + LINES.index("é")
WRAPPED = [{"messages": row} for row in CHATS]


def answers(source, split="train"):
    task, _ = load(f"conversations={source}", split)
    return [example["messages"][-1]["content"] for example in task]


def zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES.encode()),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("a.jsonl", LINES.encode("utf-16")),
        ("a.jsonl", b"\xfe\xff" + LINES.encode("utf-16-be")),
        ("a.jsonl", LINES.encode("utf-32")),
        ("a.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("a.jsonl", LINES.replace("\n", "\r").encode()),
        ("a.jsonl", ("\n  \n" + LINES.replace("\n", "\n\n")).rstrip().encode()),
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in WRAPPED).encode()),
        ("a.jsonl.gz", gzipped(LINES.encode())),
        ("a.jsonl", gzipped(LINES.encode("utf-16"))),
        ("a.jsonl.bz2", bz2.compress(LINES.encode())),
        ("a.jsonl.xz", lzma.compress(LINES.encode())),
        ("a.jsonl.zst", zstd(LINES.encode())),
        ("a.json", json.dumps(CHATS).encode()),
        ("a.json", json.dumps(WRAPPED, indent=2).encode()),
        ("a.jsonl", json.dumps(WRAPPED, indent=2).encode()),
        ("a.json", json.dumps({"version": 2, "data": WRAPPED}, indent=2).encode()),
        ("a.json", LINES.encode()),
    ],
)
def test_text_files_read_alike(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert answers(path) == [row[-1]["content"] for row in CHATS]
    assert answers(tmp_path) == answers(path)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_that_is_one_conversation(tmp_path, indent):
    path = tmp_path / "one.json"
    for value in (CHATS[0], {"messages": CHATS[0]}):
        path.write_text(json.dumps(value, indent=indent))
        assert answers(path) == ["Yes."]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'question,answer\n"Is it, or not?","Yes,\nit ""is""."\nAnd?,No.\n'),
        ("a.csv", '\ufeffQuestion;Answer\r\nIs it, or not?;"Yes,\nit ""is""."\r\n"And?";No.\r\n'),
        ("a.tsv", 'prompt\tcompletion\nIs it, or not?\t"Yes,\nit ""is""."\nAnd?\tNo.\n'),
    ],
)
def test_tables_of_text(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode())
    task, _ = load(f"conversations={path}", "train")
    assert [example["messages"] for example in task] == [
        chat('Yes,\nit "is".', "Is it, or not?"), chat("No.", "And?")
    ]  # fmt: skip


def test_parquet_and_arrow_files(tmp_path):
    table = pyarrow.table({"messages": CHATS, "id": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert answers(tmp_path) == answers(tmp_path / "a.parquet") == [row[-1]["content"] for row in CHATS]
    columns = {"question": ["a", "b"], "answer": ["c", None]}
    table = pyarrow.table(
        {"question": pyarrow.array(columns["question"]).dictionary_encode(),
         "answer": pyarrow.array(columns["answer"], pyarrow.string_view())}
    )  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    assert answers(tmp_path / "b.parquet") == ["c"]


def test_a_folder_that_datasets_saved(tmp_path):
    train, test = (datasets.Dataset.from_dict({"messages": [row]}) for row in CHATS[:2])
    train.save_to_disk(str(tmp_path / "one"))
    assert answers(tmp_path / "one", "test") == ["Yes."]
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "both"))
    assert answers(tmp_path / "both") == ["Yes."] and answers(tmp_path / "both", "validation") == ["No."]


def test_a_data_set_is_loaded_by_split(tmp_path):
    """`datasets.load_dataset` reads a Hub id and a folder alike; here it is a folder."""
    for name, row in (("train", CHATS[0]), ("test", CHATS[1])):
        table = pyarrow.table({"messages": [row]})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}-00000-of-00001.parquet")
    assert [row["messages"] for _, row in hub_split(str(tmp_path), None, "train")] == [CHATS[0]]
    assert [row["messages"] for _, row in hub_split(str(tmp_path), None, "validation")] == [CHATS[1]]
    with pytest.raises(UserError, match="has no split 'train_sft' .it has: train, test.; name one, as in"):
        list(hub_split(str(tmp_path), None, "train_sft"))
    with pytest.raises(UserError, match="as a data set of the Hub it cannot be loaded"):
        list(hub_split(str(tmp_path / "nothing"), None, "train"))


def test_names_that_differ_in_the_split_alone_choose_files(tmp_path, capsys):
    def files(split, *names):
        for path in sorted(tmp_path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(LINES)
        found, note = files_of_split(tmp_path, split)
        return [str(path.relative_to(tmp_path)) for path in found], note

    titles = ("a_garden.jsonl", "test_pilots_of_the_air.jsonl", "the_great_train_robbery.jsonl", "training.jsonl")
    assert files("train", *titles) == files("test", *titles) == (list(titles), "")
    shards = ("data/test-00000-of-00001.jsonl", "data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl")
    assert files("train", *shards, "README.md") == (
        list(shards[1:]), "2 files of the split train; not read: data/test-00000-of-00001.jsonl"
    )  # fmt: skip
    assert files("test", *shards)[0] == files("validation", *shards)[0] == list(shards[:1])
    assert files("train", "my_train.jsonl", "my_val.jsonl", "more.jsonl")[0] == ["more.jsonl", "my_train.jsonl"]
    assert files("validation", "train/a.jsonl", "test/b.jsonl", "dev/c.jsonl")[0] == ["dev/c.jsonl"]
    assert files("train", "a.jsonl", ".hidden.jsonl", "_x/b.jsonl", "c.txt", "dataset_infos.json")[0] == ["a.jsonl"]
    with pytest.raises(UserError, match="there are no conversations at"):
        files("train", "notes.txt")


def test_the_card_of_a_data_set_names_the_files(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: first.jsonl\n"
    (tmp_path / "README.md").write_text(card + "  - split: test\n    path: b*.jsonl\n---\n# Chats\n")
    for name, row in zip(("first", "b1", "other"), CHATS, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    assert answers(tmp_path) == ["Yes."] and answers(tmp_path, "test") == ["No."]
    two = "---\nconfigs:\n- config_name: a\n  data_files: first.jsonl\n- config_name: b\n  data_files:\n"
    (tmp_path / "README.md").write_text(two + "  - split: train_sft\n    path: b1.jsonl\n---\n")
    assert answers(f"{tmp_path}:a") == ["Yes."] and answers(f"{tmp_path}:b", "train_sft") == ["No."]
    with pytest.raises(UserError, match=r"has several configs \(a, b\); name one, as .*:a"):
        answers(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Chats\n")
    assert len(answers(tmp_path)) == 3


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.jsonl",
            LINES.split("\n")[1].encode() + b"\n" + LINES.split("\n")[0].encode("latin1"),
            rf"a.jsonl is not UTF-8: byte 0xe9 at offset {LATIN_1_OFFSET} \(line 2\), perhaps Latin-1; convert it, "
            "for example with: mv .*a.jsonl .*a.jsonl.old && iconv -f latin1 -t utf-8 .*a.jsonl.old > .*a.jsonl",
        ),
        (
            "a.jsonl.gz",
            gzipped(LINES[:100].encode("latin1")),
            "byte 0xe9 at offset .*; unpack and convert it, for example with: gzip -d",
        ),
        (
            "a.jsonl",
            LINES.encode("utf-16-le"),
            "looks like UTF-16LE without a byte order mark; convert it, for example with: mv .* && iconv -f UTF-16LE",
        ),
        ("a.jsonl", LINES.encode("utf-16")[:-1], "is not valid UTF-16-LE, as its first bytes say, at byte"),
        ("a.jsonl.gz", gzipped(LINES.encode())[:-20], "cannot be read .*; is it whole"),
        ("a.jsonl.gz", gzipped(LINES.encode())[:40] + b"xxxxxxxxxxxxxxxx", "cannot be read .*; is it whole"),
        ("a.jsonl.zst", zstd(LINES.encode())[:-20], "cannot be read .*; is it whole"),
        ("a.parquet", b"PAR1 and no more", "cannot be read .*; is it whole"),
        ("a.parquet", b"", "cannot be read .*; is it whole"),
        ("a.arrow", b"ARROW1 and no more", "cannot be read .*; is it whole"),
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b"PK\x03\x04xx", "not a text file but a zip archive or an office document; unpack it"),
        ("a.jsonl", (LINES + "{broken\n").encode(), "line 4: not valid JSON .*; mend or remove it"),
        ("a.jsonl", ("\n{broken\n" + LINES).encode(), "line 2: not valid JSON"),
        ("a.json", b'[\n{"question": "a",\n "answer": b}\n]', "line 3: not valid JSON .Expecting value at column 12"),
        ("a.csv", b"question,answer\na,b,c\n", "line 2 has 3 fields, where the first line names 2 columns"),
        (
            "a.csv",
            b'question,answer\na,"b\n',
            "line 2 is not csv .unexpected end of data.; put text that holds quotes",
        ),
        ("a.csv", b"Hi,Hello\nBye,See you\n", "line 2: has the keys 'hi', 'hello', which are of no known format"),
        ("a.csv", b"question,answer\n", "there are no rows"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(UserError, match=says) as error:
            answers(source)
        assert "\n" not in str(error.value)


def test_benchmarks_read_compressed_files_and_places_are_named(tmp_path):
    rows = [{"question": str(n)} for n in range(5)]
    (tmp_path / "test.jsonl.gz").write_bytes(gzipped("\n".join(map(json.dumps, rows)).encode()))
    assert sorted(row["question"] for row in load_rows(tmp_path, "test.jsonl", split="test")) == list("01234")
    assert read_file(tmp_path / "test.jsonl.gz") == rows
    assert next(iter(read_numbered(tmp_path / "test.jsonl.gz")))[0] == "line 1"


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "chats.jsonl").write_text(LINES)
    assert len(answers("~/chats.jsonl")) == 3


def test_a_file_that_is_no_data_is_told_what_is(tmp_path):
    (tmp_path / "chat.txt").write_text("User: Hi\nBot: Hello.\n")
    with pytest.raises(UserError, match="chat.txt, line 1 is not JSON, as rows of data are; give .parquet"):
        answers(tmp_path / "chat.txt")
    (tmp_path / "chat.csv").write_text("Hi,Hello.\nYou,Me.\n")
    with pytest.raises(UserError, match="chat.csv, line 2: has the keys 'hi'.*the first line of the file names the"):
        answers(tmp_path / "chat.csv")
    (tmp_path / "deep.jsonl").write_text('{"messages":' * 3000 + "1" + "}" * 3000)
    with pytest.raises(UserError, match="deep.jsonl, line 1: not valid JSON .it is nested too deeply."):
        answers(tmp_path / "deep.jsonl")


@pytest.mark.parametrize("name", ["chats@2024", "chats*2", "chats@2024*3", "a=b@7", "my, chats"])
def test_a_name_that_exists_is_taken_as_it_is(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.jsonl").write_text(LINES)
    assert answers(tmp_path / name) == ["Yes.", "No.", "Bücher?\u2028Ja."]
    (tmp_path / "chats").mkdir()
    (tmp_path / "chats" / "a.jsonl").write_text(LINES)
    task, repeat = load(f"conversations={tmp_path / 'chats'}@2*3", "train")
    assert (len(task), repeat) == (2, 3), "without such a name the marks count"
    task, repeat = load(f"conversations={tmp_path / name}@2*3", "train")
    assert (len(task), repeat) == (2, 3), "and they count behind such a name"


def test_several_files_are_joined_by_commas(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps(CHATS[0]) + "\n")
    (tmp_path / "b.csv").write_text("question,answer\nWell?,Good.\n")
    both = f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.csv'}"
    assert answers(both) == ["Yes.", "Good."]
    assert f"{both}: 2 conversations, format messages (role, content) (1), question and" in capsys.readouterr().out
    with pytest.raises(UserError, match="there are no conversations at .*c.jsonl"):
        answers(f"{tmp_path / 'a.jsonl'},{tmp_path / 'c.jsonl'}")
