"""3x3 convolutions of stride 1 in float32 with fewer multiplies: Winograd's F(2x2, 3x3) and F(4x4, 3x3).

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016: patches of ``m + 2`` squared inputs are transformed, each
of their ``(m + 2)**2`` points becomes one matrix product over the channels, and the products are transformed back to ``m x m``
outputs: 16 multiplies for 4 outputs, or 36 for 16, where the direct convolution takes 36 and 144.

A few rows of tiles are transformed into a buffer that stays in L2; a register tile of ``mr`` patches by ``nr`` vectors of output
channels is multiplied for every point; the epilogue runs on the way back. NHWC makes vectors of channels of everything. Patches
that stick out are moved back inside, as in schedule/conv2d.py. What is lost in accuracy is in schedule/winograd_transforms.py.
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
from tvmflow.schedule.epilogue import ConvEpilogue
from tvmflow.schedule.intrinsics import BY_NAME, Dot, dot_for
from tvmflow.schedule.staging import Staging
from tvmflow.schedule.winograd_transforms import POINTS, Transforms
from tvmflow.target import Cpu

Array = NDArray[Any]
Expr = Any


class WinogradTile(msgspec.Struct, frozen=True, tag="winograd"):
    """Decisions of the template."""

    dot: str
    m: int
    """A patch gives ``m x m`` outputs."""
    rows: int
    """Rows of patches that are transformed and multiplied together."""
    mr: int
    nr: int
    threads: bool = True


class Geometry:
    """Sizes that follow from a signature and a tile."""

    def __init__(self, spec: Conv2d, tile: WinogradTile) -> None:
        self.dot: Dot = BY_NAME[tile.dot]
        self.side = tile.m + 2
        self.points = self.side**2
        self.high, self.wide = ceil(spec.oh / tile.m), ceil(spec.ow / tile.m)
        self.bands = ceil(self.high / tile.rows)
        self.patches = tile.rows * self.wide
        """Patches of a band: rows of the matrix products."""
        self.vectors = ceil(spec.oc / self.dot.lanes)
        self.blocks = ceil(self.vectors / tile.nr)
        # one vector between the points of a buffer, so that those of a patch do not meet in one set of the cache
        self.in_stride = self.patches * spec.ic + self.dot.lanes
        self.out_stride = self.patches * tile.nr * self.dot.lanes + self.dot.lanes


def fits(spec: Conv2d, names: tuple[str, ...]) -> bool:
    """3x3, stride 1, float32, and whole vectors of channels on both sides."""
    plain = spec.groups == 1 and not spec.nchw and spec.kh == spec.kw == 3 and spec.stride == spec.dilation == (1, 1)
    return plain and not spec.is_integer and min(spec.ic, spec.oc) >= BY_NAME[names[0]].lanes


def space(spec: Conv2d, names: tuple[str, ...], registers: int) -> Iterator[WinogradTile]:
    """Every tile that fits the register file, with bands and register tiles that split the patches evenly."""
    if not fits(spec, names):
        return
    dot = dot_for(names, spec.oc)
    for m in POINTS:
        if min(spec.oh, spec.ow) < m:
            continue
        high, wide = ceil(spec.oh / m), ceil(spec.ow / m)
        for rows in _shares(high, high):
            for nr in range(1, min(ceil(spec.oc / dot.lanes), 4) + 1):
                for mr in _shares(rows * wide, (registers - dot.temporaries) // nr - 1):
                    yield WinogradTile(dot.name, m, rows, mr, nr)


def _shares(whole: int, most: int) -> list[int]:
    """Sizes up to ``most`` of the equal shares into which ``whole`` things can be split."""
    return sorted({ceil(whole / parts) for parts in range(1, whole + 1) if ceil(whole / parts) <= most})


def estimate(spec: Conv2d, tile: WinogradTile, cpu: Cpu) -> float:
    """Cycles by the machine of conv2d.estimate: the products, both transforms, and weights and patches that L2 can't hold."""
    geo = Geometry(spec, tile)
    bands = spec.n * geo.bands
    step = max(tile.mr * tile.nr / 2, (tile.mr + tile.nr) / 2, 5.0)
    body = spec.ic * step + 2.0 * tile.mr * tile.nr + 20
    products = bands * geo.points * geo.blocks * ceil(geo.patches / tile.mr) * body
    forward, backward = (24.0, 20.0) if tile.m == 2 else (110.0, 80.0)
    transforms = bands * geo.patches * (ceil(spec.ic / geo.dot.lanes) * forward + geo.blocks * tile.nr * backward)
    weights = 4.0 * geo.points * spec.ic * spec.oc
    again = weights * bands / (64 if weights < cpu.l2_kib * 512 else 16)
    buffer = 4.0 * geo.points * geo.patches * spec.ic
    spilled = bands * geo.blocks * buffer / 26 if buffer > cpu.l2_kib * 900 else 0.0
    return products + transforms + again + spilled


def ops(spec: Conv2d, tile: WinogradTile) -> int:
    """Operations of the products, a multiply-add counted as two: fewer than the convolution has."""
    geo = Geometry(spec, tile)
    return 2 * spec.n * geo.high * geo.wide * geo.points * spec.ic * spec.oc


def pack(spec: Conv2d, tile: WinogradTile, consts: list[Array]) -> list[Array]:
    """``weight, bias, bounds`` with the weight transformed in float64, ``[blocks, points, ic, nr, lanes]``."""
    geo = Geometry(spec, tile)
    weight = consts[0].reshape(spec.oc, 3, 3, spec.ic).astype(np.float64)
    g = Transforms(tile.m).weight
    points = np.einsum("pa,oabc,qb->pqco", g, weight, g).reshape(geo.points, spec.ic, spec.oc)
    lanes = geo.dot.lanes
    starts = [min(v * lanes, spec.oc - lanes) for v in range(geo.vectors)]
    vectors = np.stack([points[:, :, s : s + lanes] for s in starts], axis=2).astype(np.float32)
    firsts = [min(b * tile.nr, geo.vectors - tile.nr) for b in range(geo.blocks)]
    return [np.stack([vectors[:, :, v : v + tile.nr] for v in firsts]), *consts[1:]]


def emit(spec: Conv2d, tile: WinogradTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over ``x, packed weight, bias, bounds[, residual], y``."""
    geo = Geometry(spec, tile)
    packed = (geo.blocks, geo.points, spec.ic, tile.nr, geo.dot.lanes)
    params = tir.conv_params(spec, packed, "float32", spec.oc)
    return tir.prim_func(name, params, lambda *buffers: _Nest(spec, tile, geo).emit(*buffers), {})


class _Nest:
    """Emits the three steps for a band of patches; its attributes are what the pieces share."""

    def __init__(self, spec: Conv2d, tile: WinogradTile, geo: Geometry) -> None:
        self.spec, self.tile, self.geo, self.dot = spec, tile, geo, geo.dot
        self.transforms = Transforms(tile.m)
        self.columns = spec.w + spec.pad[1] + spec.pad[3]

    def emit(self, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
        spec, tile, geo = self.spec, self.tile, self.geo
        self.weight, self.bias, self.params, self.y = weight, bias, rest[:-1], rest[-1]
        bands = spec.n * geo.bands
        # threads share the bands; the channels where there is one only
        self.shares_channels = tile.threads and bands == 1
        with tir.parallel_if(tile.threads, bands) as band:
            self.image = band // geo.bands if spec.n > 1 else 0
            self.row0 = T.Bind(tir.inside(band % geo.bands, tile.rows, geo.high))
            lines = min(tile.rows * tile.m, spec.oh)
            self.line0 = T.Bind(tirx.min(self.row0 * tile.m, spec.oh - lines))
            source, origin = x, (self.image * spec.h + self.line0) * spec.w * spec.ic
            if any(spec.pad):
                # most patches of small images lie at a border; to guard their loads costs more than the copy (14x14: 14 %)
                zero = tir.const(0.0, "float32")
                staging = Staging(spec.n, spec.h, spec.w, 1, spec.ic, spec.pad, zero, "float32", spec.ic)
                source, origin = staging.band(x, self.image, self.line0 - spec.pad[0], lines + 2), 0
            patches = T.alloc_buffer((geo.points * geo.in_stride,), "float32", scope="global")
            self._forward(source, origin, patches)
            with tir.parallel_if(self.shares_channels, geo.blocks) as block:
                products = T.alloc_buffer((geo.points * geo.out_stride,), "float32", scope="global")
                self._multiply(patches, block, products)
                self._backward(products, T.Bind(tir.inside(block, tile.nr, geo.vectors)))

    def _each_patch(self) -> Iterator[tuple[Expr, Expr, Expr]]:
        """Runs its body once within loops over the band: number of the patch, first line and first column of its outputs."""
        spec, tile, geo = self.spec, self.tile, self.geo
        with T.serial(0, tile.rows) as r, T.serial(0, geo.wide) as c:
            line = T.Bind(tir.inside(self.row0 + r, tile.m, spec.oh))
            column = T.Bind(tir.inside(c, tile.m, spec.ow))
            yield T.Bind(r * geo.wide + c), line, column

    def _forward(self, source: Any, origin: Expr, patches: Any) -> None:
        spec, geo, lanes = self.spec, self.geo, self.dot.lanes
        with tir.parallel_if(self.shares_channels, ceil(spec.ic / lanes)) as v:
            channel = T.Bind(tir.inside(v, lanes, spec.ic))
            for patch, line, column in self._each_patch():
                corner = T.Bind(origin + ((line - self.line0) * self.columns + column) * spec.ic + channel)
                inputs = [
                    [T.Bind(source[tir.at(corner + (i * self.columns + j) * spec.ic, lanes)]) for j in range(geo.side)]
                    for i in range(geo.side)
                ]
                to = T.Bind(patch * spec.ic + channel)
                for point, value in enumerate(self.transforms.forward(self.dot, inputs)):
                    T.buffer_store(patches, value, [tir.at(to + point * geo.in_stride, lanes)])

    def _multiply(self, patches: Any, block: Expr, products: Any) -> None:
        spec, tile, geo, dot = self.spec, self.tile, self.geo, self.dot
        lanes, everything = dot.lanes, tir.at(0, dot.lanes)
        turns = ceil(geo.patches / tile.mr)
        # the next point's weights are asked for while this one's are used; a vector is a cache line where memory is the limit
        share = ceil(tile.nr / turns)
        with T.serial(0, geo.points) as point, T.serial(0, turns) as t:
            first = T.Bind(tir.inside(t, tile.mr, geo.patches))
            acc = [[tir.register(lanes, "float32") for _ in range(tile.nr)] for _ in range(tile.mr)]
            for row in acc:
                for cell in row:
                    T.buffer_store(cell, tir.splat(tir.const(0.0, "float32"), lanes), [everything])
            left = T.Bind(point * geo.in_stride + first * spec.ic)
            right = T.Bind((block * geo.points + point) * (spec.ic * tile.nr * lanes))
            after = T.Bind(right + (spec.ic * tile.nr + tirx.min(t * share, tile.nr - share) * spec.ic) * lanes)
            with T.serial(0, spec.ic) as k:
                weights = [T.Bind(self.weight[tir.at(right + (k * tile.nr + i) * lanes, lanes)]) for i in range(tile.nr)]
                for j in range(share):
                    tir.prefetch(self.weight, after + (j * spec.ic + k) * lanes)
                for m, row in enumerate(acc):
                    a = patches[left + m * spec.ic + k]
                    for cell, w in zip(row, weights, strict=True):
                        T.buffer_store(cell, dot.broadcast(cell[everything], a, w), [everything])
            to = T.Bind(point * geo.out_stride + first * tile.nr * lanes)
            for m, row in enumerate(acc):
                for i, cell in enumerate(row):
                    T.buffer_store(products, cell[everything], [tir.at(to + (m * tile.nr + i) * lanes, lanes)])

    def _backward(self, products: Any, v0: Expr) -> None:
        spec, tile, geo, lanes = self.spec, self.tile, self.geo, self.dot.lanes
        epilogue = ConvEpilogue(spec, self.bias, self.params, lanes, "float32")
        channels = [T.Bind(tir.inside(v0 + i, lanes, spec.oc)) for i in range(tile.nr)]
        biases = [epilogue.bias_at(channel) for channel in channels]
        for patch, line, column in self._each_patch():
            pixel = T.Bind(((self.image * spec.oh + line) * spec.ow + column) * spec.oc)
            for i, (channel, bias) in enumerate(zip(channels, biases, strict=True)):
                start = T.Bind((patch * tile.nr + i) * lanes)
                values = [T.Bind(products[tir.at(start + p * geo.out_stride, lanes)]) for p in range(geo.points)]
                square = [values[p : p + geo.side] for p in range(0, geo.points, geo.side)]
                for o, value in enumerate(self.transforms.backward(self.dot, square)):
                    at = pixel + (o // tile.m * spec.ow + o % tile.m) * spec.oc + channel
                    epilogue.store(self.y, at, value + bias)
