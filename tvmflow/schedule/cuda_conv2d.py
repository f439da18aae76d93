"""Convolution and dense layers on CUDA: implicit matrix product over NHWC, rows are pixels, columns output channels.

Nothing is unrolled to memory: a thread computes the address of each piece it loads from the pixel and the kernel's tap, and takes
the zero point where the window leaves the image. Weights are packed in the order in which blocks read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import cuda, cuda_gemm, tir
from tvmflow.schedule.constants import fold_zero_point, pad_groups
from tvmflow.schedule.cuda_gemm import BlockGemm, GemmTile, Operand
from tvmflow.schedule.epilogue import ConvEpilogue
from tvmflow.target import Cuda

Array = NDArray[Any]
Expr = Any


class Geometry:
    """Sizes that follow from a signature."""

    def __init__(self, spec: Conv2d) -> None:
        self.spec = spec
        self.group = cuda.WORD if spec.is_integer else 1
        """Elements in a word."""
        self.per_group = spec.ic // spec.groups
        self.outputs = spec.oc // spec.groups
        self.steps = ceil(self.per_group / self.group)
        """Words of a tap."""
        self.whole = self.per_group % self.group == 0
        """Words never cross the border of a pixel or group, so they can be loaded as such."""
        self.vec = next(v for v in (4, 2, 1) if self.steps % v == 0) if self.whole else 1
        self.length = spec.kh * spec.kw * self.steps
        self.pixels = spec.n * spec.oh * spec.ow


def space(spec: Conv2d) -> Iterator[GemmTile]:
    geo = Geometry(spec)
    return cuda_gemm.space(geo.pixels, geo.outputs, geo.length, geo.vec)


def estimate(spec: Conv2d, tile: GemmTile, device: Cuda) -> float:
    geo = Geometry(spec)
    return cuda_gemm.estimate(tile, geo.pixels, geo.outputs, geo.length, spec.groups, device)


def pack(spec: Conv2d, tile: GemmTile, consts: list[Array]) -> list[Array]:
    """Compile-time constants as the kernel wants them.

    ``consts`` are weight, bias, multiplier, quant (integer) or weight, bias, bounds (float). Weights become words
    ``[groups, blocks of channels, chunks * depth, bn]``, zero beyond the ends; the input's zero point moves into the bias.
    """
    geo = Geometry(spec)
    weight, bias = consts[0], consts[1]
    if spec.is_integer:
        bias = fold_zero_point(weight, bias, consts[3])
    blocks, length = ceil(geo.outputs / tile.bn), ceil(geo.length / tile.depth) * tile.depth
    taps = weight.reshape(spec.groups, geo.outputs, spec.kh * spec.kw, geo.per_group)
    taps = np.pad(taps, ((0, 0), (0, blocks * tile.bn - geo.outputs), (0, 0), (0, geo.steps * geo.group - geo.per_group)))
    packed = as_words(taps).reshape(spec.groups, blocks, tile.bn, geo.length)
    packed = np.pad(packed, ((0, 0), (0, 0), (0, 0), (0, length - geo.length))).transpose(0, 1, 3, 2)
    per_channel = [bias, consts[2]] if spec.is_integer else [bias]
    padded = [pad_groups(values, spec.groups, blocks * tile.bn) for values in per_channel]
    return [np.ascontiguousarray(packed), *padded, *consts[len(per_channel) + 1 :]]


def as_words(values: Array) -> Array:
    """int8 ``[..., 4 n]`` as little-endian int32 ``[..., n]``; float32 as it is."""
    return np.ascontiguousarray(values).view("<i4") if values.dtype == np.int8 else values


def emit(spec: Conv2d, tile: GemmTile, name: str) -> tirx.PrimFunc:
    """The kernel over ``x, packed weight, bias, (multiplier, quant | bounds)[, residual], y``."""
    geo = Geometry(spec)
    columns = ceil(geo.outputs / tile.bn)
    length = ceil(geo.length / tile.depth) * tile.depth
    channels = spec.groups * columns * tile.bn
    word = "int32" if spec.is_integer else "float32"
    params = tir.conv_params(spec, (spec.groups, columns, length, tile.bn), word, channels)
    blocks = spec.groups * columns * ceil(geo.pixels / tile.bm)
    return cuda.kernel(name, params, blocks, tile.threads, lambda *given: _Conv(geo, tile).emit(*given))


class _Conv:
    """Emits the kernel; its attributes are what the pieces share."""

    def __init__(self, geo: Geometry, tile: GemmTile) -> None:
        self.geo, self.tile, self.spec = geo, tile, geo.spec

    def emit(self, block: Expr, thread: Expr, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
        geo, tile, spec = self.geo, self.tile, self.spec
        self.x, self.weight, self.params = x, weight, rest[:-1]
        if spec.is_integer:
            self.fill = T.Bind(cuda.every_byte(self.params[1][0]))
            self.words = cuda.words(x) if geo.whole else x
        else:
            self.fill, self.words = tir.const(0.0, "float32"), x
        columns = ceil(geo.outputs / tile.bn)
        self.panel = T.Bind(block % (spec.groups * columns))
        self.first_channel = T.Bind(self.panel % columns * tile.bn)
        self.channel_group = T.Bind(self.panel // columns)
        self.first_pixel = T.Bind(block // (spec.groups * columns) * tile.bm)
        gemm = BlockGemm(tile, thread, spec.is_integer)
        pixels = Operand(tile.bm, geo.vec, True, self._locate_pixel, self._fetch_pixel)
        weights = Operand(tile.bn, 4, False, self._locate_weight, self._fetch_weight)
        gemm.emit(pixels, weights, geo.length)
        epilogue = ConvEpilogue(spec, bias, self.params, 1, gemm.dtype)
        with cuda.only_if(gemm.owns):
            self._store(gemm, epilogue, rest[-1])

    def _locate_pixel(self, k: Expr, column: Expr) -> tuple[Expr, ...]:
        """The word within a chunk, the corner of the pixel's window, and the offset of its image."""
        spec, geo = self.spec, self.geo
        pixel = T.Bind(tirx.min(self.first_pixel + column, geo.pixels - 1))
        row = T.Bind(pixel // spec.ow % spec.oh * spec.stride[0] - spec.pad[0])
        line = T.Bind(pixel % spec.ow * spec.stride[1] - spec.pad[1])
        image = T.Bind(pixel // (spec.oh * spec.ow) * spec.h)
        return k, row, line, image

    def _fetch_pixel(self, place: tuple[Expr, ...], first: Expr) -> Expr:
        spec, geo = self.spec, self.geo
        k, row, line, image = place
        word = first + k
        tap = word // geo.steps
        ih = row + tap // spec.kw * spec.dilation[0]
        iw = line + tap % spec.kw * spec.dilation[1]
        padded = any(spec.pad)
        inside = cuda.both(
            *((ih >= 0, ih < spec.h, iw >= 0, iw < spec.w) if padded else ()),
            *((word < geo.length,) if geo.length % self.tile.depth else ()),
        )
        start = ((image + ih) * spec.w + iw) * spec.ic + self.channel_group * geo.per_group + word % geo.steps * geo.group
        if geo.whole:
            fill = tir.splat(self.fill, geo.vec)
            return cuda.select(inside, self.words[tir.at(start // geo.group, geo.vec)], fill)
        # the word's channels beyond those of the pixel meet weights that are zero; they are read as zero
        channel = word % geo.steps * geo.group
        parts = [
            cuda.select(cuda.both(inside, i < geo.per_group - channel), self.x[start + i].astype("int32"), self.fill)
            for i in range(geo.group)
        ]
        return cuda.word_of(parts)

    def _locate_weight(self, k: Expr, column: Expr) -> Expr:
        length = ceil(self.geo.length / self.tile.depth) * self.tile.depth
        return T.Bind((self.panel * length + k) * self.tile.bn + column)

    def _fetch_weight(self, place: Expr, first: Expr) -> Expr:
        return self.weight[tir.at(place + first * self.tile.bn, 4)]

    def _store(self, gemm: BlockGemm, epilogue: ConvEpilogue, y: Any) -> None:
        """Epilogue and store of a thread's accumulators, four neighbouring channels at a time."""
        geo, tile, spec = self.geo, self.tile, self.spec
        packed = spec.y == "int8" and geo.outputs % cuda.WORD == 0
        for quad in range(tile.tn // 4):
            channel = T.Bind(self.first_channel + gemm.column(quad))
            lanes = cuda.channels(epilogue, self.panel * tile.bn + gemm.column(quad), 4)
            for i in range(tile.tm):
                pixel = self.first_pixel + gemm.row(i)
                index = pixel * spec.oc + self.channel_group * geo.outputs + channel
                acc = [gemm.accumulators[i * tile.tn + quad * 4 + j] for j in range(4)]
                in_image = True if geo.pixels % tile.bm == 0 else pixel < geo.pixels
                inside = cuda.both(in_image, True if geo.outputs % tile.bn == 0 else channel < geo.outputs)
                if packed:
                    with cuda.only_if(inside):
                        cuda.store_channels(lanes, acc, y, index)
                    continue
                for j in range(4):
                    one = cuda.both(in_image, True if geo.outputs % tile.bn == 0 else channel + j < geo.outputs)
                    with cuda.only_if(one):
                        lanes[j].store(y, index + j, acc[j])
