"""A kernel that writes its result into a slice of a larger tensor, or reads an operand from one.

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
"""Fewest elements of a piece, where a vector lies across rows and is read or written in pieces."""


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


def in_slice(function: tirx.PrimFunc, place: Slice, index: int = -1) -> tirx.PrimFunc | None:
    """``function`` with the whole tensor in place of parameter ``index`` (the last is the result), of which it uses the slice.

    None where vectors lie across rows of the slice and don't fall into pieces of SHORTEST elements, or where the parameter is
    accessed in some other way than element by element.
    """
    index %= len(function.params)
    rewrite = _Rewrite(function.params[index], place)
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
    params = [*function.params[:index], rewrite.new[function.params[index]], *function.params[index + 1 :]]
    return tirx.PrimFunc(params, body, function.ret_type, function.attrs)


def _uses(body: Any, variables: dict[Any, Any]) -> bool:
    """Whether ``body`` uses one of ``variables``."""
    found = []
    tvm_ffi.structural_walk(body, [(tirx.Var, lambda var: found.append(var) if var in variables else None)])
    return bool(found)


class _Rewrite:
    """Replaces every access to a tensor: kernels of ours have a flat view of it, TVM's loop nests use its axes."""

    def __init__(self, tensor: Any, place: Slice) -> None:
        self.tensor, self.place, self.analyzer = tensor, place, Analyzer()
        self.new = {tensor: tirx.decl_buffer(place.shape, tensor.dtype, tensor.name, data_alignment=tensor.data_alignment)}
        self.first: dict[Any, Expr] = {tensor: 0}
        """Where a view begins in the tensor."""
        shape, trailing = tuple(int(d) for d in tensor.shape), len(place.shape) - place.axis
        self.leading = shape[:-trailing]
        """Extents of the axes before that along which the slice is cut; they may be other ones than the slice's."""
        self.has_axes = shape[-trailing:] == place.own_shape[place.axis :] and prod(shape) == prod(place.own_shape)
        """Whether the other axes are the slice's."""
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
        whole = tirx.decl_buffer((prod(self.place.shape),), self.tensor.dtype, declared.buffer.name, layout=None)
        self.new[declared.buffer] = whole
        self.first[declared.buffer] = self.first[viewed] + declared.buffer.elem_offset
        return tirx.DeclBuffer(whole, data=self.new[viewed].data)

    def store(self, store: tirx.BufferStore) -> tirx.Stmt:
        new = self.new.get(store.buffer)
        if new is None:
            return store
        if store.buffer.same_as(self.tensor):
            if self._misses_axes():
                return store
            return tirx.BufferStore(new, store.value, self._axes(store.indices))
        start, lanes = self._vector(store.buffer, store.indices[0])
        if self._within_row(start, lanes):
            return tirx.BufferStore(new, store.value, [tir.at(self._moved(start), lanes)])
        piece = self._piece(start, lanes)
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
        if load.source.same_as(self.tensor):
            if self._misses_axes():
                return load
            return tirx.BufferLoad(new, self._axes(load.indices))
        start, lanes = self._vector(load.source, load.indices[0])
        if self._within_row(start, lanes):
            return tirx.BufferLoad(new, [tir.at(self._moved(start), lanes)])
        piece = self._piece(start, lanes)
        pieces = [tirx.BufferLoad(new, [tir.at(self._moved(start + i), piece)]) for i in range(0, lanes, piece)]
        return shuffle(pieces, range(lanes))

    def region(self, region: tvm.ir.TensorRegion) -> tvm.ir.TensorRegion:
        new = self.new.get(region.source)
        if new is None or self._misses_axes():
            return region
        starts, extents = self._axes([r.min for r in region.region]), [r.extent for r in region.region]
        if self._is_reshaped:
            count = len(self.leading)
            self.fails |= any(int(extent) != 1 for extent in extents[:count])
            extents = [1] * self.place.axis + extents[count:]
        ranges = [tvm.ir.Range.from_min_extent(s, e) for s, e in zip(starts, extents, strict=True)]
        return tirx.BufferRegion(new, ranges)

    def _misses_axes(self) -> bool:
        """Notes that an access by axes fails where the tensor has not those of the slice."""
        self.fails |= not self.has_axes
        return not self.has_axes

    @property
    def _is_reshaped(self) -> bool:
        """Whether the axes before that of the slice are other ones than the slice's."""
        return self.leading != self.place.shape[: self.place.axis]

    def _axes(self, indices: Any) -> list[Expr]:
        """Indices along the axes of the slice in the whole tensor."""
        count = len(self.leading)
        leading, (first, *others) = list(indices[:count]), indices[count:]
        if self._is_reshaped:
            position: Expr = 0
            for index, extent in zip(leading, self.leading, strict=True):
                position = position * extent + index
            leading = []
            for extent in reversed(self.place.shape[: self.place.axis]):
                leading.insert(0, self.analyzer.simplify(position % extent))
                position = position // extent
        return [*leading, first + self.place.start, *others]

    def _vector(self, view: Any, index: Expr) -> tuple[Expr, int]:
        """First element in the slice and number of elements of a vector that is accessed."""
        if not isinstance(index, tirx.Ramp):
            return self.first[view] + index, 1
        self.fails |= int(index.stride) != 1
        return self.first[view] + index.base, int(index.lanes)

    def _piece(self, start: Expr, lanes: int) -> int:
        """Elements of the pieces of a vector of which each is in one row."""
        piece = gcd(lanes, self.place.row)
        self.fails |= piece < SHORTEST or not self._within_row(start, piece)
        return piece

    def _moved(self, index: Expr) -> Expr:
        """A place in the slice, as one in the whole tensor."""
        place = self.place
        return index + self.analyzer.simplify(index // place.row) * (place.pitch - place.row) + place.offset

    def _within_row(self, start: Expr, lanes: int) -> bool:
        """Whether ``lanes`` elements from ``start`` on are in one row, always."""
        row = self.place.row
        known = self.analyzer.modular_set(start)
        if row % lanes == known.coeff % lanes == known.base % lanes == 0:
            return True
        return bool(self.analyzer.can_prove((start + (lanes - 1)) // row <= self.analyzer.simplify(start // row)))
