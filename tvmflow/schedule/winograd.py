"""3x3 convolutions of stride 1 with fewer multiplies: Winograd's F(2x2, 3x3) and F(4x4, 3x3), in float32 and in integers.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016: patches of ``m + 2`` squared inputs are transformed, each
of their ``(m + 2)**2`` points becomes one matrix product over the channels, and the products are transformed back to ``m x m``
outputs: 16 multiplies for 4 outputs, or 36 for 16, where the direct convolution takes 36 and 144.

A few rows of tiles are transformed into a buffer that stays in L2; a register tile of ``mr`` patches by ``nr`` vectors of output
channels is multiplied for every point; the epilogue runs on the way back. NHWC makes vectors of channels of everything. At the
end of a line are smaller patches (schedule/winograd_geometry.py). What float32 loses is in schedule/winograd_transforms.py.

Integers are exact: transformed inputs and weights are int16, multiplied and summed modulo 2**32. Inputs count from the middle of
their type, so that outputs are small, for their division needs bits to spare. Instructions that widen bytes anyway multiply as
many words; VPDPWSSD multiplies half as many as VPDPBUSD bytes, so that F(2x2) gains nothing there. Zen 4, 3x3 with 128 channels
of 28x28 on one thread, direct and F(4x4), us: VNNI 478, 290; AVX2 1,390, 438; SSE2 3,600, 1,010.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import tir
from tvmflow.schedule.constants import fold_zero_point
from tvmflow.schedule.epilogue import ConvEpilogue
from tvmflow.schedule.intrinsics import BY_NAME, DOTS, Dot, dot_for
from tvmflow.schedule.packs import Cell, Packs, finish, store
from tvmflow.schedule.products import Panel, shares, uneven
from tvmflow.schedule.staging import Staging
from tvmflow.schedule.winograd_geometry import Geometry, Matrices, Patches, WinogradTile
from tvmflow.schedule.winograd_transforms import POINTS, Vectors, backward, forward, transforms
from tvmflow.target import Cpu

Array = NDArray[Any]
Expr = Any

FEW_PATCHES = 16
"""Of an image, whose weights take longer to arrive than they to be multiplied."""


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
        for rows in sorted(shares(high, high if high * wide <= FEW_PATCHES else high - 1)):
            matrices = Geometry(spec, WinogradTile(dot.name, m, rows, 1, 1)).matrices
            for nr in range(1, min(ceil(spec.oc / dot.lanes), 4) + 1):
                for mr in sorted(set().union(*(shares(of.rows, (registers - dot.temporaries) // nr - 1) for of in matrices))):
                    yield WinogradTile(dot.name, m, rows, mr, nr)


def estimate(spec: Conv2d, tile: WinogradTile, cpu: Cpu) -> float:
    """Cycles by the machine of schedule/cycles.py: the products, beside which weights arrive, the transforms, patches beyond L2.

    That two threads do not get equal shares of the bands counts half: kernels run on one thread too.
    """
    geo = Geometry(spec, tile)
    bands = spec.n * geo.bands
    products = geo.weights.blocks * sum(of.points * of.turns * geo.weights.cycles(of.mr, cpu) for of in geo.matrices)
    inputs, outputs = (24.0, 20.0) if tile.m == 2 else (110.0, 80.0)
    around = geo.rows / geo.points * (ceil(spec.ic / geo.channels) * inputs + geo.weights.blocks * tile.nr * outputs)
    buffer = geo.rows * spec.ic * np.dtype(geo.dot.a_dtype).itemsize
    spilled = geo.weights.blocks * buffer / 26 if buffer > cpu.l2_kib * 900 else 0.0
    # threads that share the channels of a single band write each other's patches
    longer = uneven(bands) if bands > 1 else 1.5
    return (geo.weights.passes(products, bands, cpu) + bands * (around + spilled)) * (1 + longer) / 2


def ops(spec: Conv2d, tile: WinogradTile) -> int:
    """Operations of the products, a multiply-add counted as two: fewer than the convolution has.

    A product of words counts for the products of bytes that the instruction in its place would do: a share of their peak.
    """
    geo = Geometry(spec, tile)
    bytewise = next((dot.group for dot in DOTS if dot.words == tile.dot), geo.dot.group)
    return 2 * spec.n * geo.rows * geo.high // tile.rows * spec.ic * spec.oc * bytewise // geo.dot.group


def weight_bytes(spec: Conv2d, tile: WinogradTile) -> int:
    """Bytes of the packed weights."""
    return Geometry(spec, tile).weights.bytes


def pack(spec: Conv2d, tile: WinogradTile, consts: list[Array]) -> list[Array]:
    """``consts`` as conv2d.pack takes them, with the weight transformed and packed for its points."""
    geo = Geometry(spec, tile)
    bias = consts[1]
    weight = consts[0].reshape(spec.oc, 3, 3, spec.ic)
    if spec.is_integer:
        bias = fold_zero_point(weight, bias, consts[3] - _middle(spec))
    g = geo.transforms.weight
    points = np.einsum("pa,oabc,qb->pqco", g, weight.astype(np.float64), g).reshape(geo.points, spec.ic, spec.oc)[geo.order]
    return [geo.weights.pack(points), bias, *consts[2:]]


def _middle(spec: Conv2d) -> int:
    """The number from which inputs count."""
    return 128 if spec.x == "uint8" else 0


def emit(spec: Conv2d, tile: WinogradTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over ``x, packed weight, bias, (multiplier, quant | bounds)[, residual], y``."""
    geo = Geometry(spec, tile)
    params = tir.conv_params(spec, (geo.weights.size,), geo.dot.b_dtype, spec.oc)
    return tir.prim_func(name, params, lambda *buffers: _Nest(spec, tile, geo).emit(*buffers), {})


class _Nest:
    """Emits the three steps for a band of patches; its attributes are what the pieces share."""

    def __init__(self, spec: Conv2d, tile: WinogradTile, geo: Geometry) -> None:
        self.spec, self.tile, self.geo, self.dot = spec, tile, geo, geo.dot
        self.columns = spec.w + spec.pad[1] + spec.pad[3]

    def emit(self, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
        spec, tile, geo = self.spec, self.tile, self.geo
        self.weight, self.bias, self.params, self.y = weight, bias, rest[:-1], rest[-1]
        bands = spec.n * geo.bands
        # threads share the bands; the channels where there is one only
        self.shares_channels = tile.threads and bands == 1
        with tir.parallel_if(tile.threads, bands) as band:
            self.visit = band * geo.weights.blocks * geo.turns, bands * geo.weights.blocks * geo.turns
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
            inputs = T.alloc_buffer((geo.in_size,), geo.dot.a_dtype, scope="global")
            self._forward(source, origin, inputs)
            with tir.parallel_if(self.shares_channels, geo.weights.blocks) as block:
                products = T.alloc_buffer((geo.out_size,), geo.dot.acc_dtype, scope="global")
                for matrices in geo.matrices:
                    self._multiply(matrices, inputs, block, products)
                self._backward(products, T.Bind(geo.weights.vector(block)))

    def _vectors(self, dtype: str, lanes: int) -> Vectors:
        return Vectors(dtype, lanes, None if self.spec.is_integer else self.dot.lanewise)

    def _each(self, patches: Patches) -> Iterator[tuple[Expr, Expr, Expr]]:
        """Runs its body once within loops over patches: number of the patch, first line and first column of its outputs."""
        spec, m = self.spec, self.tile.m
        with T.serial(0, patches.rows) as r, T.serial(0, patches.columns) as c:
            line = T.Bind(tirx.min((self.row0 + patches.row + r) * m, spec.oh - patches.down.m))
            yield T.Bind(r * patches.columns + c), line, T.Bind((patches.column + c) * m)

    def _forward(self, source: Any, origin: Expr, inputs: Any) -> None:
        spec, geo, lanes = self.spec, self.geo, self.geo.channels
        vectors = self._vectors(self.dot.a_dtype, lanes)

        def load(index: Expr) -> Expr:
            return T.Bind(source[tir.at(index, lanes)].astype(tir.lanes_of(vectors.dtype, lanes)))

        with tir.parallel_if(self.shares_channels, ceil(spec.ic / lanes)) as v:
            channel = T.Bind(tir.inside(v, lanes, spec.ic))
            for patches, places in zip(geo.patches, geo.inputs, strict=True):
                down, along = patches.down, patches.along
                for number, line, column in self._each(patches):
                    corner = T.Bind(origin + ((line - self.line0) * self.columns + column) * spec.ic + channel)
                    lines = [corner + i * self.columns * spec.ic for i in range(down.side)]
                    square = [[load(line + j * spec.ic) for j in range(along.side)] for line in lines]
                    to = T.Bind(number * spec.ic + channel)
                    for place, value in zip(places, forward(vectors, down, along, square, _middle(spec)), strict=True):
                        T.buffer_store(inputs, value, [tir.at(to + place, lanes)])

    def _multiply(self, of: Matrices, inputs: Any, block: Expr, products: Any) -> None:
        spec, tile, geo, lanes = self.spec, self.tile, self.geo, self.dot.lanes
        with T.serial(0, of.points) as point, T.serial(0, of.turns) as t:
            first = T.Bind(tir.inside(t, of.mr, of.rows))
            left = T.Bind(of.inputs + point * of.in_stride + first * spec.ic)
            panel = Panel(geo.weights, self.weight, block, of.first + point)
            begin, visits = self.visit
            before = sum(m.points * m.turns for m in geo.matrices if m.first < of.first)
            panel.ask_ahead(t, of.turns, tile.ahead, begin + block * geo.turns + before + point * of.turns + t, visits)
            acc = panel.multiply(inputs, [left + m * spec.ic for m in range(of.mr)])
            to = T.Bind(of.products + point * of.out_stride + first * tile.nr * lanes)
            for m, row in enumerate(acc):
                for i, cell in enumerate(row):
                    T.buffer_store(products, cell[tir.at(0, lanes)], [tir.at(to + (m * tile.nr + i) * lanes, lanes)])

    def _backward(self, products: Any, v0: Expr) -> None:
        spec, tile, geo, lanes = self.spec, self.tile, self.geo, self.dot.lanes
        vectors = self._vectors(self.dot.acc_dtype, lanes)
        epilogue = ConvEpilogue(spec, self.bias, self.params, lanes, self.dot.acc_dtype)
        packs = Packs(self.params[1], lanes, spec.y, spec.residual) if self.dot.packs and spec.y != "float32" else None
        for patches, places in zip(geo.patches, geo.products, strict=True):
            down, along = patches.down, patches.along
            for number, line, column in self._each(patches):
                pixel = T.Bind(((self.image * spec.oh + line) * spec.ow + column) * spec.oc)
                with T.serial(0, tile.nr) as i:
                    channel = T.Bind(geo.weights.channel(v0 + i))
                    bias = epilogue.bias_at(channel)
                    epilogue.bind_multiplier(channel)
                    start = T.Bind((number * tile.nr + i) * lanes)
                    values = [T.Bind(products[tir.at(start + place, lanes)]) for place in places]
                    square = [values[p : p + along.side] for p in range(0, len(values), along.side)]
                    totals = backward(vectors, down, along, square, bias)
                    outputs = [pixel + (r * spec.ow + c) * spec.oc + channel for r, c in product(range(down.m), range(along.m))]
                    if packs:
                        cells = [Cell(at, total, epilogue.multiplier) for at, total in zip(outputs, totals, strict=True)]
                        finish(store(packs, self.y, cells, 1, epilogue.residual))
                    else:
                        for at, total in zip(outputs, totals, strict=True):
                            epilogue.store(self.y, at, total)
