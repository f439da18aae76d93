"""Clamps: every spelling of a clamp by constants becomes one ``R.clip`` or ``R.nn.relu``.

::

    Before:  y = R.minimum(R.maximum(x, 0.0), 6.0)           After:  y = R.clip(x, 0.0, 6.0)
             z = R.maximum(w, 0.0)                                   z = R.nn.relu(w)

1. ``maximum(x, c)``, ``minimum(x, c)`` with a scalar constant, relu, clip (relu6 is one): a range [lo, hi].
2. A clamp of a clamp that nothing else reads is one clamp: the outer range applied to the inner bounds.
3. The range [0, inf] is spelled ``R.nn.relu``, every other one ``R.clip`` with float bounds; [-inf, inf] disappears.
4. Integer tensors and constants of several elements stay. A NaN is a NaN or a bound afterwards, as the kernel has it.
"""

from __future__ import annotations

from math import inf
from typing import Any

import tvm
from tvm import relax

from tvmflow.optimize.expr import dtype_of, has_static_shape, op_name, scalar, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("constants second",)
ENSURES = ("canonical clip",)

Range = tuple[float, float]


def clamp_range(call: Any) -> Range | None:
    """Bounds of a clamp by scalars; None for every other call."""
    name = op_name(call)
    if not name or not has_static_shape(call) or not dtype_of(call).startswith("float"):
        return None
    if name == "nn.relu":
        return 0.0, inf
    if name == "clip":
        return float(call.args[1].value), float(call.args[2].value)
    bound = scalar(call.args[1]) if name in ("maximum", "minimum") else None
    if bound is None or shape_of(call) != shape_of(call.args[0]):
        return None
    return (bound, inf) if name == "maximum" else (-inf, bound)


def _clamp(value: float, bounds: Range) -> float:
    return min(max(value, bounds[0]), bounds[1])


def rule(walk: Walk, call: Any) -> Any:
    """Cases 1 to 3."""
    bounds = clamp_range(call)
    if bounds is None:
        return None
    source, merged = call.args[0], False
    inner = clamp_range(walk.value(source))
    if inner is not None and inner[0] <= inner[1] and walk.only_use(source):
        bounds = _clamp(inner[0], bounds), _clamp(inner[1], bounds)
        source, merged = walk.value(source).args[0], True
    if bounds == (-inf, inf):
        return source
    canonical = op_name(call) == ("nn.relu" if bounds == (0.0, inf) else "clip")
    if canonical and not merged and (op_name(call) == "nn.relu" or isinstance(call.args[1], tvm.tirx.FloatImm)):
        return None
    return relax.op.nn.relu(source) if bounds == (0.0, inf) else relax.op.clip(source, *bounds)


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
