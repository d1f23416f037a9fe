"""How threads of a matrix product wait for each other. It has to be set before torch is imported.

torch divides its work over the cores with OpenMP. A thread that is done waits at a barrier for the others: it spins
first, then it sleeps. GNU's OpenMP, which torch's wheels for Linux bring, spins 300,000 times, some 5 to 15 ms. On a
free machine nobody needs that core. Where another program needs it, the other thread of the same product has no core
meanwhile, and training is 20 to 30 times slower instead of half as fast.

Sleeping at once (`OMP_WAIT_POLICY=PASSIVE`) costs a quarter of the speed of sampling on a free machine: each wake-up
takes some 50 µs. A short spin loses little of either, as in the ski-rental problem. `benchmarks/busy.py` measures it
(docs/log.md). The results do not depend on it: it changes how threads wait, not what they compute.
"""

import os
import sys
from collections.abc import MutableMapping

SPINS = 300  # of GNU's OpenMP; 5 to 14 µs at 15 to 45 ns per `pause`, less than it takes to wake a thread
BLOCK_MS = 1  # of LLVM's and Intel's OpenMP (macOS, conda), in their smallest unit; their default is 200


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Bounds how long OpenMP's threads spin, unless the environment says how they wait.

    Args:
        environment: read and changed; `OMP_WAIT_POLICY` in it leaves everything as it is, and so do
            `GOMP_SPINCOUNT` and `KMP_BLOCKTIME` for their own library.

    Returns:
        Whether this has an effect: torch, which reads it once, is not imported yet.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPINS))
        environment.setdefault("KMP_BLOCKTIME", str(BLOCK_MS))
    return "torch" not in sys.modules
