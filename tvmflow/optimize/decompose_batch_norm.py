"""Batch norm at inference is a multiplication and an addition per channel.

::

    Before:  y = R.nn.batch_norm(x, gamma, beta, mean, var, axis=1, epsilon=e, training=False)[0]
    After:   s = R.multiply(x, gamma / sqrt(var + e))
             y = R.add(s, beta - mean * gamma / sqrt(var + e))

1. Constant statistics; ``scale=False`` and ``center=False`` are gamma 1 and beta 0. Computed in float64, rounded once.
2. Batch norm in training mode, or with statistics that the graph computes, stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import along, array, const, dtype_of, is_constant, op_name, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("constants folded",)
ENSURES = ("no batch norm",)


def rule(walk: Walk, call: Any) -> Any:
    """Case 1."""
    if op_name(call) != "nn.batch_norm" or call.attrs.training or not all(is_constant(a) for a in call.args[1:]):
        return None
    x, dtype = call.args[0], dtype_of(call.args[0])
    gamma, beta, mean, var = (array(a).astype("float64") for a in call.args[1:])
    scale = (gamma if call.attrs.scale else 1.0) / np.sqrt(var + float(call.attrs.epsilon))
    shift = (beta if call.attrs.center else 0.0) - mean * scale
    rank, axis = len(shape_of(x)), int(call.attrs.axis)
    scaled = walk.emit(relax.op.multiply(x, const(along(scale, rank, axis).astype(dtype))), walk.name + ".scale")
    shifted = walk.emit(relax.op.add(scaled, const(along(shift, rank, axis).astype(dtype))))
    return relax.Tuple([shifted, call.args[3], call.args[4]])


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
