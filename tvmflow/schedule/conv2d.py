"""Convolution and dense layers on CPUs: one register-tiled loop nest for every ISA (kernels.md, section 2).

For a tile of ``mh x mw`` output pixels and ``nr`` vectors of output channels the accumulators stay in registers through the
whole reduction; each step broadcasts ``group`` input channels of a pixel and multiplies them with ``nr`` packed weight vectors.
The epilogue (bias, requantize or clamp, residual add, narrow, store) runs on the registers. Tiles and channel vectors that
stick out are moved back inside and overlap their neighbours, so that there is no remainder code anywhere.

Padding is neither written nor multiplied: a tile asks only for the kernel rows that lie inside the image, and tiles that see its
left or right border have code of their own, in which a step leaves out the pixels that would read outside. Only for tiles of
several lines, pipelines and steps that straddle taps schedule/staging.py copies the image with its border; an instruction that
wants wider operands has it copied without.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import cycles, tir
from tvmflow.schedule.constants import fold_zero_point, pad_groups
from tvmflow.schedule.conv2d_geometry import ConvTile, Geometry, geometry
from tvmflow.schedule.conv2d_nest import Nest
from tvmflow.schedule.intrinsics import dot_for
from tvmflow.target import Cpu

Array = NDArray[Any]


def space(spec: Conv2d, names: tuple[str, ...], registers: int) -> Iterator[ConvTile]:
    """Every tile that fits the register file: ``mr * nr`` accumulators, ``nr`` weights, and what a step holds on the way."""
    dot = dot_for(names, spec.oc // spec.groups)
    geo = Geometry(spec, dot)
    flat = geo.spec
    # The larger of the two is walked once. Threads share what is outermost: blocks of few channels would be parts of cache lines
    orders = (False, True) if flat.oc * geo.steps * dot.group * flat.kh * geo.taps > flat.h * flat.w * flat.ic else (False,)
    for nr in range(1, min(geo.vectors, 8) + 1):
        for mh, mw in _pixel_tiles(flat.oh, flat.ow):
            if (mh * mw * nr + nr) * dot.regs_per_acc + dot.temporaries > registers:
                continue
            for channels_outer in orders:
                yield ConvTile(dot.name, mh, mw, nr, channels_outer)
                if _pipelines(geo, mh * mw * nr) and (2 * mh * mw * nr + nr) + dot.temporaries + 2 <= registers:
                    yield ConvTile(dot.name, mh, mw, nr, channels_outer, pipelined=True)


def _pipelines(geo: Geometry, cells: int) -> bool:
    """Whether a tile is worth a second set of accumulators: its epilogue is some of its time, and it hides the latency alone."""
    return geo.is_packed and geo.taps == 1 and geo.spec.kh * geo.steps <= 256 and cells >= 10


def _pixel_tiles(oh: int, ow: int) -> Iterator[tuple[int, int]]:
    for mw in range(1, min(ow, 28) + 1):
        yield 1, mw
    for mh in range(2, min(oh, 28) + 1):
        if mh * ow <= 28:
            yield mh, ow


def estimate(spec: Conv2d, tile: ConvTile, cpu: Cpu) -> float:
    """Cycles by the machine of schedule/cycles.py: it ranks tiles."""
    geo = geometry(spec, tile)
    dot, flat = geo.dot, geo.spec
    mr = tile.mh * tile.mw
    tiles = flat.n * ceil(flat.oh / tile.mh) * ceil(flat.ow / tile.mw)
    blocks = ceil(geo.vectors / tile.nr) * flat.groups
    steps = flat.kh * geo.taps * geo.steps
    line = tile.nr * cycles.vector_bytes(dot)
    fresh = steps * line * (1 if tile.channels_outer else blocks)
    stride = flat.stride[1] * geo.channels * np.dtype(dot.a_dtype).itemsize
    crowded = cycles.crowded(dot, tile.mw, stride)

    def step(pixels: int) -> float:
        taken = cycles.of_step(dot, pixels, tile.nr, fresh, cpu) + (pixels if crowded else 0)
        if geo.shares_broadcasts and not spec.is_integer:
            taken += max(0, pixels * tile.nr + tile.nr + pixels + dot.temporaries - cpu.registers) / 2
        return taken

    epilogue = 4.0 * dot.regs_per_acc
    if geo.is_packed:
        whole = tile.nr % 4 == 0 and geo.outputs % dot.lanes == 0
        pieces = 0.0 if whole else 0.3 if tile.nr > 1 else 0.8  # of a vector of bytes, each a store
        epilogue = (1.0 if tile.pipelined else 2.9) + pieces + (2.3 + pieces / 3) * spec.residual
    sights = geo.sights(tile)
    along = sum(sight.tiles * len(strip.taps) * step(len(strip.outputs)) for sight in sights for strip in sight.strips)
    along /= flat.kw * sum(sight.tiles for sight in sights)
    lines = 1 - geo.line.misses / (flat.oh * flat.kh)
    body = steps * along * lines + epilogue * mr * tile.nr + 17 + 6 * flat.kh * geo.taps
    weights = flat.oc * steps * dot.group * np.dtype(dot.b_dtype).itemsize
    seen = flat.oh * flat.ow * min(flat.kh, flat.stride[0]) * min(flat.kw, flat.stride[1])  # a pointwise stride skips pixels
    pixels = flat.n * min(seen, flat.h * flat.w) * flat.ic * np.dtype(spec.x).itemsize
    # what is walked innermost is read again for every step of the outer loop; beyond L2 that costs bandwidth
    again = pixels * blocks if tile.channels_outer else weights * tiles
    resident = pixels if tile.channels_outer else weights
    traffic = again / 32 if resident > cpu.l2_kib * 900 else again / 512
    return tiles * blocks * body + traffic + weights / 16  # which come from memory or the last cache, whatever the tile


def ops(spec: Conv2d, tile: ConvTile) -> int:
    """Operations that a kernel executes, a multiply-add counted as two."""
    geo = geometry(spec, tile)
    spec = geo.spec
    every = (spec.oh * spec.kh, spec.ow * spec.kw)
    return spec.ops // (every[0] * every[1]) * (every[0] - geo.line.misses) * (every[1] - geo.column.misses)


def weight_bytes(spec: Conv2d, tile: ConvTile) -> int:
    """Bytes of the packed weights."""
    geo = geometry(spec, tile)
    return geo.weights * np.dtype(geo.dot.b_dtype).itemsize


def pack(spec: Conv2d, tile: ConvTile, consts: list[Array]) -> list[Array]:
    """Compile-time constants as the kernel wants them.

    ``consts`` are weight, bias, multiplier, quant (integer) or weight, bias, bounds (float). Weights become
    ``[groups, vectors, kh, taps, steps, lanes, group]``, flat; the input's zero point moves into the bias, of which there is one
    for each kind of outputs.
    """
    geo = geometry(spec, tile)
    dot, lanes = geo.dot, geo.dot.lanes
    weight, biases = consts[0], [consts[1]]
    if spec.is_integer:
        seen = product(geo.line.kinds, geo.column.kinds)
        taps = weight.reshape(spec.oc, spec.kh, spec.kw, geo.per_group)
        biases = [fold_zero_point(taps[:, i.start : i.stop, j.start : j.stop], consts[1], consts[3]) for i, j in seen]
    grouped = weight.reshape(spec.groups, geo.outputs, spec.kh, spec.kw, geo.per_group)
    if spec.nchw:
        grouped = grouped.swapaxes(3, 4)
    elif geo.row_merged:
        grouped = grouped.reshape(spec.groups, geo.outputs, spec.kh, 1, spec.kw * geo.per_group)
    short = geo.steps * dot.group - grouped.shape[-1]
    grouped = np.pad(grouped, ((0, 0), (0, 0), (0, 0), (0, 0), (0, short)))
    starts = [min(v * lanes, max(0, geo.outputs - lanes)) for v in range(geo.vectors)]
    vectors = np.stack([grouped[:, s : s + lanes] for s in starts], axis=1)
    vectors = vectors.reshape(*vectors.shape[:-1], geo.steps, dot.group)
    packed = vectors.transpose(0, 1, 3, 4, 5, 2, 6).reshape(-1)
    packed = np.pad(packed, (0, geo.weights - packed.size))

    def whole(table: Array) -> Array:
        """The loads of bias and multiplier are whole vectors."""
        return pad_groups(table, spec.groups, lanes) if geo.outputs < lanes else table

    multiplier = [whole(consts[2])] if spec.is_integer else []
    return [packed, np.concatenate([whole(bias) for bias in biases]), *multiplier, *consts[2 + len(multiplier) :]]


def params(spec: Conv2d, tile: ConvTile) -> tir.Params:
    """The kernel's parameters: ``x, packed weight, bias, (multiplier, quant | bounds)[, residual], y``."""
    geo = geometry(spec, tile)
    return tir.conv_params(spec, (geo.weights,), geo.dot.b_dtype, geo.channels_held, geo.kinds[0] * geo.kinds[1])


def emit(spec: Conv2d, tile: ConvTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over its :func:`params`."""
    geo = geometry(spec, tile)
    lent = ("x",) if spec.nchw else ()  # a picture, where the caller has it
    return tir.prim_func(name, params(spec, tile), lambda *buffers: Nest(geo, tile).emit(*buffers), {}, anywhere=lent)
