"""How many threads the Rust extension uses."""

import os

from nanochat_hf.settings import UserError


def thread_count(num_threads: int | None = None) -> int:
    """Returns how many threads to use: the argument, else `RAYON_NUM_THREADS`, else all cores of this process.

    Raises:
        ValueError: the argument is not a whole number from 1.
        UserError: the variable is not one.
    """
    if num_threads is None:
        affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
        return _from_environment() or (len(affinity(0)) if affinity else os.cpu_count() or 1)
    if not isinstance(num_threads, int) or num_threads < 1:
        raise ValueError(f"num_threads is {num_threads!r}, but the number of threads must be a whole number from 1")
    return num_threads


def _from_environment() -> int:
    """Returns `RAYON_NUM_THREADS`; 0, which rayon reads as all cores, where it is not set."""
    given = os.environ.get("RAYON_NUM_THREADS") or "0"
    if not given.isdecimal():
        raise UserError(
            f"RAYON_NUM_THREADS is {given!r}, no number of threads; set it to a whole number from 1, or unset it"
        )
    return int(given)
