"""Processes of one job, without any training: an error of one ends all; who ends in peace is left in peace.

One process imports torch, holds the store, as a launcher does, and forks the others.
"""

import json
import os
import subprocess
import sys

import pytest

from nanochat_hf.settings import UserError, failures

TEMPLATE = """
import contextlib, ctypes, json, os, socket, sys, time, types
import torch.distributed as dist
from nanochat_hf.settings import UserError, failures, run_main

def sleep(rank): time.sleep(60)
def one_is_wrong(rank): time.sleep(60) if rank != 1 else wrong()
def all_are_wrong(rank): wrong()
def one_crashes(rank): time.sleep(60) if rank else [][0]
def in_peace(rank): time.sleep(0.3 + 0.1 * rank)  # its thread is anywhere in its round
def one_follows(rank):  # the main thread of process 0 fails too, while another thread ends the process
    if rank == 1: wrong()
    while "error" not in open("one_follows-0-2").read(): time.sleep(0.01)
    raise RuntimeError("connection lost")
def one_loses_the_store(rank):  # process 0 holds the store; in process 2, which is slow, the main thread fails last
    if rank == 1: wrong()
    if rank == 2: failures.time = types.SimpleNamespace(sleep=lambda s: time.sleep(5 * s), monotonic=time.monotonic)
    while rank == 2 and "error" not in open("one_loses_the_store-2-2").read(): time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        while rank == 2: os.kill(children[0], 0)
    if rank == 2: raise RuntimeError("connection lost")
    time.sleep(60)
def wrong(): raise UserError("the disk is full; make room")

def start(rank, world, port, main):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for stream in (1, 2):
        os.dup2(os.open(f"{main.__name__}-{rank}-{stream}", os.O_CREAT | os.O_WRONLY), stream)
    if main is one_follows and rank == 2: time.sleep(2)  # all wait for it before they end
    if main is one_loses_the_store and rank == 0:
        held = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    run_main(lambda: main(rank))
    sys.exit(0)  # as any process ends, with all that Python does then

found = {}
cases = ((one_is_wrong, 3), (all_are_wrong, 3), (one_crashes, 2), (one_follows, 3), (in_peace, 8))
for main, world in (*cases, (one_loses_the_store, 3)):
    if main is one_loses_the_store:  # as without a launcher: process 0 holds it
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
    else:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(store))  # its threads stay here: children must not destroy it
        port = store.port
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            start(rank, world, port, main)
        children.append(child)
    found[main.__name__] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Exit statuses by case, and a function that reads what a process wrote to stderr."""
    folder = tmp_path_factory.mktemp("job")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TEMPLATE]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), lambda case, rank: (folder / f"{case}-{rank}-2").read_text()


def test_an_error_of_one_ends_all_with_the_same_sentence(job):
    statuses, stderr = job
    assert statuses["one_is_wrong"] == [2, 2, 2]
    said = [stderr("one_is_wrong", rank) for rank in range(3)]
    assert len(set(said)) == 1
    assert said[0].startswith("error: the disk is full; make room (process 1 of 3, on ") and said[0].count("\n") == 1


def test_an_error_of_all_names_no_process(job):
    statuses, stderr = job
    assert statuses["all_are_wrong"] == [2, 2, 2]
    assert [stderr("all_are_wrong", rank) for rank in range(3)] == ["error: the disk is full; make room\n"] * 3


def test_a_crash_ends_all_and_is_shown_where_it_happened(job):
    statuses, stderr = job
    assert statuses["one_crashes"] == [1, 1]
    assert "Traceback" in stderr("one_crashes", 0)
    assert stderr("one_crashes", 1).startswith("error: IndexError: list index out of range (process 0 of 2, on ")


def test_what_follows_from_an_error_is_not_said(job):
    statuses, stderr = job
    assert statuses["one_follows"] == [2, 2, 2]
    assert {stderr("one_follows", rank).count("error: ") for rank in range(3)} == {1}
    assert stderr("one_follows", 0) == stderr("one_follows", 1) == stderr("one_follows", 2)


def test_processes_end_with_one_line_where_process_0_holds_the_store(job):
    statuses, stderr = job
    assert statuses["one_loses_the_store"] == [2, 2, 2]
    said = {stderr("one_loses_the_store", rank) for rank in range(3)}
    assert len(said) == 1 and said.pop().count("\n") == 1


def test_a_process_that_ends_in_peace_is_not_aborted(job):
    assert job[0]["in_peace"] == [0] * 8


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE asks for 2 processes, but RANK, MASTER_ADDR, MASTER_PORT is not set",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "but MASTER_ADDR is not set; start"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number of processes"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE is '²', not a number of processes"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not a number of processes"),
    ],
)
def test_half_of_a_launchers_variables_is_refused(variables, sentence, monkeypatch):
    for name in ("WORLD_SIZE", *failures.LAUNCHER):
        monkeypatch.delenv(name, raising=False)
    assert failures.job_size() == 1 and failures.join_job() is None
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert failures.join_job() is None  # commands of one process go on
    with pytest.raises(UserError, match=sentence):
        failures.job_size()
