"""Shapes: one spelling for what only regroups or reorders elements.

::

    Before:  y = R.squeeze(x, axis=[2, 3])                   After:  z = R.reshape(x, (1, 4, 2))
             z = R.reshape(R.expand_dims(y, 0), (1, 4, 2))
             w = R.permute_dims(R.permute_dims(v, a), b)             w = R.permute_dims(v, [a[i] for i in b])

1. flatten, squeeze and expand_dims are reshapes.
2. A reshape of a reshape is one reshape; a transpose of a transpose is one transpose.
3. Those that change nothing disappear.
4. reshape, permute_dims of ``dequantize(const)`` act on the integers, so that a quantized model's constants stay constants.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import array, const, has_static_shape, ints, is_constant, op_name, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("static shapes",)
ENSURES = ("canonical shapes",)

TO_CHANNELS_LAST = (0, 2, 3, 1)
"""The permutation of NCHW to NHWC."""
RESHAPES = ("reshape", "flatten", "nn.batch_flatten", "squeeze", "expand_dims")


def permutation(call: Any) -> tuple[int, ...]:
    """Axes of a ``permute_dims``; without any it reverses them."""
    rank = len(shape_of(call))
    return tuple(reversed(range(rank))) if call.attrs.axes is None else tuple(a % rank for a in ints(call.attrs.axes))


def _on_integers(walk: Walk, call: Any) -> Any:
    """Case 4. Per-channel parameters need their axis to survive as an axis."""
    source = walk.call(call.args[0], "dequantize")
    if source is None or not is_constant(source.args[0]):
        return None
    value, scale, zero = source.args
    before, after = shape_of(value), shape_of(call)
    axis = int(source.attrs.axis) % max(len(before), 1)
    if math.prod(shape_of(scale)) == 1:
        axis = 0
    elif op_name(call) == "permute_dims":
        axis = permutation(call).index(axis)
    else:
        lead = math.prod(before[:axis])
        fits = [i for i, size in enumerate(after) if size == before[axis] and math.prod(after[:i]) == lead]
        if not fits:
            return None
        axis = fits[0]
    integers = array(value)
    moved = np.transpose(integers, permutation(call)) if op_name(call) == "permute_dims" else integers.reshape(after)
    dequantized = relax.op.dequantize(const(moved), scale, zero, axis=axis, out_dtype=str(source.attrs.out_dtype))
    return walk.emit(dequantized, walk.name_of(call.args[0]))


def rule(walk: Walk, call: Any) -> Any:
    """Cases in order of the docstring, the last first."""
    name = op_name(call)
    if name not in (*RESHAPES, "permute_dims") or not has_static_shape(call):
        return None
    moved = _on_integers(walk, call)
    if moved is not None:
        return moved
    if name == "permute_dims":
        axes, source = permutation(call), call.args[0]
        inner = walk.call(source, "permute_dims")
        if inner is not None:
            axes, source = tuple(permutation(inner)[a] for a in axes), inner.args[0]
        if axes == tuple(range(len(axes))):
            return source
        return None if inner is None else relax.op.permute_dims(source, list(axes))
    source, shape = call.args[0], shape_of(call)
    inner = walk.call(source, *RESHAPES)
    if inner is not None:
        source = inner.args[0]
    if shape_of(source) == shape:
        return source
    if inner is None and name == "reshape" and isinstance(call.args[1], relax.ShapeExpr):
        return None
    return relax.op.reshape(source, shape)


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
