"""Elementwise kernels and pooling on CUDA: a thread does a word of four int8 elements, or one element.

Neighbouring threads take neighbouring words, so every access of a warp is one run of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import msgspec
import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Binary, Dequantize, Lookup, Pool2d, Quantize, Unary
from tvmflow.schedule import cuda, tir
from tvmflow.schedule.elementwise import innermost_run, offsets, quantize_lanes
from tvmflow.schedule.transcendental import Vector

Expr = Any

UNROLLED_WINDOW = 64
"""Windows up to this size are unrolled, so that their loads are in flight together."""


class ThreadTile(msgspec.Struct, frozen=True, tag="cuda_threads"):
    """Threads a block."""

    threads: int


DEFAULT = ThreadTile(128)


def space() -> Iterator[ThreadTile]:
    for threads in (64, 128, 256, 512):
        yield ThreadTile(threads)


def emit_lookup(spec: Lookup, tile: ThreadTile, name: str) -> tirx.PrimFunc:
    """``y[i] = table[x[i]]``; the table stays in the first-level cache."""
    count = prod(spec.shape)
    lanes = cuda.lanes_for(count, spec.x, spec.y)

    def body(unit: Expr, x: Any, table: Any, y: Any) -> None:
        index = unit * lanes
        cuda.store(y, index, [table[value + 128] for value in cuda.load(x, index, lanes)])

    params = [("x", spec.shape, spec.x), ("table", (256,), spec.y), ("y", spec.shape, spec.y)]
    return cuda.element_kernel(name, params, count // lanes, tile.threads, body)


def emit_quantize(spec: Quantize, tile: ThreadTile, name: str) -> tirx.PrimFunc:
    """float32 to integers; with ``nchw`` a thread takes a pixel, whose channels it gathers from their planes."""
    count = prod(spec.shape)
    n, h, w, c = spec.shape if spec.nchw else (1, 1, 1, count)
    lanes = cuda.WORD if count % cuda.WORD == 0 else 1
    info = np.iinfo(spec.y)

    def body(unit: Expr, x: Any, scale: Any, quant: Any, y: Any) -> None:
        zero, by = T.Bind(quant[0]), T.Bind(scale[0])
        lo, hi = (T.Bind((tir.const(int(b), "int32") - zero).astype("float32")) for b in (info.min, info.max))
        shift = T.Bind(zero - tir.const(tir.Requantizer.MAGIC_BITS, "int32"))

        def convert(value: Expr) -> Expr:
            return quantize_lanes(value, by, lo, hi, shift, 1, spec.y)

        if not spec.nchw:
            cuda.store(y, unit * lanes, [convert(x[unit * lanes + i]) for i in range(lanes)])
            return
        plane = T.Bind(unit // (h * w) * (c * h * w) + unit % (h * w))
        with T.serial(0, c) as channel:
            T.buffer_store(y, convert(x[plane + channel * (h * w)]), [unit * c + channel])

    params = [("x", spec.in_shape, "float32"), ("scale", (1,), "float32"), ("quant", (1,), "int32"), ("y", spec.shape, spec.y)]
    units = n * h * w if spec.nchw else count // lanes
    return cuda.element_kernel(name, params, units, tile.threads, body)


def emit_dequantize(spec: Dequantize, tile: ThreadTile, name: str) -> tirx.PrimFunc:
    """``(q - zero) * scale``."""

    def body(unit: Expr, x: Any, scale: Any, quant: Any, y: Any) -> None:
        T.buffer_store(y, (x[unit].astype("int32") - quant[0]).astype("float32") * scale[0], [unit])

    params = [("x", spec.shape, spec.x), ("scale", (1,), "float32"), ("quant", (1,), "int32"), ("y", spec.shape, "float32")]
    return cuda.element_kernel(name, params, prod(spec.shape), tile.threads, body)


def emit_unary(spec: Unary, tile: ThreadTile, name: str) -> tirx.PrimFunc:
    """``y = fn(x)``, with the polynomials of the CPU kernels."""

    def body(unit: Expr, x: Any, y: Any) -> None:
        T.buffer_store(y, Vector(1).function(spec.fn)(T.Bind(x[unit])), [unit])

    params = [("x", spec.shape, "float32"), ("y", spec.shape, "float32")]
    return cuda.element_kernel(name, params, prod(spec.shape), tile.threads, body)


def emit_binary(spec: Binary, tile: ThreadTile, name: str) -> tirx.PrimFunc:
    """Add or multiply with broadcasting; an operand that stands still along the innermost run is read once."""
    add = spec.fn == "add"
    params: tir.Params = [("a", spec.a_shape, spec.x), ("b", spec.b_shape, spec.x)]
    if not add:
        params.append(("multiplier", (1,), "float32"))
    params += [("quant", (8 if add else 5,), "int32"), ("y", spec.out_shape, spec.y)]
    outer, run, a_moves, b_moves = innermost_run(spec)
    lanes = cuda.lanes_for(run, spec.x, spec.y)

    def body(unit: Expr, a: Any, b: Any, *rest: Any) -> None:
        quant, y = rest[-2:]
        ia, ib = offsets(unit * lanes // run, outer)
        along = unit * lanes % run
        left, right = (
            cuda.load(operand, start + along, lanes) if moves else cuda.load(operand, start, 1) * lanes
            for operand, start, moves in ((a, ia, a_moves), (b, ib, b_moves))
        )
        if add:
            fixed = tir.FixedPointAdd(quant, 0, 1, spec.y)
            values = [fixed(p, q) for p, q in zip(left, right, strict=True)]
        else:
            requantize = tir.Requantizer(quant[2], quant[3], quant[4], 1, spec.y)
            values = [requantize((p - quant[0]) * (q - quant[1]), rest[0][0]) for p, q in zip(left, right, strict=True)]
        cuda.store(y, unit * lanes, values)

    return cuda.element_kernel(name, params, prod(spec.out_shape) // lanes, tile.threads, body)


def emit_pool(spec: Pool2d, tile: ThreadTile, name: str) -> tirx.PrimFunc:
    """``x, [multiplier, quant,] y``: a thread takes one pixel and four channels, or one."""
    average = spec.fn == "avg"
    params: tir.Params = [("x", (spec.n, spec.h, spec.w, spec.c), spec.x)]
    if average:
        params += [("multiplier", (spec.kh * spec.kw + 1,), "float32"), ("quant", (4,), "int32")]
    params.append(("y", spec.out_shape, spec.y))
    lanes = cuda.lanes_for(spec.c, spec.x, spec.y)

    def body(unit: Expr, x: Any, *rest: Any) -> None:
        runs = spec.c // lanes
        pixel, channel = T.Bind(unit // runs), T.Bind(unit % runs * lanes)
        top = T.Bind(pixel // spec.ow % spec.oh * spec.stride[0] - spec.pad[0])
        left = T.Bind(pixel % spec.ow * spec.stride[1] - spec.pad[1])
        image = pixel // (spec.oh * spec.ow)
        dtype = "float32" if spec.x == "float32" else "int32"
        lowest = tir.const(float("-inf") if dtype == "float32" else -128, dtype)
        result, count = cuda.local(lanes, dtype), cuda.local(1, "int32")
        for i in range(lanes):
            T.buffer_store(result, tir.const(0, dtype) if average else lowest, [i])
        T.buffer_store(count, tir.const(0, "int32"), [0])

        def visit(ih: Expr, iw: Expr) -> None:
            seen = cuda.load(x, ((image * spec.h + ih) * spec.w + iw) * spec.c + channel, lanes)
            for i, value in enumerate(seen):
                T.buffer_store(result, result[i] + value if average else tirx.max(result[i], value), [i])
            if average:
                T.buffer_store(count, count[0] + 1, [0])

        loop = T.unroll if spec.kh * spec.kw <= UNROLLED_WINDOW else T.serial
        with loop(0, spec.kh) as kh, loop(0, spec.kw) as kw:
            ih, iw = top + kh, left + kw
            inside = cuda.both(*((ih >= 0, ih < spec.h, iw >= 0, iw < spec.w) if any(spec.pad) else ()))
            with cuda.only_if(inside):
                visit(ih, iw)
        values = [result[i] for i in range(lanes)]
        if average:
            multiplier, quant = rest[:2]
            requantize = tir.Requantizer(quant[1], quant[2], quant[3], 1, spec.y)
            zeros, weight = T.Bind(count[0] * quant[0]), T.Bind(multiplier[count[0]])
            values = [requantize(value - zeros, weight) for value in values]
        cuda.store(rest[-1], unit * lanes, values)

    return cuda.element_kernel(name, params, prod(spec.out_shape) // lanes, tile.threads, body)
