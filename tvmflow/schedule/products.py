"""Several products of matrices in one kernel that share a loop nest, as in Winograd's and Strassen's methods: their packed
weights and the register tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from tvmflow.schedule import cycles, tir
from tvmflow.schedule.ahead import Ahead, most_ahead
from tvmflow.schedule.intrinsics import Dot
from tvmflow.target import Cpu

Array = NDArray[Any]
Expr = Any


@dataclass(frozen=True)
class Weights:
    """Right operands, ``[blocks, count, steps, nr, lanes, group]``, flat: panels of ``steps`` by ``nr`` vectors of channels.

    Vectors and blocks that stick out are moved back inside.
    """

    dot: Dot
    count: int
    """Products."""
    ic: int
    oc: int
    nr: int

    @property
    def vectors(self) -> int:
        return ceil(self.oc / self.dot.lanes)

    @property
    def blocks(self) -> int:
        return ceil(self.vectors / self.nr)

    @property
    def steps(self) -> int:
        return self.ic // self.dot.group

    @property
    def step(self) -> int:
        """Elements of a step."""
        return self.nr * self.dot.lanes * self.dot.group

    @property
    def panel(self) -> int:
        """Elements of a block of one product."""
        return self.steps * self.step

    @property
    def size(self) -> int:
        return self.blocks * self.count * self.panel

    @property
    def bytes(self) -> int:
        return self.size * np.dtype(self.dot.b_dtype).itemsize

    def cycles(self, rows: int, cpu: Cpu) -> float:
        """Of a register tile of as many rows, by the machine of schedule/cycles.py."""
        fresh = self.panel * np.dtype(self.dot.b_dtype).itemsize
        return self.steps * cycles.of_step(self.dot, rows, self.nr, fresh, cpu) + 3.0 * rows * self.nr + 23

    def passes(self, products: float, bands: int, cpu: Cpu) -> float:
        """Cycles of ``bands`` of which each has ``products`` to compute while the weights arrive.

        They come from memory at 7 bytes a cycle for the first band, but for what the kernel before asks for, and from L3 at 32
        for the next.
        """
        first = max(products, (self.bytes - most_ahead(cpu)) / 7)
        again = max(products, self.bytes / (7 if self.bytes > cpu.l3_kib * 512 else 32))
        return first + (bands - 1) * (again if self.bytes > cpu.l2_kib * 512 else products)

    def pack(self, matrices: Array) -> Array:
        """``matrices [count, ic, oc]`` as they lie in memory."""
        lanes = self.dot.lanes
        starts = [min(v * lanes, self.oc - lanes) for v in range(self.vectors)]
        vectors = np.stack([matrices[:, :, s : s + lanes] for s in starts], axis=2).astype(self.dot.b_dtype)
        firsts = [min(b * self.nr, self.vectors - self.nr) for b in range(self.blocks)]
        blocks = np.stack([vectors[:, :, v : v + self.nr] for v in firsts])
        steps = blocks.reshape(self.blocks, self.count, self.steps, self.dot.group, self.nr, lanes)
        return np.ascontiguousarray(np.moveaxis(steps, 3, 5)).reshape(-1)

    def vector(self, block: Expr) -> Expr:
        """First vector of a block."""
        return tir.inside(block, self.nr, self.vectors)

    def channel(self, vector: Expr) -> Expr:
        """First channel of a vector."""
        return tir.inside(vector, self.dot.lanes, self.oc)


class Panel:
    """The panel of one block and product, and what is asked for while it is multiplied."""

    def __init__(self, weights: Weights, buffer: Any, block: Expr, product: Expr) -> None:
        self._weights, self._buffer = weights, buffer
        self._start = T.Bind((block * weights.count + product) * weights.panel)
        self._ahead = Ahead(buffer, weights.steps)

    def ask_ahead(self, turn: Expr, turns: int, behind: int, visit: Expr, visits: int) -> None:
        """Asks for the next panel, which ``turns`` tiles share, and for ``behind`` bytes behind the last one, which all share."""
        self._ahead.share(self._start + self._weights.panel, self._weights.panel, turn, turns)
        if behind:
            count = behind // np.dtype(self._weights.dot.b_dtype).itemsize
            self._ahead.share(self._weights.size, count, T.Bind(visit), visits)

    def multiply(self, x: Any, rows: Sequence[Expr]) -> list[list[Any]]:
        """Accumulators of the rows of ``x`` that start there, ``nr`` each: their products with the panel."""
        weights, dot = self._weights, self._weights.dot
        everything, vector = tir.at(0, dot.lanes), dot.lanes * dot.group
        accumulators = [[tir.register(dot.lanes, dot.acc_dtype) for _ in range(weights.nr)] for _ in rows]
        for row in accumulators:
            for cell in row:
                T.buffer_store(cell, tir.splat(tir.const(0, dot.acc_dtype), dot.lanes), [everything])
        with T.serial(0, weights.steps) as k:
            first = self._start + k * weights.step
            right = [T.Bind(self._buffer[tir.at(first + i * vector, vector)]) for i in range(weights.nr)]
            self._ahead.ask(k)
            for start, row in zip(rows, accumulators, strict=True):
                left = x[tir.at(start + k * dot.group, dot.group)]
                for cell, w in zip(row, right, strict=True):
                    T.buffer_store(cell, dot.broadcast(cell[everything], left, w), [everything])
        return accumulators


def evenly(whole: int, most: int) -> int:
    """The largest of the fewest equal shares of ``whole`` things of which none exceeds ``most``."""
    return ceil(whole / ceil(whole / most))


def shares(whole: int, most: int) -> set[int]:
    """Sizes up to ``most`` of the equal shares into which ``whole`` things can be split."""
    return {evenly(whole, size) for size in range(1, min(whole, most) + 1)}


def uneven(count: int) -> float:
    """How much longer two threads take for as many shares than for half of the whole each."""
    return 2 * ceil(count / 2) / count
