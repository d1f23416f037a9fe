"""Torn and altered checkpoints are named and passed over; rotation keeps the newest."""

import random

import numpy as np
import pytest
import torch

from nanochat_hf.trainers import checkpoints


def sealed(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "inner").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(range(200)))
    (checkpoint / "inner" / "state.json").write_text("{}")
    checkpoints.seal(checkpoint)
    return checkpoint


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def alter(path):
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("model.safetensors", truncate, "model.safetensors is not what was written"),
        ("model.safetensors", alter, "model.safetensors is not what was written"),
        ("inner/state.json", lambda path: path.unlink(), "inner/state.json is missing"),
        ("checksums.json", lambda path: path.unlink(), "checksums.json is missing or damaged"),
        ("checksums.json", truncate, "checksums.json is missing or damaged"),
    ],
    ids=["torn", "altered", "lost", "no checksums", "torn checksums"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, name, damage, complaint):
    before, newest = sealed(tmp_path, 20), sealed(tmp_path, 100)
    assert checkpoints.to_resume(tmp_path) == str(newest)
    damage(newest / name)
    assert checkpoints.to_resume(tmp_path) == str(before)
    assert capsys.readouterr().err == f"warning: {newest} is not used: {complaint}\n"
    damage(before / name)
    assert checkpoints.to_resume(tmp_path, verbose=False) is None


def test_rotation_keeps_the_newest_by_number(tmp_path):
    for step in (9, 10, 100):
        sealed(tmp_path, step)
    checkpoints.rotate(tmp_path, 2, newest=tmp_path / "checkpoint-100")
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10"]


@pytest.mark.parametrize("damage", [truncate, lambda path: path.unlink()], ids=["torn", "not sealed"])
def test_a_damaged_checkpoint_takes_no_place_of_an_intact_one(tmp_path, damage):
    """A run resumed from step 150, as 170 was torn, and has just written 165."""
    for step in (150, 165, 170):
        sealed(tmp_path, step)
    damage(tmp_path / "checkpoint-170" / "checksums.json")
    checkpoints.rotate(tmp_path, 1, newest=tmp_path / "checkpoint-165")
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-165"]


def test_random_generators_continue_where_they_were(tmp_path):
    random.gauss(0, 1)  # leaves a second value in store
    checkpoints.save_random_state(tmp_path, 3)

    def draw():
        return random.gauss(0, 1), random.random(), np.random.normal(size=3).tolist(), torch.rand(3).tolist()

    expected = draw()
    checkpoints.load_random_state(tmp_path, 4)  # no file of this rank: nothing changes
    assert draw() != expected
    checkpoints.load_random_state(tmp_path, 3)
    assert draw() == expected
