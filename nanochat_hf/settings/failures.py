"""An error in one process of a job ends all of them within seconds, with the same sentence.

Without this, the others would wait for the failed process in a collective call, for minutes or hours. The failed
process publishes its error in the key-value store through which the processes found each other (torch's `TCPStore`).
A thread of every process looks there twice per second. So it does not matter where an error happens: while joining,
reading data, saving, evaluating or sampling.
"""

import atexit
import json
import logging
import multiprocessing
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from nanochat_hf.settings.errors import UserError

POLL = 0.5  # seconds between two looks at the store
GRACE = 1.0  # seconds in which other processes can publish the same error
LAUNCHER = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # environment variables of several processes, beside WORLD_SIZE
PATIENCE = 10.0  # seconds that a failed process waits for the store, and for the others to hear of it


class Job:
    """The processes of a job, as far as errors go.

    Args:
        rank: number of this process.
        world_size: how many there are.
        host, port: where their store listens.
    """

    def __init__(self, rank: int, world_size: int, host: str, port: int):
        import torch.distributed  # here, not in the thread: imports in two threads can meet half-made modules

        self.rank, self.world_size = rank, world_size
        self._torch, self._address = torch, (host, port)
        self._store: Any = None
        self._connected, self._ending = threading.Event(), threading.Event()
        self._end = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="failures", daemon=True)
        self._thread.start()
        atexit.register(self.leave)

    def leave(self) -> None:
        """Stops to watch. A thread inside of torch, while Python ends, would abort the process."""
        self._ending.set()
        self._thread.join(6 * PATIENCE)  # not for ever: it may be waiting for a store that never comes

    def fail(self, sentence: str, status: int) -> tuple[str, int, bool]:
        """Publishes an error of this process.

        Returns:
            The sentence and the exit status with which all processes end, and whether the error of this process was
            the first.
        """
        connected = self._connected.wait(PATIENCE)
        self._ending.set()
        if not connected:
            return sentence, status, True
        try:
            order = self._store.add("failures", 1)
            self._store.set(f"failure {order}", json.dumps([self.rank, socket.gethostname(), sentence, status]))
            if order == 1:
                time.sleep(GRACE)
                self._store.set("verdict", json.dumps(self._verdict()))
            self._store.wait(["verdict"], timedelta(seconds=PATIENCE))
            sentence, status = json.loads(self._store.get("verdict"))
        except RuntimeError:  # the store has ended
            return sentence, status, not self._end.locked()  # locked: this process has heard of an earlier error
        return sentence, status, order == 1

    def end(self, sentence: str, status: int) -> None:
        """Ends this process when all others have heard of it, or after `PATIENCE` seconds.

        The first thread that calls it ends the process; another one only waits for that. Process 0 ends last, as the
        store may be its own.
        """
        self._end.acquire()  # for ever
        print(f"error: {sentence}", file=sys.stderr)
        try:
            self._await_all("heard")
            if self.rank == 0:
                self._await_all("leaving")
            else:
                self._store.add("leaving", 1)
        except (AttributeError, RuntimeError):  # there never was a store, or its process has ended
            pass
        for child in multiprocessing.active_children():
            child.terminate()
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)  # not sys.exit: it would wait for collective calls that nobody answers

    def _await_all(self, point: str) -> None:
        """Returns when all processes have come to `point`, or after `PATIENCE` seconds."""
        self._store.add(point, 1)
        waiting = time.monotonic() + PATIENCE
        while self._store.add(point, 0) < self.world_size and time.monotonic() < waiting:
            time.sleep(0.1)

    def _verdict(self) -> tuple[str, int]:
        """The first error; it names its process, unless all processes have the same error."""
        found = [json.loads(self._store.get(f"failure {n + 1}")) for n in range(self._store.add("failures", 0))]
        rank, machine, sentence, status = found[0]
        if sum(other[2] == sentence for other in found) < self.world_size:
            sentence += f" (process {rank} of {self.world_size}, on {machine})"
        return sentence, status

    def _watch(self) -> None:
        try:
            self._connect()
            while not self._ending.wait(POLL):
                if self._store.check(["verdict"]):
                    sentence, status = json.loads(self._store.get("verdict"))
                    self.end(sentence, status)
        except RuntimeError:  # the store's process has ended
            return

    def _connect(self) -> None:
        """Waits for the store, which another process may start later."""
        distributed = self._torch.distributed
        while not self._ending.wait(POLL):
            try:
                socket.create_connection(self._address, timeout=POLL).close()  # torch's own attempt would complain
                store = distributed.TCPStore(*self._address, wait_for_workers=False, timeout=timedelta(minutes=1))
            except (OSError, RuntimeError):
                continue
            # A launcher's store outlives a restart of its processes.
            restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = distributed.PrefixStore(f"nanochat-hf failures {restart}", store)
            self._connected.set()
            return


def job_size() -> int:
    """Returns how many processes this job has, as the launcher's variables say; without a launcher 1.

    Raises:
        UserError: the variables describe no job.
    """
    size, missing = os.environ.get("WORLD_SIZE", "1"), [name for name in LAUNCHER if name not in os.environ]
    if not size.isdecimal() or int(size) < 1:
        raise UserError(f"the environment variable WORLD_SIZE is {size!r}, not a number of processes; unset it")
    if int(size) > 1 and missing:
        raise UserError(
            f"the environment variable WORLD_SIZE asks for {size} processes, but {', '.join(missing)} is not set; "
            "start the command with `accelerate launch` or `torchrun`, or unset WORLD_SIZE"
        )
    return int(size)


def join_job() -> Job | None:
    """Starts to watch the other processes of this job; None where this is the only one.

    Where the launcher's variables describe no job it is None, too: commands that need all processes ask `job_size`.
    """
    try:
        world_size = job_size()
    except UserError:
        return None
    if world_size < 2:
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return Job(int(os.environ["RANK"]), world_size, host, port)
