"""What is said before a run starts: files, documents, bytes, splits, and rows that repeat."""

import json

import pytest
from toy import ByteEncoder, make_documents, write_jsonl, write_parquet, write_shards

from nanochat_hf.data import overview
from nanochat_hf.data.loader import PackedLoader
from nanochat_hf.data.overview import describe_data
from nanochat_hf.settings import UserError


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_table_says_files_documents_bytes_split_and_share(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("train-0", 30), ("train-1", 10), ("validation", 5), ("test", 7), ("others", 3)):
        write_jsonl(tmp_path / f"{name}.jsonl", ["x" * 89] * count)  # 102 bytes per line
    (tmp_path / "README.md").write_text("about")
    assert cells(describe_data(".")) == [
        ["source", "split", "files", "documents", "bytes", "share"],
        [".", "train", "2", "40", "4,080", "88.9%"],
        ["validation", "1", "5", "510", "11.1%"],
        ["left", "out", "(describes", "the", "data):", "README.md"],
        ["left", "out", "(its", "name", "says", "no", "split,", "and", "other", "names", "do):", "others.jsonl"],
        ["left", "out", "(test", "split):", "test.jsonl"],
    ]


def test_the_held_out_share_of_a_single_file_is_said(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["x" * 88] * 100)
    table = cells(describe_data(str(path)))
    assert table[1][1:] == ["train", "part", "of", "1", "95", "9,595", "95.0%"]
    assert table[2] == ["validation", "part", "of", "1", "5", "505", "5.0%"]


def test_a_large_source_is_not_read(tmp_path, monkeypatch):
    write_shards(tmp_path, shards=3)
    monkeypatch.setattr(overview, "COUNTED_BYTES", 1000)
    monkeypatch.setattr(overview, "_read", None)
    table = cells(describe_data(str(tmp_path), ByteEncoder(), sequence_length=32, rows=100))
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert table[1][1:4] == ["train", "2", f"{sum(sizes[:2]):,}"] and len(table) == 3


def test_rows_that_repeat_often_are_said_with_the_remedy(tmp_path):
    documents = ["y" * 400] * 11 + ["z" * 30]
    write_parquet(tmp_path / "a.parquet", documents)
    write_jsonl(tmp_path / "b.jsonl", ["w" * 100])
    options = {"sequence_length": 64, "rows": 2264}
    *_, line = describe_data(str(tmp_path), ByteEncoder(), **options).splitlines()
    assert line.startswith(
        "warning: 12 documents give 11 distinct rows; 2,264 are asked for: each is seen 206 times. Give more text"
    )
    assert line.endswith("--packing keep_tails, which gives 70 rows because it drops no ends of documents")
    for quiet in ({"rows": 44}, {"packing": "keep_tails", "rows": 4 * 69}):
        assert "warning" not in describe_data(str(tmp_path), ByteEncoder(), **(options | quiet))
    assert "each is seen 5 times" in describe_data(str(tmp_path), ByteEncoder(), **(options | {"rows": 60}))


def test_the_number_of_distinct_rows_is_what_the_loader_gives(tmp_path):
    documents = make_documents(60)
    write_jsonl(tmp_path / "a.jsonl", documents)
    write_jsonl(tmp_path / "b.jsonl", ["held out"])
    for packing in ("best_fit", "keep_tails"):
        loader = PackedLoader(str(tmp_path), ByteEncoder(), batch_size=1, sequence_length=48, packing=packing)
        told = overview._num_rows(documents, ByteEncoder(), 49, packing)
        rows = [next(loader)["input_ids"].numpy().tobytes() for _ in range(told)]
        loader.close()
        assert told > 40 and len(set(rows)) == told, "all rows of the first epoch differ"


def test_several_sources_are_described_each_with_its_share_of_the_training_text(tmp_path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", make_documents(100, name))
    source = f"{tmp_path}/a.jsonl:3,{tmp_path}/b.jsonl:1"
    text = describe_data(source, ByteEncoder(), sequence_length=64, rows=3000)
    assert f"{tmp_path}/a.jsonl: 75% of the training text" in text
    assert f"warning: {tmp_path}/a.jsonl: 95 documents give" in text and "2,250 are asked for" in text


def test_too_little_text_for_validation_is_said_before_the_run(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["short"] * 3)
    options = {"sequence_length": 64, "rows": 10}
    with pytest.raises(
        UserError, match="a.jsonl. does not fill one row of 65 tokens; give more text for validation, a sh"
    ):
        describe_data(str(tmp_path / "a.jsonl"), ByteEncoder(), validate=True, **options)
    describe_data(str(tmp_path / "a.jsonl"), ByteEncoder(), validate=False, **options)


def test_a_bad_file_stops_the_run_before_it_starts_or_is_skipped(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", make_documents(30))
    (tmp_path / "b.jsonl").write_text('{"text": "cut o')
    write_jsonl(tmp_path / "c.jsonl", ["held out"])
    with pytest.raises(UserError, match="b.jsonl, line 1 is not JSON"):
        describe_data(str(tmp_path))
    with pytest.warns(UserWarning, match="b.jsonl, line 1 is not JSON"):
        assert cells(describe_data(str(tmp_path), on_bad_file="skip"))[1][1:4] == ["train", "2", "30"]


def test_generated_data_has_no_files_to_count():
    assert cells(describe_data("microworld"))[1:] == [["microworld", "train", "1"], ["validation", "1"]]


def test_the_share_of_tokens_that_packing_leaves_out_is_said(tmp_path):
    """Documents of 101 tokens in rows of 65: best_fit drops 36 tokens of each."""
    write_jsonl(tmp_path / "a.jsonl", ["y" * 100] * 200)
    write_jsonl(tmp_path / "b.jsonl", ["w" * 100])
    options = {"sequence_length": 64, "rows": 100}
    line = "left out by --packing best_fit: 36% of the training tokens, the ends of texts that do not fit into rows"
    said = describe_data(str(tmp_path), ByteEncoder(), **options)
    assert f"{line} of 65; --packing keep_tails keeps them" in said and "warning" not in said
    for quiet in ({"packing": "keep_tails"}, {"sequence_length": 100}):
        assert "left out by" not in describe_data(str(tmp_path), ByteEncoder(), **(options | quiet))


def test_json_lines_that_are_named_as_text_are_warned_of(tmp_path):
    rows = "".join(json.dumps({"text": f"Story {i}. " * 20}) + "\n" for i in range(30))
    (tmp_path / "a.txt").write_text(rows, encoding="utf-8-sig")
    line = "warning: a.txt looks like JSON lines and is read as plain text; name it .jsonl to train on its texts"
    assert line in describe_data(str(tmp_path)).splitlines()
    (tmp_path / "a.txt").rename(tmp_path / "a.jsonl")
    assert "warning" not in describe_data(str(tmp_path))
    (tmp_path / "b.txt").write_text('"Once", she said.\n' * 300)
    assert "warning" not in describe_data(str(tmp_path / "b.txt"))


def test_of_a_source_that_is_not_read_the_passes_are_estimated_by_its_size(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("word " * 20_000)
    (tmp_path / "b.txt").write_text("held out")
    monkeypatch.setattr(overview, "COUNTED_BYTES", 1000)
    options = {"tokenizer": ByteEncoder(), "sequence_length": 100}
    said = describe_data(str(tmp_path), rows=3000, **options)  # 300,000 tokens
    assert "100,000 bytes of text have about 2.5e+04 tokens" in said and "each is seen about 12 times. Give" in said
    assert "warning" not in describe_data(str(tmp_path), rows=900, **options)


def test_the_text_of_a_pass_is_known_where_it_was_counted(tmp_path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", make_documents(100, name))
    options = {"tokenizer": ByteEncoder(), "sequence_length": 64, "packing": "keep_tails"}
    one = overview.survey(f"{tmp_path}/a.jsonl", **options).text_tokens
    tokens = sum(len(text) + 1 for i, text in enumerate(make_documents(100, "a")) if i % 20)
    assert one == pytest.approx(tokens, rel=0.1)
    mixed = overview.survey([f"{tmp_path}/a.jsonl:0.1", f"{tmp_path}/b.jsonl:0.9"], **options).text_tokens
    two = overview.survey(f"{tmp_path}/b.jsonl", **options).text_tokens
    assert mixed == pytest.approx(two / 0.9, rel=0.01), "b begins again first"
    assert overview.survey("microworld", **options).text_tokens is None


def test_one_encoder_of_as_many_threads_as_asked_counts_all_sources(tmp_path, monkeypatch):
    made = []

    class Encoder(ByteEncoder):
        def __init__(self, tokenizer, num_threads=None):
            super().__init__()
            made.append((tokenizer, num_threads))

    monkeypatch.setattr("nanochat_hf.tokenizer.CorpusEncoder", Encoder)
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", ["y" * 100] * 100)
    source, tokenizer = f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl", object()
    said = describe_data(source, tokenizer, sequence_length=64, rows=10_000, validate=True, num_threads=1)
    assert "--packing keep_tails" in said and made == [(tokenizer, 1)]
    made.clear()
    monkeypatch.setattr(overview, "COUNTED_BYTES", 1000)
    assert "each is seen about" in describe_data(source, tokenizer, sequence_length=64, rows=10_000)
    assert not made, "of a large source nothing is encoded"


def test_machines_with_other_files_have_other_sizes(tmp_path, monkeypatch):
    """Also where the text is too large to be counted."""
    monkeypatch.setattr(overview, "COUNTED_BYTES", 1000)
    write_shards(tmp_path / "all", shards=3)
    write_shards(tmp_path / "copied", shards=3)
    (tmp_path / "copied" / sorted(path.name for path in (tmp_path / "copied").iterdir())[-1]).unlink()
    everything, part = (overview.survey(str(tmp_path / name)) for name in ("all", "copied"))
    assert everything.text_tokens is None and part.text_tokens is None
    assert everything.sizes != part.sizes and overview.survey(str(tmp_path / "all")).sizes == everything.sizes
