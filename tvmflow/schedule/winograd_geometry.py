"""Sizes of Winograd's convolution (schedule/winograd.py): its patches, its points, and where each lies in the buffers.

What patches of ``m x m`` outputs leave over of a line or of an image is done by smaller ones. These take some of the points of
the large ones, so that the weights are the same: 14x14 outputs by F(4x4) and F(2x2) take 22 points a side and not 24, which is
84 % of the products. A point then has as many patches as have the point; those with as many are multiplied alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, product
from math import ceil

import msgspec

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule.intrinsics import BY_NAME, Dot
from tvmflow.schedule.products import Weights, evenly
from tvmflow.schedule.winograd_transforms import Transforms, transforms


class WinogradTile(msgspec.Struct, frozen=True, tag="winograd"):
    """Decisions of the template."""

    dot: str
    m: int
    """A patch gives ``m x m`` outputs."""
    rows: int
    """Rows of patches that are transformed and multiplied together."""
    mr: int
    """Most patches that are multiplied together."""
    nr: int
    threads: bool = True
    ahead: int = 0
    """Bytes behind the kernel's weights that it asks for (schedule/ahead.py). The network decides, not the tuner."""


@dataclass(frozen=True)
class Patches:
    """Patches of a band that give outputs of one size."""

    down: Transforms
    along: Transforms
    row: int
    """Number of their first row in the band."""
    rows: int
    column: int
    columns: int
    points: list[int]
    """Numbers of their points among those of the largest patches."""

    @property
    def count(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Matrices:
    """Products of matrices of one size: of points that as many patches have."""

    points: int
    first: int
    """Number of the first point in the order of the weights."""
    rows: int
    """Patches that have the point."""
    mr: int
    """Rows that are multiplied together."""
    inputs: int
    """First element in the buffer of transformed inputs."""
    in_stride: int
    """From a point to the next."""
    products: int
    """First element in the buffer of products."""
    out_stride: int

    @property
    def turns(self) -> int:
        return ceil(self.rows / self.mr)


class Geometry:
    """Sizes that follow from a signature and a tile."""

    def __init__(self, spec: Conv2d, tile: WinogradTile) -> None:
        self.dot: Dot = BY_NAME[tile.dot]
        found = transforms(tile.m, spec.ic, spec.is_integer)
        assert found
        self.transforms = found
        self.channels = min(self.dot.lanes * self.dot.group, 1 << (spec.ic.bit_length() - 1))
        """Of an input, transformed together."""
        self.points = found.side**2
        self.high = ceil(spec.oh / tile.m)
        self.bands = ceil(self.high / tile.rows)
        self.weights = Weights(self.dot, self.points, spec.ic, spec.oc, tile.nr)
        # the last one of several bands is moved back inside as a whole
        down = _split(spec.oh, found) if self.bands == 1 else [(found, 0, tile.rows)]
        self.patches = [
            Patches(d, a, row, rows, column, columns, [i * found.side + j for i, j in product(found.kept(d.m), found.kept(a.m))])
            for (d, row, rows), (a, column, columns) in product(down, _split(spec.ow, found))
        ]
        self._lay_out(spec.ic, tile)

    def _lay_out(self, ic: int, tile: WinogradTile) -> None:
        lanes = self.dot.lanes
        owners = [[k for k, patches in enumerate(self.patches) if p in patches.points] for p in range(self.points)]
        rows = [sum(self.patches[k].count for k in ks) for ks in owners]
        self.order = sorted(range(self.points), key=lambda point: -rows[point])
        """Points as their weights lie in memory."""
        self.matrices: list[Matrices] = []
        inputs: dict[tuple[int, int], int] = {}
        products: dict[tuple[int, int], int] = {}
        self.in_size = self.out_size = 0
        for count, group in groupby(self.order, key=rows.__getitem__):
            points = list(group)
            # one vector between the points, so that those of a patch do not meet in one set of the cache
            strides = count * ic + lanes * self.dot.group, (count * tile.nr + 1) * lanes
            first = sum(m.points for m in self.matrices)
            mr = evenly(count, tile.mr)
            self.matrices.append(Matrices(len(points), first, count, mr, self.in_size, strides[0], self.out_size, strides[1]))
            for point in points:
                row = 0
                for k in owners[point]:
                    inputs[k, point] = self.in_size + row * ic
                    products[k, point] = self.out_size + row * tile.nr * lanes
                    row += self.patches[k].count
                self.in_size += strides[0]
                self.out_size += strides[1]
        self.inputs = [[inputs[k, point] for point in patches.points] for k, patches in enumerate(self.patches)]
        """Of patches of one size, for each of their points: where the first lies in the buffer of transformed inputs."""
        self.products = [[products[k, point] for point in patches.points] for k, patches in enumerate(self.patches)]
        self.rows = sum(m.points * m.rows for m in self.matrices)
        """Of all matrices of a band."""
        self.turns = sum(m.points * m.turns for m in self.matrices)
        """Register tiles of a block of channels."""


def _split(extent: int, transforms: Transforms) -> list[tuple[Transforms, int, int]]:
    """Patches along a line of outputs: their transforms, the number of the first, how many."""
    whole, rest = divmod(extent, transforms.m)
    return [(transforms, 0, whole), (transforms.fewer(rest), whole, 1)][: 2 if rest else 1]
