"""Sizes of a convolution's loop nest: what follows from a signature, an instruction and a tile (schedule/conv2d.py)."""

from __future__ import annotations

from math import ceil
from typing import Any

import msgspec

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import border
from tvmflow.schedule.intrinsics import BY_NAME, Dot
from tvmflow.schedule.staging import Staging

Expr = Any

UNROLLED = 24
"""Most steps of a kernel row that LLVM lays out one after another."""
MOST_SIGHTS = 3
"""Left border, interior and right border; each is code of its own."""
MOST_KINDS = 81
"""Of outputs, each with a table of biases: those of a kernel of 9x9."""


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
    ahead: int = 0
    """Bytes behind the kernel's weights that it asks for (schedule/ahead.py). The network decides, not the tuner."""


class Geometry:
    """Sizes that follow from a signature and an instruction."""

    def __init__(self, spec: Conv2d, dot: Dot, unpadded: bool = False) -> None:
        """``unpadded``: the image has no border, where it is or in scratch, and taps outside are skipped."""
        self.spec = spec = flatten_pixels(spec)
        self.dot, self.unpadded = dot, unpadded
        self.per_group = spec.ic // spec.groups
        self.outputs = spec.oc // spec.groups
        self.row_merged = spec.groups == 1 and spec.dilation[1] == 1
        """The taps of a kernel row are contiguous: in NHWC one long reduction instead of kw short ones."""
        # in planes a kernel row is a run of each channel's plane
        self.taps = spec.ic if spec.nchw else 1 if self.row_merged else spec.kw
        run = spec.kw if spec.nchw else spec.kw * spec.ic if self.row_merged else self.per_group
        self.steps = ceil(run / dot.group)
        self.ragged = run % dot.group != 0
        self.pad = (0, 0, 0, 0) if unpadded else spec.pad
        self.scratch = any(self.pad) or dot.a_dtype != spec.x or self.ragged
        padded_groups = self.ragged and not self.row_merged
        self.group_stride = self.steps * dot.group if padded_groups else self.per_group
        self.channels = 1 if spec.nchw else spec.groups * self.group_stride if padded_groups else spec.ic
        self.line, self.column = border.axes(spec, bordered=not unpadded)
        self.row = self.column.size * self.channels
        """Elements of a row, of the image or in scratch."""
        self.plane = self.line.size * self.row
        self.image = self.plane * spec.ic if spec.nchw else self.plane
        self.tap_stride = self.plane if spec.nchw else spec.dilation[1] * self.channels
        self.vectors = ceil(self.outputs / dot.lanes)
        self.step_size = min(self.outputs, dot.lanes) * dot.group
        """Weights of a step and vector. With fewer outputs than lanes a load reads on: what idle lanes hold, nobody stores."""
        self.stride = spec.kh * self.taps * self.steps * self.step_size
        """Weights of a vector."""
        self.channels_held = max(self.outputs, dot.lanes) * spec.groups
        """Of a table of biases or multipliers."""
        self.weights = spec.groups * self.vectors * self.stride + dot.lanes * dot.group - self.step_size
        self.kinds = (len(self.line.kinds), len(self.column.kinds)) if spec.is_integer else (1, 1)
        """Of outputs, by the taps that they have in the image: the zero point that the others would add is not in their bias."""

    def sights(self, tile: ConvTile) -> list[border.Sight]:
        """The tiles of a row by the taps that their pixels multiply."""
        if self.unpadded:
            return border.sights(self.column, tile.mw)
        whole = border.Strip(range(self.spec.kw), tuple(range(tile.mh * tile.mw)))
        return [border.Sight(0, ceil(self.spec.ow / tile.mw), (whole,), (0,) * tile.mh * tile.mw)]

    def strip(self, taps: range) -> tuple[tuple[int, int], tuple[int, int]]:
        """Bounds of the loops over ``taps`` of a kernel row, or planes, and steps."""
        if not (self.row_merged or self.spec.nchw):
            return (taps.start, taps.stop), (0, self.steps)
        return (0, self.taps), (taps.start * self.steps // self.spec.kw, taps.stop * self.steps // self.spec.kw)

    @property
    def shares_broadcasts(self) -> bool:
        """Whether LLVM keeps what a pixel broadcasts for its neighbour's next tap: it unrolls short rows, which overlap.

        Where the tile leaves it no registers it spills (Zen 5, 3x3 of one float32 channel: 13x2 accumulators take 61 us, 8x2 31;
        with the 16 registers of AVX2, three channels: 14x1 15.2 us, 5x2 12.2).
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
            return Staging(spec.n * spec.ic, spec.h, spec.w, 1, 1, self.pad, zero, dtype, 1)
        return Staging(spec.n, spec.h, spec.w, spec.groups, self.per_group, self.pad, zero, dtype, self.group_stride)

    @property
    def scratch_size(self) -> int:
        slack = self.dot.group * self.steps if self.ragged else 0
        return self.spec.n * self.image + slack


def geometry(spec: Conv2d, tile: ConvTile) -> Geometry:
    """Sizes of a kernel of its own."""
    geo = Geometry(spec, BY_NAME[tile.dot])
    return Geometry(spec, geo.dot, unpadded=True) if _skips_padding(geo, tile) else geo


def _skips_padding(geo: Geometry, tile: ConvTile) -> bool:
    """Whether the taps outside of the image can be left out, with code for few sights of it and few tables."""
    spec = geo.spec
    whole_steps = not geo.ragged and (spec.kw == 1 or (1 if spec.nchw else geo.per_group) % geo.dot.group == 0)
    if not any(spec.pad) or tile.mh > 1 or tile.pipelined or not whole_steps:
        return False
    line, column = border.axes(spec)
    few = not spec.is_integer or len(line.kinds) * len(column.kinds) <= MOST_KINDS
    return few and len(border.sights(column, tile.mw)) <= MOST_SIGHTS


def flatten_pixels(spec: Conv2d) -> Conv2d:
    """A pointwise convolution sees one long row of pixels, whatever the image's shape."""
    if not _sees_one_pixel(spec):
        return spec
    return msgspec.structs.replace(spec, n=1, h=1, w=spec.n * spec.h * spec.w)


def is_pointwise(spec: Conv2d) -> bool:
    """Whether an output is a product with all channels of one pixel."""
    return _sees_one_pixel(spec) and spec.groups == 1


def _sees_one_pixel(spec: Conv2d) -> bool:
    return spec.kh == spec.kw == 1 and spec.stride == (1, 1) and not any(spec.pad) and not spec.nchw
