"""What the attention kernels of all types share: queries copied one row after the other, keys and values packed for products,
and the mask as it is added to scores."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Attention
from tvmflow.schedule import tir
from tvmflow.schedule.intrinsics import BY_NAME, Dot
from tvmflow.schedule.packs import shuffle

Expr = Any

SIDE_BY_SIDE = 8
"""Most rows whose softmax is computed at the same time."""


def signed_shift(spec: Attention) -> int:
    """What is taken from a stored operand to make it signed."""
    return 128 if spec.x == "uint8" else 0


def copy_queries(spec: Attention, dot: Dot, q: Any, batch: Expr, head: Expr) -> Any:
    """The head's rows, one after the other, in the type that the dot product wants."""
    dtype = dot.a_dtype
    queries = T.alloc_buffer((spec.m * spec.d,), dtype, scope="global")
    with T.serial(0, spec.m) as row:

        def copy(o: Expr, n: int) -> None:
            source = ((batch * spec.m + row) * spec.heads + head) * spec.d + o
            T.buffer_store(queries, q[tir.at(source, n)].astype(tir.lanes_of(dtype, n)), [tir.at(row * spec.d + o, n)])

        tir.for_each_run(spec.d, 64, copy)
    return queries


class Mask:
    """What is added to scores, ``[rows, columns]``: ``convert`` of the mask, 0 without one; ``nowhere`` beyond the last key."""

    def __init__(
        self, spec: Attention, dot: Dot, columns: int, mask: Any, nowhere: float, convert: Callable[[Expr, int], Expr]
    ) -> None:
        self.spec, self.columns, self.lanes = spec, columns, dot.lanes
        lanes, dtype = dot.lanes, dot.acc_dtype
        rows = prod(spec.mask) if spec.mask else 1
        self.table = T.alloc_buffer((rows * columns,), dtype, scope="global")
        with T.serial(0, rows) as row:
            for start in range(spec.n // lanes * lanes, columns, lanes):
                T.buffer_store(self.table, tir.splat(tir.const(nowhere, dtype), lanes), [tir.at(row * columns + start, lanes)])

            def fill(o: Expr, n: int) -> None:
                value = tir.splat(tir.const(0, dtype), n)
                if mask is not None:
                    value = convert(mask[tir.at(row * spec.n + o, n)], n)
                T.buffer_store(self.table, value, [tir.at(row * columns + o, n)])

            tir.for_each_run(spec.n, lanes, fill)

    def vector(self, batch: Expr, query: Expr, column: Expr) -> Expr:
        """What is added to the scores of ``lanes`` keys from ``column`` on."""
        batches, queries = self.spec.mask or (1, 1)
        row = (batch if batches > 1 else 0) * queries + (query if queries > 1 else 0)
        return self.table[tir.at(row * self.columns + column, self.lanes)]


class Panels:
    """A packed right operand ``[vectors, depth / group, lanes, group]`` with what the accumulators of integers start from."""

    def __init__(self, spec: Attention, dot: Dot, depth: int, columns: int) -> None:
        self.spec, self.dot, self.depth, self.columns = spec, dot, depth, columns
        self.vectors, self.steps = ceil(columns / dot.lanes), depth // dot.group
        self.packed = T.alloc_buffer((self.vectors * depth * dot.lanes,), dot.b_dtype, scope="global")
        if spec.is_integer:
            self.starts = T.alloc_buffer((self.vectors * dot.lanes,), dot.acc_dtype, scope="global")

    def first_column(self, vector: Expr) -> Expr:
        """The last vector is moved back inside where it would stick out."""
        return tir.inside(vector, self.dot.lanes, self.columns)

    def pack_rows(self, k: Any, batch: Expr, head: Expr, factor: Expr = 0) -> None:
        """Columns are the rows of ``k``; columns beyond the last key repeat it."""
        spec, dot = self.spec, self.dot
        with T.serial(0, self.vectors) as vector:
            rows = [vector * dot.lanes + lane for lane in range(dot.lanes)]
            if self.columns != spec.n:
                rows = [tirx.min(row, spec.n - 1) for row in rows]
            starts = [T.Bind(((batch * spec.n + row) * spec.heads + head) * spec.d) for row in rows]

            def block(step: Expr, n: int) -> None:
                lines = [T.Bind(self._signed(k, start + step * dot.group, n * dot.group)) for start in starts]
                for i, value in enumerate(transposed(lines, n, dot.group)):
                    to = (vector * self.steps + step + i) * (dot.lanes * dot.group)
                    T.buffer_store(self.packed, value, [tir.at(to, dot.lanes * dot.group)])

            tir.for_each_run(self.steps, dot.lanes, block)
            if self.spec.is_integer:
                self._sum(vector, factor)

    def pack_columns(self, v: Any, batch: Expr, head: Expr, factor: Expr = 0, apart: int = 1) -> None:
        """A step takes ``group`` rows of ``v`` that are ``apart``, as the weights lie; rows beyond the last one repeat it."""
        spec, dot = self.spec, self.dot
        with T.serial(0, self.vectors) as vector:
            column = T.Bind(head * spec.dv + self.first_column(vector))
            with T.serial(0, self.steps) as step:
                first = step // apart * (apart * dot.group) + step % apart
                rows = [first + g * apart for g in range(dot.group)]
                if self.depth != spec.n:
                    rows = [tirx.min(row, spec.n - 1) for row in rows]
                lines = [
                    T.Bind(self._signed(v, (batch * spec.n + row) * (spec.heads * spec.dv) + column, dot.lanes)) for row in rows
                ]
                interleaved = [g * dot.lanes + lane for lane in range(dot.lanes) for g in range(dot.group)]
                value = lines[0] if dot.group == 1 else tirx.Shuffle(lines, interleaved)
                size = dot.lanes * dot.group
                T.buffer_store(self.packed, value, [tir.at((vector * self.steps + step) * size, size)])
            if self.spec.is_integer:
                self._sum(vector, factor)

    def _signed(self, x: Any, start: Expr, lanes: int) -> Expr:
        value = x[tir.at(start, lanes)]
        if not signed_shift(self.spec):
            return value
        # q + 128 as a byte with its highest bit flipped is q
        return tirx.reinterpret(tir.lanes_of("int8", lanes), value ^ tir.splat(tir.const(128, "uint8"), lanes))

    def _sum(self, vector: Expr, factor: Expr) -> None:
        """What accumulators start from: ``factor`` times the sum of their column."""
        dot, everything = self.dot, tir.at(0, self.dot.lanes)
        total = tir.register(dot.lanes, dot.acc_dtype)
        T.buffer_store(total, tir.splat(tir.const(0, dot.acc_dtype), dot.lanes), [everything])
        ones = tir.splat(tir.const(1, dot.a_dtype), dot.group)
        size = dot.lanes * dot.group
        with T.serial(0, self.steps) as step:
            column = self.packed[tir.at((vector * self.steps + step) * size, size)]
            T.buffer_store(total, dot.broadcast(total[everything], ones, column), [everything])
        T.buffer_store(self.starts, total[everything] * tir.splat(factor, dot.lanes), [tir.at(vector * dot.lanes, dot.lanes)])

    def _start(self, vector: Expr) -> Expr:
        dot = self.dot
        if self.spec.is_integer:
            return T.Bind(self.starts[tir.at(vector * dot.lanes, dot.lanes)])
        return tir.splat(tir.const(0, dot.acc_dtype), dot.lanes)

    def product(self, a: Any, first: Expr, mr: int, nr: int, store: Any) -> None:
        """``store(row, vector, accumulators)`` for ``mr`` rows of ``a`` from element ``first`` on and every vector of columns,
        up to ``nr`` of them at a time."""
        dot, everything, size = self.dot, tir.at(0, self.dot.lanes), self.dot.lanes * self.dot.group
        nr = min(nr, self.vectors)
        with T.serial(0, ceil(self.vectors / nr)) as block:
            v0 = T.Bind(tir.inside(block, nr, self.vectors))
            starts = [self._start(v0 + i) for i in range(nr)]
            acc = [[tir.register(dot.lanes, dot.acc_dtype) for _ in range(nr)] for _ in range(mr)]
            for row in acc:
                for cell, start in zip(row, starts, strict=True):
                    T.buffer_store(cell, start, [everything])
            with T.serial(0, self.steps) as step:
                panels = [T.Bind(self.packed[tir.at(((v0 + i) * self.steps + step) * size, size)]) for i in range(nr)]
                for r in range(mr):
                    word = a[tir.at(first + r * self.depth + step * dot.group, dot.group)]
                    for i in range(nr):
                        T.buffer_store(acc[r][i], dot.broadcast(acc[r][i][everything], word, panels[i]), [everything])
            for i in range(nr):
                for r in range(mr):
                    store(r, v0 + i, acc[r][i][everything])


def transposed(rows: list[Expr], columns: int, group: int) -> list[Expr]:
    """The columns of a matrix of ``group`` neighbours an element; powers of two of rows, not fewer than columns, and of columns.

    Shuffling the halves of the whole matrix perfectly moves the highest bit of the row's number below all others.
    """
    count, values, size = len(rows), rows, columns
    for _ in range(count.bit_length() - 1):
        half = len(values) // 2
        order = np.arange(2 * size * group).reshape(2, size, group).swapaxes(0, 1).ravel()
        parts = np.split(order, 1 if size < count else 2)
        size = min(2 * size, count)
        values = [T.Bind(shuffle([a, b], part)) for a, b in zip(values[:half], values[half:], strict=True) for part in parts]
    return values


def widest_within(dot: Dot, columns: int) -> Dot:
    """``dot``, or a narrower row of its family where it has more lanes than there are columns."""
    while dot.narrower and dot.lanes > columns:
        dot = BY_NAME[dot.narrower]
    return dot
