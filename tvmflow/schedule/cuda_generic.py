"""CUDA schedules for what has no template: float islands and data movement, by TVM's dlight rules.

Reductions share a block's threads, everything else is one element a thread; the first rule that understands a function is used.
"""

from __future__ import annotations

import re
from typing import Any

import tvm
from tvm import relax

from tvmflow.errors import InternalError
from tvmflow.optimize.walk import substitute
from tvmflow.target import Target


def with_identifiers(module: tvm.IRModule) -> tvm.IRModule:
    """The module with C identifiers for the variables of ``main``.

    TVM names the buffers of the loops that it makes of an operator after the operands, and CUDA's source needs names
    that C allows; layers are called ``/features/0/Conv``.
    """
    main = module["main"]
    new: dict[Any, Any] = {}
    for param in main.params:
        new[param] = relax.Var(_identifier(param.name), param.ty)
    blocks = []
    for block in main.body.blocks:
        bindings = []
        for binding in block.bindings:
            value = substitute(binding.value, new)
            new[binding.var] = type(binding.var)(_identifier(binding.var.name), binding.var.ty)
            bindings.append(relax.VarBinding(new[binding.var], value))
        blocks.append(type(block)(bindings))
    body = relax.SeqExpr(blocks, substitute(main.body.body, new))
    params = [new[param] for param in main.params]
    renamed = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    renamed["main"] = relax.BlockBuilder(module).normalize(relax.Function(params, body, main.ret_ty, main.is_pure, main.attrs))
    return renamed


def _identifier(name: str) -> str:
    return "t_" + re.sub(r"\W", "_", str(name), flags=re.ASCII)


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
