"""Time of each kernel of a program that TVM's virtual machine runs. Standard library only: boards use it too.

The VM calls an instrument before and after everything that it calls. Entering Python costs about a microsecond, and more with the
number of arguments; a kernel may take less. So it is measured on the spot: the instrument is entered for the same arguments right
before the kernel, and the time from the end of the call before it to that entry holds nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RUNS = 40
SECONDS = 5.0
"""Time after which no more runs are begun."""
QUIET = 4
"""Means are over the fastest of this many parts of the runs: a mean of sums is a sum of means, and the rest is disturbance."""


@dataclass(frozen=True)
class Profile:
    """Milliseconds of the kernels in execution order, and of whole runs in turns with those that timed the kernels.

    Whole runs are longer than their kernels by what is done between them.
    """

    kernels: tuple[tuple[str, float], ...]
    whole: float


@dataclass
class _Span:
    symbol: str
    seconds: float
    entry: float
    """What entering the instrument took right before."""


def profile(
    call: Callable[[], object],
    layers: Callable[[], object],
    wait: Callable[[], object],
    set_instrument: Callable[[Any], object],
    runs: int = RUNS,
) -> Profile:
    """Runs ``call``, a program with its inputs bound, ``runs`` times whole, and as often ``layers`` with an instrument: the same
    kernels, called by the virtual machine.

    ``wait`` returns when the device has finished.
    """
    spans: list[_Span] = []
    now = time.perf_counter
    left = entry = 0.0

    def around(_function: Any, symbol: str, before: bool, _result: Any, *_arguments: Any) -> int:
        nonlocal left, entry
        wait()
        entered = now()
        if before:
            entry = entered - left
        elif not symbol.startswith("vm.builtin."):
            spans.append(_Span(str(symbol), entered - left, entry))
        left = now()
        return 0

    def whole() -> float:
        start = now()
        call()
        wait()
        return now() - start

    whole()
    wholes: list[float] = []
    timed: list[list[_Span]] = []
    deadline = now() + SECONDS
    while len(timed) < runs and (len(timed) < QUIET or now() < deadline):
        whole()  # the run before it was slower and left other things in the caches
        wholes.append(whole())
        spans = []
        set_instrument(around)
        try:
            layers()
        finally:
            set_instrument(None)
        timed.append(spans)
    entries = [statistics.median(span.entry for span in calls) for calls in zip(*timed, strict=True)]
    count = -(-len(timed) // QUIET)
    quiet = sorted(timed, key=lambda run: sum(span.seconds for span in run))[:count]
    seconds = [
        max(0.0, statistics.fmean(span.seconds for span in calls) - cost)
        for calls, cost in zip(zip(*quiet, strict=True), entries, strict=True)
    ]
    kernels = tuple((span.symbol, 1e3 * s) for span, s in zip(timed[0], seconds, strict=True))
    return Profile(kernels, 1e3 * statistics.fmean(sorted(wholes)[:count]))
