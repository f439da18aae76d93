"""Pointwise convolutions and dense layers in float32 with seven products of matrices for eight.

Strassen, Gaussian Elimination is not Optimal, 1969, in Winograd's form of fewer sums. The input A, the weights B and the output Y
are halved both ways; ``Aij`` is row i of a pair of neighbouring rows, half j of the input channels, ``Bjk`` goes to half k of the
output channels::

    S1 = A10 + A11    S2 = S1 - A00     S3 = A00 - A10    S4 = A01 - S2
    T1 = B01 - B00    T2 = B11 - T1     T3 = B11 - B01    T4 = T2 - B10
    P = A00 B00       U = P + S2 T2     V = U + S3 T3     W = S1 T1
    Y00 = P + A01 B10                   Y01 = U + W + S4 B11
    Y10 = V - A11 T4                    Y11 = V + W

The T are made at compile time, which makes 7/4 of the weights. What is kept of a product for the next ones is added to their
accumulators before they leave the registers, so that the S are all that is left to do: a pass over a band of rows, into a buffer
that stays in the cache. A register tile of ``mr`` pairs by ``nr`` vectors of channels is multiplied for each product in turn.

Rounding: over 384 or 1536 input channels the error against float64 is 1.9 times that of the direct kernel (root mean square; the
largest one 2.0 times).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import cycles, tir
from tvmflow.schedule.conv2d_geometry import is_pointwise
from tvmflow.schedule.epilogue import ConvEpilogue
from tvmflow.schedule.intrinsics import BY_NAME, Dot, dot_for
from tvmflow.schedule.products import Panel, Weights, shares, uneven
from tvmflow.target import Cpu

Array = NDArray[Any]
Expr = Any
Block: TypeAlias = tuple[int, int]
"""Halves of a matrix: of its rows, of its columns."""

FEWEST_BANDS = 4
"""Threads share bands: to share the channels of one they would read sums that others wrote, which takes up to a third longer."""
FEWEST_PAIRS = 4
"""Of a band."""
FEWEST_CHANNELS = 256
"""Of the input and of the output. Smaller layers gain up to 9 % alone, but in networks nothing (a Zen 4, MobileNetV2 and
EfficientNet-Lite0: -1 to +1.5 %), and their files grow all the same."""


class StrassenTile(msgspec.Struct, frozen=True, tag="strassen"):
    """Decisions of the template."""

    dot: str
    pairs: int
    """Pairs of rows of a band."""
    mr: int
    """Pairs that are multiplied together."""
    nr: int
    threads: bool = True
    ahead: int = 0
    """Bytes behind the kernel's weights that it asks for (schedule/ahead.py). The network decides, not the tuner."""


class End(msgspec.Struct, frozen=True):
    """What a product is for: with ``plus``, which was kept, it is a block of the output, or is kept itself."""

    to: Block | int
    plus: int | None = None


class Product(msgspec.Struct, frozen=True):
    left: Block | int
    """Block of the input, or number of a sum: S1 is 0."""
    right: tuple[tuple[int, int], tuple[int, int]]
    """How often each block of the weights is in the right operand."""
    ends: tuple[End, ...]


PRODUCTS = (
    Product((0, 0), ((1, 0), (0, 0)), (End(0),)),  # P
    Product((0, 1), ((0, 0), (1, 0)), (End((0, 0), 0),)),
    Product(1, ((1, -1), (0, 1)), (End(0, 0),)),  # U
    Product(2, ((0, -1), (0, 1)), (End(1, 0),)),  # V
    Product((1, 1), ((-1, 1), (1, -1)), (End((1, 0), 1),)),
    Product(0, ((-1, 1), (0, 0)), (End((1, 1), 1), End(0, 0))),  # U + W
    Product(3, ((0, 0), (0, 1)), (End((0, 1), 0),)),
)
SUMS = 4
TOTALS, KEPT = 2, 3
"""Number of what is kept that no product adds to, and how many there are."""


@dataclass(frozen=True)
class Geometry:
    """Sizes that follow from a signature and a tile."""

    pixels: int
    weights: Weights
    pairs: int
    bands: int
    turns: int
    """Register tiles of a band, product and block of channels."""
    row: int
    """Of a sum of rows, with a vector between it and the next, so that rows of a tile do not meet in one set of the cache."""


def geometry(spec: Conv2d, tile: StrassenTile) -> Geometry:
    dot, pixels = BY_NAME[tile.dot], spec.n * spec.h * spec.w
    pairs = ceil(pixels / 2)
    return Geometry(
        pixels=pixels,
        weights=Weights(dot, len(PRODUCTS), spec.ic // 2, spec.oc // 2, tile.nr),
        pairs=pairs,
        bands=ceil(pairs / tile.pairs),
        turns=ceil(tile.pairs / tile.mr),
        row=(ceil(spec.ic // 2 / dot.lanes) + 1) * dot.lanes,
    )


def instruction(spec: Conv2d, names: tuple[str, ...]) -> Dot | None:
    """What multiplies a layer, on a target that offers ``names``; None of a layer that is too small or has no halves."""
    large = spec.n * spec.h * spec.w >= 2 * FEWEST_BANDS * FEWEST_PAIRS and min(spec.ic, spec.oc) >= FEWEST_CHANNELS
    halves = spec.ic % 2 == spec.oc % 2 == 0
    return dot_for(names, spec.oc // 2) if not spec.is_integer and is_pointwise(spec) and large and halves else None


def space(spec: Conv2d, names: tuple[str, ...], registers: int) -> Iterator[StrassenTile]:
    """Every tile that fits the register file, with bands for four threads and more."""
    dot = instruction(spec, names)
    if dot is None:
        return
    for pairs in dict.fromkeys(_bands(ceil(spec.n * spec.h * spec.w / 2))):
        for nr in range(1, min(ceil(spec.oc // 2 / dot.lanes), 5) + 1):
            for mr in sorted(shares(pairs, (registers - dot.temporaries) // nr - 1)):
                yield StrassenTile(dot.name, pairs, mr, nr)


def _bands(pairs: int) -> Iterator[int]:
    """Pairs of a band: of 4 to 7 bands, 8 to 15, ..., as many as do the fewest pairs twice."""
    fewest = FEWEST_BANDS
    while pairs // fewest >= FEWEST_PAIRS:
        yield min((ceil(pairs / n) for n in range(fewest, 2 * fewest)), key=lambda size: ceil(pairs / size) * size)
        fewest *= 2


def estimate(spec: Conv2d, tile: StrassenTile, cpu: Cpu) -> float:
    """Cycles by the machine of schedule/cycles.py: the products, beside which weights arrive, the sums, operands beyond L2.

    Fitted to 559 measured tiles of 26 layers on a Zen 4, AVX-512 and AVX2. A layer must gain 3 %, for it takes 7/4 of the memory.
    That two threads do not get equal shares of the bands counts half: kernels run on one thread too.
    """
    geo = geometry(spec, tile)
    weights, dot = geo.weights, geo.weights.dot
    size = np.dtype(dot.acc_dtype).itemsize
    read, written = 2 * tile.pairs * spec.ic * size, SUMS * tile.pairs * geo.row * size
    of_tile = weights.cycles(tile.mr, cpu)
    # three of seven products read the input itself, of which eight rows do not crowd
    if cycles.crowded(dot, tile.mr - 1, 2 * spec.ic * size):
        of_tile += weights.steps * tile.mr * 3 / 7
    products = len(PRODUCTS) * weights.blocks * geo.turns * of_tile
    lines = tile.pairs * ceil(weights.ic / dot.lanes) * dot.lanes * size / tir.CACHE_LINE
    sums = lines * (14 if written < cpu.l1d_kib * 512 else 30)
    operands = weights.blocks * (written + read * 3 / 4) / (512 if written + read < cpu.l2_kib * 900 else 32)
    bands = weights.passes(products, geo.bands, cpu) + geo.bands * (sums + operands + weights.bytes / 128)
    # input and output are visited a block at a time and not row by row: what is beyond L2 waits for each line
    visited = geo.pixels * max(spec.ic, spec.oc * (2 if spec.residual else 1)) * size
    waits = visited / tir.CACHE_LINE * 10 if visited > cpu.l2_kib * 1024 else 0.0
    arrival = spec.ic * spec.oc * size / 16  # as conv2d.estimate counts it
    return 1.03 * (bands + waits + arrival) * (1 + uneven(geo.bands)) / 2


def ops(spec: Conv2d, tile: StrassenTile) -> int:
    """Operations of the products, a multiply-add counted as two."""
    geo = geometry(spec, tile)
    return 2 * len(PRODUCTS) * geo.pairs * geo.weights.ic * geo.weights.oc


def weight_bytes(spec: Conv2d, tile: StrassenTile) -> int:
    """Bytes of the packed weights."""
    return geometry(spec, tile).weights.bytes


def pack(spec: Conv2d, tile: StrassenTile, consts: list[Array]) -> list[Array]:
    """``consts`` are weight, bias, bounds; the weight becomes the seven right operands, packed."""
    halves = consts[0].astype(np.float64).reshape(2, spec.oc // 2, 2, spec.ic // 2)
    rights = np.stack([np.einsum("jk,knjc->cn", np.array(product.right), halves) for product in PRODUCTS])
    return [geometry(spec, tile).weights.pack(rights), *consts[1:]]


def emit(spec: Conv2d, tile: StrassenTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over ``x, packed weight, bias, bounds[, residual], y``."""
    geo = geometry(spec, tile)
    params = tir.conv_params(spec, (geo.weights.size,), geo.weights.dot.b_dtype, spec.oc)
    return tir.prim_func(name, params, lambda *buffers: _Nest(spec, tile, geo).emit(*buffers), {})


class _Nest:
    """Emits sums and products of a band; its attributes are what the pieces share."""

    def __init__(self, spec: Conv2d, tile: StrassenTile, geo: Geometry) -> None:
        self.spec, self.tile, self.geo = spec, tile, geo
        self.lanes, self.dtype = geo.weights.dot.lanes, geo.weights.dot.acc_dtype

    def emit(self, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
        tile, geo = self.tile, self.geo
        self.x, self.weight, self.y = x, weight, rest[-1]
        with tir.parallel_if(tile.threads, geo.bands) as band:
            self.band, self.pair0 = band, T.Bind(tir.inside(band, tile.pairs, geo.pairs))
            self.sums = T.alloc_buffer((SUMS * tile.pairs * geo.row,), self.dtype, scope="global")
            self._sum()
            with T.serial(0, geo.weights.blocks) as block:
                self.kept = T.alloc_buffer((KEPT * geo.turns * tile.mr * tile.nr * self.lanes,), self.dtype, scope="global")
                self.epilogue = ConvEpilogue(self.spec, bias, rest[:-1], self.lanes, self.dtype)
                for number in range(len(PRODUCTS)):
                    with T.serial(0, geo.turns) as turn:
                        self._multiply(number, block, turn)

    def _line(self, pair: Expr, lower: int) -> Expr:
        """Row of a pair; of rows that are odd the last one is both of its pair."""
        row = (self.pair0 + pair) * 2 + lower
        return tirx.min(row, self.geo.pixels - 1) if lower and self.geo.pixels % 2 else row

    def _sum(self) -> None:
        geo, lanes, half = self.geo, self.lanes, self.geo.weights.ic
        with T.serial(0, self.tile.pairs) as pair, T.serial(0, ceil(half / lanes)) as v:
            channel = T.Bind(tir.inside(v, lanes, half))
            starts = [T.Bind(self._line(pair, i) * self.spec.ic + j * half + channel) for i, j in product((0, 1), (0, 1))]
            a00, a01, a10, a11 = (T.Bind(self.x[tir.at(start, lanes)]) for start in starts)
            s1 = T.Bind(a10 + a11)
            s2 = T.Bind(s1 - a00)
            for number, value in enumerate((s1, s2, a00 - a10, a01 - s2)):
                T.buffer_store(self.sums, value, [tir.at((number * self.tile.pairs + pair) * geo.row + channel, lanes)])

    def _multiply(self, number: int, block: Expr, turn: Expr) -> None:
        tile, geo, of = self.tile, self.geo, PRODUCTS[number]
        first = T.Bind(tir.inside(turn, tile.mr, tile.pairs))
        panel = Panel(geo.weights, self.weight, block, number)
        tiles = geo.weights.blocks * len(PRODUCTS) * geo.turns
        visit = self.band * tiles + (block * len(PRODUCTS) + number) * geo.turns + turn
        panel.ask_ahead(turn, geo.turns, tile.ahead, visit, geo.bands * tiles)
        acc = panel.multiply(*self._left(of.left, first))
        for end in of.ends:
            values = [[cell[tir.at(0, self.lanes)] for cell in row] for row in acc]
            if end.plus is not None:
                values = [[v + self._kept(end.plus, turn, m, i) for i, v in enumerate(row)] for m, row in enumerate(values)]
            if isinstance(end.to, tuple):
                self._give(end.to, block, turn, first, values)
            else:
                self._keep(end.to, turn, values)

    def _left(self, left: Block | int, first: Expr) -> tuple[Any, list[Expr]]:
        """Buffer of a left operand, and where the rows of a register tile begin in it."""
        tile, geo = self.tile, self.geo
        if isinstance(left, int):
            start = T.Bind((left * tile.pairs + first) * geo.row)
            return self.sums, [start + m * geo.row for m in range(tile.mr)]
        lower, half = left
        start = T.Bind(((self.pair0 + first) * 2 + lower) * self.spec.ic + half * geo.weights.ic)
        rows = [start + m * 2 * self.spec.ic for m in range(tile.mr - 1)]
        return self.x, [*rows, T.Bind(self._line(first + tile.mr - 1, lower) * self.spec.ic + half * geo.weights.ic)]

    def _place(self, number: int, turn: Expr, m: Expr, i: int) -> Expr:
        """Of a vector that is kept. Where register tiles overlap each has its own, for it adds to what it finds."""
        row = (number * self.geo.turns + turn) * self.tile.mr + m
        return tir.at((row * self.tile.nr + i) * self.lanes, self.lanes)

    def _kept(self, number: int, turn: Expr, m: Expr, i: int) -> Expr:
        return self.kept[self._place(number, turn, m, i)]

    def _keep(self, number: int, turn: Expr, values: list[list[Expr]]) -> None:
        for m, row in enumerate(values):
            for i, value in enumerate(row):
                T.buffer_store(self.kept, value, [self._place(number, turn, m, i)])

    def _give(self, to: Block, block: Expr, turn: Expr, first: Expr, values: list[list[Expr]]) -> None:
        """Finishes and stores a block of the output."""
        geo, (lower, half) = self.geo, to
        vector = T.Bind(geo.weights.vector(block))
        channels = [T.Bind(geo.weights.channel(vector + i) + half * geo.weights.oc) for i in range(self.tile.nr)]
        biases = [self.epilogue.bias_at(channel) for channel in channels]

        def store(m: Expr, row: list[Expr]) -> None:
            line = T.Bind(self._line(first + m, lower) * self.spec.oc)
            for channel, bias, value in zip(channels, biases, row, strict=True):
                self.epilogue.store(self.y, line + channel, T.Bind(value + bias))

        if not self.spec.activation:
            for m, row in enumerate(values):
                store(m, row)
            return
        # a function for every register of four blocks is more code than LLVM and the caches like: GELU took 3 s to compile
        self._keep(TOTALS, turn, values)
        with T.serial(0, self.tile.mr) as m:
            store(m, [self._kept(TOTALS, turn, m, i) for i in range(self.tile.nr)])
