"""float32 kernels for what stays float in a quantized network: elementwise functions, softmax, layer normalization.

Rows are shared among threads. Reductions run on a few vectors of partial sums, so that additions do not wait for each other; what
is left of a row after whole vectors is added element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import LayerNorm, Softmax, Unary
from tvmflow.schedule import tir
from tvmflow.schedule.elementwise import Codes, FlatTile, chunked
from tvmflow.schedule.transcendental import Vector

Expr = Any
CHAINS = 4
"""Partial results of a reduction that are in flight."""
SIDE_BY_SIDE = 4
"""Most rows that are reduced at the same time."""
PARALLEL_ELEMENTS = 16384


def emit_unary(spec: Unary, tile: FlatTile, name: str) -> tirx.PrimFunc:
    """``y = fn(x)``."""

    def body(x: Any, y: Any) -> None:
        def run(o: Expr, n: int) -> None:
            T.buffer_store(y, Vector(n).function(spec.fn)(T.Bind(x[tir.at(o, n)])), [tir.at(o, n)])

        chunked(prod(spec.shape), tile, run)

    return tir.prim_func(name, [("x", spec.shape, "float32"), ("y", spec.shape, "float32")], body, {})


def emit_softmax(spec: Softmax, tile: FlatTile, name: str) -> tirx.PrimFunc:
    """Maximum, exponentials, their sum, one division a row."""

    def body(x: Any, y: Any) -> None:
        def some(bases: list[Expr]) -> None:
            tops = reduce_rows(
                bases, spec.n, tile.lanes, lambda _, at, o, n: x[tir.at(at + o, n)], tirx.max, [x[b] for b in bases]
            )

            def exponentials(o: Expr, n: int) -> None:
                for base, top in zip(bases, tops, strict=True):
                    value = Vector(n).exp(T.Bind(x[tir.at(base + o, n)] - tir.splat(top, n)))
                    T.buffer_store(y, value, [tir.at(base + o, n)])

            tir.for_each_run(spec.n, tile.lanes, exponentials)
            totals = reduce_rows(bases, spec.n, tile.lanes, lambda _, at, o, n: y[tir.at(at + o, n)], add)
            for base, total in zip(bases, totals, strict=True):
                _scale_in_place(spec.n, tile.lanes, y, base, T.Bind(tir.const(1.0, "float32") / total))

        _rows(spec.rows, spec.n, tile, some)

    shape = (spec.rows, spec.n)
    return tir.prim_func(name, [("x", shape, "float32"), ("y", shape, "float32")], body, {})


def emit_layer_norm(spec: LayerNorm, tile: FlatTile, name: str) -> tirx.PrimFunc:
    """Mean, then the variance of the centred row (two passes: no cancellation), then scale and shift, then codes."""
    shape, channel = (spec.rows, spec.n), (spec.n,)
    params = [("x", shape, "float32"), ("gamma", channel, "float32"), ("beta", channel, "float32"), ("epsilon", (1,), "float32")]
    if spec.residual:
        params.append(("residual", shape, "float32"))
    if spec.quantized:
        params += [("multiplier", (1,), "float32"), ("quant", (1,), "int32")]
    params += [(f"y{i}", out, dtype) for i, (out, dtype) in enumerate(spec.outputs)]

    def body(x: Any, gamma: Any, beta: Any, epsilon: Any, *rest: Any) -> None:
        optional, outputs = rest[: len(rest) - len(spec.outputs)], rest[len(rest) - len(spec.outputs) :]
        y = outputs[0]
        codes = Codes(optional[-1], spec.quantized) if spec.quantized else None
        count = tir.const(1.0 / spec.n, "float32")

        def value(at: Expr) -> Expr:
            return x[at] + optional[0][at] if spec.residual else x[at]

        def some(bases: list[Expr]) -> None:
            sums = reduce_rows(bases, spec.n, tile.lanes, lambda _, base, o, n: value(tir.at(base + o, n)), add)
            means = [T.Bind(s * count) for s in sums]

            def squares(row: int, base: Expr, o: Expr, n: int) -> Expr:
                centred = T.Bind(value(tir.at(base + o, n)) - tir.splat(means[row], n))
                return centred * centred

            sums = reduce_rows(bases, spec.n, tile.lanes, squares, add)
            scales = [T.Bind(tir.const(1.0, "float32") / tirx.sqrt(s * count + epsilon[0])) for s in sums]

            for base, mean, scale in zip(bases, means, scales, strict=True):
                _each_once(spec.n, tile.lanes, finish(base, mean, scale))

        def finish(base: Expr, mean: Expr, scale: Expr) -> Callable[[Expr, int], None]:
            def run(o: Expr, n: int) -> None:
                centred = value(tir.at(base + o, n)) - tir.splat(mean, n)
                result = T.Bind(centred * tir.splat(scale, n) * gamma[tir.at(o, n)] + beta[tir.at(o, n)])
                T.buffer_store(y, result, [tir.at(base + o, n)])
                if codes:
                    T.buffer_store(outputs[1], codes(result * tir.splat(optional[-2][0], n), n), [tir.at(base + o, n)])

            return run

        _rows(spec.rows, spec.n, tile, some)

    return tir.prim_func(name, params, body, {})


def add(a: Expr, b: Expr) -> Expr:
    return a + b


def _rows(rows: int, n: int, tile: FlatTile, some: Callable[[list[Expr]], None]) -> None:
    """``some(offsets)`` of a few rows at a time. Threads share them."""
    threads = tile.threads and rows * n > PARALLEL_ELEMENTS
    tir.side_by_side(rows, SIDE_BY_SIDE, lambda few: some([T.Bind(row * n) for row in few]), threads)


def reduce_rows(
    bases: list[Expr],
    count: int,
    lanes: int,
    load: Callable[[int, Expr, Expr, int], Expr],
    combine: Callable[[Expr, Expr], Expr],
    starts: list[Expr] | None = None,
) -> list[Expr]:
    """Combines ``load(row, base, offset, lanes)`` over each row into one scalar; ``load`` meets every element once.

    ``starts`` are neutral, 0 unless given, or an element of a maximum.
    """
    while lanes > count:
        lanes //= 2
    whole = count // lanes
    done = whole * lanes
    chains = min(max(1, CHAINS // len(bases)), whole)
    starts = starts or [tir.const(0.0, "float32")] * len(bases)
    partial = [[tir.register(lanes, "float32") for _ in range(chains)] for _ in bases]
    everything = tir.at(0, lanes)

    def update(cell: Any, value: Expr) -> None:
        T.buffer_store(cell, combine(cell[everything], value), [everything])

    for cells, start in zip(partial, starts, strict=True):
        for cell in cells:
            T.buffer_store(cell, tir.splat(start, lanes), [everything])
    with T.serial(0, whole // chains) as i:
        for c in range(chains):
            for row, base in enumerate(bases):
                update(partial[row][c], load(row, base, (i * chains + c) * lanes, lanes))
    for v in range(whole // chains * chains, whole):
        for row, base in enumerate(bases):
            update(partial[row][0], load(row, base, tir.const(v * lanes, "int32"), lanes))
    totals = []
    for row, (base, (first, *others)) in enumerate(zip(bases, partial, strict=True)):
        for cell in others:
            update(first, cell[everything])
        total = _across(first[everything], lanes, combine)
        with T.serial(0, count - done) as rest:
            T.buffer_store(total, combine(total[0], load(row, base, done + rest, 1)), [0])
        totals.append(T.Bind(total[0]))
    return totals


def _across(vector: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Any:
    """Buffer of one element: the lanes combined by halves."""
    while lanes > 1:
        # a buffer of its own: one that is read in parts does not stay in a register
        whole = tir.register(lanes, "float32")
        T.buffer_store(whole, vector, [tir.at(0, lanes)])
        lanes //= 2
        vector = T.Bind(combine(*[whole[tir.at(tir.const(half, "int32"), lanes)] for half in (0, lanes)]))
    total = tir.register(1, "float32")
    T.buffer_store(total, vector, [0])
    return total


def _scale_in_place(count: int, lanes: int, y: Any, base: Expr, factor: Expr) -> None:
    """Multiplies a row."""
    _each_once(count, lanes, lambda o, n: T.buffer_store(y, y[tir.at(base + o, n)] * tir.splat(factor, n), [tir.at(base + o, n)]))


def _each_once(count: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """``body(offset, lanes)`` over a row that is changed in place: what is left after whole vectors goes one by one."""
    while lanes > count:
        lanes //= 2
    whole = count // lanes
    with T.serial(0, whole) as i:
        body(i * lanes, lanes)
    with T.serial(0, count - whole * lanes) as rest:
        body(whole * lanes + rest, 1)
