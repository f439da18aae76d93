"""TVM's pool of threads: how many it may have, and how they wait. Standard library only; to be called before TVM is loaded."""

from __future__ import annotations

import os


def prepare_thread_pool(threads: int) -> None:
    """Make TVM's pool large enough for ``threads``, if it does not exist yet, and a good neighbour.

    Unless told, TVM takes half of an x86 machine's CPUs; pins the calling thread to a core, which everything that the process
    runs or starts afterwards inherits; and lets idle workers spin for 150 ms, which steals a core from whatever is measured next
    to us. 2,000 spins are about 1 ms: longer than any gap between two kernels of a network. The size is only what a session may
    ask for, so that an inherited TVM_NUM_THREADS does not cap it.
    """
    if int(os.environ.get("TVM_NUM_THREADS") or 0) < threads:
        os.environ["TVM_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "2000")
