"""Integer depthwise convolution with dot products: image rows are interleaved byte by byte, a vector of channels at a time.

A dot product reduces over ``group`` neighbouring elements; a depthwise layer has none along the channels, so ``group`` rows of
the image are brought together: bytes of four rows, unpacked within 128-bit lanes, become one word a channel. Words are kept in
scratch, borders included, and serve every output that sees them: all columns of a kernel, and several rows of the output, whose
weights are shifted and padded with zeros (four image rows hold two rows of a 3x3 layer's outputs).

Unpacking leaves the channels of a vector of bytes in four quarters, an order that packing with saturation undoes: the tables are
permuted once, at compile time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import interleave, tir
from tvmflow.schedule.constants import fold_zero_point
from tvmflow.schedule.epilogue import ConvEpilogue
from tvmflow.schedule.intrinsics import BY_NAME, Dot, dot_for
from tvmflow.schedule.packs import Packs, shuffle

Array = NDArray[Any]
Expr = Any


class DepthwiseDotTile(msgspec.Struct, frozen=True, tag="depthwise_dot"):
    """``mw`` vectors of outputs are computed together; a thread takes ``rows`` output rows at once."""

    dot: str
    mw: int
    rows: int
    threads: bool = True


@dataclass(frozen=True)
class Block:
    """``width`` channels from ``first`` on, ``count`` times; a vector of bytes holds them for ``pixels`` neighbouring outputs."""

    first: int
    width: int
    count: int
    pixels: int
    stored: int
    """Channels that are stored before its own."""


class Geometry:
    """Sizes that follow from a signature and an instruction."""

    def __init__(self, spec: Conv2d, dot: Dot) -> None:
        self.spec, self.dot = spec, dot
        self.bytes = 4 * dot.lanes
        self.groups = ceil(spec.kh / dot.group)
        """Words that hold the rows of a kernel."""
        shared = (self.groups * dot.group - spec.kh) // spec.stride[0] + 1 if spec.dilation[0] == 1 else 1
        self.shared = min(shared, spec.oh)
        """Output rows that the same words serve."""
        self.periods = ceil(spec.oh / self.shared)
        self.seen = (self.shared - 1) * spec.stride[0] + spec.kh
        """Image rows in the words that matter."""
        self.columns = spec.w + spec.pad[1] + spec.pad[3]
        self.step = spec.stride[1]
        self.blocks = tuple(self._blocks())
        self.stored = sum(b.count * b.width for b in self.blocks)
        """Channels with those that overlapping blocks hold twice."""
        self.taps = self.groups * spec.kw * 4 * dot.lanes
        """Words of the weights of a row of outputs."""

    def _blocks(self) -> Iterator[Block]:
        """Whole vectors of channels, then a narrower one for each smaller power of two; the last may overlap."""
        done = stored = 0
        width = self.bytes
        while done < self.spec.oc:
            left = self.spec.oc - done
            if width > interleave.FEWEST and left <= width // 2 or width > self.spec.oc:
                width //= 2
                continue
            count = max(left // width, 1)
            yield Block(min(done, self.spec.oc - width), width, count, self.bytes // width, stored)
            done, stored = done + count * width, stored + count * width

    @property
    def is_packed(self) -> bool:
        """Results are requantized and packed in quarters; else they are brought into their natural order first."""
        return self.dot.packs and self.spec.y != "float32"

    def plane(self, pixels: int) -> int:
        """Positions of a plane: columns that are ``step`` apart, as neighbouring outputs see them."""
        most = max(self.spec.ow, pixels) + (self.spec.kw - 1) * self.spec.dilation[1] // self.step
        return max(ceil(self.columns / self.step), most)

    def scratch(self, block: Block) -> int:
        return self.groups * 4 * self.step * self.plane(block.pixels) * block.width // 4


def space(spec: Conv2d, names: tuple[str, ...], registers: int) -> Iterator[DepthwiseDotTile]:
    dot = dot_for(names, ceil(spec.oc / 4))
    geo = Geometry(spec, dot)
    for mw in range(1, min(ceil(spec.ow / geo.blocks[0].pixels), 8) + 1):
        # four accumulators a vector of outputs, the weights of a row of words, a column and what is on its way
        if 4 * mw + spec.kw + 1 + dot.temporaries <= registers or mw == 1:
            for periods in (1, 2, 4, 8):
                if periods < max(geo.periods, 2):
                    yield DepthwiseDotTile(dot.name, mw, geo.shared * periods)


def estimate(spec: Conv2d, tile: DepthwiseDotTile) -> float:
    """Cycles: five to interleave a column, two dot products or two loads each, then the epilogue of every vector.

    Constants were fitted to 500 kernels on a Zen 5 core: the tiles that they choose for 17 layers of MobileNetV2 and
    EfficientNet-Lite0 take 4 % longer than the best ones.
    """
    dot = BY_NAME[tile.dot]
    geo = Geometry(spec, dot)
    period = 0.0
    for block in geo.blocks:
        vectors = ceil(spec.ow / block.pixels)
        mw = min(tile.mw, vectors)
        columns = len({m * spec.stride[1] + kw * spec.dilation[1] for m in range(mw) for kw in range(spec.kw)})
        body = max(4 * mw * geo.groups * spec.kw, 4 * geo.groups * (columns + spec.kw)) / 2 + 4.75 * mw + 4
        if 4 * mw + spec.kw > 22:  # few registers are left to begin the next tile
            body *= 1.2
        period += block.count * (5 * spec.w * geo.groups + geo.shared * (ceil(vectors / mw) * body + 10))
    bands = ceil(spec.oh / tile.rows) if tile.threads else 1
    return spec.n * (geo.periods * period + bands * 300)


def fits(spec: Conv2d, names: tuple[str, ...]) -> bool:
    """Whether there is a lane of channels, and an instruction that takes rows of them."""
    return spec.is_integer and spec.oc >= interleave.FEWEST and BY_NAME[names[0]].group > 1


def pack(spec: Conv2d, tile: DepthwiseDotTile, consts: list[Array]) -> list[Array]:
    """Weights as ``[blocks, kh, kw, width]``, bias and multiplier as ``[blocks, quarters, width / 4]``; multipliers that follow
    no pack stay in natural order.

    The input's zero point moves into the bias.
    """
    geo = Geometry(spec, BY_NAME[tile.dot])
    weight, multiplier = consts[0].reshape(spec.oc, spec.kh, spec.kw), consts[2]
    bias = fold_zero_point(weight, consts[1], consts[3])
    starts = [(b.first + i * b.width, b.width) for b in geo.blocks for i in range(b.count)]
    packed = np.concatenate([weight[first : first + width].transpose(1, 2, 0).reshape(-1) for first, width in starts])
    quarters = np.concatenate([first + interleave.quarters(width // 4).reshape(-1) for first, width in starts])
    natural = np.concatenate([first + np.arange(width) for first, width in starts])
    multiplier = multiplier[quarters if geo.is_packed else natural]
    return [packed, bias[quarters], multiplier, *consts[3:]]


def emit(spec: Conv2d, tile: DepthwiseDotTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over ``x, packed weight, bias, multiplier, quant[, residual], y``."""
    geo = Geometry(spec, BY_NAME[tile.dot])
    params = tir.conv_params(spec, (geo.stored * spec.kh * spec.kw,), "int8", geo.stored)
    return tir.prim_func(name, params, lambda *buffers: _Nest(geo, tile, *buffers).emit(), {})


class _Nest:
    """Emits the loop nest; its attributes are what the pieces share."""

    def __init__(self, geo: Geometry, tile: DepthwiseDotTile, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
        self.geo, self.tile, self.spec, self.dot = geo, tile, geo.spec, geo.dot
        self.x, self.weight, self.bias, self.params, self.y = x, weight, bias, rest[:-1], rest[-1]

    def emit(self) -> None:
        geo, tile, spec = self.geo, self.tile, self.spec
        periods = tile.rows // geo.shared if tile.threads else geo.periods
        bands = ceil(geo.periods / periods)
        with tir.parallel_if(tile.threads, spec.n * bands) as chunk:
            image, band = (chunk // bands, chunk % bands) if spec.n > 1 else (0, chunk)
            first = T.Bind(band * periods)
            self.packs = Packs(self.params[1], self.dot.lanes, spec.y, spec.residual, quarters=True) if geo.is_packed else None
            self.scratch = T.alloc_buffer((max(geo.scratch(b) for b in geo.blocks),), "int32", scope="global")
            self.weights = T.alloc_buffer((geo.shared * geo.taps,), "int32", scope="global")
            for block in geo.blocks:
                self._borders(block)
                count = tirx.min(periods, geo.periods - first) if geo.periods % periods else periods
                with T.serial(0, block.count) as b:
                    slot, channel = T.Bind(block.stored + b * block.width), T.Bind(block.first + b * block.width)
                    self._stage_weights(block, slot * (spec.kh * spec.kw))
                    with T.serial(0, count) as period:
                        line = T.Bind(tir.inside(first + period, geo.shared, spec.oh))
                        self._stage(block, image, line, channel)
                        with T.serial(0, geo.shared) as row:
                            self._row(block, slot, row, image * spec.oh + line + row, channel)

    def _stage_weights(self, block: Block, first: Expr) -> None:
        """Interleaves a block's weights as the rows of the image, once for every output row that shares the words: further
        down by its elements, through all words of a column."""
        spec, geo, dot = self.spec, self.geo, self.dot
        lanes, bits = dot.lanes, 32 // dot.group
        zeros = tir.splat(tir.const(0, "int8"), geo.bytes)
        with T.serial(0, spec.kw) as kw:
            rows = [self._weight_row(block, first, kh, kw) for kh in range(spec.kh)]
            rows += [zeros] * (geo.groups * dot.group - spec.kh)
            words = []
            for group in range(geo.groups):
                members = interleave.words(rows[group * dot.group :][: dot.group], geo.bytes, "int8")
                words.append([T.Bind(tirx.reinterpret(f"uint32x{lanes}", w)) for w in members])
            for row in range(geo.shared):
                up = row * spec.stride[0] * bits
                for group, quarters in enumerate(words):
                    for quarter, word in enumerate(quarters):
                        value = word << tir.splat(tir.const(up, "uint32"), lanes)
                        if up and group:
                            value = value | words[group - 1][quarter] >> tir.splat(tir.const(32 - up, "uint32"), lanes)
                        at = row * geo.taps + ((group * spec.kw + kw) * 4 + quarter) * lanes
                        T.buffer_store(self.weights, tirx.reinterpret(f"int32x{lanes}", value), [tir.at(at, lanes)])

    def _weight_row(self, block: Block, first: Expr, kh: int, kw: Expr) -> Expr:
        """The weights of a tap."""
        start = first + (kh * self.spec.kw + kw) * block.width
        return self._repeated(self.weight, start, block.width, self.geo.bytes)

    def _quarter(self, table: Any, block: Block, slot: Expr, quarter: int) -> Expr:
        """A quarter of a block's biases or multipliers."""
        width = block.width // 4
        return self._repeated(table, slot + quarter * width, width, self.dot.lanes)

    @staticmethod
    def _repeated(buffer: Any, start: Expr, width: int, lanes: int) -> Expr:
        """``width`` elements, again for every pixel that a vector holds."""
        row = T.Bind(buffer[tir.at(start, width)])
        return row if lanes == width else T.Bind(shuffle([row] * (lanes // width), range(lanes)))

    def _place(self, block: Block, column: Expr, group: Expr, quarter: int) -> Expr:
        """Index in scratch of the words of a column of the padded image."""
        geo = self.geo
        plane = geo.plane(block.pixels)
        position = column if geo.step == 1 else column % geo.step * plane + column // geo.step
        return ((group * 4 + quarter) * geo.step * plane + position) * (block.width // 4)

    def _borders(self, block: Block) -> None:
        spec, geo = self.spec, self.geo
        bits = 32 // self.dot.group
        zero = self.params[1][0] & tir.const((1 << bits) - 1, "int32")
        word = zero
        for i in range(1, self.dot.group):
            word = word | (zero << (bits * i))
        lanes = block.width // 4
        border = T.Bind(tir.splat(word, lanes))
        for column in [*range(spec.pad[1]), *range(spec.pad[1] + spec.w, geo.columns)]:
            for group in range(geo.groups):
                for quarter in range(4):
                    place = self._place(block, tir.const(column, "int32"), group, quarter)
                    T.buffer_store(self.scratch, border, [tir.at(place, lanes)])

    def _stage(self, block: Block, image: Expr, line: Expr, channel: Expr) -> None:
        """Interleaves the image rows that ``shared`` output rows from ``line`` on see."""
        spec, geo, dot, width = self.spec, self.geo, self.dot, block.width
        bordered = bool(spec.pad[0] or spec.pad[2])
        with T.serial(0, geo.groups) as group:
            starts, masks = [], []
            for i in range(dot.group):
                # rows behind the last one that is seen have no weight
                seen = tirx.min(group * dot.group + i, geo.seen - 1)
                row = T.Bind(line * spec.stride[0] - spec.pad[0] + seen * spec.dilation[0])
                inside = tirx.max(tirx.min(row, spec.h - 1), 0) if bordered else row
                starts.append(T.Bind((image * spec.h + inside) * (spec.w * spec.ic) + channel))
                if bordered:
                    masks.append(self._mask(tirx.And(row >= 0, row < spec.h), width))
            with T.serial(0, spec.w) as column:
                rows = [tirx.reinterpret(f"int8x{width}", self.x[tir.at(start + column * spec.ic, width)]) for start in starts]
                if bordered:
                    rows = [row & keep | fill for row, (keep, fill) in zip(rows, masks, strict=True)]
                for quarter, words in enumerate(interleave.words([T.Bind(row) for row in rows], width, spec.x)):
                    place = self._place(block, column + spec.pad[1], group, quarter)
                    T.buffer_store(self.scratch, words, [tir.at(place, width // 4)])

    def _mask(self, inside: Expr, width: int) -> tuple[Expr, Expr]:
        """``row & keep | fill`` is the row, or the border where ``inside`` does not hold."""
        keep = T.Bind(tirx.Select(inside, tir.const(-1, "int8"), tir.const(0, "int8")))
        fill = self.params[1][0].astype("int8") & ~keep
        return T.Bind(tir.splat(keep, width)), T.Bind(tir.splat(fill, width))

    def _row(self, block: Block, slot: Expr, row: Expr, line: Expr, channel: Expr) -> None:
        """One output row of a block from the words in scratch; ``row`` of those that share them."""
        spec, geo, dot = self.spec, self.geo, self.dot
        size = min(self.tile.mw * block.pixels, spec.ow)
        starts = [max(0, min(m, size - block.pixels)) for m in range(0, size, block.pixels)]
        finish = None
        if not self.packs:
            finish = ConvEpilogue(spec, self.bias, self.params, self._outputs(block), "int32")
            finish.multiplier = self._repeated(self.params[0], slot, block.width, self._outputs(block))
        with T.serial(0, ceil(spec.ow / size)) as t:
            first = T.Bind(tir.inside(t, size, spec.ow))
            acc = [[tir.register(dot.lanes, "int32") for _ in range(4)] for _ in starts]
            for quarter in range(4):
                bias = self._quarter(self.bias, block, slot, quarter)
                for cells in acc:
                    T.buffer_store(cells[quarter], bias, [tir.at(0, dot.lanes)])
                with T.serial(0, geo.groups) as group:
                    tap = row * geo.taps + (group * spec.kw * 4 + quarter) * dot.lanes
                    place = self._place(block, tir.const(0, "int32"), group, quarter) + first * (block.width // 4)
                    self._multiply(block, [cells[quarter] for cells in acc], starts, tap, place)
            multipliers = []
            if not finish:
                multipliers = [self._quarter(self.params[0], block, slot, quarter) for quarter in range(4)]
            out = T.Bind((line * spec.ow + first) * spec.oc + channel)
            for start, cells in zip(starts, acc, strict=True):
                sums = [cell[tir.at(0, dot.lanes)] for cell in cells]
                self._store(block, finish, out + start * spec.oc, sums, multipliers)

    def _multiply(self, block: Block, acc: list[Any], starts: list[int], tap: Expr, place: Expr) -> None:
        """A quarter of the outputs at ``starts``: each column of words is read once, for every output that sees it."""
        spec, dot = self.spec, self.dot
        dtype = f"int{32 // dot.group}x{dot.lanes * dot.group}"
        words = [self.weights[tir.at(tap + kw * 4 * dot.lanes, dot.lanes)] for kw in range(spec.kw)]
        weights = [T.Bind(tirx.reinterpret(dtype, word)) for word in words]
        uses: dict[int, list[tuple[Any, Expr]]] = {}
        for cell, start in zip(acc, starts, strict=True):
            for kw, weight in enumerate(weights):
                uses.setdefault(start * spec.stride[1] + kw * spec.dilation[1], []).append((cell, weight))
        for column in sorted(uses):
            seen = T.Bind(self.scratch[tir.at(place + self._place(block, tir.const(column, "int32"), 0, 0), dot.lanes)])
            for cell, weight in uses[column]:
                total = dot.lanewise(cell[tir.at(0, dot.lanes)], seen, weight, dot.lanes)
                T.buffer_store(cell, total, [tir.at(0, dot.lanes)])

    def _store(self, block: Block, finish: ConvEpilogue | None, out: Expr, sums: list[Expr], multipliers: list[Expr]) -> None:
        """Outputs of a vector: ``width`` channels of one or more pixels."""
        spec, dot, width = self.spec, self.dot, self._outputs(block)
        places = [out + pixel * spec.oc for pixel in range(min(self.geo.bytes // width, spec.ow))]
        if self.packs:
            residual = None
            if spec.residual:
                parts = [self.params[-1][tir.at(place, width)] for place in places]
                parts += parts[-1:] * (self.geo.bytes // width - len(parts))
                residual = T.Bind(shuffle(parts, range(self.geo.bytes)))
            value = T.Bind(self.packs(sums, multipliers, residual))
        else:
            value = interleave.natural(sums, dot.lanes)
        for i, place in enumerate(places):
            part = value if width == self.geo.bytes else shuffle([value], range(i * width, (i + 1) * width))
            if finish:
                finish.store(self.y, place, part)
            else:
                T.buffer_store(self.y, part, [tir.at(place, width)])

    def _outputs(self, block: Block) -> int:
        """Neighbouring elements of the output that a vector holds."""
        whole = block.width == self.spec.oc and self.spec.ow >= block.pixels
        return self.geo.bytes if whole else block.width
