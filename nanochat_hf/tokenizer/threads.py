"""How many threads the Rust extension uses."""

import os


def thread_count(num_threads: int | None = None) -> int:
    """Returns how many threads to use: the argument, else `RAYON_NUM_THREADS`, else all cores of this process.

    Raises:
        ValueError: the argument or the variable is not a whole number from 1.
    """
    name = "num_threads"
    given: int | str | None = num_threads
    if num_threads is None:
        name, given = "RAYON_NUM_THREADS", _from_environment()
        if given == 0:  # rayon reads 0 as: all cores
            affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
            return len(affinity(0)) if affinity else os.cpu_count() or 1
    if not isinstance(given, int) or given < 1:
        raise ValueError(f"{name} is {given!r}, but the number of threads must be a whole number from 1")
    return given


def _from_environment() -> int | str:
    """Returns `RAYON_NUM_THREADS` as a number where it is one, else as it is; 0 where it is not set."""
    given = os.environ.get("RAYON_NUM_THREADS") or "0"
    return int(given) if given.isdecimal() else given
