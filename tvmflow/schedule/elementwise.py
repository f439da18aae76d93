"""Elementwise kernels on CPUs: table look-up, quantize, dequantize, add and multiply of two quantized tensors.

Flat loops over vectors; the last vector of a run overlaps the one before it, so there is no scalar remainder. Long tensors are
cut into chunks that threads share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from math import prod
from typing import Any

import msgspec
import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Binary, Dequantize, Lookup, Quantize
from tvmflow.schedule import tir
from tvmflow.schedule.packs import shuffle

Expr = Any

PARALLEL_ELEMENTS = 65536


class FlatTile(msgspec.Struct, frozen=True, tag="flat"):
    """``lanes`` elements a vector; ``chunk`` elements a unit of work for a thread."""

    lanes: int
    chunk: int = 16384
    threads: bool = True


def chunked(count: int, tile: FlatTile, body: Callable[[Expr, int], None]) -> None:
    """``body(offset, lanes)`` over ``count`` elements, chunks in parallel."""
    if count < 2 * tile.chunk or count < PARALLEL_ELEMENTS or not tile.threads:
        tir.for_each_run(count, tile.lanes, body)
        return
    chunks = -(-count // tile.chunk)
    with T.parallel(0, chunks) as i:
        start = T.Bind(tir.inside(i, tile.chunk, count))
        tir.for_each_run(tile.chunk, tile.lanes, lambda offset, lanes: body(start + offset, lanes))


PERMUTED = 64
"""Bytes that VPERMI2B (AVX512_VBMI) looks up at once."""


def lookup_tiles(features: Collection[str]) -> Iterator[FlatTile]:
    """Ways to look bytes up on a CPU with ``features``, the fastest first."""
    if "avx512vbmi" in features:
        yield FlatTile(PERMUTED)
    yield FlatTile(1)


def emit_lookup(spec: Lookup, tile: FlatTile, name: str) -> tirx.PrimFunc:
    """``y[i] = table[x[i]]``: 64 bytes at a time in registers, or one at a time from memory."""
    bias = 128 if spec.x == "int8" else 0

    def body(x: Any, table: Any, y: Any) -> None:
        def one(i: Expr) -> None:
            T.buffer_store(y, table[x[i].astype("int32") + bias], [i])

        def run(o: Expr, lanes: int) -> None:
            if lanes == PERMUTED:
                T.buffer_store(y, _permuted(table, x[tir.at(o, lanes)], bias, spec.y), [tir.at(o, lanes)])
            else:
                with T.serial(0, lanes) as lane:
                    one(o + lane)

        chunked(prod(spec.shape), tile, run)

    return tir.prim_func(name, [("x", spec.shape, spec.x), ("table", (256,), spec.y), ("y", spec.shape, spec.y)], body, {})


def _permuted(table: Any, x: Expr, bias: int, dtype: str) -> Expr:
    """Entries of a table of 256 bytes: both halves are looked up by the low seven bits, the highest one chooses."""
    codes = T.Bind(tirx.reinterpret(f"int8x{PERMUTED}", x))
    quarters = [tirx.reinterpret(f"int8x{PERMUTED}", table[tir.at(tir.const(i * PERMUTED, "int32"), PERMUTED)]) for i in range(4)]

    def half(first: int) -> Expr:
        name = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpermi2var.qi.512")
        return T.call_llvm_pure_intrin(f"int8x{PERMUTED}", name, quarters[first], codes, quarters[first + 1])

    # a negative int8 code is an entry of the first half, a byte from 128 on one of the second
    negative, other = (half(0), half(2)) if bias else (half(2), half(0))
    chosen = tirx.Select(codes < tir.splat(tir.const(0, "int8"), PERMUTED), negative, other)
    return tirx.reinterpret(f"{dtype}x{PERMUTED}", chosen)


def quantize_lanes(value: Expr, scale: Expr, lo: Expr, hi: Expr, shift: Expr, lanes: int, dtype: str) -> Expr:
    """kernels/reference.py ``_quantize`` of a vector."""
    return round_lanes(value / tir.splat(scale, lanes), lo, hi, shift, lanes, dtype)


def round_lanes(steps: Expr, lo: Expr, hi: Expr, shift: Expr, lanes: int, dtype: str) -> Expr:
    """kernels/reference.py ``_codes`` of a vector; the rounding trick is explained at tir.Requantizer."""
    rounded = tir.clip(steps, tir.splat(lo, lanes), tir.splat(hi, lanes)) + tir.splat(
        tir.const(tir.Requantizer.MAGIC, "float32"), lanes
    )
    return (tirx.reinterpret(tir.lanes_of("int32", lanes), rounded) + tir.splat(shift, lanes)).astype(tir.lanes_of(dtype, lanes))


class Codes:
    """Bounds and shift of :func:`round_lanes` from the zero point in ``quant``."""

    def __init__(self, quant: Any, dtype: str) -> None:
        info = np.iinfo(dtype)
        zero = T.Bind(quant[0])
        self.lo, self.hi = (T.Bind((tir.const(int(b), "int32") - zero).astype("float32")) for b in (info.min, info.max))
        self.shift, self.dtype = T.Bind(zero - tir.const(tir.Requantizer.MAGIC_BITS, "int32")), dtype

    def __call__(self, steps: Expr, lanes: int) -> Expr:
        return round_lanes(steps, self.lo, self.hi, self.shift, lanes, self.dtype)


def emit_quantize(spec: Quantize, tile: FlatTile, name: str) -> tirx.PrimFunc:
    """float32 to integers, with the transpose of an NCHW input fused in."""

    def body(x: Any, scale: Any, quant: Any, y: Any) -> None:
        by, codes = T.Bind(scale[0]), Codes(quant, spec.y)

        def convert(source: Expr, lanes: int) -> Expr:
            return codes(x[tir.at(source, lanes)] / tir.splat(by, lanes), lanes)

        if not spec.nchw:
            chunked(prod(spec.shape), tile, lambda o, n: T.buffer_store(y, convert(o, n), [tir.at(o, n)]))
            return
        n, h, w, c = spec.shape
        with tir.parallel_if(tile.threads and prod(spec.shape) > PARALLEL_ELEMENTS, n * h) as row:

            def plane(channel: Expr, column: Expr) -> Expr:
                return ((row // h * c + channel) * h + row % h) * w + column

            def interleaved(column: Expr, lanes: int) -> None:
                planes = [T.Bind(convert(plane(channel, column), lanes)) for channel in range(c)]
                order = np.arange(c * lanes).reshape(c, lanes).T.reshape(c, lanes)
                for part in range(c):
                    start = (row * w + column) * c + part * lanes
                    T.buffer_store(y, shuffle(planes, order[part]), [tir.at(start, lanes)])

            def scattered(column: Expr, lanes: int) -> None:
                with T.serial(0, c) as channel:
                    source = plane(channel, column)
                    staged = tir.register(lanes, spec.y)
                    T.buffer_store(staged, convert(source, lanes), [tir.at(0, lanes)])
                    for lane in range(lanes):
                        T.buffer_store(y, staged[lane], [(row * w + column + lane) * c + channel])

            if c <= 4:  # pictures: a vector of bytes of every channel, brought together by shuffles
                tir.for_each_run(w, 4 * tile.lanes, interleaved)
            else:
                tir.for_each_run(w, tile.lanes, scattered)

    params = [("x", spec.in_shape, "float32"), ("scale", (1,), "float32"), ("quant", (1,), "int32"), ("y", spec.shape, spec.y)]
    return tir.prim_func(name, params, body, {}, anywhere=("x",))  # mostly the network's input, where the caller has it


def emit_dequantize(spec: Dequantize, tile: FlatTile, name: str) -> tirx.PrimFunc:
    """``(q - zero) * scale``."""

    def body(x: Any, scale: Any, quant: Any, y: Any) -> None:
        zero, by = T.Bind(quant[0]), T.Bind(scale[0])

        def run(o: Expr, n: int) -> None:
            steps = tir.to_int32(x[tir.at(o, n)], n) - tir.splat(zero, n)
            T.buffer_store(y, steps.astype(tir.lanes_of("float32", n)) * tir.splat(by, n), [tir.at(o, n)])

        chunked(prod(spec.shape), tile, run)

    params = [("x", spec.shape, spec.x), ("scale", (1,), "float32"), ("quant", (1,), "int32"), ("y", spec.shape, "float32")]
    return tir.prim_func(name, params, body, {})


def emit_binary(spec: Binary, tile: FlatTile, name: str) -> tirx.PrimFunc:
    """Add or multiply with broadcasting: the innermost run on which both operands advance (or one stands still) is vectorised."""
    add = spec.fn == "add"
    params: tir.Params = [("a", spec.a_shape, spec.x), ("b", spec.b_shape, spec.x)]
    if not add:
        params.append(("multiplier", (1,), "float32"))
    params += [("quant", (8 if add else 5,), "int32"), ("y", spec.out_shape, spec.y)]

    def body(a: Any, b: Any, *rest: Any) -> None:
        quant, y = rest[-2:]

        def combine(ia: Expr, ib: Expr, la: int, lb: int, lanes: int) -> Expr:
            va = tir.splat(a[tir.at(ia, la)].astype(tir.lanes_of("int32", la)), lanes // la)
            vb = tir.splat(b[tir.at(ib, lb)].astype(tir.lanes_of("int32", lb)), lanes // lb)
            if add:
                return tir.FixedPointAdd(quant, 0, lanes, spec.y)(va, vb)
            product = (va - tir.splat(quant[0], lanes)) * (vb - tir.splat(quant[1], lanes))
            requantize = tir.Requantizer(quant[2], quant[3], quant[4], lanes, spec.y)
            return requantize(product, tir.splat(rest[0][0], lanes))

        outer, run, a_moves, b_moves = innermost_run(spec)
        if not outer and a_moves and b_moves:
            chunked(run, tile, lambda o, n: T.buffer_store(y, combine(o, o, n, n, n), [tir.at(o, n)]))
            return
        rows = prod(extent for extent, _, _ in outer)
        with tir.parallel_if(tile.threads and rows * run > PARALLEL_ELEMENTS, rows) as row:
            ia, ib = offsets(row, outer)

            def vector(o: Expr, n: int) -> None:
                value = combine(
                    ia + (o if a_moves else 0), ib + (o if b_moves else 0), n if a_moves else 1, n if b_moves else 1, n
                )
                T.buffer_store(y, value, [tir.at(row * run + o, n)])

            tir.for_each_run(run, tile.lanes, vector)

    return tir.prim_func(name, params, body, {})


Axis = tuple[int, int, int]
"""Extent, and the strides of a and b along it (0 where it is broadcast)."""


def innermost_run(spec: Binary) -> tuple[list[Axis], int, bool, bool]:
    """Outer axes, length of the contiguous innermost run, and whether a and b advance along it."""
    axes: list[Axis] = []
    stride_a = stride_b = 1
    for pa, pb in zip(reversed(spec.a_shape), reversed(spec.b_shape), strict=True):
        extent = max(pa, pb)
        if extent > 1:
            axes.append((extent, stride_a if pa > 1 else 0, stride_b if pb > 1 else 0))
        stride_a, stride_b = stride_a * pa, stride_b * pb
    if not axes:
        return [], 1, True, True
    moves = (axes[0][1] > 0, axes[0][2] > 0)
    run, used = 1, 0
    for extent, sa, sb in axes:
        if (sa > 0, sb > 0) != moves:
            break
        run, used = run * extent, used + 1
    return axes[used:][::-1], run, *moves


def offsets(row: Expr, outer: list[Axis]) -> tuple[Expr, Expr]:
    """Offsets of a and b for flat index ``row`` over the outer axes."""
    ia: Expr = 0
    ib: Expr = 0
    rest = row
    for extent, sa, sb in reversed(outer):
        ia, ib = ia + rest % extent * sa, ib + rest % extent * sb
        rest = rest // extent
    return T.Bind(ia if not isinstance(ia, int) else tir.const(0, "int32")), T.Bind(
        ib if not isinstance(ib, int) else tir.const(0, "int32")
    )
