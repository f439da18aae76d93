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

from tvmflow.kernels import spec as ks
from tvmflow.target import Cpu

Expr = Any

FEW_ROWS = 8
"""Most pixels of a layer whose weights take longer to come from memory than to be multiplied."""


def bytes_ahead(kernels: Sequence[ks.Kernel], cpu: Cpu) -> list[int]:
    """Bytes behind its own weights that each of a network's ``kernels``, in the order of their calls, should ask for.

    As a rule the begin of the next convolution, an eighth of L2 at most: the rest comes while it runs. A dense layer of few rows
    is as fast as its weights arrive. All of them come while the convolution before it computes and leaves the memory idle, as far
    as half of the last cache holds them.
    """
    asked, wanted = [], 0
    for spec in reversed(kernels):
        waits = isinstance(spec, ks.Conv2d) and spec.n * spec.oh * spec.ow <= FEW_ROWS
        asked.append(0 if waits else wanted)
        if isinstance(spec, ks.Conv2d) and spec.is_depthwise:
            wanted += _weights(spec)
        elif isinstance(spec, ks.Conv2d | ks.Chain):
            wanted = min(_weights(spec), max(cpu.l2_kib, cpu.l3_kib) * 512 if waits else cpu.l2_kib * 128)
    return asked[::-1]


def _weights(spec: ks.Conv2d | ks.Chain) -> int:
    """Bytes of a kernel's weights before they are packed."""
    if isinstance(spec, ks.Chain):
        return sum(map(_weights, spec.stages))
    return spec.oc * spec.kh * spec.kw * (spec.ic // spec.groups) * np.dtype("int8" if spec.is_integer else "float32").itemsize


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
