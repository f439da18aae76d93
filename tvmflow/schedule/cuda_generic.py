"""CUDA schedules for what has no template: float islands and data movement, by TVM's dlight rules.

Reductions share a block's threads, everything else is one element a thread; the first rule that understands a function is used.
"""

from __future__ import annotations

import tvm

from tvmflow.errors import InternalError
from tvmflow.target import Target


def schedule_cuda_generic(module: tvm.IRModule, target: Target) -> tuple[tvm.IRModule, tuple[str, ...]]:
    """Schedules every PrimFunc of ``module`` that no template emitted; returns their names too."""
    from tvm.s_tir import dlight

    waiting = [str(var.name_hint) for var, function in module.functions_items() if _unscheduled(function)]
    if not waiting:
        return module, ()
    gpu = dlight.gpu
    with target.device():
        module = dlight.ApplyDefaultSchedule(gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())(module)
    left = [str(var.name_hint) for var, function in module.functions_items() if _unscheduled(function)]
    if left:
        raise InternalError(f"no CUDA schedule for {', '.join(left)}", where=target.name)
    return module, tuple(waiting)


def _unscheduled(function: tvm.ir.BaseFunc) -> bool:
    return isinstance(function, tvm.tirx.PrimFunc) and not (function.attrs and "tirx.is_scheduled" in function.attrs)
