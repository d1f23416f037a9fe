"""training/make_shards.py through its command line."""

import importlib.util
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy import make_documents, write_jsonl

from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError
from nanochat_hf.stages import make_shards

SCRIPT = Path(__file__).parents[2] / "training" / "make_shards.py"


@pytest.fixture
def make(monkeypatch):
    spec = importlib.util.spec_from_file_location("make_shards", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["make_shards.py", *map(str, words)])
        module.main()

    return run


def test_shards_hold_each_text_once_shuffled_and_with_disjoint_validation(make, tmp_path):
    documents = make_documents(2500)
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl.gz", documents[:1500])
    write_jsonl(tmp_path / "in" / "b.jsonl", documents[1000:])  # 500 of them twice
    make(tmp_path / "in", tmp_path / "out", "--shard_chars", 50_000, "--validation_fraction", 0.05, "--buckets", 4)
    training = list(open_documents(str(tmp_path / "out")))
    validation = list(open_documents(str(tmp_path / "out"), "validation"))
    assert sorted(training + validation) == sorted(documents)
    assert 0.03 < sum(map(len, validation)) / sum(map(len, documents)) < 0.07
    place = {text: i for i, text in enumerate(documents)}
    order = [place[text] for text in training]
    neighbours = sum(abs(a - b) < 25 for a, b in zip(order, order[1:], strict=False))
    assert neighbours < 0.05 * len(order), "what stood together is far apart"
    shards = sorted((tmp_path / "out").glob("train_*.parquet"))
    assert len(shards) == 3 and not list((tmp_path / "out").glob(".*"))
    first = pq.ParquetFile(shards[0])
    assert [first.metadata.row_group(i).num_rows for i in range(first.num_row_groups - 1)] == (
        [1024] * (first.num_row_groups - 1)
    )


def test_the_card_is_what_datasets_reads_and_a_seed_gives_the_same_shards(make, tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", make_documents(200))
    for folder in ("one", "two"):
        make(source, tmp_path / folder)
    assert (tmp_path / "one/train_00000.parquet").read_bytes() == (tmp_path / "two/train_00000.parquet").read_bytes()
    from datasets import load_dataset

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = load_dataset(str(tmp_path / "one"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation"}
    assert loaded["train"]["text"][:] == list(open_documents(str(tmp_path / "one")))


def test_what_is_there_is_not_overwritten_and_too_little_is_said(make, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", make_documents(50))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match="out is not empty"):
        make(source, tmp_path / "out")
    with pytest.raises(UserError, match="has 1 documents"):
        make(write_jsonl(tmp_path / "b.jsonl", ["same", "same"]), tmp_path / "new")


def test_titles_are_no_splits_and_the_table_says_what_is_read(make, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a_garden", "test_pilots_of_the_air", "the_great_train_robbery", "zebra"):
        (tmp_path / "in" / f"{name}.txt").write_text(f"{name}\n\n" + f"word of {name}. " * 200)
    (tmp_path / "in" / "cover.jpg").write_bytes(b"x")
    make(tmp_path / "in", tmp_path / "out", "--validation_fraction", 0.3)
    read = [text for split in ("train", "validation") for text in open_documents(str(tmp_path / "out"), split)]
    assert {text.split()[0] for text in read} == {
        "a_garden",
        "test_pilots_of_the_air",
        "the_great_train_robbery",
        "zebra",
    }
    said = capsys.readouterr().out
    assert "left out (no known format): cover.jpg" in said and "documents" in said


def test_a_file_of_few_documents_is_shuffled_whole(make, tmp_path):
    documents = [f"document {i} " * 1000 for i in range(5)]
    make(write_jsonl(tmp_path / "a.jsonl", documents), tmp_path / "out")
    read = [text for split in ("train", "validation") for text in open_documents(str(tmp_path / "out"), split)]
    assert sorted(read) == sorted(documents)


def test_shards_are_pushed_as_a_data_set_and_kept_when_that_fails(make, tmp_path, monkeypatch, capsys):
    """A stand-in for the Hub's client: nothing here may need a network."""
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, endpoint=None):
            self.endpoint = "https://hub.example"

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))
            if repo_id == "me/forbidden":
                raise OSError("401 Unauthorized\nmore")

        def upload_folder(self, **options):
            calls.append(options | {"files": {path.name for path in options["folder_path"].iterdir()}})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    source = write_jsonl(tmp_path / "a.jsonl", make_documents(100))
    make(source, tmp_path / "out", "--push_to_hub", "me/shards", "--private")
    assert calls[0] == ("me/shards", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert calls[1]["repo_id"] == "me/shards" and calls[1]["repo_type"] == "dataset"
    assert calls[1]["files"] == {"README.md", "train_00000.parquet", "validation_00000.parquet"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "made from `a.jsonl`." in card and str(tmp_path) not in card
    assert "https://hub.example/datasets/me/shards" in capsys.readouterr().out
    with pytest.raises(
        UserError, match="could not be uploaded .401 Unauthorized.; log in.* me/forbidden '.*/it is kept'"
    ):
        make(source, tmp_path / "it is kept", "--push_to_hub", "me/forbidden")
    assert len(list(open_documents(str(tmp_path / "it is kept")))) > 50


def test_shards_that_another_command_is_making_are_left_alone(make, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", make_documents(10))
    (tmp_path / "out" / f"{make_shards.SCATTERED}x").mkdir(parents=True)
    with pytest.raises(UserError, match="out has unfinished shards; if a command is still making them, wait until"):
        make(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--buckets", "0"], "--buckets is a whole number from 1 to 1000, not '0'"),
        (["--shard_chars", "many"], "--shard_chars is a whole number of at least 1, not 'many'"),
        (["--validation_fraction", "1.5"], "--validation_fraction is a number above 0 and at most 1, not '1.5'"),
        (["--max_chars", "-1"], "--max_chars is a whole number of at least 1, not '-1'"),
        (["--seed", "x"], "--seed is a whole number"),
        (["--on_bad_file", "ignore"], "--on_bad_file: invalid choice"),
        (["--no_such"], "unrecognized arguments: --no_such"),
    ],
)
def test_bad_options_are_one_sentence(make, tmp_path, words, says):
    source = write_jsonl(tmp_path / "a.jsonl", make_documents(10))
    with pytest.raises(UserError) as refused:
        make(source, tmp_path / "out", *words)
    assert says in str(refused.value) and "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_named(make, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", make_documents(10))
    with pytest.raises(UserError, match="a.jsonl is a file, where a folder belongs"):
        make(source, source)


def test_an_interruption_says_what_to_do_with_the_shards_that_are_there(make, tmp_path, monkeypatch):
    source, write_shard = write_jsonl(tmp_path / "a.jsonl", make_documents(200)), make_shards.write_shard

    def interrupted(*arguments):
        raise KeyboardInterrupt

    def interrupted_after_validation(path, *rest):
        return interrupted() if path.name.startswith("train") else write_shard(path, *rest)

    monkeypatch.setattr(make_shards, "scatter", interrupted)
    with pytest.raises(KeyboardInterrupt, match="^$"):  # nothing is there: the same command begins again
        make(source, tmp_path / "one")
    monkeypatch.undo()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="empty .*two before the next try"):
        patch.setattr(make_shards, "write_shard", interrupted_after_validation)
        make(source, tmp_path / "two")
