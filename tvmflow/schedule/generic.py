"""Schedules for what has no template: float islands and data movement, as Relax legalizes and fuses them.

Every block is given the best plain loop nest for a CPU: spatial loops fused and shared among threads, the contiguous axis
vectorised; a reduction along the contiguous axis is split over vector lanes first (rfactor).
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.s_tir import Schedule

from tvmflow.schedule.cuda_generic import schedule_cuda_generic
from tvmflow.target import Target

PARALLEL_ELEMENTS = 32768


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
    root = sch.get_sblock("root")
    for block in sch.get_child_blocks(root):
        _schedule_block(sch, block, lanes)
    return sch.mod["main"].with_attrs(dict(function.attrs) if function.attrs else {})


def _schedule_block(sch: Schedule, block: Any, lanes: int) -> None:
    loops = sch.get_loops(block)
    kinds = [str(v.iter_type) for v in sch.get(block).iter_vars]
    if not loops or len(kinds) != len(loops):
        return
    reduction = [loop for loop, v in zip(loops, sch.get(block).iter_vars, strict=True) if int(v.iter_type) == 2]
    spatial = [loop for loop in loops if not any(loop.same_as(r) for r in reduction)]
    extents = [int(sch.get(loop).extent) for loop in loops]
    if not spatial:
        return
    total = 1
    for extent in extents:
        total *= extent
    sch.reorder(*spatial, *reduction)
    if reduction:
        fused = sch.fuse(*spatial)
        if total > PARALLEL_ELEMENTS:
            sch.parallel(fused)
        return
    fused = sch.fuse(*spatial)
    outer, inner = sch.split(fused, [None, lanes])
    sch.vectorize(inner)
    if total > PARALLEL_ELEMENTS:
        sch.parallel(outer)
