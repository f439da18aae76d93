"""Attention of quantized heads on CPUs, one head at a time: scores, softmax and weighted values never leave the first cache.

Keys and values are packed once a head, ``[columns / lanes, depth / group, lanes, group]``, straight from the ``[rows, heads, d]``
tensors that dense layers write, so nothing is transposed. Then, for ``mr`` queries at a time: products with all keys, the integer
softmax of kernels/reference.py, products of the probabilities with all values.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import msgspec
import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.exp2 import FRACTION_BITS, LAST_SHIFT, MASK_STEPS, SCORE_LIMIT, TERMS
from tvmflow.kernels.spec import Attention
from tvmflow.schedule import tir
from tvmflow.schedule.float_attention import FloatHeads
from tvmflow.schedule.intrinsics import BY_NAME
from tvmflow.schedule.panels import SIDE_BY_SIDE, Mask, Panels, copy_queries, signed_shift, widest_within

Expr = Any
NOWHERE = -(1 << 28)
"""Added to the scores of columns that only fill a vector: their weight is 0."""


class AttentionTile(msgspec.Struct, frozen=True, tag="attention"):
    """``mr`` queries by ``nr`` vectors of keys stay in registers."""

    dot: str
    mr: int
    nr: int
    threads: bool = True


def space(spec: Attention, names: tuple[str, ...], registers: int) -> Iterator[AttentionTile]:
    dot = BY_NAME[names[0]]
    for nr in range(1, min(ceil(spec.n / dot.lanes), 4) + 1):
        for mr in range(1, min(spec.m, 16) + 1):
            if (mr * nr + nr) * dot.regs_per_acc + dot.temporaries <= registers:
                yield AttentionTile(dot.name, mr, nr)


def estimate(spec: Attention, tile: AttentionTile) -> float:
    """Cycles of the products with the keys and of the softmax; the rest costs nearly the same for every tile."""
    dot = BY_NAME[tile.dot]
    step = max(tile.mr * tile.nr * dot.regs_per_acc / 2, (tile.mr + tile.nr * dot.regs_per_acc) / 2, 5.0)
    vectors = ceil(spec.n / dot.lanes)
    scores = ceil(vectors / tile.nr) * (spec.d / dot.group * step + 5.0 * tile.mr * tile.nr + 16)
    softmax = tile.mr * (10.0 * vectors + 30)
    values = ceil(spec.dv / dot.lanes) * spec.n / dot.group * max(tile.mr / 2, 2.5)
    return spec.batch * spec.heads * ceil(spec.m / tile.mr) * (scores + softmax + values)


def emit(spec: Attention, tile: AttentionTile, name: str) -> tirx.PrimFunc:
    """``q, k, v, multiplier[, quant][, mask], y``."""
    params: list[tuple[str, tuple[int, ...], str]] = [
        ("q", (spec.batch, spec.m, spec.heads, spec.d), spec.x),
        ("k", (spec.batch, spec.n, spec.heads, spec.d), spec.x),
        ("v", (spec.batch, spec.n, spec.heads, spec.dv), spec.x),
        ("multiplier", (3 if spec.is_integer else 1,), "float32"),
    ]
    if spec.is_integer:
        params.append(("quant", (6,), "int32"))
    if spec.mask:
        params.append(("mask", spec.mask_shape, "float32"))
    params.append(("y", spec.out_shape, spec.y))
    heads = _Heads(spec, tile) if spec.is_integer else FloatHeads(spec, tile.dot, tile.mr, tile.nr, tile.threads)
    return tir.prim_func(name, params, heads.emit, {})


class _Heads:
    """Emits the kernel; its attributes are what the pieces share."""

    def __init__(self, spec: Attention, tile: AttentionTile) -> None:
        self.spec, self.tile, self.dot = spec, tile, BY_NAME[tile.dot]
        self.value_dot = widest_within(self.dot, spec.dv)
        size = self.dot.lanes * self.dot.group
        self.columns = ceil(spec.n / size) * size
        """Keys, filled up to whole vectors of groups."""

    def emit(self, q: Any, k: Any, v: Any, multiplier: Any, quant: Any, *rest: Any) -> None:
        spec, tile = self.spec, self.tile
        self.y, self.multiplier, self.quant = rest[-1], multiplier, quant
        mask = rest[0] if spec.mask else None
        self.mask = Mask(spec, self.dot, self.columns, mask, NOWHERE, _mask_steps)
        with tir.parallel_if(tile.threads, spec.batch * spec.heads) as t:
            batch, head = T.Bind(t // spec.heads), T.Bind(t % spec.heads)
            queries = copy_queries(spec, self.dot, q, batch, head)
            keys = Panels(spec, self.dot, spec.d, self.columns)
            keys.pack_rows(k, batch, head, -quant[0])
            values = Panels(spec, self.value_dot, self.columns, spec.dv)
            values.pack_columns(v, batch, head, -quant[1], self.dot.lanes)
            scores = T.alloc_buffer((tile.mr * self.columns,), "int32", scope="global")
            weights = T.alloc_buffer((tile.mr * self.columns,), self.value_dot.a_dtype, scope="global")
            sums = T.alloc_buffer((tile.mr,), "int32", scope="global")
            with T.serial(0, ceil(spec.m / tile.mr)) as block:
                m0 = T.Bind(tir.inside(block, tile.mr, spec.m))
                self._scores(queries, keys, scores, m0, batch)
                tir.side_by_side(tile.mr, SIDE_BY_SIDE, lambda rows: self._softmax(scores, weights, sums, rows))
                self._weighted_values(weights, values, sums, m0, batch, head)

    def _scores(self, queries: Any, keys: Panels, scores: Any, m0: Expr, batch: Expr) -> None:
        """Scores in steps of ``2**-FRACTION_BITS`` in the exponent of 2, mask included, up to a constant."""
        spec, tile, lanes = self.spec, self.tile, self.dot.lanes
        by = T.Bind(tir.splat(self.multiplier[0], lanes))

        def store(row: int, vector: Expr, acc: Expr) -> None:
            # the bits of the magic number are left in: a constant in a row is as good as none
            steps = _rounded(acc.astype(tir.lanes_of("float32", lanes)) * by, lanes)
            mask = self.mask.vector(batch, m0 + row, vector * lanes)
            T.buffer_store(scores, steps + mask, [tir.at(row * self.columns + vector * lanes, lanes)])

        keys.product(queries, m0 * spec.d, tile.mr, tile.nr, store)

    def _softmax(self, scores: Any, weights: Any, sums: Any, rows: list[Expr]) -> None:
        """Probabilities of some rows, as kernels/reference.py defines them, and the sums of their steps.

        The rows are done side by side: each waits for its maximum and its sum to come together from all lanes.
        """
        lanes, vectors = self.dot.lanes, self.columns // self.dot.lanes
        bases = [T.Bind(row * self.columns) for row in rows]

        def whole(value: int) -> Expr:
            return tir.splat(tir.const(value, "int32"), lanes)

        def fold(body: Any, combine: Any, start: int) -> list[Any]:
            """For each row, ``combine`` of ``body(row, offset)`` over its vectors, in a vector register."""
            cells, everything = [tir.register(lanes, "int32") for _ in rows], tir.at(0, lanes)
            for cell in cells:
                T.buffer_store(cell, whole(start), [everything])
            with T.serial(0, vectors) as i:
                for row, (cell, base) in enumerate(zip(cells, bases, strict=True)):
                    T.buffer_store(cell, combine(cell[everything], body(row, T.Bind(base + i * lanes))), [everything])
            return [cell[everything] for cell in cells]

        tops = fold(lambda _, o: scores[tir.at(o, lanes)], tirx.max, -(2**31))
        tops = [T.Bind(tir.splat(_across("smax", top), lanes)) for top in tops]

        def power(row: int, o: Expr) -> Expr:
            below = T.Bind(tirx.min(tops[row] - scores[tir.at(o, lanes)], whole(LAST_SHIFT << FRACTION_BITS)))
            fraction = T.Bind(below & whole((1 << FRACTION_BITS) - 1))
            value = whole(TERMS[0])
            for term in TERMS[1:]:
                value = whole(term) - ((fraction * value) >> whole(FRACTION_BITS))
            value = T.Bind(value >> (below >> whole(FRACTION_BITS)))
            T.buffer_store(scores, value, [tir.at(o, lanes)])
            return value

        totals = fold(power, _plus, 0)
        scales = [T.Bind(tir.splat(self.multiplier[1] / _across("add", total).astype("float32"), lanes)) for total in totals]
        value_dot = self.value_dot
        low = int(np.iinfo(self.spec.x).min)
        zero = T.Bind(self.quant[1])
        highest = T.Bind(tir.splat((tir.const(low + 255, "int32") - zero).astype("float32"), lanes))
        magic = tir.splat(tir.const(tir.Requantizer.MAGIC, "float32"), lanes)
        shift = T.Bind(tir.splat(zero - tir.const(tir.Requantizer.MAGIC_BITS, "int32"), lanes))
        ones = tir.splat(tir.const(1, value_dot.b_dtype), lanes * value_dot.group)

        def stored(row: int, o: Expr) -> Expr:
            steps = tirx.min(scores[tir.at(o, lanes)].astype(tir.lanes_of("float32", lanes)) * scales[row], highest) + magic
            return T.Bind(tirx.reinterpret(tir.lanes_of("int32", lanes), steps) + shift)

        def group_of(row: int, o: Expr) -> Expr:
            """``group`` vectors side by side in the words of one."""
            parts = [stored(row, o + g * lanes) for g in range(value_dot.group)]
            if value_dot.group == 1:
                return parts[0].astype(tir.lanes_of(value_dot.a_dtype, lanes))
            bits = 32 // value_dot.group
            word = parts[-1] << whole(bits * (value_dot.group - 1))
            for g, part in enumerate(parts[:-1]):
                word = word | ((part & whole((1 << bits) - 1) if low else part) << whole(bits * g))
            return T.Bind(word)

        cells, everything = [tir.register(lanes, "int32") for _ in rows], tir.at(0, lanes)
        for cell in cells:
            T.buffer_store(cell, whole(0), [everything])
        size = lanes * value_dot.group
        with T.serial(0, self.columns // size) as i:
            for row, (cell, base) in enumerate(zip(cells, bases, strict=True)):
                word = group_of(row, T.Bind(base + i * size))
                T.buffer_store(cell, value_dot.lanewise(cell[everything], word, ones, lanes), [everything])
                T.buffer_store(
                    weights, tirx.reinterpret(tir.lanes_of(value_dot.a_dtype, size), word), [tir.at(base + i * size, size)]
                )
        by = T.Bind(tir.const(signed_shift(self.spec), "int32") - self.quant[2])
        for row, cell in zip(rows, cells, strict=True):
            T.buffer_store(sums, (_across("add", cell[everything]) - zero * self.columns) * by, [row])

    def _weighted_values(self, weights: Any, values: Panels, sums: Any, m0: Expr, batch: Expr, head: Expr) -> None:
        spec, tile, dot, quant = self.spec, self.tile, self.value_dot, self.quant
        requantize = tir.Requantizer(quant[3], quant[4], quant[5], dot.lanes, spec.y)
        by = T.Bind(tir.splat(self.multiplier[2], dot.lanes))

        def store(row: int, vector: Expr, acc: Expr) -> None:
            column = values.first_column(vector)
            index = ((batch * spec.m + m0 + row) * spec.heads + head) * spec.dv + column
            value = requantize(acc + tir.splat(sums[row], dot.lanes), by)
            T.buffer_store(self.y, value, [tir.at(index, dot.lanes)])

        values.product(weights, tir.const(0, "int32"), tile.mr, tile.nr, store)


def _rounded(value: Expr, lanes: int) -> Expr:
    """``rint`` of a score, plus the bits of the magic number of tir.Requantizer."""
    limit, magic = (tir.splat(tir.const(v, "float32"), lanes) for v in (float(SCORE_LIMIT), tir.Requantizer.MAGIC))
    return tirx.reinterpret(tir.lanes_of("int32", lanes), tir.clip(value, -limit, limit) + magic)


def _mask_steps(mask: Expr, lanes: int) -> Expr:
    """Elements of the mask in steps of a score."""
    steps = _rounded(mask * tir.splat(tir.const(MASK_STEPS, "float32"), lanes), lanes)
    return steps - tir.splat(tir.const(tir.Requantizer.MAGIC_BITS, "int32"), lanes)


def _across(how: str, vector: Expr) -> Expr:
    """Sum or maximum of the lanes."""
    name = f"llvm.vector.reduce.{how}"
    return T.call_llvm_pure_intrin("int32", T.llvm_lookup_intrinsic_id(name), vector)


def _plus(a: Expr, b: Expr) -> Expr:
    return a + b
