"""How threads of a matrix product wait for each other. It has to be set before torch is imported.

torch divides its work over the cores with OpenMP. A thread that is done waits at a barrier for the others: it spins
first, then it sleeps. GNU's OpenMP, which torch's wheels for Linux bring, spins 300,000 times, some 5 to 15 ms. On a
free machine nobody needs that core. Where another program needs it, the other thread of the same product has no core
meanwhile, and training is 20 to 30 times slower instead of half as fast.

Sleeping at once (`OMP_WAIT_POLICY=PASSIVE`) costs a quarter of the speed of sampling on a free machine: each wake-up
takes some 50 µs. No number of spins is good on both machines. So it is chosen when a command starts, by whether other
programs are using the cores just then. A command that another one starts inherits the choice, and a record that it was
no user's; so it chooses again. `benchmarks/busy.py` measures it (docs/log.md). Results do not depend on it: it
changes how threads wait, not what they compute.
"""

import os
import statistics
import sys
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

# Spins of GNU's OpenMP; one takes 15 to 45 ns. On a free machine long enough for the code between two products, on a
# busy one less than it takes to wake a thread.
SPINS, BUSY_SPINS = 5000, 300
BLOCK_MS = 1  # of LLVM's and Intel's OpenMP (macOS, conda), in their smallest unit; their default is 200
# A variable that is set here → its record: where both have the same value, the value is our choice.
RECORDS = {"GOMP_SPINCOUNT": "NANOCHAT_HF_SPINCOUNT", "KMP_BLOCKTIME": "NANOCHAT_HF_BLOCKTIME"}
LOAD, SAMPLES, SECONDS_BETWEEN = Path("/proc/loadavg"), 10, 0.002


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Bounds how long OpenMP's threads spin, unless the environment says how they wait.

    Args:
        environment: read and changed; with the user's `OMP_WAIT_POLICY` nothing is set, and with the user's
            `GOMP_SPINCOUNT` or `KMP_BLOCKTIME` nothing for that library. An earlier choice of ours is dropped.

    Returns:
        Whether this has an effect: torch, which reads it once, is not imported yet.
    """
    users = without_our_choice(environment)
    for name in {*environment} - {*users}:
        del environment[name]
    if "OMP_WAIT_POLICY" not in users:
        chosen: dict[str, int] = {}
        if "GOMP_SPINCOUNT" not in users:
            chosen["GOMP_SPINCOUNT"] = BUSY_SPINS if cores_are_busy(users) else SPINS
        if "KMP_BLOCKTIME" not in users:
            chosen["KMP_BLOCKTIME"] = BLOCK_MS
        for name, value in chosen.items():
            environment[name] = environment[RECORDS[name]] = str(value)
    return "torch" not in sys.modules


def without_our_choice(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the environment without what `bound_spinning` has set, for programs that are not ours."""
    ours = {name for name, record in RECORDS.items() if environment.get(name) == environment.get(record)}
    return {name: value for name, value in environment.items() if name not in ours | {*RECORDS.values()}}


def cores_are_busy(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether other programs are using cores that this process's threads need: Linux's count of running threads.

    Args:
        environment: `OMP_NUM_THREADS` in it is the number of threads; default: one per core that may be used.

    Returns:
        False where the count cannot be read.
    """
    cores = os.cpu_count() or 1
    try:
        threads = int(environment.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        running = []
        for _ in range(SAMPLES):
            time.sleep(SECONDS_BETWEEN)
            running.append(int(LOAD.read_text().split()[3].split("/")[0]) - 1)  # without this one
    except (OSError, AttributeError, ValueError, IndexError):
        return False
    return statistics.fmean(running) > cores - threads + 0.5
