"""Products of two activations on CPUs: pack the right operand, then the register tile of the convolution.

The right operand is no constant, so it is packed into scratch at run time: ``[columns / lanes, k / group, lanes, group]``,
signed for instructions that want it so (``b - 128``), with the sums that the zero points need computed on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import msgspec
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import MatMul
from tvmflow.schedule import tir
from tvmflow.schedule.intrinsics import BY_NAME, dot_for

Expr = Any


class MatMulTile(msgspec.Struct, frozen=True, tag="matmul"):
    """``mr`` rows by ``nr`` vectors of columns stay in registers."""

    dot: str
    mr: int
    nr: int
    threads: bool = True


def space(spec: MatMul, names: tuple[str, ...], registers: int) -> Iterator[MatMulTile]:
    dot = dot_for(names, spec.n)
    vectors = ceil(spec.n / dot.lanes)
    for nr in range(1, min(vectors, 6) + 1):
        for mr in range(1, min(spec.m, 28) + 1):
            if (mr * nr + nr) * dot.regs_per_acc + dot.temporaries <= registers:
                yield MatMulTile(dot.name, mr, nr)


def estimate(spec: MatMul, tile: MatMulTile) -> float:
    """Cycles of the register tile; packing costs the same for every tile."""
    dot = BY_NAME[tile.dot]
    step = max(tile.mr * tile.nr * dot.regs_per_acc / 2, (tile.mr + tile.nr * dot.regs_per_acc) / 2, 5.0)
    blocks = ceil(ceil(spec.n / dot.lanes) / tile.nr)
    return spec.batch * ceil(spec.m / tile.mr) * blocks * (ceil(spec.k / dot.group) * step + 4.0 * tile.mr * tile.nr + 24)


def emit(spec: MatMul, tile: MatMulTile, name: str) -> tirx.PrimFunc:
    """``a, b, [multiplier, quant,] y``."""
    b_shape = (spec.batch, spec.n, spec.k) if spec.transpose_b else (spec.batch, spec.k, spec.n)
    params: tir.Params = [("a", (spec.batch, spec.m, spec.k), spec.x), ("b", b_shape, spec.x)]
    if spec.is_integer:
        params += [("multiplier", (1,), "float32"), ("quant", (5,), "int32")]
    params.append(("y", spec.out_shape, spec.y))
    return tir.prim_func(name, params, lambda *buffers: _Product(spec, tile).emit(*buffers), {})


class _Product:
    """Emits the packing and the register-tiled product; its attributes are what the pieces share."""

    def __init__(self, spec: MatMul, tile: MatMulTile) -> None:
        self.spec, self.tile, self.dot = spec, tile, BY_NAME[tile.dot]
        self.vectors = ceil(spec.n / self.dot.lanes)
        self.steps = ceil(spec.k / self.dot.group)
        self.depth = self.steps * self.dot.group
        # vpdpbusd multiplies unsigned by signed: the right operand is shifted when it is stored unsigned
        self.b_shift = 128 if spec.x == "uint8" else 0

    def emit(self, a: Any, b: Any, *rest: Any) -> None:
        spec, tile, dot = self.spec, self.tile, self.dot
        self.y, self.params = rest[-1], rest[:-1]
        self.packed = T.alloc_buffer((spec.batch * self.vectors * self.depth * dot.lanes,), dot.b_dtype, scope="global")
        if spec.is_integer:
            self.offsets = T.alloc_buffer((spec.batch * self.vectors * dot.lanes,), "int32", scope="global")
        self._pack_b(b)
        self.a = self._stage_a(a)
        row_tiles = ceil(spec.m / tile.mr)
        with tir.parallel_if(tile.threads, spec.batch * row_tiles) as t:
            batch = t // row_tiles
            m0 = T.Bind(tir.inside(t % row_tiles, tile.mr, spec.m))
            row_sums = self._row_sums(batch, m0) if spec.is_integer else []
            with T.serial(0, ceil(self.vectors / tile.nr)) as block:
                self._tile(batch, m0, block, row_sums)

    def _pack_b(self, b: Any) -> None:
        """Packs b, and per column ``k * za * zb - za * sum(b)``, what its zero points add to every row."""
        spec, dot = self.spec, self.dot
        with tir.parallel_if(self.tile.threads and spec.batch * spec.k * spec.n > 65536, spec.batch * self.vectors) as panel:
            batch, vector = panel // self.vectors, panel % self.vectors
            first = T.Bind(tir.inside(vector, dot.lanes, spec.n))
            base = T.Bind(panel * (self.depth * dot.lanes))
            if spec.is_integer:
                with T.serial(0, dot.lanes) as lane:
                    T.buffer_store(self.offsets, tir.const(0, "int32"), [panel * dot.lanes + lane])
            with T.serial(0, self.depth) as k:
                to = base + k // dot.group * (dot.lanes * dot.group) + k % dot.group
                if self.depth == spec.k:
                    self._pack_row(b, batch, panel, first, k, to)
                else:
                    with T.If(k < spec.k):
                        with T.Then():
                            self._pack_row(b, batch, panel, first, k, to)
                        with T.Else(), T.serial(0, dot.lanes) as lane:
                            T.buffer_store(self.packed, tir.const(0, dot.b_dtype), [to + lane * dot.group])
            if spec.is_integer:
                a_zero, b_zero = self.params[1][0], self.params[1][1]
                with T.serial(0, dot.lanes) as lane:
                    at = panel * dot.lanes + lane
                    T.buffer_store(self.offsets, a_zero * (b_zero * spec.k - self.offsets[at]), [at])

    def _pack_row(self, b: Any, batch: Expr, panel: Expr, first: Expr, k: Expr, to: Expr) -> None:
        spec, dot = self.spec, self.dot
        with T.serial(0, dot.lanes) as lane:
            column = tirx.min(first + lane, spec.n - 1) if spec.n < dot.lanes else first + lane
            index = (batch * spec.n + column) * spec.k + k if spec.transpose_b else (batch * spec.k + k) * spec.n + column
            value = T.Bind(b[index])
            if spec.is_integer:
                whole = value.astype("int32")
                T.buffer_store(self.packed, (whole - self.b_shift).astype(dot.b_dtype), [to + lane * dot.group])
                at = panel * dot.lanes + lane
                T.buffer_store(self.offsets, self.offsets[at] + whole, [at])
            else:
                T.buffer_store(self.packed, value, [to + lane])

    def _stage_a(self, a: Any) -> Any:
        """a itself, or a widened copy whose rows are whole groups."""
        spec, dot = self.spec, self.dot
        if dot.a_dtype == spec.x and self.depth == spec.k:
            return a
        rows = spec.batch * spec.m
        staged = T.alloc_buffer((rows * self.depth,), dot.a_dtype, scope="global")
        with tir.parallel_if(self.tile.threads and rows * spec.k > 65536, rows) as row:

            def copy(o: Expr, n: int) -> None:
                value = a[tir.at(row * spec.k + o, n)].astype(tir.lanes_of(dot.a_dtype, n))
                T.buffer_store(staged, value, [tir.at(row * self.depth + o, n)])

            tir.for_each_run(spec.k, 16, copy)
            for k in range(spec.k, self.depth):
                T.buffer_store(staged, tir.const(0, dot.a_dtype), [row * self.depth + k])
        return staged

    def _row_sums(self, batch: Expr, m0: Expr) -> list[Expr]:
        """Per row of the tile ``(b_shift - b_zero) * sum(a)``."""
        spec = self.spec
        sums = []
        for m in range(self.tile.mr):
            total = tir.register(1, "int32")
            T.buffer_store(total, tir.const(0, "int32"), [0])
            row = T.Bind((batch * spec.m + m0 + m) * self.depth)
            with T.serial(0, spec.k) as k:
                T.buffer_store(total, total[0] + self.a[row + k].astype("int32"), [0])
            sums.append(T.Bind(total[0] * (tir.const(self.b_shift, "int32") - self.params[1][1])))
        return sums

    def _tile(self, batch: Expr, m0: Expr, block: Expr, row_sums: list[Expr]) -> None:
        spec, tile, dot = self.spec, self.tile, self.dot
        lanes = dot.lanes
        v0 = T.Bind(tir.inside(block, tile.nr, self.vectors))
        acc = [[tir.register(lanes, dot.acc_dtype) for _ in range(tile.nr)] for _ in range(tile.mr)]
        everything = tir.at(0, lanes)
        for row in acc:
            for cell in row:
                T.buffer_store(cell, tir.splat(tir.const(0, dot.acc_dtype), lanes), [everything])
        panel = T.Bind((batch * self.vectors + v0) * (self.depth * lanes))
        first_row = T.Bind((batch * spec.m + m0) * self.depth)
        with T.serial(0, self.steps) as k:
            size = lanes * dot.group
            weights = [T.Bind(self.packed[tir.at(panel + i * (self.depth * lanes) + k * size, size)]) for i in range(tile.nr)]
            for m in range(tile.mr):
                a = self.a[tir.at(first_row + m * self.depth + k * dot.group, dot.group)]
                for i in range(tile.nr):
                    T.buffer_store(acc[m][i], dot.broadcast(acc[m][i][everything], a, weights[i]), [everything])
        for i in range(tile.nr):
            self._store(batch, m0, v0 + i, [row[i][everything] for row in acc], row_sums)

    def _store(self, batch: Expr, m0: Expr, vector: Expr, values: list[Expr], row_sums: list[Expr]) -> None:
        spec, lanes = self.spec, self.dot.lanes
        column = T.Bind(tir.inside(vector, lanes, spec.n))
        offset = requantize = None
        if spec.is_integer:
            quant = self.params[1]
            offset = T.Bind(self.offsets[tir.at((batch * self.vectors + vector) * lanes, lanes)])
            multiplier = T.Bind(tir.splat(self.params[0][0], lanes))
            if spec.y != "float32":
                requantize = tir.Requantizer(quant[2], quant[3], quant[4], lanes, spec.y)
        for m, value in enumerate(values):
            if spec.is_integer:
                total = value + offset + tir.splat(row_sums[m], lanes)
                value = requantize(total, multiplier) if requantize else total.astype(tir.lanes_of("float32", lanes)) * multiplier
            index = (batch * spec.m + m0 + m) * spec.n + column
            if spec.n >= lanes:
                T.buffer_store(self.y, value, [tir.at(index, lanes)])
            else:
                result = tir.register(lanes, spec.y)
                T.buffer_store(result, value, [tir.at(0, lanes)])
                for lane in range(spec.n):
                    T.buffer_store(self.y, result[lane], [index + lane])
