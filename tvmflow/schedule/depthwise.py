"""Integer depthwise convolution on CPUs without a dot product: multiply-adds of vectors of channels.

A column of the image is loaded once and serves all outputs of the tile that see it.
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
from tvmflow.schedule import tir
from tvmflow.schedule.constants import fold_zero_point
from tvmflow.schedule.epilogue import ConvEpilogue
from tvmflow.schedule.intrinsics import BY_NAME, Dot, dot_for
from tvmflow.schedule.staging import Staging

Array = NDArray[Any]
Expr = Any


class DepthwiseTile(msgspec.Struct, frozen=True, tag="depthwise"):
    """``mw`` outputs of a row are computed together; a band of ``rows`` output rows is staged and computed at once."""

    dot: str
    mw: int
    rows: int = 4
    threads: bool = True


def space(spec: Conv2d, names: tuple[str, ...], registers: int) -> Iterator[DepthwiseTile]:
    names = tuple(name for name in names if BY_NAME[name].group == 1) or ("generic",)
    if spec.oc < 4:  # fewer than any vector instruction takes
        names = ("generic",)
    dot = dot_for(names, spec.oc)
    for mw in range(1, min(spec.ow, 16) + 1):
        # accumulators, the weights of all columns, and a few columns in flight
        if (mw + spec.kh * spec.kw + 4) * dot.regs_per_acc <= registers or mw == 1:
            for rows in sorted({min(rows, spec.oh) for rows in (1, 2, 4, 8, 16)}):
                yield DepthwiseTile(dot.name, mw, rows)


def estimate(spec: Conv2d, tile: DepthwiseTile, l1d_kib: int) -> float:
    """Cycles per row and vector of channels: loads of the columns, multiplies, epilogue.

    A band is staged, then walked once per vector of channels: more rows share what that costs, as long as the band stays in L1.
    """
    dot = BY_NAME[tile.dot]
    columns = (tile.mw - 1) * spec.stride[1] + (spec.kw - 1) * spec.dilation[1] + 1
    load = columns * (2 * spec.kh) / 2
    multiply = tile.mw * spec.kw * spec.kh / 2
    body = max(load + multiply, 5.0 * spec.kw * spec.kh / max(tile.mw, 1)) + 4.0 * tile.mw + 8
    weights = spec.kw * spec.kh * 2 + 80
    vectors = ceil(spec.oc / dot.lanes)
    bands = spec.n * ceil(spec.oh / tile.rows)
    band = band_rows(spec, tile.rows) * (spec.w + spec.pad[1] + spec.pad[3]) * spec.ic
    copied = band / 32 if any(spec.pad) else 0.0
    slower = 1.0 if band < l1d_kib * 850 else 1.3
    return bands * (copied + vectors * (weights + tile.rows * ceil(spec.ow / tile.mw) * body * slower))


def pack(spec: Conv2d, tile: DepthwiseTile, consts: list[Array]) -> list[Array]:
    """Weights as ``[kh, kw, channels]``; the input's zero point moves into the bias."""
    weight = consts[0].reshape(spec.oc, spec.kh, spec.kw)
    return [np.ascontiguousarray(weight.transpose(1, 2, 0)), fold_zero_point(weight, consts[1], consts[3]), *consts[2:]]


def emit(spec: Conv2d, tile: DepthwiseTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over ``x, packed weight, bias, multiplier, quant[, residual], y``."""
    dot = BY_NAME[tile.dot]
    params = tir.conv_params(spec, (spec.kh, spec.kw, spec.oc), dot.b_dtype, spec.oc)
    return tir.prim_func(name, params, lambda *buffers: _emit_body(spec, tile, dot, *buffers), {})


def _emit_body(spec: Conv2d, tile: DepthwiseTile, dot: Dot, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
    epilogue_params, y = rest[:-1], rest[-1]
    columns = spec.w + spec.pad[1] + spec.pad[3]
    bands = ceil(spec.oh / tile.rows)
    with tir.parallel_if(tile.threads, spec.n * bands) as chunk:
        image, band = (chunk // bands, chunk % bands) if spec.n > 1 else (0, chunk)
        oh0 = T.Bind(tir.inside(band, tile.rows, spec.oh))
        source, origin = x, (image * spec.h + oh0 * spec.stride[0]) * columns * spec.ic
        if any(spec.pad):
            zero = epilogue_params[1][0]
            staging = Staging(spec.n, spec.h, spec.w, 1, spec.ic, spec.pad, zero, spec.x, spec.ic)
            # only the rows that the band sees: they are still in cache when they are multiplied
            source, origin = staging.band(x, image, oh0 * spec.stride[0] - spec.pad[0], band_rows(spec, tile.rows)), 0

        def channels(c: Expr, lanes: int) -> None:
            finish = ConvEpilogue(spec, bias, epilogue_params, lanes, dot.acc_dtype)
            taps = _bind_weights(spec, weight, c, lanes)
            start_at = finish.bias_at(c)
            finish.bind_multiplier(c)
            with T.serial(0, tile.rows) as line, T.serial(0, ceil(spec.ow / tile.mw)) as t:
                ow0 = T.Bind(tir.inside(t, tile.mw, spec.ow))
                base = T.Bind(origin + (line * spec.stride[0] * columns + ow0 * spec.stride[1]) * spec.ic + c)
                out = T.Bind((((image * spec.oh + oh0 + line) * spec.ow) + ow0) * spec.oc + c)
                acc = _multiply(spec, tile, dot, source, taps, base, start_at, lanes)
                for m, cell in enumerate(acc):
                    finish.store(y, out + m * spec.oc, cell[tir.at(0, lanes)])

        tir.for_each_run(spec.oc, dot.lanes * dot.regs_per_acc, channels)


def band_rows(spec: Conv2d, rows: int) -> int:
    """Rows of the padded image that ``rows`` rows of output see."""
    return (rows - 1) * spec.stride[0] + (spec.kh - 1) * spec.dilation[0] + 1


def _bind_weights(spec: Conv2d, weight: Any, c: Expr, lanes: int) -> list[list[Expr]]:
    """Weight vectors by kernel row and column."""
    return [[T.Bind(weight[tir.at((kh * spec.kw + kw) * spec.oc + c, lanes)]) for kw in range(spec.kw)] for kh in range(spec.kh)]


def _multiply(
    spec: Conv2d, tile: DepthwiseTile, dot: Dot, x: Any, taps: list[list[Expr]], base: Expr, bias: Expr, lanes: int
) -> list[Any]:
    """Accumulators of the tile's outputs; each column is loaded once and used by every output that sees it."""
    everything = tir.at(0, lanes)
    acc = [tir.register(lanes, dot.acc_dtype) for _ in range(tile.mw)]
    for cell in acc:
        T.buffer_store(cell, bias, [everything])
    columns = spec.w + spec.pad[1] + spec.pad[3]
    uses: dict[int, list[tuple[int, int]]] = {}
    for m in range(tile.mw):
        for kw in range(spec.kw):
            uses.setdefault(m * spec.stride[1] + kw * spec.dilation[1], []).append((m, kw))
    for kh, row in enumerate(taps):
        for column in sorted(uses):
            offset = (kh * spec.dilation[0] * columns + column) * spec.ic
            value = T.Bind(x[tir.at(base + offset, lanes)])
            for m, kw in uses[column]:
                T.buffer_store(acc[m], dot.lanewise(acc[m][everything], value, row[kw], lanes), [everything])
    return acc
