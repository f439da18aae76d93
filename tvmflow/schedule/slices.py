"""A kernel that writes its result into a slice of a larger tensor.

Before: y[1, 56, 56, 64],   y[pixel * 64 + channel : + 16] = value
After:  y[1, 56, 56, 256],  y[pixel * 256 + 128 + channel : + 16] = value
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.sym import Analyzer

from tvmflow.schedule import tir
from tvmflow.schedule.packs import shuffle

Expr = Any

SHORTEST = 4
"""Fewest elements of a piece, where a vector lies across rows and is written in pieces."""


@dataclass(frozen=True)
class Slice:
    """``[start : start + extent]`` along ``axis`` of a tensor of ``shape``."""

    shape: tuple[int, ...]
    axis: int
    start: int
    extent: int

    def __str__(self) -> str:
        return f"[{self.start}:{self.start + self.extent}] of {self.shape[self.axis]}"

    @property
    def row(self) -> int:
        """Elements of the slice that are neighbours in memory."""
        return self.extent * self._inner

    @property
    def pitch(self) -> int:
        """Elements from a row of the slice to the next."""
        return self.shape[self.axis] * self._inner

    @property
    def offset(self) -> int:
        """Elements before the first row."""
        return self.start * self._inner

    @property
    def own_shape(self) -> tuple[int, ...]:
        return (*self.shape[: self.axis], self.extent, *self.shape[self.axis + 1 :])

    @property
    def _inner(self) -> int:
        return prod(self.shape[self.axis + 1 :])


def into_slice(function: tirx.PrimFunc, place: Slice) -> tirx.PrimFunc | None:
    """``function``, whose last parameter is its result, with the whole tensor in that place, of which it writes the slice.

    None where vectors lie across rows of the slice and don't fall into pieces of SHORTEST elements, or where the result is
    accessed in some other way than element by element.
    """
    rewrite = _Rewrite(function.params[-1], place)
    body = tvm_ffi.structural_map(
        function.body,
        [
            (tirx.For, rewrite.loop),
            (tirx.Bind, rewrite.bind),
            (tirx.DeclBuffer, rewrite.view),
            (tirx.BufferStore, rewrite.store),
            (tvm.ir.TensorLoad, rewrite.load),
            (tvm.ir.TensorRegion, rewrite.region),
        ],
        order="pre",
    )
    if rewrite.fails or _uses(body, rewrite.new):
        return None
    return tirx.PrimFunc([*function.params[:-1], rewrite.new[function.params[-1]]], body, function.ret_type, function.attrs)


def _uses(body: Any, variables: dict[Any, Any]) -> bool:
    """Whether ``body`` uses one of ``variables``."""
    found = []
    tvm_ffi.structural_walk(body, [(tirx.Var, lambda var: found.append(var) if var in variables else None)])
    return bool(found)


class _Rewrite:
    """Replaces every access to the result: kernels of ours have a flat view of it, TVM's loop nests use its axes."""

    def __init__(self, y: Any, place: Slice) -> None:
        self.y, self.place, self.analyzer = y, place, Analyzer()
        self.new = {y: tirx.decl_buffer(place.shape, y.dtype, y.name, data_alignment=y.data_alignment)}
        self.first: dict[Any, Expr] = {y: 0}
        """Where a view begins in the result."""
        self.fails = False

    def loop(self, loop: tirx.For) -> tirx.For:
        self.analyzer.bind(loop.loop_var, tvm.ir.Range.from_min_extent(loop.min, loop.extent))
        return loop

    def bind(self, bind: tirx.Bind) -> tirx.Bind:
        if str(bind.var.ty) == "int32":
            self.analyzer.bind(bind.var, bind.value)
        return bind

    def view(self, declared: tirx.DeclBuffer) -> tirx.DeclBuffer:
        viewed = next((buffer for buffer in declared.data.args if buffer in self.new), None)
        if viewed is None:
            return declared
        whole = tirx.decl_buffer((prod(self.place.shape),), self.y.dtype, declared.buffer.name, layout=None)
        self.new[declared.buffer] = whole
        self.first[declared.buffer] = self.first[viewed] + declared.buffer.elem_offset
        return tirx.DeclBuffer(whole, data=self.new[viewed].data)

    def store(self, store: tirx.BufferStore) -> tirx.Stmt:
        new = self.new.get(store.buffer)
        if new is None:
            return store
        if store.buffer.same_as(self.y):
            return tirx.BufferStore(new, store.value, self._axes(store.indices))
        start, lanes = self._vector(store.buffer, store.indices[0])
        if self._within_row(start, lanes):
            return tirx.BufferStore(new, store.value, [tir.at(self._moved(start), lanes)])
        piece = gcd(lanes, self.place.row)
        self.fails |= piece < SHORTEST or not self._within_row(start, piece)
        value = tirx.Var("value", store.value.ty)
        pieces = [
            tirx.BufferStore(new, shuffle([value], range(i, i + piece)), [tir.at(self._moved(start + i), piece)])
            for i in range(0, lanes, piece)
        ]
        return tirx.SeqStmt([tirx.Bind(value, store.value), *pieces])

    def load(self, load: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        new = self.new.get(load.source)
        if new is None:
            return load
        if load.source.same_as(self.y):
            return tirx.BufferLoad(new, self._axes(load.indices))
        start, lanes = self._vector(load.source, load.indices[0])
        self.fails |= not self._within_row(start, lanes)
        return tirx.BufferLoad(new, [tir.at(self._moved(start), lanes)])

    def region(self, region: tvm.ir.TensorRegion) -> tvm.ir.TensorRegion:
        new = self.new.get(region.source)
        if new is None:
            return region
        starts = self._axes([r.min for r in region.region])
        ranges = [tvm.ir.Range.from_min_extent(s, r.extent) for s, r in zip(starts, region.region, strict=True)]
        return tirx.BufferRegion(new, ranges)

    def _axes(self, indices: Any) -> list[Expr]:
        """Indices along the axes of the result in the whole tensor."""
        place = self.place
        self.fails |= tuple(int(d) for d in self.y.shape) != place.own_shape
        return [index + place.start if axis == place.axis else index for axis, index in enumerate(indices)]

    def _vector(self, view: Any, index: Expr) -> tuple[Expr, int]:
        """First element in the result and number of elements of a vector that is accessed."""
        if not isinstance(index, tirx.Ramp):
            return self.first[view] + index, 1
        self.fails |= int(index.stride) != 1
        return self.first[view] + index.base, int(index.lanes)

    def _moved(self, index: Expr) -> Expr:
        """A place in the result, as one in the whole tensor."""
        place = self.place
        return index + self.analyzer.simplify(index // place.row) * (place.pitch - place.row) + place.offset

    def _within_row(self, start: Expr, lanes: int) -> bool:
        """Whether ``lanes`` elements from ``start`` on are in one row, always."""
        row = self.place.row
        known = self.analyzer.modular_set(start)
        if row % lanes == known.coeff % lanes == known.base % lanes == 0:
            return True
        return bool(self.analyzer.can_prove((start + (lanes - 1)) // row <= self.analyzer.simplify(start // row)))
