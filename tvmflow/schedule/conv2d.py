"""Convolution and dense layers on CPUs: one register-tiled loop nest for every ISA (kernels.md, section 2).

For a tile of ``mh x mw`` output pixels and ``nr`` vectors of output channels the accumulators stay in registers through the
whole reduction; each step broadcasts ``group`` input channels of a pixel and multiplies them with ``nr`` packed weight vectors.
The epilogue (bias, requantize or clamp, residual add, narrow, store) runs on the registers. Tiles and channel vectors that
stick out are moved back inside and overlap their neighbours, so that there is no remainder code anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import tir
from tvmflow.schedule.constants import fold_zero_point, pad_groups
from tvmflow.schedule.epilogue import ConvEpilogue
from tvmflow.schedule.intrinsics import BY_NAME, Dot, dot_for
from tvmflow.schedule.packs import Cell, Emission, Packs, finish, store
from tvmflow.schedule.staging import Staging
from tvmflow.target import Cpu

Array = NDArray[Any]
Expr = Any

PIPELINE_TILES = 8
"""Fewest tiles that a pipeline runs over before it is emptied, where a kernel has as many."""
UNROLLED = 24
"""Most steps of a kernel row that LLVM lays out one after another."""
MOST_CHUNKS = 48
"""Enough for the threads of any machine that we have, and long pipelines in large kernels."""


class ConvTile(msgspec.Struct, frozen=True, tag="conv2d"):
    """Decisions of the template: what the tuner searches and a tuning record keeps."""

    dot: str
    mh: int
    mw: int
    nr: int
    channels_outer: bool = False
    """Walk blocks of output channels outermost (weights stay in cache) instead of pixels (input stays in cache)."""
    threads: bool = True
    pipelined: bool = False
    """Finish the tile before while this one multiplies: its epilogue runs where the multiplies leave units idle."""


class Geometry:
    """Sizes that follow from a signature and an instruction."""

    def __init__(self, spec: Conv2d, dot: Dot) -> None:
        self.spec = spec = flatten_pixels(spec)
        self.dot = dot
        self.per_group = spec.ic // spec.groups
        self.outputs = spec.oc // spec.groups
        self.row_merged = spec.groups == 1 and spec.dilation[1] == 1
        """The taps of a kernel row are contiguous in NHWC: one long reduction instead of kw short ones."""
        # in planes a kernel row is a run of each channel's plane
        self.taps = spec.ic if spec.nchw else 1 if self.row_merged else spec.kw
        run = spec.kw if spec.nchw else spec.kw * spec.ic if self.row_merged else self.per_group
        self.steps = ceil(run / dot.group)
        self.ragged = run % dot.group != 0
        self.scratch = any(spec.pad) or dot.a_dtype != spec.x or self.ragged
        padded_groups = self.ragged and not self.row_merged
        self.group_stride = self.steps * dot.group if padded_groups else self.per_group
        self.channels = 1 if spec.nchw else spec.groups * self.group_stride if padded_groups else spec.ic
        self.rows = spec.h + spec.pad[0] + spec.pad[2]
        self.columns = spec.w + spec.pad[1] + spec.pad[3]
        self.plane = self.rows * self.columns * self.channels
        self.image = self.plane * spec.ic if spec.nchw else self.plane
        self.tap_stride = self.plane if spec.nchw else spec.dilation[1] * self.channels
        self.vectors = ceil(self.outputs / dot.lanes)
        self.step_size = min(self.outputs, dot.lanes) * dot.group
        """Weights of a step and vector. With fewer outputs than lanes a load reads on: what idle lanes hold, nobody stores."""
        self.stride = spec.kh * self.taps * self.steps * self.step_size
        """Weights of a vector."""
        self.weights = spec.groups * self.vectors * self.stride + dot.lanes * dot.group - self.step_size

    @property
    def shares_broadcasts(self) -> bool:
        """Whether LLVM keeps what a pixel broadcasts for its neighbour's next tap: it unrolls short rows, which overlap.

        Where the tile leaves it no registers it spills (Zen 5, 3x3 of one float32 channel: 13x2 accumulators take 61 us, 8x2 31;
        with 16 registers it spills either way, and the larger tile is as good).
        """
        return self.row_merged and self.spec.stride[1] * self.channels < self.steps <= UNROLLED

    @property
    def is_packed(self) -> bool:
        """Whether results leave through schedule/packs.py."""
        return self.dot.packs and self.spec.y != "float32" and self.outputs >= self.dot.lanes

    def staging(self, zero: Expr) -> Staging:
        """How the input lies in scratch."""
        spec, dtype = self.spec, self.dot.a_dtype
        if spec.nchw:
            return Staging(spec.n * spec.ic, spec.h, spec.w, 1, 1, spec.pad, zero, dtype, 1)
        return Staging(spec.n, spec.h, spec.w, spec.groups, self.per_group, spec.pad, zero, dtype, self.group_stride)

    @property
    def scratch_size(self) -> int:
        slack = self.dot.group * self.steps if self.ragged else 0
        return self.spec.n * self.image + slack


def flatten_pixels(spec: Conv2d) -> Conv2d:
    """A pointwise convolution sees one long row of pixels, whatever the image's shape."""
    pointwise = spec.kh == spec.kw == 1 and spec.stride == (1, 1) and not any(spec.pad) and not spec.nchw
    if not pointwise:
        return spec
    return msgspec.structs.replace(spec, n=1, h=1, w=spec.n * spec.h * spec.w)


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
    """Cycles by a simple machine: two dot products and nearly two loads a cycle, five cycles of latency, 36 bytes from L2.

    It ranks tiles. The constants were fitted to 500 measured tiles of 16 layers (Zen 5): the choice is on average within 1 %.
    """
    dot = BY_NAME[tile.dot]
    geo = Geometry(spec, dot)
    flat = geo.spec
    mr = tile.mh * tile.mw
    tiles = flat.n * ceil(flat.oh / tile.mh) * ceil(flat.ow / tile.mw)
    blocks = ceil(geo.vectors / tile.nr) * flat.groups
    steps = flat.kh * geo.taps * geo.steps
    rpa = dot.regs_per_acc
    line = tile.nr * dot.lanes * dot.group * np.dtype(dot.b_dtype).itemsize
    fresh = steps * line * (1 if tile.channels_outer else blocks)  # bytes of weights between two uses of one
    streamed = line / 36 if fresh > cpu.l1d_kib * 400 else 0.0
    loads = mr + tile.nr * rpa
    step = max(mr * tile.nr * rpa / 2, loads / 1.9, 5.0, streamed)
    if dot.name == "sse2":  # copy, multiply, add; a pixel's word is spread, weights are widened: seven instructions a cycle
        step = max(step, (3 * mr * tile.nr + mr + 3 * tile.nr + 5) / 7.3)
    if dot.name == "fma512":  # 250 tiles of 14 layers, measured there: the choice was 4 % above the best, is 2 % now
        step += 0.2 * loads + 0.1 * streamed
        if geo.shares_broadcasts:
            step += max(0, mr * tile.nr + tile.nr + mr + dot.temporaries - cpu.registers) / 2
    epilogue = 4.0 * rpa
    if geo.is_packed:
        whole = tile.nr % 4 == 0 and geo.outputs % dot.lanes == 0
        pieces = 0.0 if whole else 0.3 if tile.nr > 1 else 0.8  # of a vector of bytes, each a store
        epilogue = (1.0 if tile.pipelined else 2.9) + pieces + (2.3 + pieces / 3) * spec.residual
    body = steps * step + epilogue * mr * tile.nr + 17 + 6 * flat.kh * geo.taps
    weights = flat.oc * steps * dot.group * np.dtype(dot.b_dtype).itemsize
    seen = flat.oh * flat.ow * min(flat.kh, flat.stride[0]) * min(flat.kw, flat.stride[1])  # a pointwise stride skips pixels
    pixels = flat.n * min(seen, flat.h * flat.w) * flat.ic * np.dtype(spec.x).itemsize
    # what is walked innermost is read again for every step of the outer loop; beyond L2 that costs bandwidth
    again = pixels * blocks if tile.channels_outer else weights * tiles
    resident = pixels if tile.channels_outer else weights
    traffic = again / 32 if resident > cpu.l2_kib * 900 else again / 512
    return tiles * blocks * body + traffic + weights / 16  # which come from memory or the last cache, whatever the tile


def pack(spec: Conv2d, tile: ConvTile, consts: list[Array]) -> list[Array]:
    """Compile-time constants as the kernel wants them.

    ``consts`` are weight, bias, multiplier, quant (integer) or weight, bias, bounds (float). Weights become
    ``[groups, vectors, kh, taps, steps, lanes, group]``, flat; the input's zero point moves into the bias.
    """
    geo = Geometry(spec, BY_NAME[tile.dot])
    dot, lanes = geo.dot, geo.dot.lanes
    weight, bias = consts[0], consts[1]
    if spec.is_integer:
        bias = fold_zero_point(weight, bias, consts[3])
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
    per_channel = [bias, consts[2]] if spec.is_integer else [bias]
    if geo.outputs < lanes:  # the loads of bias and multiplier are whole vectors
        per_channel = [pad_groups(a, spec.groups, lanes) for a in per_channel]
    return [packed, *per_channel, *consts[len(per_channel) + 1 :]]


def params(spec: Conv2d, tile: ConvTile) -> tir.Params:
    """The kernel's parameters: ``x, packed weight, bias, (multiplier, quant | bounds)[, residual], y``."""
    geo = Geometry(spec, BY_NAME[tile.dot])
    return tir.conv_params(spec, (geo.weights,), geo.dot.b_dtype, max(geo.outputs, geo.dot.lanes) * spec.groups)


def emit(spec: Conv2d, tile: ConvTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over its :func:`params`."""
    geo = Geometry(spec, BY_NAME[tile.dot])
    lent = ("x",) if spec.nchw else ()  # a picture, where the caller has it
    return tir.prim_func(name, params(spec, tile), lambda *buffers: Nest(geo, tile).emit(*buffers), {}, anywhere=lent)


@dataclass(frozen=True)
class _Place:
    """Where a tile lies."""

    tile: Expr
    """Number of the tile of pixels."""
    corner: Expr
    """First element of the input that it reads."""
    vector: Expr
    """Its first vector of weights."""
    channels: list[tuple[Expr, Expr]]
    """For each vector the place of its first channel in the tables, and in the output."""
    pixel: Expr
    """Its first pixel in the output."""


class Nest:
    """Emits the loop nest; its attributes are what the pieces share."""

    def __init__(self, geo: Geometry, tile: ConvTile, staged: bool = False) -> None:
        """``staged``: the input comes with its border, as schedule/staging.py lays it out."""
        self.geo, self.tile, self.spec, self.dot = geo, tile, geo.spec, geo.dot
        self.stages = geo.scratch and not staged
        self.pixels = [(dh, dw) for dh in range(tile.mh) for dw in range(tile.mw)]
        self.every = tir.at(0, geo.dot.lanes)

    def emit(self, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
        geo, tile, spec = self.geo, self.tile, self.spec
        self.weight, self.params, self.y = weight, rest[:-1], rest[-1]
        zero = self.params[1][0] if spec.is_integer else tir.const(0.0, "float32")
        self.x = geo.staging(zero).whole(x, geo.scratch_size, tile.threads) if self.stages else x
        tiles_h, tiles_w = ceil(spec.oh / tile.mh), ceil(spec.ow / tile.mw)
        self.tiles = tiles = spec.n * tiles_h * tiles_w
        blocks = ceil(geo.vectors / tile.nr) * spec.groups
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
                    here, acc = place(j), self._registers()
                    self._multiply(here, acc)
                    finish(self._store(here, acc))
                return
            before = self._registers()
            for cell in before:
                T.buffer_store(cell, tir.splat(tir.const(0, self.dot.acc_dtype), self.dot.lanes), [self.every])
            with T.serial(0, chunk * inner) as j:
                acc = self._registers()
                # the first tile has none before it: what is written in its own place is written anew by the second
                self._multiply(place(j), acc, self._store(place(tirx.max(j - 1, 0)), before))
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
        image = t // (tiles_h * tiles_w) if spec.n > 1 else 0
        oh0 = T.Bind(tir.inside(t // tiles_w % tiles_h, tile.mh, spec.oh))
        ow0 = T.Bind(tir.inside(t % tiles_w, tile.mw, spec.ow))
        corner = image * geo.image + (oh0 * spec.stride[0] * geo.columns + ow0 * spec.stride[1]) * geo.channels
        return _Place(
            tile=t,
            corner=T.Bind(corner + group * geo.group_stride),
            vector=T.Bind(group * geo.vectors + v0) if spec.groups > 1 else v0,
            channels=[self._channels(group, v0 + i) for i in range(tile.nr)],
            pixel=(image * spec.oh + oh0) * spec.ow + ow0,
        )

    def _multiply(self, here: _Place, acc: list[Any], beside: Emission | None = None) -> None:
        """Accumulators of a tile; instructions of ``beside`` are laid between the first steps."""
        geo, spec, dot, nr = self.geo, self.spec, self.dot, self.tile.nr
        biases = [self.epilogue.bias_at(table) for table, _ in here.channels]
        for i, cell in enumerate(acc):
            T.buffer_store(cell, biases[i % nr], [self.every])
        prefetch = self._prefetch(here)

        def step(kh: Expr, tap: Expr, k: Expr, between: Callable[[], None] = lambda: None) -> None:
            index = (kh * geo.taps + tap) * geo.steps + k
            first = here.vector * geo.stride + index * geo.step_size
            weights = [T.Bind(self.weight[tir.at(first + i * geo.stride, dot.lanes * dot.group)]) for i in range(nr)]
            prefetch(index)
            tap_offset = kh * spec.dilation[0] * geo.columns * geo.channels + tap * geo.tap_stride + k * dot.group
            for m, (dh, dw) in enumerate(self.pixels):
                pixel = (dh * spec.stride[0] * geo.columns + dw * spec.stride[1]) * geo.channels
                a = self.x[tir.at(here.corner + tap_offset + pixel, dot.group)]
                for cell, weight in zip(acc[m * nr : m * nr + nr], weights, strict=True):
                    T.buffer_store(cell, dot.broadcast(cell[self.every], a, weight), [self.every])
                    between()

        if beside is None:
            tir.loops((spec.kh, geo.taps, geo.steps), step)
            return
        each = ceil(self._store_size / (geo.steps * len(acc)))
        straight = min(geo.steps, ceil(self._store_size / (each * len(acc))))

        def some() -> None:
            for _ in range(each):
                next(beside, None)

        for k in range(straight):
            step(0, 0, k, some)
        finish(beside)
        if straight < geo.steps:
            with T.serial(0, geo.steps - straight) as k:
                step(0, 0, k + straight)
        if spec.kh > 1:
            with T.serial(0, spec.kh - 1) as kh, T.serial(0, geo.steps) as k:
                step(kh + 1, 0, k)

    @property
    def _store_size(self) -> int:
        """Instructions of a tile's epilogue, roughly."""
        return len(self.pixels) * self.tile.nr * (13 if self.spec.residual else 7)

    def _store(self, there: _Place, acc: list[Any]) -> Emission:
        """Finishes a tile."""
        geo, spec, dot, nr = self.geo, self.spec, self.dot, self.tile.nr
        offsets = [(there.pixel + dh * spec.ow + dw) * spec.oc for dh, dw in self.pixels]
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

    def _prefetch(self, here: _Place) -> Callable[[Expr], None]:
        """What the steps of a tile ask for: lines of the next block's weights.

        A block's weights are used by all tiles of pixels, but the first of them waits for memory unless they came before
        (ResNet-50 int8 on one Zen 5 core, 25 MB of weights: 10.2 ms instead of 11.0). All tiles take part, several steps to a
        line: a burst is in the way of this block's own loads (float32, 49 pixels of 512 to 2048 channels: 470 us instead of 432).
        """
        geo, tile = self.geo, self.tile
        line = tir.CACHE_LINE // np.dtype(self.dot.b_dtype).itemsize
        steps = geo.stride // geo.step_size
        each = ceil(tile.nr * geo.stride / line / self.tiles)
        if not tile.channels_outer or geo.vectors * self.spec.groups <= tile.nr or each > steps:
            return lambda index: None
        shift = (steps // each).bit_length() - 1
        start = (here.vector + tile.nr) * geo.stride + here.tile * (each * line)
        start = T.Bind(tirx.min(start, max(0, geo.weights - ceil(steps / 2**shift) * line)))
        return lambda index: tir.prefetch(self.weight, start + (index >> shift) * line)

    def _channels(self, group: Expr, v: Expr) -> tuple[Expr, Expr]:
        """First channel of vector ``v`` of a group: its place in the tables of biases and multipliers, and in the output."""
        outputs, lanes = self.geo.outputs, self.dot.lanes
        start = tir.inside(v, lanes, outputs)
        return T.Bind(group * max(outputs, lanes) + start), T.Bind(group * outputs + start)
