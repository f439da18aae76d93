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
from tvmflow.schedule.elementwise import FlatTile, chunked
from tvmflow.schedule.transcendental import Vector

Expr = Any
CHAINS = 4
"""Partial results of a reduction that are in flight."""
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
        with tir.parallel_if(tile.threads and spec.rows * spec.n > PARALLEL_ELEMENTS, spec.rows) as row:
            base = T.Bind(row * spec.n)
            top = _reduce(spec.n, tile.lanes, lambda o, n: x[tir.at(base + o, n)], tirx.max, x[base])

            def exponentials(o: Expr, n: int) -> None:
                value = Vector(n).exp(T.Bind(x[tir.at(base + o, n)] - tir.splat(top, n)))
                T.buffer_store(y, value, [tir.at(base + o, n)])

            tir.for_each_run(spec.n, tile.lanes, exponentials)
            total = _reduce(spec.n, tile.lanes, lambda o, n: y[tir.at(base + o, n)], _add, tir.const(0.0, "float32"))
            scale = T.Bind(tir.const(1.0, "float32") / total)
            _in_place(spec.n, tile.lanes, y, base, lambda v, _o, n: v * tir.splat(scale, n))

    shape = (spec.rows, spec.n)
    return tir.prim_func(name, [("x", shape, "float32"), ("y", shape, "float32")], body, {})


def emit_layer_norm(spec: LayerNorm, tile: FlatTile, name: str) -> tirx.PrimFunc:
    """Mean, then the variance of the centred row (two passes: no cancellation), then scale and shift."""

    def body(x: Any, gamma: Any, beta: Any, epsilon: Any, y: Any) -> None:
        zero, count = tir.const(0.0, "float32"), tir.const(1.0 / spec.n, "float32")
        with tir.parallel_if(tile.threads and spec.rows * spec.n > PARALLEL_ELEMENTS, spec.rows) as row:
            base = T.Bind(row * spec.n)
            mean = T.Bind(_reduce(spec.n, tile.lanes, lambda o, n: x[tir.at(base + o, n)], _add, zero) * count)

            def squares(o: Expr, n: int) -> Expr:
                centred = T.Bind(x[tir.at(base + o, n)] - tir.splat(mean, n))
                return centred * centred

            variance = _reduce(spec.n, tile.lanes, squares, _add, zero) * count
            scale = T.Bind(tir.const(1.0, "float32") / tirx.sqrt(variance + epsilon[0]))

            def finish(o: Expr, n: int) -> None:
                centred = x[tir.at(base + o, n)] - tir.splat(mean, n)
                value = centred * tir.splat(scale, n) * gamma[tir.at(o, n)] + beta[tir.at(o, n)]
                T.buffer_store(y, value, [tir.at(base + o, n)])

            tir.for_each_run(spec.n, tile.lanes, finish)

    shape, channel = (spec.rows, spec.n), (spec.n,)
    params = [("x", shape, "float32"), ("gamma", channel, "float32"), ("beta", channel, "float32"), ("epsilon", (1,), "float32")]
    return tir.prim_func(name, [*params, ("y", shape, "float32")], body, {})


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def _reduce(
    count: int, lanes: int, load: Callable[[Expr, int], Expr], combine: Callable[[Expr, Expr], Expr], start: Expr
) -> Expr:
    """Combines ``load(offset, lanes)`` over a row into one scalar. ``start`` is neutral, or an element of a maximum."""
    while lanes > count:
        lanes //= 2
    whole = count // lanes
    chains = min(CHAINS, whole)
    partial = [tir.register(lanes, "float32") for _ in range(chains)]
    everything = tir.at(0, lanes)
    for cell in partial:
        T.buffer_store(cell, tir.splat(start, lanes), [everything])
    with T.serial(0, whole // chains) as i:
        for c, cell in enumerate(partial):
            T.buffer_store(cell, combine(cell[everything], load((i * chains + c) * lanes, lanes)), [everything])
    for v in range(whole // chains * chains, whole):
        T.buffer_store(partial[0], combine(partial[0][everything], load(tir.const(v * lanes, "int32"), lanes)), [everything])
    for cell in partial[1:]:
        T.buffer_store(partial[0], combine(partial[0][everything], cell[everything]), [everything])
    total = tir.register(1, "float32")
    T.buffer_store(total, partial[0][0], [0])
    for lane in range(1, lanes):
        T.buffer_store(total, combine(total[0], partial[0][lane]), [0])
    with T.serial(0, count - whole * lanes) as rest:
        T.buffer_store(total, combine(total[0], load(whole * lanes + rest, 1)), [0])
    return T.Bind(total[0])


def _in_place(count: int, lanes: int, y: Any, base: Expr, change: Callable[[Expr, Expr, int], Expr]) -> None:
    """``y = change(y)`` over a row. An element must not be changed twice: what is left after whole vectors goes one by one."""
    while lanes > count:
        lanes //= 2
    whole = count // lanes
    with T.serial(0, whole) as i:
        o = i * lanes
        T.buffer_store(y, change(y[tir.at(base + o, lanes)], o, lanes), [tir.at(base + o, lanes)])
    with T.serial(0, count - whole * lanes) as rest:
        o = whole * lanes + rest
        T.buffer_store(y, change(y[base + o], o, 1), [base + o])
