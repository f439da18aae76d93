"""Identities: calls that return their argument unchanged disappear.

::

    Before:  y = R.nn.dropout(x, rate=0.2)           After:  z = R.nn.relu(x)
             z = R.nn.relu(R.multiply(y, 1.0))

1. dropout at inference, astype to the same dtype, broadcast_to, pad, slice or concat that change no shape.
2. ``x + 0``, ``x - 0``, ``x * 1``, ``x / 1``, ``x ** 1`` where the result has the shape of x.
3. Not removed: an operator that broadcasts x, and quantize followed by dequantize, which rounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import array, dtype_of, has_static_shape, ints, is_constant, op_name, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("static shapes",)
ENSURES = ("no identities",)

NEUTRAL = {"add": 0, "subtract": 0, "multiply": 1, "divide": 1, "power": 1}


def _is_all(expr: Any, number: int) -> bool:
    return is_constant(expr) and bool(np.all(array(expr) == number))


def _kept_argument(call: Any) -> Any:
    """The argument that ``call`` returns if it is an identity, shapes aside."""
    name = op_name(call)
    if name in NEUTRAL:
        a, b = call.args
        if _is_all(b, NEUTRAL[name]):
            return a
        return b if name in ("add", "multiply") and _is_all(a, NEUTRAL[name]) else None
    if name in ("nn.dropout", "astype", "broadcast_to", "nn.pad"):
        return call.args[0]
    if name == "strided_slice":
        forward = len(call.args) < 5 or all(step == 1 for step in ints(call.args[4]))
        return call.args[0] if forward else None
    if name == "concat" and isinstance(call.args[0], relax.Tuple) and len(call.args[0].fields) == 1:
        return call.args[0].fields[0]
    return None


def rule(walk: Walk, call: Any) -> Any:
    """Cases 1 and 2."""
    if op_name(call) == "nn.dropout":
        return relax.Tuple([call.args[0], call.args[0]]) if isinstance(call.ty, relax.TupleType) else call.args[0]
    if not has_static_shape(call):
        return None
    kept = _kept_argument(call)
    if kept is None or not has_static_shape(kept):
        return None
    return kept if shape_of(kept) == shape_of(call) and dtype_of(kept) == dtype_of(call) else None


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
