"""Formats and encodings that people have: each gives the same documents, or one sentence."""

import bz2
import codecs
import gzip
import json
import lzma
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard
from toy import write_jsonl

from nanochat_hf.data import files
from nanochat_hf.data.found import find_source
from nanochat_hf.data.overview import describe_data
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError

DOCUMENTS = [f"Document {i} says: “café” costs {i} €,\nand the next line; it's {i}\tthere." for i in range(60)]
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def texts_of(path, column=None) -> list[str]:
    return [text for _, _, group in files.read_groups(path, column) for text in group]


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def as_csv(separator: str, end: str = "\n", first: str = "") -> str:
    rows = [f"id{separator}text", *(f"{i}{separator}{quoted(text)}" for i, text in enumerate(DOCUMENTS))]
    return first + end.join(rows) + end


CONTENT = {
    "lines.jsonl": "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in DOCUMENTS),
    "lines.ndjson": "".join(json.dumps({"text": text}) + "\r\n" for text in DOCUMENTS),
    "mac.jsonl": "\r".join(json.dumps({"text": text}, ensure_ascii=False) for text in DOCUMENTS),
    "lines.json": "\n\n".join(json.dumps({"text": text}) for text in DOCUMENTS),
    "strings.jsonl": "\n".join(json.dumps(text) for text in DOCUMENTS),
    "array.json": json.dumps([{"text": text} for text in DOCUMENTS]),
    "array.jsonl": json.dumps([{"text": text} for text in DOCUMENTS], indent=2),
    "strings.json": json.dumps(DOCUMENTS),
    "pretty.json": "\n".join(json.dumps({"text": text}, indent=4) for text in DOCUMENTS),
    "column.json": json.dumps({"text": DOCUMENTS}),
    "wrapped.json": json.dumps({"version": 1, "data": [{"text": text} for text in DOCUMENTS]}, indent=1),
    "table.csv": as_csv(","),
    "excel.csv": as_csv(";", "\r\n", "sep=;\r\n"),
    "german.csv": as_csv(";", "\r\n"),
    "mac.csv": as_csv(",", "\r"),
    "table.tsv": as_csv("\t"),
    "other.json": "".join(json.dumps({"Content": text, "url": None}) + "\n" for text in DOCUMENTS),
    "UPPER.JSONL": "".join(json.dumps({"TEXT": text}) + "\n" for text in DOCUMENTS),
    "story.txt": "<|endoftext|>".join(DOCUMENTS),
    "story.text": "\n<|endoftext|>\n".join(DOCUMENTS),
    "story.md": "\n<|endoftext|>".join(DOCUMENTS),
}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", CONTENT)
def test_formats_compressed_and_not(tmp_path, name, ending):
    path = tmp_path / (name + ending)
    path.write_bytes(COMPRESS[ending](CONTENT[name].encode()))
    assert texts_of(path) == DOCUMENTS
    for content in (CONTENT[name], gzip.compress(CONTENT[name].encode())):  # a name that says another compression
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert texts_of(path) == DOCUMENTS


@pytest.mark.parametrize("name", ["lines.jsonl", "array.json", "pretty.json", "table.csv", "excel.csv", "story.txt"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)
def test_a_byte_order_mark_says_the_encoding(tmp_path, name, encoding, mark):
    (tmp_path / name).write_bytes(mark + CONTENT[name].encode(encoding))
    assert texts_of(tmp_path / name) == DOCUMENTS


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
def test_parts_of_a_file_may_end_anywhere(tmp_path, monkeypatch, size):
    monkeypatch.setattr("nanochat_hf.data.decoding.CHUNK_BYTES", size)
    for name in ("lines.ndjson", "array.json", "pretty.json", "german.csv", "mac.csv"):
        content = codecs.BOM_UTF8 + CONTENT[name].encode()
        (tmp_path / name).write_bytes(content)
        if size >= 3:  # a byte order mark is read in one
            assert texts_of(tmp_path / name) == DOCUMENTS
        (tmp_path / name).write_bytes(content[3:])
        assert texts_of(tmp_path / name) == DOCUMENTS


def test_line_ends_of_any_kind_separate_paragraphs(tmp_path):
    paragraphs = ["A paragraph of many words. " * 200 for _ in range(20)]
    found = []
    for end in ("\n", "\r", "\r\n"):
        (tmp_path / "a.txt").write_text((end + end).join(paragraphs), newline="")
        found.append(texts_of(tmp_path / "a.txt"))
    assert found[0] == found[1] == found[2] and len(found[0]) == 20
    (tmp_path / "a.txt").write_text("\r\r".join(paragraphs[:10]) + "\r\n\n" + "\n\n".join(paragraphs[10:]), newline="")
    assert texts_of(tmp_path / "a.txt") == found[0]


ARROW_TYPES = {
    "string": pa.string(),
    "large string": pa.large_string(),
    "string view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "small dictionary": pa.dictionary(pa.int8(), pa.large_string()),
    "bytes": pa.binary(),
    "large bytes": pa.large_binary(),
}


@pytest.mark.parametrize("kind", ARROW_TYPES)
def test_columns_of_parquet_and_arrow_with_nulls(tmp_path, kind):
    values = [None, *DOCUMENTS[:30], None, *DOCUMENTS[30:], ""]
    expected = ["", *DOCUMENTS[:30], "", *DOCUMENTS[30:], ""]
    if "bytes" in kind:
        values = [text if text is None else text.encode() for text in values]
    array = pa.array(values, ARROW_TYPES[kind]) if "dict" not in kind else pa.array(values).cast(ARROW_TYPES[kind])
    table = pa.table({"id": range(len(values)), "text": array})
    if kind != "small dictionary":
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
        assert texts_of(tmp_path / "a.parquet") == expected
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=25)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=25)
    assert texts_of(tmp_path / "a.arrow") == texts_of(tmp_path / "b.arrow") == expected
    if "view" not in kind:
        pyarrow.feather.write_feather(table, tmp_path / "a.feather")
        assert texts_of(tmp_path / "a.feather") == expected


@pytest.mark.parametrize("where", ["first", "middle", "all of the first group", "last"])
def test_nulls_anywhere_are_empty_documents(tmp_path, where):
    nulls = {"first": (1, 0), "middle": (0, 1), "all of the first group": (1500, 0), "last": (0, 1)}[where]
    values = [*[None] * nulls[0], *DOCUMENTS[:30], *[None] * nulls[1], *DOCUMENTS[30:]]
    values += [None] if where == "last" else []
    lines = ["null" if value is None and i % 3 else json.dumps({"text": value}) for i, value in enumerate(values)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + '\n{}\n{"id": 5}\n{"text": NaN}\n')
    assert texts_of(tmp_path / "a.jsonl") == [value or "" for value in values] + ["", "", ""]
    for start, step in ((0, 2), (1, 2)):
        groups = {index: group for index, _, group in files.read_groups(tmp_path / "a.jsonl", None, start, step)}
        for index, group in groups.items():
            assert group == ([value or "" for value in values] + [""] * 3)[index * 1024 : (index + 1) * 1024]
    pq.write_table(pa.table({"text": pa.array(values)}), tmp_path / "a.parquet", row_group_size=16)
    assert texts_of(tmp_path / "a.parquet") == [value or "" for value in values]
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f"1,{quoted(value or '')}\n" for value in values) + "7\n")
    assert texts_of(tmp_path / "a.csv") == [value or "" for value in values] + [""]


def test_a_column_of_nothing_but_nulls_has_no_text(tmp_path):
    pq.write_table(pa.table({"text": pa.nulls(50)}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": null}\n' * 50)
    for name in ("a.parquet", "a.jsonl"):
        with pytest.raises(UserError, match=f"no text in {name}"):
            list(open_documents(str(tmp_path / name)))


def test_several_compressed_files_joined_are_read_to_the_end(tmp_path):
    for ending in (".gz", ".zst", ".bz2", ".xz"):
        halves = ("\n<|endoftext|>\n".join(part).encode() for part in (DOCUMENTS[:30], ["", *DOCUMENTS[30:]]))
        (tmp_path / f"a.txt{ending}").write_bytes(b"".join(COMPRESS[ending](half) for half in halves))
        assert texts_of(tmp_path / f"a.txt{ending}") == DOCUMENTS, ending
        (tmp_path / f"a.txt{ending}").write_bytes(COMPRESS[ending](CONTENT["story.txt"].encode())[:-20])
        with pytest.raises(UserError, match=f"a.txt{ending} cannot be read .*; is it whole"):
            texts_of(tmp_path / f"a.txt{ending}")


def test_marked_documents_are_never_cut_at_blank_lines(tmp_path):
    documents = ["word " * 3000 + "\n\n" + "more " * 3000 + "end", "second", "third\n\n" * 3000 + "end"]
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(documents))
    assert texts_of(tmp_path / "a.txt") == documents


def test_half_an_emoji_in_json_does_not_stop_the_tokenizer(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "broken \\ud83d and whole \\ud83d\\ude00"}\n')
    (text,) = texts_of(tmp_path / "a.jsonl")
    assert text == "broken \ufffd and whole 😀"


def test_a_saved_dataset_is_read_without_its_caches(tmp_path):
    from datasets import Dataset, DatasetDict

    data = Dataset.from_dict({"text": DOCUMENTS})
    data.save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-123.arrow").write_bytes((tmp_path / "one/data-00000-of-00002.arrow").read_bytes())
    for folder in (tmp_path, tmp_path / "one"):
        assert list(open_documents(str(folder))) == DOCUMENTS[:30]
        assert list(open_documents(str(folder), "validation")) == DOCUMENTS[30:]
    DatasetDict({"test": data.select(range(9)), "train": data}).save_to_disk(tmp_path / "two")
    assert list(open_documents(str(tmp_path / "two"))) == DOCUMENTS
    assert list(open_documents(str(tmp_path / "two"), "validation")) == DOCUMENTS[:9]


@pytest.mark.parametrize("name", ["corpus", "corpus.gz", "part-00000", "Vol. 2", "shard.0001"])
def test_a_file_without_an_ending_is_read_by_its_content(tmp_path, name):
    contents = {
        "text": CONTENT["story.txt"].encode(),
        "lines": CONTENT["lines.jsonl"].encode(),
        "array": CONTENT["array.json"].encode(),
    }
    for content in contents.values():
        for pack in (bytes, gzip.compress):
            (tmp_path / name).write_bytes(pack(content))
            assert texts_of(tmp_path / name) == DOCUMENTS
    pq.write_table(pa.table({"text": DOCUMENTS}), tmp_path / name)
    assert texts_of(tmp_path / name) == DOCUMENTS


REFUSED = {
    "latin1.txt": (
        "a café\n".encode() * 3 + "café\n".encode("latin1"),
        r"is not UTF-8: byte 0xe9 at offset 27 \(line 4\).*iconv",
    ),
    "latin1.jsonl": (b'{"text": "caf\xe9"}\n', r"is not UTF-8: byte 0xe9 at offset 13 \(line 1\)"),
    "latin1.csv": (b"id,text\n1,caf\xe9\n", r"is not UTF-8: byte 0xe9 at offset 13 \(line 2\)"),
    "utf16.txt": ("Some words without a mark. " * 40).encode("utf-16-le"),
    "utf16be.txt": ("Some words without a mark. " * 40).encode("utf-16-be"),
    "cut16.txt": (codecs.BOM_UTF16_LE + "words".encode("utf-16-le")[:-1], "not valid UTF-16-LE.* at byte 10"),
    "zeros.txt": (bytes(5000), "not a text file: 5,000 of its first 5,000 bytes are zero"),
    "office.txt": (b"PK\x03\x04" + bytes(100), "zip archive or an office document; unpack it"),
    "paper.md": (b"%PDF-1.7 ...", "PDF; convert it first"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\xff\xfe", "picture"),
    "rows.txt": (b"PAR1....", "parquet; name it .parquet"),
    "notes.docx": (b"x", "not a file of text that can be read; give .parquet"),
    "a.parquet.gz": (b"x", "not a file of text that can be read; give .parquet"),
    "cut.json": (b'[{"text": "a"}, {"text": "b"}', "ends inside of its JSON array, after item 2"),
    "cut2.json": (b'[{"text": "a"}, {"text": "b', "item 2 is not JSON"),
    "wrong.json": (b'[{"text": "a"}, oops, ' + b'{"text": "b"},' * 500 + b"]", "item 2 is not JSON"),
    "two.json": (b'[{"text": "a"}]\n[{"text": "b"}]\n', "goes on after the end of its JSON array|line 1 is a list"),
    "number.jsonl": (b"5\n", "line 1 is a number"),
    "list.jsonl": (b'["a"]\n["b"]\n', r'line 1 is a list, not an object such as {"text": "..."}'),
    "chat.jsonl": (
        b'{"messages": [{"role": "user", "content": "hi"}]}\n',
        r"conversations .*nanochat-hf sft --tasks",
    ),
    "change.jsonl": (b'{"text": "a"}\n{"content": "b"}\n', "line 2 has no 'text' but 'content'"),
    "type.jsonl": (b'{"text": "a"}\n{"text": ["b"]}\n', "line 2: 'text' is not text but list"),
    "fields.csv": (b"id,text\n1,one\n2,two, and a half\n", "line 3 has 3 fields, where the first line names 2"),
    "quotes.csv": (b'id,text\n1,"one" more\n', "line 2 is not csv"),
    "open.csv": (b'id,text\n1,"one\n2,two\n', "line [34] is not csv"),
    "columns.csv": (b"url,title\na,b\n", "cannot tell which column"),
    "headless.csv": (b"It was a dark and stormy night\nand so on\n", "looks like text, not like names of columns"),
    "rows.tsv": (b"0\tIt was, once, a dark night\n1\tand so on\n", "looks like text, not like names of columns"),
    "lists.jsonl": (b'{"text": ["a", "b"]}\n{"text": ["c"]}\n', "no column holds text .it has: text."),
    "by_id.json": (json.dumps({f"id{i}": {"text": "a"} for i in range(99)}).encode(), "id7 and 91 more"),
    "deep.json": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "books.zip": (b"PK\x03\x04", "is an archive; unpack it"),
    "books.tar.gz": (gzip.compress(b"x"), "is an archive; unpack it"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested too deeply|is not text"),
}
for name, guess in (("utf16.txt", "UTF-16LE"), ("utf16be.txt", "UTF-16BE")):
    REFUSED[name] = (REFUSED[name], f"looks like {guess} without a byte order mark; .*iconv -f {guess}")


def test_a_separator_of_tsv_is_the_tab(tmp_path):
    (tmp_path / "a.tsv").write_text("text, all of it, as said\tid\n" + "one, two, three, four\t1\n")
    assert texts_of(tmp_path / "a.tsv", "text, all of it, as said") == ["one, two, three, four"]


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match="a.txt is not a regular file; write its text into a file first"):
        texts_of(tmp_path / "a.txt")


def test_a_list_column_is_named_as_what_it_is(tmp_path):
    pq.write_table(pa.table({"text": [["a"], ["b"]]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet: no column holds text .it has: text."):
        texts_of(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_gets_one_sentence(tmp_path, name):
    content, sentence = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        texts_of(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_the_byte_of_a_fault_counts_from_the_beginning_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat_hf.data.decoding.CHUNK_BYTES", 7)
    content = ("é€ line\r\n" * 100).encode()
    (tmp_path / "a.txt").write_bytes(content + b"\xff rest")
    with pytest.raises(UserError, match=rf"byte 0xff at offset {len(content)} \(line 101\)"):
        texts_of(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["my notes/dé $HOME.txt", "my notes/it's.md.gz", "plain.txt.bz2"])
@pytest.mark.parametrize("encoding", ["latin1", "utf-16-le"])
def test_the_command_that_converts_a_file_works_as_it_is_printed(tmp_path, monkeypatch, name, encoding):
    monkeypatch.chdir(tmp_path)
    text = "Grüße aus der Straße. " * 20
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)
    Path("my notes").mkdir()
    Path(name).write_bytes(pack(text.encode(encoding)))
    (Path(name).parent / "zz.txt").write_text("held out")
    with pytest.raises(UserError, match="convert it, for example with: ") as caught:
        list(open_documents(str(Path(name).parent)))
    subprocess.run(str(caught.value).partition("with: ")[2], shell=True, check=True)
    found = find_source(str(Path(name).parent))
    assert [text for file in found.train for _, _, texts in file.groups(0, 1) for text in texts] == [text.strip()]
    assert [Path(name).suffix for name, _ in found.left_out] == [".old"]


def test_bad_bytes_in_a_column_are_named(tmp_path):
    array = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet holds text that is not UTF-8"):
        texts_of(tmp_path / "a.parquet")


def test_a_named_column_is_used_in_every_format(tmp_path):
    rows = {"text": ["wrong"] * 3, "story": ["one", "two", "three"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,story\nwrong,one\nwrong,two\nwrong,three\n")
    lines = [json.dumps({"text": "wrong", "story": story}) + "\n" for story in rows["story"]]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        assert texts_of(tmp_path / name, "story") == ["one", "two", "three"]
        with pytest.raises(UserError, match="no text column 'absent'"):
            texts_of(tmp_path / name, "absent")


def test_bad_file_words(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    for word in ("ignore", "Skip", "", None, True):
        with pytest.raises(UserError, match="on_bad_file is stop or skip, not"):
            open_documents(str(tmp_path / "a.jsonl"), on_bad_file=word)
        with pytest.raises(UserError, match="on_bad_file is stop or skip, not"):
            describe_data(str(tmp_path / "a.jsonl"), on_bad_file=word)
