"""Schedules for what has no template: float islands and data movement, as Relax legalizes and fuses them.

1. Blocks that only feed the next one elementwise are inlined: one pass over memory per function.
2. The contiguous axis is innermost and becomes vectors; the other spatial axes are fused and shared among threads.
3. A reduction over outer axes (mean over height and width) runs around the vectors; one along the contiguous axis is split over
   vector lanes first (rfactor).
"""

from __future__ import annotations

from math import prod
from typing import Any

import tvm
from tvm.s_tir import Schedule, ScheduleError

from tvmflow.schedule.cuda_generic import schedule_cuda_generic
from tvmflow.target import Target

PARALLEL_ELEMENTS = 32768
PARALLEL_ROWS = 8
"""Rows enough for threads to share evenly; with fewer the row itself is shared too."""
_REDUCTION = 2
"""``IterVar.iter_type`` of a reduction axis."""


def schedule_generic(module: tvm.IRModule, target: Target) -> tuple[tvm.IRModule, tuple[str, ...]]:
    """Schedules every PrimFunc of ``module`` that no template emitted; returns their names too."""
    if target.cuda:
        return schedule_cuda_generic(module, target)
    lanes = target.cpu.vector_bits // 32
    names = []
    for var, function in list(module.functions_items()):
        if not isinstance(function, tvm.tirx.PrimFunc) or (function.attrs and "tirx.is_scheduled" in function.attrs):
            continue
        module[var] = _schedule(function, lanes).with_attr("tirx.is_scheduled", True)
        names.append(str(var.name_hint))
    return module, tuple(names)


def _schedule(function: tvm.tirx.PrimFunc, lanes: int) -> tvm.tirx.PrimFunc:
    sch = Schedule(tvm.IRModule({"main": function}))
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        _inline(sch, block)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        for part in _split_over_lanes(sch, block, lanes):
            _schedule_block(sch, part, lanes)
    return sch.mod["main"].with_attrs(dict(function.attrs) if function.attrs else {})


def _inline(sch: Schedule, block: Any) -> None:
    """Computes ``block`` where its value is read; not for outputs and reductions, nor where a reduction reads it."""
    if any(_axes(sch, consumer)[1] for consumer in sch.get_consumers(block)):
        return
    try:
        sch.compute_inline(block)
    except ScheduleError:
        return


def _axes(sch: Schedule, block: Any) -> tuple[list[Any], list[Any]]:
    """Spatial and reduction loops around ``block``, from the outside in; both empty when an axis is more than one loop."""
    loops = sch.get_loops(block)
    if not loops:
        return [], []
    bindings = sch.get(loops[-1]).body.iter_values
    spatial: list[Any] = []
    reduction: list[Any] = []
    for loop in loops:
        kinds = [
            axis.iter_type
            for axis, value in zip(sch.get(block).iter_vars, bindings, strict=True)
            if value.same_as(sch.get(loop).loop_var)
        ]
        if len(kinds) != 1:
            return [], []
        (reduction if int(kinds[0]) == _REDUCTION else spatial).append(loop)
    return spatial, reduction


def _split_over_lanes(sch: Schedule, block: Any, lanes: int) -> list[Any]:
    """The blocks that stand for ``block``: two where the contiguous axis is reduced, the first with a partial result per lane."""
    spatial, reduction = _axes(sch, block)
    if not spatial or not reduction:
        return [block]
    contiguous = sch.get(block).reads[0].region[-1].min
    width = _vector(int(sch.get(reduction[-1]).extent), lanes)
    if width == 1 or not contiguous.same_as(sch.get(block).iter_vars[-1].var):
        return [block]
    _, lane = sch.split(reduction[-1], [None, width])
    return [sch.rfactor(lane, len(sch.get(block).writes[0].region)), block]


def _schedule_block(sch: Schedule, block: Any, lanes: int) -> None:
    spatial, reduction = _axes(sch, block)
    if not spatial:
        return
    *outer, inner = spatial
    rows = prod(int(sch.get(loop).extent) for loop in outer)
    total = rows * prod(int(sch.get(loop).extent) for loop in (inner, *reduction))
    sch.reorder(*outer, *reduction, inner)
    width = _vector(int(sch.get(inner).extent), lanes)
    if width > 1:
        inner, vector = sch.split(inner, [None, width])
        sch.vectorize(vector)
    around = outer if reduction or rows >= PARALLEL_ROWS else [*outer, inner]
    if total > PARALLEL_ELEMENTS and around and (rows > 1 or not reduction):
        sch.parallel(sch.fuse(*around))
    if reduction:
        sch.decompose_reduction(block, reduction[0])


def _vector(extent: int, lanes: int) -> int:
    """Elements of a vector that divides ``extent``; 1 where none is long enough: LLVM makes what it can of the plain loop."""
    while extent % lanes:
        lanes //= 2
    return lanes if lanes >= 4 else 1
