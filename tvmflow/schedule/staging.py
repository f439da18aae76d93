"""Copies rows of an NHWC tensor into scratch with their border in place, widened to the type that the multiply wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.schedule import tir

Expr = Any

PARALLEL_ELEMENTS = 65536
"""A copy of fewer elements takes less time than waking a second thread."""


@dataclass(frozen=True)
class Staging:
    """How rows of a tensor ``[n, h, w, groups * per_group]`` are laid out in scratch.

    A row in scratch has ``left + w + right`` pixels of ``groups * group_stride`` channels. The border holds ``zero``. Channels
    between ``per_group`` and ``group_stride`` are left undefined: their weights are zero.
    """

    n: int
    h: int
    w: int
    groups: int
    per_group: int
    pad: tuple[int, int, int, int]
    """top, left, bottom, right"""
    zero: Expr
    dtype: str
    group_stride: int

    @property
    def row_size(self) -> int:
        return (self.w + self.pad[1] + self.pad[3]) * self.groups * self.group_stride

    def whole(self, x: Any, size: int, threads: bool) -> Any:
        """Scratch of ``size`` elements with all rows of all images, borders at top and bottom included."""
        rows = self.h + self.pad[0] + self.pad[2]
        scratch = T.alloc_buffer((size,), self.dtype, scope="global")
        shared = threads and self.n * rows * self.row_size > PARALLEL_ELEMENTS
        with tir.parallel_if(shared, self.n * rows) as r:
            self._row(x, scratch, r * self.row_size, r // rows, r % rows - self.pad[0])
        return scratch

    def band(self, x: Any, image: Expr, first: Expr, count: int) -> Any:
        """Scratch with ``count`` rows of an image from line ``first`` on, which may lie outside of the image."""
        scratch = T.alloc_buffer((count * self.row_size,), self.dtype, scope="global")
        with T.serial(0, count) as r:
            self._row(x, scratch, r * self.row_size, image, first + r)
        return scratch

    def _row(self, x: Any, scratch: Any, to: Expr, image: Expr, line: Expr) -> None:
        if not (self.pad[0] or self.pad[2]):
            self._image_row(x, scratch, to, image, line)
            return
        with T.If(tirx.And(line >= 0, line < self.h)):
            with T.Then():
                self._image_row(x, scratch, to, image, line)
            with T.Else():
                self._fill(scratch, to, self.row_size)

    def _image_row(self, x: Any, scratch: Any, to: Expr, image: Expr, line: Expr) -> None:
        left, right = (side * self.groups * self.group_stride for side in (self.pad[1], self.pad[3]))
        source = (image * self.h + line) * (self.w * self.groups * self.per_group)
        self._fill(scratch, to, left)
        if self.group_stride == self.per_group:
            self._copy(x, scratch, to + left, source, self.w * self.groups * self.per_group)
        else:
            with T.serial(0, self.w * self.groups) as p:
                self._copy(x, scratch, to + left + p * self.group_stride, source + p * self.per_group, self.per_group)
        self._fill(scratch, to + self.row_size - right, right)

    @property
    def _widest(self) -> int:
        return 16 if self.dtype == "float32" else 32

    def _fill(self, scratch: Any, start: Expr, count: int) -> None:
        def run(o: Expr, n: int) -> None:
            T.buffer_store(scratch, tir.splat(self.zero.astype(self.dtype), n), [tir.at(start + o, n)])

        if count:
            tir.for_each_run(count, self._widest, run)

    def _copy(self, x: Any, scratch: Any, to: Expr, start: Expr, count: int) -> None:
        def run(o: Expr, n: int) -> None:
            T.buffer_store(scratch, x[tir.at(start + o, n)].astype(tir.lanes_of(self.dtype, n)), [tir.at(to + o, n)])

        tir.for_each_run(count, self._widest, run)
