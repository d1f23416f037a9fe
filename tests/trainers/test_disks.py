"""Which processes see the same folder, and files that are sent to machines which lack them.

Three processes stand for two machines: the first has one process, the second two.
"""

import multiprocessing
import os
import socket

import pytest

from nanochat_hf.settings import UserError
from nanochat_hf.trainers import disks


def attempt(function, *arguments):
    try:
        return function(*arguments)
    except UserError as error:
        return str(error)


def be_a_process(rank, cases, port, queue):
    """Goes through all cases and puts (rank, results) into the queue."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "3"}
    os.environ |= {"LOCAL_RANK": str(max(0, rank - 1)), "ACCELERATE_USE_CPU": "true"}
    from accelerate import PartialState

    PartialState(cpu=True)
    disks.CHUNK = 1000
    found = {name: attempt(disks.is_shared, folders[rank]) for name, folders in cases.items()}
    found["writes"] = [disks.writes(shared) for shared in (True, False)]
    disks.spread(cases["own"][rank] / "run", found["writes"][1])
    disks.spread(cases["shared"][rank] / "run", found["writes"][0])  # nothing is missing
    found["same"] = attempt(disks.check_same, "text", 7, "copy it")
    found["other"] = attempt(disks.check_same, "text", rank // 2, "copy it")
    queue.put((rank, found))
    PartialState().destroy_process_group()


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """The folder and what the three processes found."""
    folder = tmp_path_factory.mktemp("machines")
    a, b, c = (folder / name for name in "abc")
    cases = {"shared": [c, c, c], "own": [a, b, b], "mixed": [c, c, a]}
    files = {
        a / "run" / "model": bytes(range(256)) * 11,
        a / "run" / "inner" / "part-0": b"first",
        a / "run" / "both": b"of a",
        b / "run" / "both": b"of b",
        b / "run" / "inner" / "part-1": b"",
        c / "run" / "model": b"there",
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=be_a_process, args=(rank, cases, port, queue)) for rank in range(3)]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=280) for _ in workers)
    for worker in workers:
        worker.join()
    return folder, [found[rank] for rank in range(3)]


def test_all_processes_know_whether_they_share_a_folder(machines):
    folder, found = machines
    assert [one["shared"] for one in found] == [True] * 3 and [one["own"] for one in found] == [False] * 3
    assert [one["writes"] for one in found] == [[True, True], [False, True], [False, False]]
    said = {one["mixed"].replace(str(folder / name), "") for one in found for name in "ac"}
    assert any("some machines share  and others do not" in sentence for sentence in said)
    assert not list(folder.rglob(".seen-*"))


def test_each_machine_gets_the_files_that_it_lacks(machines):
    folder, _ = machines
    for name in "ab":
        run = folder / name / "run"
        assert (run / "model").read_bytes() == bytes(range(256)) * 11  # in several pieces
        assert (run / "inner" / "part-0").read_bytes() == b"first" and (run / "inner" / "part-1").read_bytes() == b""
        assert (run / "both").read_bytes() == f"of {name}".encode()  # what is there is kept
        assert len([path for path in run.rglob("*") if path.is_file()]) == 4
    assert [path.read_bytes() for path in (folder / "c" / "run").iterdir()] == [b"there"]


def test_a_difference_between_processes_is_named_on_all(machines):
    assert [one["same"] for one in machines[1]] == [None] * 3
    assert {one["other"] for one in machines[1]} == {"process 2 of 3 has another text than process 0; copy it"}
