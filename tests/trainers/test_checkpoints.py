"""Torn and altered checkpoints are named and passed over; rotation keeps the newest."""

import multiprocessing
import os
import random
import socket

import numpy as np
import pytest
import torch

from nanochat_hf.settings import UserError
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
    checkpoints.rotate(tmp_path, 2)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10"]


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


def _look(rank, folders, port, queue):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=len(folders))
    try:
        checkpoints.check_shared(folders[rank])
        queue.put((rank, None))
    except UserError as error:
        queue.put((rank, str(error)))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shared", [True, False])
def test_processes_that_do_not_share_the_output_folder_all_say_so(shared, tmp_path):
    """As on two machines without a shared file system: the same path, different folders."""
    folders = [tmp_path / "a", tmp_path / ("a" if shared else "b")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_look, args=(rank, folders, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=240) for _ in workers)
    for worker in workers:
        worker.join()
    assert not list(tmp_path.rglob(".shared-*"))
    if shared:
        assert found == {0: None, 1: None}
    else:
        assert found[0].replace(str(folders[0]), "") == found[1].replace(str(folders[1]), "")
        assert "process 1 of 2 cannot see what process 0 writes" in found[0]
