"""float32 attention on CPUs, one head at a time: scores, softmax and weighted values never leave the first cache.

Scores are kept as exponents of 2, so that a mask costs one addition and a power of 2 no multiplication; the division by the sum
of the weights is left to the output, which has fewer elements.
"""

from __future__ import annotations

from math import ceil, log2
from math import e as EULER
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Attention
from tvmflow.schedule import tir
from tvmflow.schedule.float_islands import add, reduce_rows
from tvmflow.schedule.intrinsics import BY_NAME
from tvmflow.schedule.panels import SIDE_BY_SIDE, Mask, Panels, copy_queries, widest_within
from tvmflow.schedule.transcendental import Vector

Expr = Any
HIDDEN, NOWHERE = -1e30, -3e38
"""Exponents of keys that a mask hides, infinitely for instance, and of columns that only fill a vector: out of reach even where
everything is hidden."""
LOG2_E = log2(EULER)


class FloatHeads:
    """Emits the kernel; its attributes are what the pieces share."""

    def __init__(self, spec: Attention, dot: str, mr: int, nr: int, threads: bool) -> None:
        self.spec, self.dot, self.mr, self.nr, self.threads = spec, BY_NAME[dot], mr, nr, threads
        self.value_dot = widest_within(self.dot, spec.dv)
        self.columns = ceil(spec.n / self.dot.lanes) * self.dot.lanes
        """Keys, filled up to whole vectors."""

    def emit(self, q: Any, k: Any, v: Any, multiplier: Any, *rest: Any) -> None:
        spec, mr = self.spec, self.mr
        self.y, self.multiplier = rest[-1], multiplier
        self.mask = None
        if spec.mask or spec.n != self.columns:
            mask = rest[0] if spec.mask else None
            self.mask = Mask(spec, self.dot, self.columns, mask, NOWHERE, _mask_exponents)
        with tir.parallel_if(self.threads, spec.batch * spec.heads) as t:
            batch, head = T.Bind(t // spec.heads), T.Bind(t % spec.heads)
            queries = copy_queries(spec, self.dot, q, batch, head)
            keys = Panels(spec, self.dot, spec.d, self.columns)
            keys.pack_rows(k, batch, head)
            values = Panels(spec, self.value_dot, self.columns, spec.dv)
            values.pack_columns(v, batch, head)
            weights = T.alloc_buffer((mr * self.columns,), "float32", scope="global")
            shares = T.alloc_buffer((mr,), "float32", scope="global")
            with T.serial(0, ceil(spec.m / mr)) as block:
                m0 = T.Bind(tir.inside(block, mr, spec.m))
                self._scores(queries, keys, weights, m0, batch)
                tir.side_by_side(mr, SIDE_BY_SIDE, lambda rows: self._softmax(weights, shares, rows))
                self._weighted_values(weights, values, shares, m0, batch, head)

    def _scores(self, queries: Any, keys: Panels, weights: Any, m0: Expr, batch: Expr) -> None:
        """Exponents of 2, mask included."""
        spec, lanes = self.spec, self.dot.lanes
        by = T.Bind(tir.splat(self.multiplier[0] * tir.const(LOG2_E, "float32"), lanes))

        def store(row: int, vector: Expr, acc: Expr) -> None:
            value = acc * by
            if self.mask:
                value = value + self.mask.vector(batch, m0 + row, vector * lanes)
            T.buffer_store(weights, value, [tir.at(row * self.columns + vector * lanes, lanes)])

        keys.product(queries, m0 * spec.d, self.mr, self.nr, store)

    def _softmax(self, weights: Any, shares: Any, rows: list[Expr]) -> None:
        """Powers of 2 below the largest exponent of each row, and one divided by their sum."""
        lanes = self.dot.lanes
        bases = [T.Bind(row * self.columns) for row in rows]
        starts = [weights[base] for base in bases]
        tops = reduce_rows(bases, self.columns, lanes, lambda _, base, o, n: weights[tir.at(base + o, n)], tirx.max, starts)

        def power(row: int, base: Expr, o: Expr, n: int) -> Expr:
            value = T.Bind(Vector(n).exp2(weights[tir.at(base + o, n)] - tir.splat(tops[row], n)))
            T.buffer_store(weights, value, [tir.at(base + o, n)])
            return value

        for row, total in zip(rows, reduce_rows(bases, self.columns, lanes, power, add), strict=True):
            T.buffer_store(shares, tir.const(1.0, "float32") / total, [row])

    def _weighted_values(self, weights: Any, values: Panels, shares: Any, m0: Expr, batch: Expr, head: Expr) -> None:
        spec, lanes = self.spec, self.value_dot.lanes

        def store(row: int, vector: Expr, acc: Expr) -> None:
            index = ((batch * spec.m + m0 + row) * spec.heads + head) * spec.dv + values.first_column(vector)
            T.buffer_store(self.y, acc * tir.splat(shares[row], lanes), [tir.at(index, lanes)])

        values.product(weights, tir.const(0, "int32"), self.mr, self.nr, store)


def _mask_exponents(mask: Expr, lanes: int) -> Expr:
    """Elements of the mask as exponents of 2."""
    return tirx.max(mask * Vector(lanes).const(LOG2_E), Vector(lanes).const(HIDDEN))
