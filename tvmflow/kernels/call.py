"""How a kernel stands in Relax: ``R.call_dps_packed('tvmflow.kernel {signature}', args)``, until schedule gives it code."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from tvmflow.kernels import spec as ks

PREFIX = "tvmflow.kernel "


def kernel_call(spec: ks.Kernel, args: Sequence[relax.Expr]) -> relax.Call:
    """Relax call of a kernel. ``args`` follow ``spec.ARGS``; constants are ``relax.const``. Several results come as a tuple."""
    return relax.op.call_dps_packed(PREFIX + ks.encode(spec), relax.Tuple(list(args)), result_types(spec))


def result_types(spec: ks.Kernel) -> list[relax.TensorType]:
    """Types of a kernel's results, as ``call_dps_packed`` and ``call_tir`` take them."""
    return [relax.TensorType(shape, dtype) for shape, dtype in spec.outputs]


def kernel_of(expr: relax.Expr) -> ks.Kernel | None:
    """Signature of a kernel call, None for every other expression."""
    if not isinstance(expr, relax.Call) or expr.op != tvm.ir.Op.get("relax.call_dps_packed"):
        return None
    symbol = expr.args[0].global_symbol
    return ks.decode(symbol[len(PREFIX) :]) if symbol.startswith(PREFIX) else None


def kernel_args(call: relax.Call) -> list[relax.Expr]:
    """Arguments of a kernel call in the order of ``spec.ARGS``."""
    return list(call.args[1].fields)
