"""How many threads the Rust extension uses."""

import os


def thread_count(num_threads: int | None = None) -> int:
    """Returns how many threads to use: the argument, else `RAYON_NUM_THREADS`, else all cores of this process.

    Raises:
        ValueError: the argument or the variable is not a whole number from 1.
    """
    name = "num_threads"
    if num_threads is None:
        name, given = "RAYON_NUM_THREADS", os.environ.get("RAYON_NUM_THREADS") or "0"
        num_threads = int(given) if given.isdecimal() else given
        if num_threads == 0:  # rayon reads 0 as: all cores
            affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
            return len(affinity(0)) if affinity else os.cpu_count() or 1
    if not isinstance(num_threads, int) or num_threads < 1:
        raise ValueError(f"{name} is {num_threads!r}, but threads are counted in whole numbers from 1")
    return num_threads
