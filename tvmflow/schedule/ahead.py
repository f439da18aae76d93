"""Weights on their way before they are needed: what a convolution asks for while it multiplies.

Weights of a network come from memory or from the last cache at every run, and the first tiles of a block or of a kernel would
wait for them. They lie in the file in the order in which kernels read them (build/constants.py), so that tiles can ask for what
comes next: of their own kernel the next block, behind its end the weights of the kernel that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from tvm import DataType
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels import spec as ks
from tvmflow.schedule import tir
from tvmflow.target import Cpu

Expr = Any

FEW_ROWS = 8
"""Most pixels of a layer whose weights take longer to come from memory than to be multiplied."""


def bytes_ahead(kernels: Sequence[ks.Kernel], weights: Sequence[int], cpu: Cpu) -> list[int]:
    """Bytes behind its own weights that each of a network's ``kernels``, in the order of their calls, should ask for.

    ``weights`` are the bytes of each one's own, as they are packed. As a rule it is the next convolution's, up to
    :func:`most_ahead`: the rest comes while it runs. A dense layer of few rows is as fast as its weights arrive. All of them come
    while the convolution before it computes and leaves the memory idle, as far as half of the last cache holds them.
    """
    asked, wanted = [], 0
    for spec, size in zip(reversed(kernels), reversed(weights), strict=True):
        waits = isinstance(spec, ks.Conv2d) and spec.n * spec.oh * spec.ow <= FEW_ROWS
        asked.append(0 if waits else wanted)
        if isinstance(spec, ks.Conv2d) and spec.is_depthwise:
            wanted += size
        elif size:
            wanted = min(size, max(cpu.l2_kib, cpu.l3_kib) * 512 if waits else most_ahead(cpu))
    return asked[::-1]


def most_ahead(cpu: Cpu) -> int:
    """Bytes: what L2 holds if there is a cache behind it for what they push out, else an eighth of that."""
    return cpu.l2_kib * (1024 if cpu.l3_kib > cpu.l2_kib else 128)


def weight_bytes(spec: ks.Kernel) -> int:
    """Bytes of a kernel's weights before they are packed."""
    if isinstance(spec, ks.Chain):
        return sum(map(weight_bytes, spec.stages))
    if isinstance(spec, ks.Conv2d):
        return (
            spec.oc * spec.kh * spec.kw * (spec.ic // spec.groups) * np.dtype("int8" if spec.is_integer else "float32").itemsize
        )
    return 0


class Share:
    """How ``visits`` tiles of ``steps`` steps share ``count`` cache lines: all take part, for a burst is in the way of loads."""

    MOST = 2
    """Lines in a step: more come no faster, and what is beyond is not asked for."""

    def __init__(self, count: int, visits: int, steps: int) -> None:
        self._each = min(ceil(count / visits), self.MOST * steps)
        self._per_step = ceil(self._each / steps)
        self._shift = max(0, (steps // self._each).bit_length() - 1)

    def lines(self, visit: Expr, step: Expr) -> list[Expr]:
        """Numbers of the lines that a step asks for."""
        first = visit * self._each + (step >> self._shift) * self._per_step
        return [first + i for i in range(self._per_step)]


class Ahead:
    """What a tile asks for while it multiplies: its share of some runs of weights, a few cache lines in each of its steps."""

    def __init__(self, weight: Any, steps: int) -> None:
        self._weight, self._steps = weight, steps
        self._line = tir.CACHE_LINE // DataType(weight.dtype).itemsize
        self._runs: list[tuple[Expr, Share, Expr]] = []

    def share(self, start: Expr, count: int, visit: Expr, visits: int) -> None:
        """Of ``count`` elements from ``start`` on, which as many tiles share as there are ``visits``; this one is ``visit``."""
        self._runs.append((T.Bind(start), Share(ceil(count / self._line), visits, self._steps), visit))

    def ask(self, step: Expr) -> None:
        for start, lines, visit in self._runs:
            for number in lines.lines(visit, step):
                tir.prefetch(self._weight, start + number * self._line)
