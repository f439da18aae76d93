"""Kernel times of a model on a board. Runs in the board's server: an instrument of the VM can't be called across the network."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any


def profile(vm: Any, function: str, device: str, repeat: int) -> str:
    """Kernels of a bound function in execution order, as JSON ``[[symbol, milliseconds], ...]``, medians of ``repeat`` runs.

    ``vm`` is the virtual machine's module and ``function`` the name under which ``save_function`` kept a call. Every kernel is
    timed alone, from outside, so the sum exceeds the time of the whole by about a microsecond a kernel.
    """
    import tvm

    handle = tvm.device(device, 0)
    wait = handle.sync if device != "cpu" else lambda: None
    call, set_instrument = vm[function], vm["set_instrument"]
    runs: list[list[tuple[str, float]]] = []
    started = 0.0

    def around(_function: Any, symbol: str, before: bool, _result: Any, *_arguments: Any) -> int:
        nonlocal started
        if not symbol.startswith("vm.builtin."):
            if not before:
                wait()
                runs[-1].append((str(symbol), (time.perf_counter() - started) * 1e3))
            started = time.perf_counter()
        return 0

    call()
    set_instrument(around)
    try:
        for _ in range(repeat):
            runs.append([])
            call()
    finally:
        set_instrument(None)
    return json.dumps([(calls[0][0], statistics.median(ms for _, ms in calls)) for calls in zip(*runs, strict=True)])
