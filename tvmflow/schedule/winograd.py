"""3x3 convolutions of stride 1 with fewer multiplies: Winograd's F(2x2, 3x3) and F(4x4, 3x3), in float32 and in integers.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016: patches of ``m + 2`` squared inputs are transformed, each
of their ``(m + 2)**2`` points becomes one matrix product over the channels, and the products are transformed back to ``m x m``
outputs: 16 multiplies for 4 outputs, or 36 for 16, where the direct convolution takes 36 and 144.

A few rows of tiles are transformed into a buffer that stays in L2; a register tile of ``mr`` patches by ``nr`` vectors of output
channels is multiplied for every point; the epilogue runs on the way back. NHWC makes vectors of channels of everything. Patches
that stick out are moved back inside, as in schedule/conv2d.py. What float32 loses is in schedule/winograd_transforms.py.

Integers are exact: transformed inputs and weights are int16, multiplied and summed modulo 2**32. Inputs count from the middle of
their type, so that outputs are small, for their division needs bits to spare. Instructions that widen bytes anyway multiply as
many words; VPDPWSSD multiplies half as many as VPDPBUSD bytes, so that F(2x2) gains nothing there. Zen 4, 3x3 with 128 channels
of 28x28 on one thread, direct and F(4x4), us: VNNI 478, 290; AVX2 1,390, 438; SSE2 3,600, 1,010.
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
from tvmflow.schedule.intrinsics import BY_NAME, DOTS, Dot, dot_for, sse_cycles
from tvmflow.schedule.packs import Cell, Packs, finish, store
from tvmflow.schedule.staging import Staging
from tvmflow.schedule.winograd_transforms import POINTS, Vectors, transforms
from tvmflow.target import Cpu

Array = NDArray[Any]
Expr = Any

FEW_PATCHES = 16
"""Of an image, whose weights take longer to arrive than they to be multiplied."""


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
        found = transforms(tile.m, spec.ic, spec.is_integer)
        assert found
        self.transforms = found
        self.channels = min(self.dot.lanes * self.dot.group, 1 << (spec.ic.bit_length() - 1))
        """Of an input, transformed together."""
        self.side = tile.m + 2
        self.points = self.side**2
        self.high, self.wide = ceil(spec.oh / tile.m), ceil(spec.ow / tile.m)
        self.bands = ceil(self.high / tile.rows)
        self.patches = tile.rows * self.wide
        """Patches of a band: rows of the matrix products."""
        self.vectors = ceil(spec.oc / self.dot.lanes)
        self.blocks = ceil(self.vectors / tile.nr)
        # one vector between the points of a buffer, so that those of a patch do not meet in one set of the cache
        self.in_stride = self.patches * spec.ic + self.dot.lanes * self.dot.group
        self.out_stride = self.patches * tile.nr * self.dot.lanes + self.dot.lanes
        self.steps = spec.ic // self.dot.group
        self.step = tile.nr * self.dot.lanes * self.dot.group
        """Weights of a step."""
        self.weights = self.blocks * self.points * self.steps * self.step


def instruction(spec: Conv2d, names: tuple[str, ...], m: int) -> Dot | None:
    """What multiplies the patches of a layer, on a target that offers ``names``; None of a layer that is not for F(m x m).

    It is 3x3 of stride 1, has whole vectors of channels on both sides, and of integers whole pairs, and transforms.
    """
    dot = dot_for(names, spec.oc)
    if spec.is_integer and not dot.words:
        return None
    if spec.is_integer:
        dot = BY_NAME[dot.words]
    plain = spec.groups == 1 and not spec.nchw and spec.kh == spec.kw == 3 and spec.stride == spec.dilation == (1, 1)
    whole = min(spec.ic, spec.oc) >= dot.lanes and spec.ic % dot.group == 0 and min(spec.oh, spec.ow) >= m
    return dot if plain and whole and transforms(m, spec.ic, spec.is_integer) else None


def space(spec: Conv2d, names: tuple[str, ...], registers: int) -> Iterator[WinogradTile]:
    """Every tile that fits the register file, with bands and register tiles that split the patches evenly."""
    for m in POINTS:
        dot = instruction(spec, names, m)
        if dot is None:
            continue
        high, wide = ceil(spec.oh / m), ceil(spec.ow / m)
        # threads share bands; few patches make a single one, so that weights come once
        for rows in _shares(high, high if high * wide <= FEW_PATCHES else high - 1):
            for nr in range(1, min(ceil(spec.oc / dot.lanes), 4) + 1):
                for mr in _shares(rows * wide, (registers - dot.temporaries) // nr - 1):
                    yield WinogradTile(dot.name, m, rows, mr, nr)


def _shares(whole: int, most: int) -> list[int]:
    """Sizes up to ``most`` of the equal shares into which ``whole`` things can be split."""
    return sorted({ceil(whole / parts) for parts in range(1, whole + 1) if ceil(whole / parts) <= most})


def estimate(spec: Conv2d, tile: WinogradTile, cpu: Cpu) -> float:
    """Cycles by the machine of conv2d.estimate: the products, beside which weights arrive, the transforms, and patches beyond L2.

    Weights come from memory at 7 bytes a cycle for the first band, and from L3 at 32 for the next. That two threads do not get
    equal shares of the bands counts half: kernels run on one thread too.
    """
    geo = Geometry(spec, tile)
    bands = spec.n * geo.bands
    step = max(tile.mr * tile.nr / 2, (tile.mr + tile.nr) / 2, 5.0)
    if geo.dot.name == "sse":
        step = max(step, sse_cycles(tile.mr, tile.nr, cpu.registers))
    body = geo.steps * step + 2.0 * tile.mr * tile.nr + 20
    products = geo.points * geo.blocks * ceil(geo.patches / tile.mr) * body
    size = np.dtype(geo.dot.a_dtype).itemsize
    weights = size * geo.points * spec.ic * spec.oc
    first = max(products, weights / 7)
    again = max(products, weights / (7 if weights > cpu.l3_kib * 512 else 32)) if weights > cpu.l2_kib * 512 else products
    forward, backward = (24.0, 20.0) if tile.m == 2 else (110.0, 80.0)
    around = geo.patches * (ceil(spec.ic / geo.channels) * forward + geo.blocks * tile.nr * backward)
    buffer = size * geo.points * geo.patches * spec.ic
    spilled = geo.blocks * buffer / 26 if buffer > cpu.l2_kib * 900 else 0.0
    # threads that share the channels of a single band write each other's patches
    uneven = 1.5 if bands == 1 else 2 * ceil(bands / 2) / bands
    return (first + (bands - 1) * again + bands * (around + spilled)) * (1 + uneven) / 2


def ops(spec: Conv2d, tile: WinogradTile) -> int:
    """Operations of the products, a multiply-add counted as two: fewer than the convolution has.

    A product of words counts for the products of bytes that the instruction in its place would do: a share of their peak.
    """
    geo = Geometry(spec, tile)
    bytewise = next((dot.group for dot in DOTS if dot.words == tile.dot), geo.dot.group)
    return 2 * spec.n * geo.high * geo.wide * geo.points * spec.ic * spec.oc * bytewise // geo.dot.group


def pack(spec: Conv2d, tile: WinogradTile, consts: list[Array]) -> list[Array]:
    """``consts`` as conv2d.pack takes them, with the weight transformed, ``[blocks, points, steps, nr, lanes, group]``, flat."""
    geo = Geometry(spec, tile)
    dot, lanes, bias = geo.dot, geo.dot.lanes, consts[1]
    weight = consts[0].reshape(spec.oc, 3, 3, spec.ic)
    if spec.is_integer:
        bias = fold_zero_point(weight, bias, consts[3] - _middle(spec))
    g = geo.transforms.weight
    points = np.einsum("pa,oabc,qb->pqco", g, weight.astype(np.float64), g).reshape(geo.points, spec.ic, spec.oc)
    starts = [min(v * lanes, spec.oc - lanes) for v in range(geo.vectors)]
    vectors = np.stack([points[:, :, s : s + lanes] for s in starts], axis=2).astype(dot.b_dtype)
    firsts = [min(b * tile.nr, geo.vectors - tile.nr) for b in range(geo.blocks)]
    blocks = np.stack([vectors[:, :, v : v + tile.nr] for v in firsts])
    steps = blocks.reshape(geo.blocks, geo.points, geo.steps, dot.group, tile.nr, lanes)
    return [np.ascontiguousarray(np.moveaxis(steps, 3, 5)).reshape(-1), bias, *consts[2:]]


def _middle(spec: Conv2d) -> int:
    """The number from which inputs count."""
    return 128 if spec.x == "uint8" else 0


def emit(spec: Conv2d, tile: WinogradTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over ``x, packed weight, bias, (multiplier, quant | bounds)[, residual], y``."""
    geo = Geometry(spec, tile)
    params = tir.conv_params(spec, (geo.weights,), geo.dot.b_dtype, spec.oc)
    return tir.prim_func(name, params, lambda *buffers: _Nest(spec, tile, geo).emit(*buffers), {})


class _Nest:
    """Emits the three steps for a band of patches; its attributes are what the pieces share."""

    def __init__(self, spec: Conv2d, tile: WinogradTile, geo: Geometry) -> None:
        self.spec, self.tile, self.geo, self.dot = spec, tile, geo, geo.dot
        self.transforms = geo.transforms
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
                zero = self.params[1][0] if spec.is_integer else tir.const(0.0, "float32")
                staging = Staging(spec.n, spec.h, spec.w, 1, spec.ic, spec.pad, zero, spec.x, spec.ic)
                source, origin = staging.band(x, self.image, self.line0 - spec.pad[0], lines + 2), 0
            patches = T.alloc_buffer((geo.points * geo.in_stride,), geo.dot.a_dtype, scope="global")
            self._forward(source, origin, patches)
            with tir.parallel_if(self.shares_channels, geo.blocks) as block:
                products = T.alloc_buffer((geo.points * geo.out_stride,), geo.dot.acc_dtype, scope="global")
                self._multiply(patches, block, products)
                self._backward(products, T.Bind(tir.inside(block, tile.nr, geo.vectors)))

    def _vectors(self, dtype: str, lanes: int) -> Vectors:
        return Vectors(dtype, lanes, None if self.spec.is_integer else self.dot.lanewise)

    def _each_patch(self) -> Iterator[tuple[Expr, Expr, Expr]]:
        """Runs its body once within loops over the band: number of the patch, first line and first column of its outputs."""
        spec, tile, geo = self.spec, self.tile, self.geo
        with T.serial(0, tile.rows) as r, T.serial(0, geo.wide) as c:
            line = T.Bind(tir.inside(self.row0 + r, tile.m, spec.oh))
            column = T.Bind(tir.inside(c, tile.m, spec.ow))
            yield T.Bind(r * geo.wide + c), line, column

    def _forward(self, source: Any, origin: Expr, patches: Any) -> None:
        spec, geo, lanes = self.spec, self.geo, self.geo.channels
        vectors = self._vectors(self.dot.a_dtype, lanes)
        middle = self.transforms.of_constant(_middle(spec))

        def load(index: Expr) -> Expr:
            return T.Bind(source[tir.at(index, lanes)].astype(tir.lanes_of(vectors.dtype, lanes)))

        with tir.parallel_if(self.shares_channels, ceil(spec.ic / lanes)) as v:
            channel = T.Bind(tir.inside(v, lanes, spec.ic))
            for patch, line, column in self._each_patch():
                corner = T.Bind(origin + ((line - self.line0) * self.columns + column) * spec.ic + channel)
                inputs = [[load(corner + (i * self.columns + j) * spec.ic) for j in range(geo.side)] for i in range(geo.side)]
                to = T.Bind(patch * spec.ic + channel)
                for point, value in enumerate(self.transforms.forward(vectors, inputs)):
                    centred = vectors.add_scaled(value, -1, vectors.splat(middle[point])) if middle[point] else value
                    T.buffer_store(patches, centred, [tir.at(to + point * geo.in_stride, lanes)])

    def _multiply(self, patches: Any, block: Expr, products: Any) -> None:
        spec, tile, geo, dot = self.spec, self.tile, self.geo, self.dot
        lanes, everything = dot.lanes, tir.at(0, dot.lanes)
        turns = ceil(geo.patches / tile.mr)
        # the next point's weights are asked for while this one's are used; a vector is a cache line where memory is the limit
        share = ceil(tile.nr / turns)
        with T.serial(0, geo.points) as point, T.serial(0, turns) as t:
            first = T.Bind(tir.inside(t, tile.mr, geo.patches))
            acc = [[tir.register(lanes, dot.acc_dtype) for _ in range(tile.nr)] for _ in range(tile.mr)]
            for row in acc:
                for cell in row:
                    T.buffer_store(cell, tir.splat(tir.const(0, dot.acc_dtype), lanes), [everything])
            left = T.Bind(point * geo.in_stride + first * spec.ic)
            right = T.Bind((block * geo.points + point) * (geo.steps * geo.step))
            vector = lanes * dot.group
            after = T.Bind(right + geo.steps * (geo.step + tirx.min(t * share, tile.nr - share) * vector))
            with T.serial(0, geo.steps) as k:
                weights = [T.Bind(self.weight[tir.at(right + k * geo.step + i * vector, vector)]) for i in range(tile.nr)]
                for j in range(share):
                    tir.prefetch(self.weight, after + (j * geo.steps + k) * vector)
                for m, row in enumerate(acc):
                    a = patches[tir.at(left + m * spec.ic + k * dot.group, dot.group)]
                    for cell, w in zip(row, weights, strict=True):
                        T.buffer_store(cell, dot.broadcast(cell[everything], a, w), [everything])
            to = T.Bind(point * geo.out_stride + first * tile.nr * lanes)
            for m, row in enumerate(acc):
                for i, cell in enumerate(row):
                    T.buffer_store(products, cell[everything], [tir.at(to + (m * tile.nr + i) * lanes, lanes)])

    def _backward(self, products: Any, v0: Expr) -> None:
        spec, tile, geo, lanes = self.spec, self.tile, self.geo, self.dot.lanes
        vectors = self._vectors(self.dot.acc_dtype, lanes)
        epilogue = ConvEpilogue(spec, self.bias, self.params, lanes, self.dot.acc_dtype)
        packs = Packs(self.params[1], lanes, spec.y, spec.residual) if self.dot.packs and spec.y != "float32" else None
        for patch, line, column in self._each_patch():
            pixel = T.Bind(((self.image * spec.oh + line) * spec.ow + column) * spec.oc)
            with T.serial(0, tile.nr) as i:
                channel = T.Bind(tir.inside(v0 + i, lanes, spec.oc))
                bias = epilogue.bias_at(channel)
                epilogue.bind_multiplier(channel)
                start = T.Bind((patch * tile.nr + i) * lanes)
                values = [T.Bind(products[tir.at(start + p * geo.out_stride, lanes)]) for p in range(geo.points)]
                square = [values[p : p + geo.side] for p in range(0, geo.points, geo.side)]
                totals = [value + bias for value in self.transforms.backward(vectors, square)]
                places = [pixel + (o // tile.m * spec.ow + o % tile.m) * spec.oc + channel for o in range(tile.m**2)]
                if packs:
                    cells = [Cell(at, total, epilogue.multiplier) for at, total in zip(places, totals, strict=True)]
                    finish(store(packs, self.y, cells, 1, epilogue.residual))
                else:
                    for at, total in zip(places, totals, strict=True):
                        epilogue.store(self.y, at, total)
