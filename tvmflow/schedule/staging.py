"""Copies an NHWC tensor into scratch with its border in place, widened to the type that the multiply wants."""

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
class Image:
    """Shape of the source: ``n`` images of ``h x w`` pixels with ``groups`` runs of ``per_group`` channels."""

    n: int
    h: int
    w: int
    groups: int
    per_group: int

    @property
    def channels(self) -> int:
        return self.groups * self.per_group


def padded_copy(
    x: Any, image: Image, pad: tuple[int, int, int, int], zero: Expr, dtype: str, group_stride: int, size: int, threads: bool
) -> Any:
    """Scratch ``[n, h + top + bottom, w + left + right, groups * group_stride]`` of ``dtype``, border filled with ``zero``.

    Channels between ``per_group`` and ``group_stride``, and elements beyond the shape up to ``size``, are left undefined: their
    weights are zero.
    """
    scratch = T.alloc_buffer((size,), dtype, scope="global")
    top, left, bottom, right = pad
    rows = image.h + top + bottom
    channels = image.groups * group_stride
    row_size = (image.w + left + right) * channels
    widest = 16 if dtype == "float32" else 32

    def fill(start: Expr, count: int) -> None:
        if count:
            tir.for_each_run(
                count, widest, lambda o, n: T.buffer_store(scratch, tir.splat(zero.astype(dtype), n), [tir.at(start + o, n)])
            )

    def copy(to: Expr, start: Expr, count: int) -> None:
        tir.for_each_run(
            count,
            widest,
            lambda o, n: T.buffer_store(scratch, x[tir.at(start + o, n)].astype(tir.lanes_of(dtype, n)), [tir.at(to + o, n)]),
        )

    def image_row(row: Expr, source: Expr) -> None:
        fill(row, left * channels)
        body = row + left * channels
        if group_stride == image.per_group:
            copy(body, source, image.w * channels)
        else:
            with T.serial(0, image.w * image.groups) as p:
                copy(body + p * group_stride, source + p * image.per_group, image.per_group)
        fill(body + image.w * channels, right * channels)

    with tir.parallel_if(threads and image.n * rows * row_size > PARALLEL_ELEMENTS, image.n * rows) as r:
        index, line = r // rows, r % rows - top
        row = r * row_size
        source = (index * image.h + line) * (image.w * image.channels)
        if top or bottom:
            with T.If(tirx.And(line >= 0, line < image.h)):
                with T.Then():
                    image_row(row, source)
                with T.Else():
                    fill(row, row_size)
        else:
            image_row(row, source)
    return scratch
