"""Which process reads which document, the file formats, and the error messages."""

import gzip
import json
import warnings
from collections import Counter
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from toy import make_documents, write_jsonl, write_parquet, write_shards

from nanochat_hf.data import files
from nanochat_hf.data.overview import describe_data, is_on_disk
from nanochat_hf.data.sources import open_documents, parse_sources
from nanochat_hf.settings import UserError


def read_all(source, **options) -> list[str]:
    return list(open_documents(str(source), **options))


def test_last_file_is_the_validation_split_and_order_is_kept(tmp_path):
    shards = write_shards(tmp_path, shards=3)
    assert read_all(tmp_path) == shards[0] + shards[1]
    assert read_all(tmp_path, split="validation") == shards[2]


def test_a_single_file_is_cut_into_disjoint_and_lasting_parts(tmp_path):
    documents = make_documents(300)
    for path in (write_parquet(tmp_path / "a.parquet", documents), write_jsonl(tmp_path / "b.jsonl", documents)):
        training, validation = read_all(path), read_all(path, split="validation")
        assert validation == documents[::20]
        assert sorted(training + validation) == sorted(documents)


def test_files_that_name_their_split_are_taken_at_their_word(tmp_path):
    for name in ("train-00000", "train-00001", "validation-00000", "test-00000"):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"text of {name}"])
    assert read_all(tmp_path) == ["text of train-00000", "text of train-00001"]
    assert read_all(tmp_path, split="validation") == ["text of validation-00000"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("marked", [False, True])
def test_text_files_compressed_and_not(tmp_path, suffix, marked):
    paragraphs = [f"Paragraph {i} says é{i}. " + "word " * 150 for i in range(40)]
    joint = "\n<|endoftext|>\n" if marked else "\n\n"
    raw = joint.join(paragraphs).encode()
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    (tmp_path / f"book.txt{suffix}").write_bytes(compress(raw))
    (tmp_path / "more.txt").write_text("for validation")
    documents = read_all(tmp_path)
    assert (len(documents) == 40) if marked else (5 < len(documents) < 15)
    assert "".join("".join(documents).split()) == "".join("".join(paragraphs).split()), "not a word is lost"


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", [None, 1])
def test_readers_share_no_document_and_lose_none(tmp_path, world_size, seed):
    documents = []
    for number, (count, group) in enumerate([(200, 16), (3, 1024), (100, 100), (40, 1), (64, 32), (9, 9)]):
        own = make_documents(count, f"f{number}_")
        documents += own
        if number % 2:
            write_jsonl(tmp_path / f"{number}.jsonl.gz", own)
        else:
            write_parquet(tmp_path / f"{number}.parquet", own, group)
    write_parquet(tmp_path / "z.parquet", ["held out"])
    reads = [read_all(tmp_path, rank=rank, world_size=world_size, seed=seed) for rank in range(world_size)]
    assert sorted(sum(reads, [])) == sorted(documents)
    sizes = [len(read) for read in reads]
    assert max(sizes) - min(sizes) <= 32 * 2, sizes


def test_many_small_files_reach_every_reader(tmp_path):
    write_shards(tmp_path, shards=13, documents=10, group=10)
    assert [len(read_all(tmp_path, rank=rank, world_size=4)) for rank in range(4)] == [30, 30, 30, 30]


def test_workers_of_a_torch_loader_share_the_documents(tmp_path):
    from torch.utils.data import DataLoader, IterableDataset

    class Documents(IterableDataset):
        def __init__(self, rank):
            self.rank = rank

        def __iter__(self):
            return open_documents(str(tmp_path), rank=self.rank, world_size=2)

    shards = write_shards(tmp_path, shards=3, documents=60, group=8)
    reads = [list(DataLoader(Documents(rank), batch_size=None, num_workers=2)) for rank in range(2)]
    assert sorted(reads[0] + reads[1]) == sorted(shards[0] + shards[1])


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_position_is_restored_to_the_document_across_epochs(tmp_path, seed, suffix):
    write = {"parquet": write_parquet, "jsonl": write_jsonl}[suffix]
    for number in range(3):
        write(tmp_path / f"{number}.{suffix}", make_documents(70, f"f{number}_"))
    options = {"rank": 1, "world_size": 2, "repeat": True, "seed": seed}
    stream = open_documents(str(tmp_path), **options)
    for consumed in (0, 1, 33, 64, 150):
        for _ in range(consumed):
            next(stream)
        state = json.loads(json.dumps(stream.state_dict()))
        copy = open_documents(str(tmp_path), **options)
        copy.load_state_dict(state)
        ahead = open_documents(str(tmp_path), **options)
        ahead.load_state_dict(state)
        assert [next(copy) for _ in range(100)] == [next(ahead) for _ in range(100)]
        again = open_documents(str(tmp_path), **options)
        again.load_state_dict(state)
        assert next(again) == next(stream)
    assert stream.epoch >= 1


def test_a_seed_reorders_documents_anew_in_each_epoch_and_loses_none(tmp_path):
    shards = write_shards(tmp_path, shards=4, documents=64, group=16)
    stream = open_documents(str(tmp_path), repeat=True, seed=3)
    epochs = [[next(stream) for _ in range(192)] for _ in range(2)]
    in_order = shards[0] + shards[1] + shards[2]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(in_order)
    assert epochs[0] != epochs[1] and epochs[0] != in_order


def test_a_position_in_other_files_is_refused(tmp_path):
    write_shards(tmp_path / "a", shards=3)
    write_shards(tmp_path / "b", shards=4)
    state = open_documents(str(tmp_path / "a")).state_dict()
    with pytest.raises(UserError, match="other data files"):
        open_documents(str(tmp_path / "b")).load_state_dict(state)


def test_weights_are_shares_of_the_characters_and_survive_a_restart(tmp_path):
    for name, size in (("a", 50), ("b", 500)):
        documents = [f"{name}{i}".ljust(size, name) for i in range(400)]
        write_jsonl(tmp_path / f"{name}.jsonl", documents)
    source = f"{tmp_path}/a.jsonl:0.7,{tmp_path}/b.jsonl:0.3"
    mixed = open_documents(source, repeat=True)
    read = [next(mixed) for _ in range(3000)]
    chars = Counter(text[0] for text in read for _ in range(len(text)))
    assert chars["a"] / chars.total() == pytest.approx(0.7, abs=0.01)
    copy = open_documents([f"{tmp_path}/a.jsonl:0.7", f"{tmp_path}/b.jsonl:0.3"], repeat=True)
    copy.load_state_dict(json.loads(json.dumps(mixed.state_dict())))
    assert [next(copy) for _ in range(200)] == [next(mixed) for _ in range(200)]
    ended = open_documents(source)
    assert len(list(ended)) == 2 * (400 - 20), "a source that ends early does not end the others"


def test_sources_are_named_in_one_string_or_a_list():
    assert parse_sources("owner/name") == [("owner/name", 1.0)]
    assert parse_sources("owner/name:sample") == [("owner/name:sample", 1.0)]
    assert parse_sources("o/n:sample:0.5, data") == [("o/n:sample", 0.5), ("data", 1.0)]
    assert parse_sources(["a:2", "b"]) == [("a", 2.0), ("b", 1.0)]
    for wrong in ("", "a:0", "a:-1", "a,,b"):
        with pytest.raises(UserError, match="cannot read the data sources"):
            parse_sources(wrong)


def test_text_column_is_named_or_found(tmp_path):
    pq.write_table(pa.table({"id": [1, 2], "story": ["one", "two"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"url": ["x", "y"], "story": ["one", "two"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"url": ["x", "y"], "content": ["one", "two"]}), tmp_path / "c.parquet")

    def texts(name, column=None):
        return [text for _, _, group in files.read_groups(tmp_path / name, column) for text in group]

    assert texts("a.parquet") == texts("b.parquet", "story") == texts("c.parquet") == ["one", "two"]
    with pytest.raises(UserError, match="b.parquet: cannot tell which column.*url, story"):
        texts("b.parquet")
    with pytest.raises(UserError, match="no text column 'id'"):
        texts("a.parquet", "id")


def test_each_source_may_name_its_column(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, column in (("one", "story"), ("two", "poem"), ("three:de", "story"), ("c#", "story")):
        path = tmp_path / folder.replace(":", "/")
        path.mkdir(parents=True)
        for split in ("train", "validation"):
            table = pa.table({"url": ["x", "y"], column: [f"{folder} 1", f"{folder} 2"], "extra": ["a", "b"]})
            pq.write_table(table, path / f"{split}.parquet")

    def texts(source, **options):
        return sorted(set(islice(open_documents(source, "train", repeat=True, **options), 200)))

    assert texts("one#story") == texts("one/*.parquet#story") == ["one 1", "one 2"]
    assert texts("one/train.parquet#extra") == ["a"]  # the other one is for validation
    assert texts("three:de#story") == ["three:de 1", "three:de 2"]
    assert texts("one#story,two#poem:0.5") == ["one 1", "one 2", "two 1", "two 2"]
    assert texts(["one", "two#poem"], text_column="story") == ["one 1", "one 2", "two 1", "two 2"]
    assert texts("c#", text_column="story") == texts("c##story") == ["c# 1", "c# 2"]
    assert is_on_disk(["one#story", "three:de#story"]) and not is_on_disk("none#story")
    with pytest.raises(UserError, match=r"url, story, extra\); name it after the source, as in my_texts#url"):
        texts("one")
    with pytest.raises(UserError, match=r"no text column 'poem' \(it has: url, story, extra\); name one of these"):
        texts("one#poem")
    with pytest.raises(UserError, match="no data at none"):
        texts("none#story")


BAD_FILES = {
    "truncated.parquet": lambda good: (good / "x.parquet").read_bytes()[:-200],
    "overwritten.parquet": lambda good: _spoiled((good / "x.parquet").read_bytes()),
    "truncated.jsonl.gz": lambda good: gzip.compress((good / "x.jsonl").read_bytes())[:-50],
    "truncated.jsonl.zst": lambda good: zstandard.compress((good / "x.jsonl").read_bytes())[:-50],
    "truncated.jsonl": lambda good: (good / "x.jsonl").read_bytes()[:-20],
    "empty.jsonl": lambda good: b"",
    "array.json": lambda good: b'[{"text": "a"}',
    "latin1.txt": lambda good: "caf\xe9 ".encode("latin1") * 10,
    "picture.txt": lambda good: b"\x89PNG\r\n\x1a\n\xff\xfe",
    "numbers.jsonl": lambda good: b'{"text": 5}\n',
    "keyless.jsonl": lambda good: b'{"a": 5}\n',
}


def _spoiled(content: bytes) -> bytes:
    return content[:100] + b"\x00" * (len(content) // 2) + content[100 + len(content) // 2 :]


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_and_stops_or_is_skipped(tmp_path, name):
    good, data = tmp_path / "good", tmp_path / "data"
    good.mkdir(), data.mkdir()
    rng = np.random.default_rng(0)
    documents = [bytes(rng.integers(97, 123, 200, dtype=np.uint8)).decode() for _ in range(500)]
    write_parquet(good / "x.parquet", documents, group=500)
    write_jsonl(good / "x.jsonl", documents)
    (data / ("b_" + name)).write_bytes(BAD_FILES[name](good))
    for other in ("a", "c", "d"):
        write_jsonl(data / f"{other}.jsonl", [f"document of {other}"])
    with pytest.raises(UserError) as caught:
        read_all(data)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=name):
        read = read_all(data, on_bad_file="skip")
    assert read[0] == "document of a" and read[-1] == "document of c"


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.csv"])
@pytest.mark.parametrize("places", [400, 1500])
def test_what_stands_before_a_fault_is_read_where_bad_files_are_skipped(tmp_path, name, places):
    documents = [f"document number {number}" for number in range(places)]
    content = {
        "x.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in documents) + '{"text": "torn',
        "x.json": "[" + "".join(json.dumps({"text": text}) + ",\n" for text in documents) + '{"text": 3}]',
        "x.csv": "text\n" + "".join(f"{text}\n" for text in documents) + "a,b\n",
    }
    data = content[name.removesuffix(".gz")].encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    write_jsonl(tmp_path / "z.jsonl", ["held out"])
    read = []
    with pytest.raises(UserError, match=name):
        read.extend(open_documents(str(tmp_path), "train"))
    with pytest.warns(UserWarning, match=f"skipped the rest of a file: .*{name}"):
        assert read_all(tmp_path, on_bad_file="skip") == documents


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_of_which_nothing_is_left_is_named_with_the_reason(tmp_path, split):
    names = {"train": "train.txt", "validation": "valid.txt"}
    for name in names.values():
        (tmp_path / name).write_text("good")
    (tmp_path / names[split]).write_bytes("caf\xe9".encode("latin1"))
    reason = rf"the {split} split of .* has no text, because bad files were skipped .{names[split]}.; mend them as the"
    for read in (lambda: read_all(tmp_path, split=split, on_bad_file="skip"), lambda: skim(tmp_path)):
        with pytest.warns(UserWarning, match=f"{names[split]} is not UTF-8"), pytest.raises(UserError, match=reason):
            read()
    alone = tmp_path / names[split]
    with (
        pytest.warns(UserWarning, match="is not UTF-8"),
        pytest.raises(UserError, match="the train split of .*txt has"),
    ):
        skim(alone)
    alone.write_text("\n")
    with pytest.raises(UserError, match=rf"no text in {names[split]} .the {split} split of .*; give files"):
        read_all(alone, split=split)


def skim(source) -> str:
    return describe_data(str(source), on_bad_file="skip")


def test_a_file_that_is_skipped_in_every_epoch_is_said_once(tmp_path):
    for name, content in (("a", b"good"), ("b", b"caf\xe9"), ("c", b"held out")):
        (tmp_path / f"{name}.txt").write_bytes(content)
    stream = open_documents(str(tmp_path), repeat=True, on_bad_file="skip")
    with pytest.warns(UserWarning) as said, warnings.catch_warnings():
        warnings.simplefilter("always")
        assert [next(stream) for _ in range(5)] == ["good"] * 5
    assert len(said) == 1


def test_what_cannot_be_opened_is_said_in_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no .parquet"):
        open_documents(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no data at ./nowhere"):
        open_documents("./nowhere")
    with pytest.raises(UserError, match="no split 'dev'"):
        open_documents(str(tmp_path), "dev")
    (tmp_path / "notes.docx").write_bytes(b"x")
    with pytest.raises(UserError, match="notes.docx is not a file of text"):
        read_all(tmp_path / "notes.docx")


def test_more_readers_than_documents_is_said_and_does_not_hang(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["one", "two", "three"])
    stream = open_documents(str(tmp_path / "a.jsonl"), rank=2, world_size=3, repeat=True)
    with pytest.raises(UserError, match="no documents for reader 2 of 3 in a.jsonl"):
        next(stream)
