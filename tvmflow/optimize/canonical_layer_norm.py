"""Layer norm that exporters spell out becomes ``R.nn.layer_norm``.

::

    Before:  d = R.subtract(x, R.mean(x, -1, True))          After:  y = R.nn.layer_norm(x, gamma, beta, axes=[-1])
             n = d / R.sqrt(R.mean(d * d, -1, True) + eps)
             y = R.add(R.multiply(n, gamma), beta)

1. ``d / sqrt(v + eps)`` and ``d * rsqrt(v + eps)`` with v the mean of ``d * d`` over one axis: layer_norm with gamma 1, beta 0.
2. A product or sum with a constant along that axis behind a layer norm that nothing else reads moves into gamma and beta.
3. Means over different axes, over several axes, or a d that isn't ``x - mean(x)`` stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import (
    array,
    axes_of,
    const,
    dtype_of,
    has_static_shape,
    is_constant,
    op_name,
    per_channel,
    scalar,
    shape_of,
)
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("constants second",)
ENSURES = ("canonical layer norm",)


def _mean_axis(walk: Walk, expr: Any) -> tuple[Any, int] | None:
    """x and axis of a mean over one axis that is kept."""
    call = walk.call(expr, "mean")
    if call is None or not call.attrs.keepdims:
        return None
    axes = axes_of(call.attrs.axis, len(shape_of(call)))
    return (call.args[0], axes[0]) if len(axes) == 1 else None


def _normalized(walk: Walk, call: Any) -> Any:
    """Case 1."""
    centred, deviation = call.args
    root = walk.call(deviation, "sqrt" if op_name(call) == "divide" else "rsqrt")
    total = None if root is None else walk.call(root.args[0], "add")
    epsilon = None if total is None else scalar(total.args[1])
    difference = walk.call(centred, "subtract")
    if total is None or epsilon is None or difference is None:
        return None
    variance, mean = _mean_axis(walk, total.args[0]), _mean_axis(walk, difference.args[1])
    if variance is None or mean is None or variance[1] != mean[1] or not mean[0].same_as(difference.args[0]):
        return None
    squared = walk.call(variance[0], "multiply")
    if squared is None or not all(a.same_as(centred) for a in squared.args):
        return None
    x, axis = mean
    size, dtype = shape_of(x)[axis], dtype_of(x)
    ones, zeros = const(np.ones(size, dtype)), const(np.zeros(size, dtype))
    return relax.op.nn.layer_norm(x, ones, zeros, axes=[axis], epsilon=epsilon)


def _affine(walk: Walk, call: Any) -> Any:
    """Case 2."""
    norm = walk.call(call.args[0], "nn.layer_norm")
    if norm is None or not walk.only_use(call.args[0]) or not all(is_constant(a) for a in norm.args[1:]):
        return None
    rank = len(shape_of(norm))
    axes = axes_of(norm.attrs.axes, rank)
    if len(axes) != 1 or shape_of(call) != shape_of(norm) or not (norm.attrs.scale and norm.attrs.center):
        return None
    values = per_channel(call.args[1], rank, axes[0])
    if values is None:
        return None
    gamma, beta = array(norm.args[1]), array(norm.args[2])
    gamma, beta = (gamma, beta + values) if op_name(call) == "add" else (gamma * values, beta * values)
    epsilon = float(norm.attrs.epsilon)
    return relax.op.nn.layer_norm(norm.args[0], const(gamma), const(beta), axes=list(axes), epsilon=epsilon)


def rule(walk: Walk, call: Any) -> Any:
    """Cases 1 and 2."""
    name = op_name(call)
    if not has_static_shape(call):
        return None
    if name in ("add", "multiply") and is_constant(call.args[1]):
        return _affine(walk, call)
    return _normalized(walk, call) if name in ("divide", "multiply") else None


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
