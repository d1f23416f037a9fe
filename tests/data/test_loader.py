"""The loader: the same rows for any number of processes, and after any restart."""

import io
import shutil

import numpy as np
import pytest
import torch
from toy import START, ByteEncoder, make_documents, write_jsonl, write_shards

from nanochat_hf.data.loader import PackedLoader, ValidationBatches
from nanochat_hf.data.packing import pack_best_fit
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError

ROWS = 12  # a step's rows, of all processes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return str(folder)


def open_loader(data, rank=0, world_size=1, accumulate=1, **options):
    options = {"buffer_documents": 40, "sequence_length": 48, **options}
    batch_size = ROWS // world_size // accumulate
    return PackedLoader(data, ByteEncoder(), batch_size=batch_size, rank=rank, world_size=world_size, **options)


def step_rows(loaders, accumulate=1) -> np.ndarray:
    """The rows of one optimizer step from all processes, in a fixed order."""
    rows = [next(loader)["input_ids"].numpy() for loader in loaders for _ in range(accumulate)]
    return np.array(sorted(np.concatenate(rows).tolist()))


def saved_and_loaded(state):
    """Saves and loads the state as a checkpoint does; `weights_only` refuses everything but plain data."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def close(*loaders):
    for loader in loaders:
        loader.close()


def test_a_batch_is_rows_split_into_inputs_and_next_tokens(data):
    loader = open_loader(data, buffer_documents=1000)
    batch = next(loader)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        name: (torch.int64, (ROWS, 48)) for name in ("input_ids", "shift_labels", "labels")
    }
    assert torch.equal(batch["input_ids"][:, 1:], batch["shift_labels"][:, :-1])
    assert torch.equal(batch["input_ids"], batch["labels"])
    assert (batch["input_ids"][:, 0] == START).all()
    close(loader)


def test_one_process_serves_the_rows_of_upstreams_packing(data):
    """Compared with all documents tokenized at once. Group sizes fit no refill, so refills end where groups end."""
    loader = open_loader(data, buffer_documents=1)
    packed = pack_best_fit(_encode(open_documents(data)), 49, buffer_documents=1, refill_documents=32)
    expected = [next(packed) for _ in range(ROWS * 5)]
    served = [row for _ in range(5) for row in next(loader)["input_ids"].numpy()]
    assert [row[:-1].tolist() for row in expected] == [row.tolist() for row in served]
    close(loader)


def _encode(documents):
    for document in documents:
        yield ByteEncoder().encode_batch([document])[0]


@pytest.mark.parametrize("packing", ["best_fit", "keep_tails"])
@pytest.mark.parametrize("seed", [None, 5])
def test_any_number_of_processes_sees_the_same_rows_in_each_step(data, packing, seed):
    options = {"packing": packing, "seed": seed, "streams": 6}
    alone = [open_loader(data, **options)]
    steps = [step_rows(alone) for _ in range(8)]
    assert len({row.tobytes() for step in steps for row in step}) == 8 * ROWS, "no row comes twice"
    for world_size, accumulate in ((1, 4), (2, 1), (3, 2), (4, 1), (6, 1)):  # 4 does not divide the streams
        loaders = [open_loader(data, rank, world_size, accumulate, **options) for rank in range(world_size)]
        for step in steps:
            assert np.array_equal(step_rows(loaders, accumulate), step)
        close(*loaders)
    close(*alone)


@pytest.mark.parametrize("packing", ["best_fit", "keep_tails"])
def test_a_resumed_loader_goes_on_bit_for_bit(data, packing):
    loader = open_loader(data, packing=packing, seed=1)
    for consumed in (0, 1, 7, 90):  # the last beyond the first epoch
        for _ in range(consumed):
            next(loader)
        state = saved_and_loaded(loader.state_dict())
        ahead = [next(loader)["input_ids"] for _ in range(5)]
        copy = open_loader(data, packing=packing, seed=1)
        copy.load_state_dict(state)
        assert all(torch.equal(next(copy)["input_ids"], batch) for batch in ahead)
        close(copy)
        loader.load_state_dict(state)
    assert loader.epoch >= 1
    close(loader)


def test_a_resumed_mixture_goes_on_bit_for_bit(data, tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", make_documents(150, "o"))
    source = [f"{data}:0.6", f"{other}:0.4"]
    loader = open_loader(source)
    for _ in range(9):
        next(loader)
    copy = open_loader(source)
    copy.load_state_dict(saved_and_loaded(loader.state_dict()))
    for _ in range(20):
        assert torch.equal(next(copy)["input_ids"], next(loader)["input_ids"])
    close(loader, copy)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 2), (1, 2), (2, 4), (2, 3)])
def test_a_run_goes_on_with_another_number_of_processes(data, before, after):
    reference = [open_loader(data, streams=before)]
    steps = [step_rows(reference) for _ in range(12)]
    close(*reference)
    loaders = [open_loader(data, rank, before) for rank in range(before)]
    for step in steps[:5]:
        assert np.array_equal(step_rows(loaders), step)
    states = [saved_and_loaded(loader.state_dict()) for loader in loaders]
    close(*loaders)
    loaders = [open_loader(data, rank, after) for rank in range(after)]
    for loader in loaders:
        loader.load_state_dict(states)
    for step in steps[5:]:
        assert np.array_equal(step_rows(loaders), step)
    close(*loaders)


def test_what_cannot_be_resumed_is_said(data, tmp_path):
    first, second = (open_loader(data, rank, 2) for rank in range(2))
    state = first.state_dict()
    with pytest.raises(UserError, match=r"streams \[1\] is missing"):
        second.load_state_dict(state)
    with pytest.raises(UserError, match="row_length 49, not 33"):
        open_loader(data, sequence_length=32).load_state_dict(state)
    write_shards(tmp_path / "other", shards=2)
    with pytest.raises(UserError, match="other data files"):
        open_loader(str(tmp_path / "other"), streams=2).load_state_dict([state, second.state_dict()])


def test_a_fault_in_the_background_reaches_the_trainer_and_does_not_hang(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", make_documents(30))
    (tmp_path / "b.jsonl").write_text('{"text": "cut o')
    write_jsonl(tmp_path / "c.jsonl", ["held out"])
    loader = open_loader(str(tmp_path), buffer_documents=10)
    with pytest.raises(UserError, match="b.jsonl, line 1 is not JSON"):
        for _ in range(1000):
            next(loader)
    with pytest.raises(UserError, match="b.jsonl"):
        next(loader)


def test_a_closed_loader_goes_on_after_the_last_batch_it_gave(data):
    loader, reference = open_loader(data), open_loader(data)
    for _ in range(3):
        next(loader), next(reference)
    loader.close()
    assert torch.equal(next(loader)["input_ids"], next(reference)["input_ids"])
    close(loader, reference)


def test_closing_a_loader_does_not_read_its_source_again(data, tmp_path):
    """At the end of a run the data may have grown, or a Hub may be out of reach."""
    copy = shutil.copytree(data, tmp_path / "copy")
    loader = open_loader(str(copy))
    next(loader)
    state = loader.state_dict()
    shutil.rmtree(copy)
    loader.close()
    assert loader.state_dict()["rows"] == state["rows"]
    loader.close()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_rows_are_the_same_for_any_number_of_processes(data, world_size):
    options = {"batch_size": 4, "sequence_length": 48, "tokens": 1500}
    wanted = ValidationBatches(data, ByteEncoder(), **options)
    places = [{"rank": rank, "world_size": world_size} for rank in range(world_size)]
    parts = [ValidationBatches(data, ByteEncoder(), **place, **options) for place in places]
    assert len({len(part) for part in parts}) == 1, "every process takes as many steps"

    def scored(batches):
        return [row.tolist() for batch in batches for row in batch["shift_labels"] if (row != -100).all()]

    assert sorted(sum((scored(part) for part in parts), [])) == sorted(scored(wanted))
    assert len(scored(wanted)) == 32 == -(-1500 // 48)
    first, again = (torch.stack([batch["input_ids"] for batch in wanted]) for _ in range(2))
    assert torch.equal(first, again)
    padded = [row for part in parts for batch in part for row in batch["shift_labels"] if (row == -100).all()]
    assert len(padded) == sum(len(part) for part in parts) * 4 - 32


def test_validation_holds_no_training_document(data):
    batches = ValidationBatches(data, ByteEncoder(), batch_size=2, sequence_length=48, tokens=10**9)
    text = b"".join(bytes(row[row < START].tolist()) for b in batches for row in b["input_ids"].numpy())
    assert text.count(b"<s3_") > 50 and not any(name in text for name in (b"<s0", b"<s1", b"<s2"))


def test_too_little_validation_text_is_said(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["short"] * 3)
    with pytest.raises(UserError, match="does not fill one row of 65 tokens"):
        len(ValidationBatches(str(tmp_path / "a.jsonl"), ByteEncoder(), batch_size=1, sequence_length=64, tokens=10))
