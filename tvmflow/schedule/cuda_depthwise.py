"""Depthwise convolution on CUDA: a thread computes a word of four channels for a few neighbouring pixels of a row.

A word of the input meets four words of weights that hold one channel's byte each, in its place: ``dp4a`` then multiplies that
channel alone, and nothing needs to be unpacked. Each word is loaded once for all pixels and taps of a row that it takes part
in. float32 is the same with one channel a thread.
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
from tvmflow.schedule import cuda, tir
from tvmflow.schedule.constants import fold_zero_point, pad_groups
from tvmflow.schedule.epilogue import ConvEpilogue
from tvmflow.target import Cuda

Array = NDArray[Any]
Expr = Any


class CudaDepthwiseTile(msgspec.Struct, frozen=True, tag="cuda_depthwise"):
    """``pixels`` neighbours of an output row a thread, ``threads`` a block."""

    pixels: int
    threads: int


def _lanes(spec: Conv2d) -> int:
    return cuda.WORD if spec.is_integer else 1


def space(spec: Conv2d) -> Iterator[CudaDepthwiseTile]:
    for pixels in (1, 2, 4, 7, 8):
        if pixels <= max(1, spec.ow):
            for threads in (64, 128, 256):
                yield CudaDepthwiseTile(pixels, threads)


def estimate(spec: Conv2d, tile: CudaDepthwiseTile, device: Cuda) -> float:
    """Cycles of a simple machine: instructions of all warps over four schedulers a multiprocessor, or one thread's latency."""
    lanes = _lanes(spec)
    threads = spec.n * spec.oh * ceil(spec.ow / tile.pixels) * ceil(spec.oc / lanes)
    columns = (tile.pixels - 1) * spec.stride[1] + (spec.kw - 1) * spec.dilation[1] + 1
    work = spec.kh * (columns * 8 + tile.pixels * spec.kw * lanes + 8) + tile.pixels * lanes * 10 + 60
    blocks = ceil(threads / tile.threads)
    warps = ceil(blocks / device.sms) * ceil(tile.threads / 32)
    return max(warps * work / 4, 500.0 + 150 * spec.kh + work)


def pack(spec: Conv2d, _tile: CudaDepthwiseTile, consts: list[Array]) -> list[Array]:
    """Weights as ``[kh * kw, channels]`` words: float32, or int8 in the byte of the channel's place in its word."""
    lanes = _lanes(spec)
    weight, bias = consts[0], consts[1]
    if spec.is_integer:
        bias = fold_zero_point(weight, bias, consts[3])
    size = ceil(spec.oc / lanes) * lanes
    taps = np.pad(weight.reshape(spec.oc, -1).T, ((0, 0), (0, size - spec.oc)))
    if spec.is_integer:
        place = (8 * (np.arange(size) % lanes)).astype(np.uint32)
        taps = (taps.view(np.uint8).astype(np.uint32) << place).view(np.int32)
    per_channel = [bias, consts[2]] if spec.is_integer else [bias]
    padded = [pad_groups(values, 1, size) for values in per_channel]
    return [np.ascontiguousarray(taps), *padded, *consts[len(per_channel) + 1 :]]


def emit(spec: Conv2d, tile: CudaDepthwiseTile, name: str) -> tirx.PrimFunc:
    """The kernel over ``x, packed weight, bias, (multiplier, quant | bounds)[, residual], y``."""
    lanes = _lanes(spec)
    size = ceil(spec.oc / lanes) * lanes
    word = "int32" if spec.is_integer else "float32"
    params = tir.conv_params(spec, (spec.kh * spec.kw, size), word, size)
    units = spec.n * spec.oh * ceil(spec.ow / tile.pixels) * (size // lanes)
    return cuda.element_kernel(name, params, units, tile.threads, lambda *given: _Thread(spec, tile).emit(*given))


class _Thread:
    """Emits what a thread does; its attributes are what the pieces share."""

    def __init__(self, spec: Conv2d, tile: CudaDepthwiseTile) -> None:
        self.spec, self.tile, self.lanes = spec, tile, _lanes(spec)
        self.dtype = "int32" if spec.is_integer else "float32"

    def emit(self, unit: Expr, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
        spec, tile, lanes = self.spec, self.tile, self.lanes
        self.x, self.params = x, rest[:-1]
        runs, strips = ceil(spec.oc / lanes), ceil(spec.ow / tile.pixels)
        self.channel = T.Bind(unit % runs * lanes)
        strip = T.Bind(unit // runs)
        self.ow0 = T.Bind(strip % strips * tile.pixels)
        self.row = T.Bind(strip // strips)
        self.fill = T.Bind(cuda.every_byte(self.params[1][0])) if spec.is_integer else tir.const(0.0, "float32")
        self.acc = cuda.local(tile.pixels * lanes, self.dtype)
        taps = cuda.local(spec.kw * lanes, self.dtype)
        with T.unroll(0, tile.pixels * lanes) as i:
            T.buffer_store(self.acc, tir.const(0, self.dtype), [i])
        size = runs * lanes
        with T.serial(0, spec.kh) as kh:
            for kw in range(spec.kw):
                start = (kh * spec.kw + kw) * size + self.channel
                T.buffer_store(taps, weight[tir.at(start, lanes)], [tir.at(kw * lanes, lanes)])
            ih = T.Bind(self.row % spec.oh * spec.stride[0] - spec.pad[0] + kh * spec.dilation[0])
            self._row(ih, taps)
        epilogue = ConvEpilogue(spec, bias, self.params, 1, self.dtype)
        self._store(epilogue, rest[-1])

    def _row(self, ih: Expr, taps: Any) -> None:
        """All products of one row of the input."""
        spec, lanes = self.spec, self.lanes
        users: dict[int, list[tuple[int, int]]] = {}
        for pixel in range(self.tile.pixels):
            for kw in range(spec.kw):
                users.setdefault(pixel * spec.stride[1] + kw * spec.dilation[1], []).append((pixel, kw))
        line = T.Bind(self.ow0 * spec.stride[1] - spec.pad[1])
        for column in sorted(users):
            word = T.Bind(self._load(ih, line + column))
            for pixel, kw in users[column]:
                for lane in range(lanes):
                    at = pixel * lanes + lane
                    tap = taps[kw * lanes + lane]
                    product = cuda.dp4a(word, tap, self.acc[at]) if spec.is_integer else self.acc[at] + word * tap
                    T.buffer_store(self.acc, product, [at])

    def _load(self, ih: Expr, iw: Expr) -> Expr:
        """The input's word at a place that may lie outside of the image: beside it, or past the last pixel of a strip."""
        spec, lanes = self.spec, self.lanes
        vertical = (ih >= 0, ih < spec.h) if spec.pad[0] or spec.pad[2] else ()
        inside = cuda.both(*vertical, iw >= 0, iw < spec.w)
        start = ((self.row // spec.oh * spec.h + ih) * spec.w + iw) * spec.ic + self.channel
        if not spec.is_integer:
            return cuda.select(inside, self.x[start], self.fill)
        if spec.ic % cuda.WORD == 0:
            return cuda.select(inside, cuda.words(self.x)[start // cuda.WORD], self.fill)
        parts = [
            cuda.select(cuda.both(inside, self.channel + i < spec.ic), self.x[start + i].astype("int32"), self.fill)
            for i in range(lanes)
        ]
        return cuda.word_of(parts)

    def _store(self, epilogue: ConvEpilogue, y: Any) -> None:
        spec, tile, lanes = self.spec, self.tile, self.lanes
        epilogues = cuda.channels(epilogue, self.channel, lanes)
        packed = spec.y == "int8" and spec.oc % cuda.WORD == 0
        for pixel in range(tile.pixels):
            index = (self.row * spec.ow + self.ow0 + pixel) * spec.oc + self.channel
            acc = [self.acc[pixel * lanes + i] for i in range(lanes)]
            in_row = True if spec.ow % tile.pixels == 0 else self.ow0 + pixel < spec.ow
            if packed:
                with cuda.only_if(in_row):
                    cuda.store_channels(epilogues, acc, y, index)
                continue
            for i in range(lanes):
                inside = cuda.both(in_row, True if spec.oc % lanes == 0 else self.channel + i < spec.oc)
                with cuda.only_if(inside):
                    epilogues[i].store(y, index + i, acc[i])
