"""Softmax and layer normalization on CUDA, float32: a block takes a row, its threads meet in shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import LayerNorm, Softmax
from tvmflow.schedule import cuda, tir
from tvmflow.schedule.cuda_elementwise import ThreadTile
from tvmflow.schedule.transcendental import Vector

Expr = Any


class _Row:
    """The threads of a block and the row that they share."""

    def __init__(self, n: int, threads: int, thread: Expr) -> None:
        self.n, self.threads, self.thread = n, threads, thread
        self.partial = cuda.shared(threads, "float32")
        self.mine = cuda.local(1, "float32")

    def each(self, body: Callable[[Expr], None]) -> None:
        """``body(i)`` for every element ``i``, neighbours in neighbouring threads."""
        with T.serial(0, -(-self.n // self.threads)) as turn:
            i = turn * self.threads + self.thread
            with cuda.only_if(True if self.n % self.threads == 0 else i < self.n):
                body(i)

    def reduce(self, value: Callable[[Expr], Expr], combine: Callable[[Expr, Expr], Expr], start: Expr) -> Expr:
        """All elements combined, the same scalar in every thread. ``start`` is neutral."""
        T.buffer_store(self.mine, start, [0])
        self.each(lambda i: T.buffer_store(self.mine, combine(self.mine[0], value(i)), [0]))
        T.buffer_store(self.partial, self.mine[0], [self.thread])
        cuda.barrier()
        half = self.threads // 2
        while half:
            merged = combine(self.partial[self.thread], self.partial[self.thread + half])
            with cuda.only_if(self.thread < half):
                T.buffer_store(self.partial, merged, [self.thread])
            cuda.barrier()
            half //= 2
        T.buffer_store(self.mine, self.partial[0], [0])
        cuda.barrier()  # the next reduction writes where this one is still being read
        return T.Bind(self.mine[0])


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def emit_softmax(spec: Softmax, tile: ThreadTile, name: str) -> tirx.PrimFunc:
    """Maximum, exponentials, their sum, one division a row."""

    def body(block: Expr, thread: Expr, x: Any, y: Any) -> None:
        row, base = _Row(spec.n, tile.threads, thread), T.Bind(block * spec.n)
        top = row.reduce(lambda i: x[base + i], tirx.max, tir.const(float("-inf"), "float32"))
        row.each(lambda i: T.buffer_store(y, Vector(1).exp(T.Bind(x[base + i] - top)), [base + i]))
        total = row.reduce(lambda i: y[base + i], _add, tir.const(0.0, "float32"))
        scale = T.Bind(tir.const(1.0, "float32") / total)
        row.each(lambda i: T.buffer_store(y, y[base + i] * scale, [base + i]))

    shape = (spec.rows, spec.n)
    return cuda.kernel(name, [("x", shape, "float32"), ("y", shape, "float32")], spec.rows, tile.threads, body)


def emit_layer_norm(spec: LayerNorm, tile: ThreadTile, name: str) -> tirx.PrimFunc:
    """Mean, then the variance of the centred row (two passes: no cancellation), then scale and shift."""

    def body(block: Expr, thread: Expr, x: Any, gamma: Any, beta: Any, epsilon: Any, y: Any) -> None:
        row, base = _Row(spec.n, tile.threads, thread), T.Bind(block * spec.n)
        zero, count = tir.const(0.0, "float32"), tir.const(1.0 / spec.n, "float32")
        mean = T.Bind(row.reduce(lambda i: x[base + i], _add, zero) * count)

        def square(i: Expr) -> Expr:
            centred = T.Bind(x[base + i] - mean)
            return centred * centred

        variance = row.reduce(square, _add, zero) * count
        scale = T.Bind(tir.const(1.0, "float32") / tirx.sqrt(variance + epsilon[0]))
        row.each(lambda i: T.buffer_store(y, (x[base + i] - mean) * scale * gamma[i] + beta[i], [base + i]))

    shape, channel = (spec.rows, spec.n), (spec.n,)
    params = [("x", shape, "float32"), ("gamma", channel, "float32"), ("beta", channel, "float32"), ("epsilon", (1,), "float32")]
    return cuda.kernel(name, [*params, ("y", shape, "float32")], spec.rows, tile.threads, body)
