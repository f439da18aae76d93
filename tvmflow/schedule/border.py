"""Which taps of a convolution's kernel lie inside the image: the others a template skips that reads the image where it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from math import ceil
from typing import Any, NamedTuple

from tvm import tirx

from tvmflow.kernels.spec import Conv2d

Expr = Any


@dataclass(frozen=True)
class Axis:
    """Rows or columns of a convolution."""

    size: int
    """Of the image."""
    outputs: int
    taps: int
    """Of the kernel."""
    stride: int
    dilation: int
    before: int
    """Padding in front of the image."""

    def start(self, output: Expr) -> Expr:
        """Place of an output's first tap, negative in front of the image."""
        return output * self.stride - self.before

    def inside(self, output: int) -> range:
        """Taps of an output that lie in the image."""
        start = self.start(output)
        first = max(0, ceil(-start / self.dilation))
        return range(first, max(first, min(self.taps, ceil((self.size - start) / self.dilation))))

    def inside_at(self, start: Expr) -> tuple[Expr, Expr]:
        """The first of the taps that lie in the image, and one past the last, where the first of all lies at ``start``."""
        # constants to the right: LLVM makes shorter code of that, with fewer registers
        first = tirx.max((self.dilation - 1 - start) // self.dilation, 0)
        last = tirx.min((self.size + self.dilation - 1 - start) // self.dilation, self.taps)
        sees_nothing = not all(self.kinds)
        return first, tirx.max(first, last) if sees_nothing else last

    @cached_property
    def _edges(self) -> tuple[int, int]:
        """Outputs at the beginning and at the end that miss taps."""
        first_whole = ceil(self.before / self.stride)
        first_cut = ceil((self.size + self.before - (self.taps - 1) * self.dilation) / self.stride)
        return min(first_whole, self.outputs), self.outputs - max(0, min(first_cut, self.outputs))

    @cached_property
    def kinds(self) -> list[range]:
        """Taps inside the image of the outputs of each :meth:`kind`."""
        before, after = self._edges
        if before + after >= self.outputs:
            return [self.inside(o) for o in range(self.outputs)]
        return [self.inside(o) for o in (*range(before + 1), *range(self.outputs - after, self.outputs))]

    @cached_property
    def misses(self) -> int:
        """Taps outside of the image, of all outputs together."""
        return sum(self.taps - len(seen) for seen in self.kinds)

    def sees_all(self, outputs: range) -> bool:
        """Whether each of the outputs has all its taps in the image."""
        before, after = self._edges
        return before <= outputs.start and outputs.stop <= self.outputs - after

    def kind(self, output: Expr) -> Expr:
        """Number of an output's kind: each at an edge is one of its own, all others are another."""
        before, after = self._edges
        if before + after >= self.outputs:
            return output
        return tirx.min(output, before) + tirx.max(0, output - (self.outputs - after - 1))


@lru_cache(maxsize=256)
def axes(spec: Conv2d, bordered: bool = False) -> tuple[Axis, Axis]:
    """Rows and columns of a convolution; ``bordered``: of the image with its padding, which has every tap of every output."""
    top, left, bottom, right = spec.pad
    if bordered:
        high, wide, top, left = spec.h + top + bottom, spec.w + left + right, 0, 0
    else:
        high, wide = spec.h, spec.w
    return (
        Axis(high, spec.oh, spec.kh, spec.stride[0], spec.dilation[0], top),
        Axis(wide, spec.ow, spec.kw, spec.stride[1], spec.dilation[1], left),
    )


class Strip(NamedTuple):
    """Neighbouring taps that lie in the image for the same outputs of a tile."""

    taps: range
    outputs: tuple[int, ...]
    """Counted from the tile's first."""


class Sight(NamedTuple):
    """Tiles that see the image alike."""

    first: int
    """Number of the first such tile; those of the next sight follow."""
    tiles: int
    strips: tuple[Strip, ...]
    kinds: tuple[int, ...]
    """Of each output."""


@lru_cache(maxsize=4096)
def sights(axis: Axis, width: int) -> list[Sight]:
    """Tiles of ``width`` outputs, the last moved back inside, by what they see."""
    everything = Strip(range(axis.taps), tuple(range(width)))
    found: list[Sight] = []
    for tile in range(ceil(axis.outputs / width)):
        start = min(tile * width, axis.outputs - width)
        outputs = range(start, start + width)
        strips = (everything,) if axis.sees_all(outputs) else _strips([axis.inside(o) for o in outputs], axis.taps)
        if found and found[-1].strips == strips:
            found[-1] = found[-1]._replace(tiles=found[-1].tiles + 1)
        else:
            found.append(Sight(tile, 1, strips, tuple(int(axis.kind(o)) for o in outputs)))
    return found


def _strips(inside: list[range], taps: int) -> tuple[Strip, ...]:
    who = [tuple(m for m, seen in enumerate(inside) if tap in seen) for tap in range(taps)]
    runs = [list(run) for _, run in groupby(range(taps), who.__getitem__)]
    return tuple(Strip(range(run[0], run[-1] + 1), who[run[0]]) for run in runs if who[run[0]])
