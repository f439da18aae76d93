"""The loop nest of a convolution (schedule/conv2d.py): multiplies tiles in registers, finishes and stores them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.schedule import border, tir
from tvmflow.schedule.ahead import Ahead
from tvmflow.schedule.conv2d_geometry import ConvTile, Geometry
from tvmflow.schedule.epilogue import ConvEpilogue
from tvmflow.schedule.packs import Cell, Emission, Packs, finish, store

Expr = Any

PIPELINE_TILES = 8
"""Fewest tiles that a pipeline runs over before it is emptied, where a kernel has as many."""
MOST_CHUNKS = 48
"""Enough for the threads of any machine that we have, and long pipelines in large kernels."""


@dataclass(frozen=True)
class _Place:
    """Where a tile lies."""

    tile: Expr
    """Number of the tile of pixels."""
    block: Expr
    """Number of the block of channels."""
    corner: Expr
    """First element of the input that it reads."""
    vector: Expr
    """Its first vector of weights."""
    channels: list[tuple[Expr, Expr]]
    """For each vector the place of its first channel in the tables, and in the output."""
    start: Expr
    """Its first element of the output, without the channel."""
    line: Expr
    """Line of its first pixel."""
    column: Expr
    """Number of the tile in its line."""


@dataclass(frozen=True)
class Line:
    """The only line of an output that a nest computes."""

    number: Expr
    corner: Expr
    """Element of the input where the first tap lies of the line's first pixel, were there no padding at its left."""
    start: Expr
    """First element of the line in the output, and in the residual."""


class Nest:
    """Emits the loop nest; its attributes are what the pieces share."""

    def __init__(self, geo: Geometry, tile: ConvTile, only: Line | None = None) -> None:
        self.geo, self.tile, self.spec, self.dot, self.only = geo, tile, geo.spec, geo.dot, only
        self.sights = geo.sights(tile)
        self.pixels = [(dh, dw) for dh in range(tile.mh) for dw in range(tile.mw)]
        self.every = tir.at(0, geo.dot.lanes)

    def emit(self, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
        geo, tile, spec = self.geo, self.tile, self.spec
        self.weight, self.params, self.y = weight, rest[:-1], rest[-1]
        zero = self.params[1][0] if spec.is_integer else tir.const(0.0, "float32")
        self.x = geo.staging(zero).whole(x, geo.scratch_size, tile.threads) if geo.scratch else x
        tiles_h, tiles_w = ceil(spec.oh / tile.mh), ceil(spec.ow / tile.mw)
        self.tiles = tiles = tiles_w if self.only else spec.n * tiles_h * tiles_w
        self.blocks = blocks = ceil(geo.vectors / tile.nr) * spec.groups
        outer, inner = (blocks, tiles) if tile.channels_outer else (tiles, blocks)
        # a pipeline is filled and emptied once a chunk; threads share the chunks
        chunks = max(1, min(MOST_CHUNKS, outer * inner // PIPELINE_TILES)) if tile.pipelined else outer
        chunk = ceil(outer / min(chunks, outer))
        with tir.parallel_if(tile.threads, ceil(outer / chunk)) as c:
            first = T.Bind(tir.inside(c, chunk, outer))
            self.epilogue = ConvEpilogue(spec, bias, self.params, self.dot.lanes, self.dot.acc_dtype)
            self.packs = Packs(self.params[1], self.dot.lanes, spec.y, spec.residual) if geo.is_packed else None

            def place(j: Expr) -> _Place:
                o, i = (first + j // inner, j % inner) if chunk > 1 else (first, j)
                return self._place(*((i, o) if tile.channels_outer else (o, i)), tiles_h, tiles_w)

            if not tile.pipelined:
                with T.serial(0, inner) as j:
                    here = place(j)
                    self._by_sight(here, *self.sights)
                return
            before = self._registers()
            for cell in before:
                T.buffer_store(cell, tir.splat(tir.const(0, self.dot.acc_dtype), self.dot.lanes), [self.every])
            with T.serial(0, chunk * inner) as j:
                acc = self._registers()
                # the first tile has none before it: what is written in its own place is written anew by the second
                self._multiply(place(j), acc, self.sights[0], self._store(place(tirx.max(j - 1, 0)), before))
                for cell, value in zip(before, acc, strict=True):
                    T.buffer_store(cell, value[self.every], [self.every])
            finish(self._store(place(tir.const(chunk * inner - 1, "int32")), before))

    def _registers(self) -> list[Any]:
        """Accumulators of a tile, those of a pixel side by side."""
        count = self.tile.mh * self.tile.mw * self.tile.nr
        return [tir.register(self.dot.lanes, self.dot.acc_dtype) for _ in range(count)]

    def _place(self, t: Expr, b: Expr, tiles_h: int, tiles_w: int) -> _Place:
        geo, tile, spec = self.geo, self.tile, self.spec
        blocks = ceil(geo.vectors / tile.nr)
        group, block = (b // blocks, b % blocks) if spec.groups > 1 else (0, b)
        v0 = T.Bind(tir.inside(block, tile.nr, geo.vectors))
        ow0 = T.Bind(tir.inside(t % tiles_w, tile.mw, spec.ow))
        line = self.only or self._line(t // tiles_w, tiles_h)
        return _Place(
            tile=t,
            block=b,
            corner=T.Bind(line.corner + geo.column.start(ow0) * geo.channels + group * geo.group_stride),
            vector=T.Bind(group * geo.vectors + v0) if spec.groups > 1 else v0,
            channels=[self._channels(group, v0 + i) for i in range(tile.nr)],
            start=line.start + ow0 * spec.oc,
            line=line.number,
            column=t % tiles_w,
        )

    def _line(self, t: Expr, tiles_h: int) -> Line:
        """The first line of the ``t``-th tile of lines of all images."""
        geo, spec = self.geo, self.spec
        image = t // tiles_h if spec.n > 1 else 0
        oh0 = T.Bind(tir.inside(t % tiles_h, self.tile.mh, spec.oh))
        corner = image * geo.image + geo.line.start(oh0) * geo.row
        return Line(oh0, corner, (image * spec.oh + oh0) * spec.ow * spec.oc)

    def _by_sight(self, here: _Place, sight: border.Sight, *others: border.Sight) -> None:
        """A tile that sees the image in one of several ways."""

        def whole() -> None:
            acc = self._registers()
            self._multiply(here, acc, sight)
            finish(self._store(here, acc))

        if not others:
            whole()
            return
        with T.If(here.column < others[0].first):
            with T.Then():
                whole()
            with T.Else():
                self._by_sight(here, *others)

    def _multiply(self, here: _Place, acc: list[Any], sight: border.Sight, beside: Emission | None = None) -> None:
        """Accumulators of a tile; instructions of ``beside`` are laid between the first steps."""
        geo, spec, dot, nr = self.geo, self.spec, self.dot, self.tile.nr
        biases = self._biases(here, sight)
        for i, cell in enumerate(acc):
            T.buffer_store(cell, biases[sight.kinds[i // nr]][i % nr], [self.every])
        ahead = self._ahead(here)

        def step(kh: Expr, tap: Expr, k: Expr, pixels: Iterable[int], between: Callable[[], None] = lambda: None) -> None:
            index = (kh * geo.taps + tap) * geo.steps + k
            first = here.vector * geo.stride + index * geo.step_size
            weights = [T.Bind(self.weight[tir.at(first + i * geo.stride, dot.lanes * dot.group)]) for i in range(nr)]
            ahead.ask(index)
            tap_offset = kh * spec.dilation[0] * geo.row + tap * geo.tap_stride + k * dot.group
            for m in pixels:
                dh, dw = self.pixels[m]
                pixel = dh * spec.stride[0] * geo.row + dw * spec.stride[1] * geo.channels
                a = self.x[tir.at(here.corner + tap_offset + pixel, dot.group)]
                for cell, weight in zip(acc[m * nr : m * nr + nr], weights, strict=True):
                    T.buffer_store(cell, dot.broadcast(cell[self.every], a, weight), [self.every])
                    between()

        def line(kh: Expr, done: int = 0) -> None:
            """Steps of a kernel row from ``done`` on."""
            for strip in sight.strips:
                taps, (begin, end) = geo.strip(strip.taps)
                if done < end:
                    tir.loops((taps, (max(begin, done), end)), lambda tap, k, strip=strip: step(kh, tap, k, strip.outputs))

        if beside is None:
            tir.loops((self._lines(here),), line)
            return
        each = ceil(self._store_size / (geo.steps * len(acc)))
        straight = min(geo.steps, ceil(self._store_size / (each * len(acc))))

        def some() -> None:
            for _ in range(each):
                next(beside, None)

        for k in range(straight):
            step(0, 0, k, range(len(self.pixels)), some)
        finish(beside)
        line(0, straight)
        if spec.kh > 1:
            with T.serial(1, spec.kh) as kh:
                line(kh)

    def _lines(self, here: _Place) -> tuple[Expr, Expr]:
        """Bounds of the kernel rows that a tile multiplies."""
        geo = self.geo
        if geo.line.misses:
            first, last = geo.line.inside_at(geo.line.start(here.line))
            return T.Bind(first), T.Bind(last)
        return 0, self.spec.kh

    def _biases(self, here: _Place, sight: border.Sight) -> dict[int, list[Expr]]:
        """What accumulators start with: of each vector of channels, by the kind of the pixel."""
        geo = self.geo
        rows, columns = geo.kinds
        row = geo.line.kind(here.line) * columns if rows > 1 else 0
        kinds = sorted(set(sight.kinds))
        tables = {kind: (row + kind) * geo.channels_held if rows * columns > 1 else 0 for kind in kinds}
        return {kind: [self.epilogue.bias_at(at + table) for table, _ in here.channels] for kind, at in tables.items()}

    @property
    def _store_size(self) -> int:
        """Instructions of a tile's epilogue, roughly."""
        return len(self.pixels) * self.tile.nr * (13 if self.spec.residual else 7)

    def _store(self, there: _Place, acc: list[Any]) -> Emission:
        """Finishes a tile."""
        geo, spec, dot, nr = self.geo, self.spec, self.dot, self.tile.nr
        offsets = [there.start + (dh * spec.ow + dw) * spec.oc for dh, dw in self.pixels]
        if self.packs:
            multipliers = [T.Bind(self.params[0][tir.at(table, dot.lanes)]) for table, _ in there.channels]
            cells = [
                Cell(offset + there.channels[i][1], acc[m * nr + i][self.every], multipliers[i])
                for m, offset in enumerate(offsets)
                for i in range(nr)
            ]
            neighbours = nr if geo.outputs % dot.lanes == 0 else 1
            yield from store(self.packs, self.y, cells, neighbours, self.epilogue.residual)
            return
        for i, (table, channel) in enumerate(there.channels):
            self.epilogue.bind_multiplier(table)
            for m, offset in enumerate(offsets):
                value = acc[m * nr + i][self.every]
                if geo.outputs < dot.lanes:
                    self.epilogue.store_some(self.y, offset + channel, value, geo.outputs)
                else:
                    self.epilogue.store(self.y, offset + channel, value)
                yield

    def _ahead(self, here: _Place) -> Ahead:
        """What a tile asks for: of the next block's weights, and of those behind the kernel's.

        Without the first, ResNet-50 int8 on one Zen 5 core takes 11.0 ms instead of 10.2. In bursts, 49 pixels of 512 to 2048
        channels, float32, take 470 us instead of 432. Behind the last block the file goes on with what the next kernel reads.
        """
        geo, tile = self.geo, self.tile
        size, line = np.dtype(self.dot.b_dtype).itemsize, tir.CACHE_LINE // np.dtype(self.dot.b_dtype).itemsize
        steps, block = geo.stride // geo.step_size, tile.nr * geo.stride
        ahead = Ahead(self.weight, steps)
        over = block if tile.channels_outer else 0
        if over and over <= self.tiles * steps * line:  # with fewer tiles, this block itself waits for memory
            ahead.share((here.vector + tile.nr) * geo.stride, block, here.tile, self.tiles)
        if tile.ahead > over * size:
            visit = here.block * self.tiles + here.tile if tile.channels_outer else here.tile * self.blocks + here.block
            ahead.share(geo.weights + over, tile.ahead // size - over, visit, self.blocks * self.tiles)
        return ahead

    def _channels(self, group: Expr, v: Expr) -> tuple[Expr, Expr]:
        """First channel of vector ``v`` of a group: its place in the tables of biases and multipliers, and in the output."""
        outputs, lanes = self.geo.outputs, self.dot.lanes
        start = tir.inside(v, lanes, outputs)
        return T.Bind(group * max(outputs, lanes) + start), T.Bind(group * outputs + start)
