"""float32 depthwise convolution: vectors of channels, with the image read where it is.

Nothing is copied for the borders: a line asks only for the kernel rows that lie inside the image, and the tiles of columns that
see the left or right border have code of their own, without the taps outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import border, tir
from tvmflow.schedule.epilogue import ConvEpilogue
from tvmflow.schedule.intrinsics import BY_NAME, Dot, dot_for

Array = NDArray[Any]
Expr = Any
Taps = tuple[tuple[int, int, int], ...]
"""Column of the image relative to the tile's first, output that uses it, column of the kernel; in order."""


class DepthwiseFloatTile(msgspec.Struct, frozen=True, tag="depthwise_float"):
    """``mw`` outputs of a row are computed together. Threads share bands of ``rows`` rows, or the channels of a single band."""

    dot: str
    mw: int
    rows: int
    threads: bool = True


def space(spec: Conv2d, names: tuple[str, ...], registers: int) -> Iterator[DepthwiseFloatTile]:
    """Tiles whose accumulators, weights of a kernel row and two columns in flight fit the register file."""
    dot = dot_for(names if spec.oc >= 4 else ("generic_f32",), spec.oc)
    for mw in range(1, min(spec.ow, 28) + 1):
        if mw + spec.kw + 2 <= registers or mw == 1:
            for rows in sorted({min(rows, spec.oh) for rows in (1, 2, 4, 8)} | ({spec.oh} if spec.oh <= 16 else set())):
                yield DepthwiseFloatTile(dot.name, mw, rows)


def estimate(spec: Conv2d, tile: DepthwiseFloatTile) -> float:
    """Cycles: loads and multiplies of each kernel row, the epilogue, and the rows that a band reads again."""
    lanes = BY_NAME[tile.dot].lanes
    columns = (tile.mw - 1) * spec.stride[1] + (spec.kw - 1) * spec.dilation[1] + 1
    row = max(tile.mw * spec.kw / 2, (columns + spec.kw) / 2, 4.0 * spec.kw) + 3
    line = ceil(spec.ow / tile.mw) * (spec.kh * row + 2.0 * tile.mw + 12) + 40
    again = (spec.kh - 1) * spec.dilation[0] * spec.w / 2
    return spec.n * ceil(spec.oh / tile.rows) * ceil(spec.oc / lanes) * (tile.rows * line + again)


def pack(spec: Conv2d, tile: DepthwiseFloatTile, consts: list[Array]) -> list[Array]:
    """Weights as ``[kh, kw, channels]``."""
    return [np.ascontiguousarray(consts[0].reshape(spec.oc, spec.kh, spec.kw).transpose(1, 2, 0)), *consts[1:]]


def params(spec: Conv2d, _tile: DepthwiseFloatTile) -> tir.Params:
    """The kernel's parameters: ``x, packed weight, bias, bounds[, residual], y``."""
    return tir.conv_params(spec, (spec.kh, spec.kw, spec.oc), "float32", spec.oc)


def emit(spec: Conv2d, tile: DepthwiseFloatTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over its :func:`params`."""

    def body(x: Any, weight: Any, bias: Any, *rest: Any) -> None:
        Nest(spec, tile, weight, bias, rest[:-1]).emit(x, rest[-1])

    return tir.prim_func(name, params(spec, tile), body, {})


def column_tiles(spec: Conv2d, mw: int) -> list[tuple[int, int, Taps]]:
    """First output, number and taps of tiles that follow each other and see the image alike."""
    found: list[tuple[int, int, Taps]] = []
    _, columns = border.axes(spec)
    for t in range(ceil(spec.ow / mw)):
        start = min(t * mw, spec.ow - mw)
        inside = ((m, k) for m in range(mw) for k in columns.inside(start + m))
        taps = tuple(sorted((m * spec.stride[1] + k * spec.dilation[1], m, k) for m, k in inside))
        if found and found[-1][2] == taps and start == found[-1][0] + found[-1][1] * mw:
            found[-1] = (found[-1][0], found[-1][1] + 1, taps)
        else:
            found.append((start, 1, taps))
    return found


class Nest:
    """Emits the loop nest; its attributes are what the pieces share."""

    def __init__(self, spec: Conv2d, tile: DepthwiseFloatTile, weight: Any, bias: Any, params: Any) -> None:
        self.spec, self.tile = spec, tile
        self.weight, self.bias, self.params = weight, bias, params
        self.dot: Dot = BY_NAME[tile.dot]
        self.lanes = 1 << (min(self.dot.lanes, spec.oc).bit_length() - 1)
        self.every = tir.at(0, self.lanes)

    def emit(self, x: Any, y: Any) -> None:
        spec, tile = self.spec, self.tile
        bands = ceil(spec.oh / tile.rows)
        with tir.parallel_if(tile.threads, spec.n * bands) as chunk:
            image = chunk // bands if spec.n > 1 else 0
            oh0 = T.Bind(tir.inside(chunk % bands, tile.rows, spec.oh))
            source = tir.Rows(x, spec.h, spec.w * spec.ic, image)
            to = tir.Rows(y, spec.oh, spec.ow * spec.oc, image)
            with tir.parallel_if(tile.threads and spec.n * bands == 1, ceil(spec.oc / self.lanes)) as v:
                c = self._first_channel(v)
                # a band of rows for one vector of channels: what a line reads is still in L1 for the next
                with T.serial(0, tile.rows) as line:
                    self._line(source, to, T.Bind(oh0 + line), c)

    def lines(self, source: tir.Rows, to: tir.Rows, begin: Expr, end: Expr) -> None:
        """Rows ``begin`` to ``end`` of the outputs, in the order of a band."""
        with T.serial(0, ceil(self.spec.oc / self.lanes)) as v:
            c = self._first_channel(v)
            with T.serial(begin, end) as oh:
                self._line(source, to, oh, c)

    def _first_channel(self, v: Expr) -> Expr:
        return T.Bind(tir.inside(v, self.lanes, self.spec.oc))

    def _line(self, source: tir.Rows, to: tir.Rows, oh: Expr, c: Expr) -> None:
        spec = self.spec
        rows, columns = border.axes(spec)
        top = T.Bind(rows.start(oh))
        first, last = (T.Bind(bound) for bound in rows.inside_at(top))
        for start, count, taps in column_tiles(spec, self.tile.mw):
            with T.serial(0, count) as t:
                ow0 = T.Bind(start + t * self.tile.mw)
                left = T.Bind(columns.start(ow0) * spec.oc + c)
                index = T.Bind(to.start(oh) + ow0 * spec.oc + c)
                acc = self._accumulators(c)

                def kernel_row(kh: Expr, left: Expr = left, taps: Taps = taps, acc: list[Any] = acc) -> None:
                    self._multiply(acc, source.buffer, T.Bind(source.start(top + kh * spec.dilation[0]) + left), kh, c, taps)

                with T.If(last - first == spec.kh):
                    with T.Then():
                        for kh in range(spec.kh):
                            kernel_row(kh)
                    with T.Else(), T.serial(first, last) as kh:
                        kernel_row(kh)
                for m, cell in enumerate(acc):
                    self.epilogue.store(to.buffer, index + m * spec.oc, cell[self.every])

    def _accumulators(self, c: Expr) -> list[Any]:
        self.epilogue = ConvEpilogue(self.spec, self.bias, self.params, self.lanes, "float32")
        start = self.epilogue.bias_at(c)
        acc = [tir.register(self.lanes, "float32") for _ in range(self.tile.mw)]
        for cell in acc:
            T.buffer_store(cell, start, [self.every])
        return acc

    def _multiply(self, acc: list[Any], x: Any, row: Expr, kh: Expr, c: Expr, taps: Taps) -> None:
        """Adds the products of one kernel row; ``row`` is where the tile's first column begins."""
        spec, lanes = self.spec, self.lanes
        used = sorted({k for _, _, k in taps})
        weights = {k: T.Bind(self.weight[tir.at((kh * spec.kw + k) * spec.oc + c, lanes)]) for k in used}
        loaded: dict[int, Expr] = {}
        for column, m, k in taps:
            if column not in loaded:
                loaded[column] = T.Bind(x[tir.at(row + column * spec.oc, lanes)])
            product = self.dot.lanewise(acc[m][self.every], loaded[column], weights[k], lanes)
            T.buffer_store(acc[m], product, [self.every])
