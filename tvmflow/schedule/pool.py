"""Max and average pooling on CPUs: vectors of channels, of which a window takes the pixels that lie inside the image."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Pool2d
from tvmflow.schedule import border, tir

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
    acc_dtype = "int32" if average else spec.x
    lines = border.Axis(spec.h, spec.oh, spec.kh, spec.stride[0], 1, spec.pad[0])
    columns = border.Axis(spec.w, spec.ow, spec.kw, spec.stride[1], 1, spec.pad[1])
    with tir.parallel_if(tile.threads and spec.n * spec.oh * spec.ow * spec.c > 16384, spec.n * spec.oh) as r:
        index, top = r // spec.oh, T.Bind(lines.start(r % spec.oh))
        above, below = (T.Bind(bound) for bound in lines.inside_at(top))
        with T.serial(0, spec.ow) as ow:
            left = T.Bind(columns.start(ow))
            before, after = (T.Bind(bound) for bound in columns.inside_at(left))
            inside = T.Bind((below - above) * (after - before))

            def channels(c: Expr, lanes: int) -> None:
                every = tir.at(0, lanes)
                acc = tir.register(lanes, acc_dtype)
                start = 0 if average else _lowest(spec.x)
                T.buffer_store(acc, tir.splat(tir.const(start, acc_dtype), lanes), [every])
                corner = T.Bind(((index * spec.h + top) * spec.w + left) * spec.c + c)

                def merge(kh: Expr, kw: Expr) -> None:
                    value = x[tir.at(corner + (kh * spec.w + kw) * spec.c, lanes)]
                    merged = acc[every] + tir.to_int32(value, lanes) if average else tirx.max(acc[every], value)
                    T.buffer_store(acc, merged, [every])

                # most windows lie inside whole, and loops of known length are unrolled
                with T.If(inside == spec.kh * spec.kw):
                    with T.Then(), T.serial(0, spec.kh) as kh, T.serial(0, spec.kw) as kw:
                        merge(kh, kw)
                    with T.Else(), T.serial(above, below) as kh, T.serial(before, after) as kw:
                        merge(kh, kw)
                result = acc[every]
                if average:
                    multiplier, quant = rest[:2]
                    total = result - tir.splat(quant[0] * inside, lanes)
                    weight = tir.splat(multiplier[inside], lanes)
                    result = tir.Requantizer(quant[1], quant[2], quant[3], lanes, spec.y)(total, weight)
                T.buffer_store(y, result, [tir.at((r * spec.ow + ow) * spec.c + c, lanes)])

            tir.for_each_run(spec.c, tile.lanes, channels)


def _lowest(dtype: str) -> float:
    return float("-inf") if dtype == "float32" else int(np.iinfo(dtype).min)
