"""Depthwise convolution on CPUs: vectors of channels, the taps of a kernel column packed into one multiply.

The dot product instructions want ``group`` neighbouring elements to reduce over; a depthwise layer has none along the channels,
so ``group`` rows of the image are packed into one word per channel: three rows of a 3x3 kernel cost one VPDPBUSD per column.
A packed column serves all outputs of the tile that see it.
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
from tvmflow.schedule.intrinsics import BY_NAME, Dot
from tvmflow.schedule.staging import Image, padded_copy

Array = NDArray[Any]
Expr = Any


class DepthwiseTile(msgspec.Struct, frozen=True, tag="depthwise"):
    """``mw`` outputs of a row are computed together."""

    dot: str
    mw: int
    threads: bool = True


def pick_dot(names: tuple[str, ...], spec: Conv2d) -> Dot:
    """The preferred instruction; below four channels no vector instruction fits and plain arithmetic serves."""
    if spec.oc < 4:
        return BY_NAME["generic" if spec.is_integer else "generic_f32"]
    return BY_NAME[names[0]]


def space(spec: Conv2d, names: tuple[str, ...], registers: int) -> Iterator[DepthwiseTile]:
    dot = pick_dot(names, spec)
    row_groups = ceil(spec.kh / dot.group)
    for mw in range(1, min(spec.ow, 16) + 1):
        # accumulators, the weights of all columns, and a few columns in flight
        if (mw + row_groups * spec.kw + 4) * dot.regs_per_acc <= registers or mw == 1:
            yield DepthwiseTile(dot.name, mw)


def estimate(spec: Conv2d, tile: DepthwiseTile) -> float:
    """Cycles per row and vector of channels: packing of the columns, multiplies, epilogue."""
    dot = BY_NAME[tile.dot]
    row_groups = ceil(spec.kh / dot.group)
    columns = (tile.mw - 1) * spec.stride[1] + (spec.kw - 1) * spec.dilation[1] + 1
    pack = columns * (2 * spec.kh) / 2
    multiply = tile.mw * spec.kw * row_groups / 2
    body = max(pack + multiply, 5.0 * spec.kw * row_groups / max(tile.mw, 1)) + 4.0 * tile.mw + 8
    vectors = ceil(spec.oc / dot.lanes)
    return spec.n * spec.oh * ceil(spec.ow / tile.mw) * vectors * body


def default_tile(spec: Conv2d, names: tuple[str, ...], registers: int) -> DepthwiseTile:
    return min(space(spec, names, registers), key=lambda t: estimate(spec, t))


def pack(spec: Conv2d, tile: DepthwiseTile, consts: list[Array]) -> list[Array]:
    """Weights as ``[row groups, kw, channels, group]``; the input's zero point moves into the bias."""
    group = BY_NAME[tile.dot].group
    weight, bias = consts[0].reshape(spec.oc, spec.kh, spec.kw), consts[1]
    if spec.is_integer:
        bias = (bias.astype(np.int64) - int(consts[3][0]) * weight.sum(axis=(1, 2), dtype=np.int64)).astype(np.int32)
    row_groups = ceil(spec.kh / group)
    padded = np.pad(weight, ((0, 0), (0, row_groups * group - spec.kh), (0, 0)))
    packed = padded.reshape(spec.oc, row_groups, group, spec.kw).transpose(1, 3, 0, 2)
    return [np.ascontiguousarray(packed), bias, *consts[2:]]


def emit(spec: Conv2d, tile: DepthwiseTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over ``x, packed weight, bias, (multiplier, quant | bounds)[, residual], y``."""
    dot = BY_NAME[tile.dot]
    params: list[tuple[str, tuple[int, ...], str]] = [
        ("x", (spec.n, spec.h, spec.w, spec.ic), spec.x),
        ("weight", (ceil(spec.kh / dot.group), spec.kw, spec.oc, dot.group), dot.b_dtype),
        ("bias", (spec.oc,), dot.acc_dtype),
    ]
    if spec.is_integer:
        params += [("multiplier", (spec.oc,), "float32"), ("quant", (12 if spec.residual else 4,), "int32")]
    else:
        params += [("bounds", (2,), "float32")]
    if spec.residual:
        params.append(("residual", spec.out_shape, spec.y))
    params.append(("y", spec.out_shape, spec.y))
    return tir.prim_func(name, params, lambda *buffers: _emit_body(spec, tile, dot, *buffers), {})


def _emit_body(spec: Conv2d, tile: DepthwiseTile, dot: Dot, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
    epilogue_params, y = rest[:-1], rest[-1]
    rows, columns = spec.h + spec.pad[0] + spec.pad[2], spec.w + spec.pad[1] + spec.pad[3]
    if any(spec.pad):
        zero = epilogue_params[1][0] if spec.is_integer else tir.const(0.0, "float32")
        image = Image(spec.n, spec.h, spec.w, 1, spec.ic)
        x = padded_copy(x, image, spec.pad, zero, spec.x, spec.ic, spec.n * rows * columns * spec.ic, tile.threads)

    with tir.parallel_if(tile.threads, spec.n * spec.oh) as r:
        image_index, oh = (r // spec.oh, r % spec.oh) if spec.n > 1 else (0, r)
        corner = T.Bind((image_index * rows + oh * spec.stride[0]) * columns * spec.ic)
        out_row = T.Bind(r * spec.ow * spec.oc)

        def channels(c: Expr, lanes: int) -> None:
            finish = tir.ConvEpilogue(spec, bias, epilogue_params, lanes, dot.acc_dtype)
            taps = _bind_weights(spec, dot, weight, c, lanes)
            finish.bind_channels(c)
            tiles = ceil(spec.ow / tile.mw)
            with T.serial(0, tiles) as t:
                start = t * tile.mw
                ow0 = T.Bind(tirx.min(start, spec.ow - tile.mw) if spec.ow % tile.mw else start)
                base = T.Bind(corner + ow0 * spec.stride[1] * spec.ic + c)
                acc = _multiply(spec, tile, dot, x, taps, base, columns, lanes)
                for m, cell in enumerate(acc):
                    finish.store(y, out_row + (ow0 + m) * spec.oc + c, cell[tir.at(0, lanes)])

        tir.for_each_run(spec.oc, dot.lanes * dot.regs_per_acc, channels)


def _bind_weights(spec: Conv2d, dot: Dot, weight: Any, c: Expr, lanes: int) -> list[list[Expr]]:
    """Weight vectors by row group and kernel column."""
    size = lanes * dot.group
    return [
        [T.Bind(weight[tir.at(((rg * spec.kw + kw) * spec.oc + c) * dot.group, size)]) for kw in range(spec.kw)]
        for rg in range(ceil(spec.kh / dot.group))
    ]


def _multiply(
    spec: Conv2d, tile: DepthwiseTile, dot: Dot, x: Any, taps: list[list[Expr]], base: Expr, columns: int, lanes: int
) -> list[Any]:
    """Accumulators of the tile's outputs; each packed column is loaded once and used by every output that sees it."""
    everything = tir.at(0, lanes)
    acc = [tir.register(lanes, dot.acc_dtype) for _ in range(tile.mw)]
    for cell in acc:
        T.buffer_store(cell, tir.splat(tir.const(0, dot.acc_dtype), lanes), [everything])
    uses: dict[int, list[tuple[int, int]]] = {}
    for m in range(tile.mw):
        for kw in range(spec.kw):
            uses.setdefault(m * spec.stride[1] + kw * spec.dilation[1], []).append((m, kw))
    for rg, row_taps in enumerate(taps):
        rows = range(rg * dot.group, min(spec.kh, (rg + 1) * dot.group))
        for column in sorted(uses):
            offsets = [(kh * spec.dilation[0] * columns + column) * spec.ic for kh in rows]
            packed = T.Bind(_pack_rows(dot, spec.x, [x[tir.at(base + o, lanes)] for o in offsets], lanes))
            for m, kw in uses[column]:
                T.buffer_store(acc[m], dot.lanewise(acc[m][everything], packed, row_taps[kw], lanes), [everything])
    return acc


def _pack_rows(dot: Dot, dtype: str, values: list[Expr], lanes: int) -> Expr:
    """One word per channel that holds the elements of ``values`` in its bytes or halves."""
    if dot.group == 1:
        return values[0]
    word = tir.lanes_of("int32", lanes)
    bits = 32 // dot.group
    total = None
    for i, value in enumerate(values):
        if dtype == "int8" and bits == 8:
            value = tirx.reinterpret(tir.lanes_of("uint8", lanes), value)
        part = value.astype(word)
        if bits == 16 and dtype == "int8":
            part = part & tir.splat(tir.const(0xFFFF, "int32"), lanes)
        if i:
            part = part << tir.splat(tir.const(bits * i, "int32"), lanes)
        total = part if total is None else total | part
    return total
