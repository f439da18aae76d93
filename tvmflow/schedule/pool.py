"""Max and average pooling on CPUs: vectors of channels over a padded copy of the image."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Pool2d
from tvmflow.schedule import tir
from tvmflow.schedule.staging import Staging

Expr = Any


class PoolTile(msgspec.Struct, frozen=True, tag="pool"):
    """``lanes`` channels at a time."""

    lanes: int
    threads: bool = True


def emit(spec: Pool2d, tile: PoolTile, name: str) -> tirx.PrimFunc:
    """``x, [multiplier, quant,] y``."""
    average = spec.fn == "avg"
    params: tir.Params = [("x", (spec.n, spec.h, spec.w, spec.c), spec.x)]
    if average:
        params += [("multiplier", (spec.kh * spec.kw + 1,), "float32"), ("quant", (4,), "int32")]
    params.append(("y", spec.out_shape, spec.y))
    return tir.prim_func(name, params, lambda *buffers: _emit_body(spec, tile, *buffers), {})


def _emit_body(spec: Pool2d, tile: PoolTile, x: Any, *rest: Any) -> None:
    y = rest[-1]
    average = spec.fn == "avg"
    columns = spec.w + spec.pad[1] + spec.pad[3]
    acc_dtype = "int32" if average else spec.x
    with tir.parallel_if(tile.threads and spec.n * spec.oh * spec.ow * spec.c > 16384, spec.n * spec.oh) as r:
        index, oh = r // spec.oh, r % spec.oh
        source, origin = x, (index * spec.h + oh * spec.stride[0]) * columns * spec.c
        if any(spec.pad):
            border = rest[1][0] if average else tir.const(_lowest(spec.x), spec.x)
            staging = Staging(spec.n, spec.h, spec.w, 1, spec.c, spec.pad, border, spec.x, spec.c)
            source, origin = staging.band(x, index, oh * spec.stride[0] - spec.pad[0], spec.kh), 0
        with T.serial(0, spec.ow) as ow:

            def channels(c: Expr, lanes: int) -> None:
                acc = tir.register(lanes, acc_dtype)
                start = 0 if average else _lowest(spec.x)
                T.buffer_store(acc, tir.splat(tir.const(start, acc_dtype), lanes), [tir.at(0, lanes)])
                corner = T.Bind(origin + ow * spec.stride[1] * spec.c + c)
                with T.serial(0, spec.kh) as kh, T.serial(0, spec.kw) as kw:
                    value = source[tir.at(corner + (kh * columns + kw) * spec.c, lanes)]
                    seen = acc[tir.at(0, lanes)]
                    merged = seen + tir.to_int32(value, lanes) if average else tirx.max(seen, value)
                    T.buffer_store(acc, merged, [tir.at(0, lanes)])
                result = acc[tir.at(0, lanes)]
                if average:
                    multiplier, quant = rest[:2]
                    # the border holds the zero point, so it adds nothing once kh * kw zero points are taken off
                    total = result - tir.splat(quant[0] * (spec.kh * spec.kw), lanes)
                    weight = tir.splat(multiplier[_inside(spec, oh, ow)], lanes)
                    result = tir.Requantizer(quant[1], quant[2], quant[3], lanes, spec.y)(total, weight)
                T.buffer_store(y, result, [tir.at((r * spec.ow + ow) * spec.c + c, lanes)])

            tir.for_each_run(spec.c, tile.lanes, channels)


def _inside(spec: Pool2d, oh: Expr, ow: Expr) -> Expr:
    """Number of elements of a window that lie inside the image."""

    def extent(o: Expr, stride: int, before: int, size: int, kernel: int) -> Expr:
        start = o * stride - before
        return tirx.min(start + kernel, size) - tirx.max(start, 0)

    if not any(spec.pad):
        return tir.const(spec.kh * spec.kw, "int32")
    return extent(oh, spec.stride[0], spec.pad[0], spec.h, spec.kh) * extent(ow, spec.stride[1], spec.pad[1], spec.w, spec.kw)


def _lowest(dtype: str) -> float:
    return float("-inf") if dtype == "float32" else int(np.iinfo(dtype).min)
