"""Batch-norm folding, forwards: a product or sum per channel in front of a linear layer moves into its weight and bias.

::

    Before:  a = R.add(R.multiply(x, s), t)                  After:  c = R.nn.conv2d(x, w * s)
             c = R.nn.conv2d(a, w)                                   y = R.add(c, sum(w * t))

1. ``x * s`` in front of any linear layer: the weight's input channels are scaled; a padding of zeros stays zeros.
2. ``x + t``, ``x * s + t`` in front of a layer without padding: the shift adds a constant to each output channel.
3. Not folded: a shift in front of padding or of a transposed convolution (the border sees less of it), and an affine result
   that something else reads too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import along, const, dtype_of, op_name, per_channel, shape_of
from tvmflow.optimize.linear_layer import channel_axis, has_padding, is_linear, scale_inputs, shifted_inputs
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("constants second", "no batch norm")
ENSURES = ("affine folded forwards",)


def _affine(walk: Walk, expr: Any, name: str, axis: int) -> tuple[Any, np.ndarray] | None:
    """Operand and constant [C] of an ``add`` or ``multiply`` per channel that nothing else reads."""
    value = walk.value(expr)
    if op_name(value) != name or not walk.only_use(expr) or shape_of(value) != shape_of(value.args[0]):
        return None
    values = per_channel(value.args[1], len(shape_of(value)), axis)
    if values is None:
        return None
    return value.args[0], np.broadcast_to(values.astype("float64"), (shape_of(value)[axis],))


def rule(walk: Walk, call: Any) -> Any:
    """Cases 1 and 2."""
    if not is_linear(call):
        return None
    axis = len(shape_of(call.args[0])) - 1 if op_name(call) == "matmul" else channel_axis(call)
    x, shift = call.args[0], None
    if not has_padding(call) and (added := _affine(walk, x, "add", axis)) is not None:
        if is_linear(walk.value(added[0])):
            return None  # the bias of the layer before
        x, shift = added
    multiplied = _affine(walk, x, "multiply", axis)
    if multiplied is not None:
        x = multiplied[0]
    if x.same_as(call.args[0]):
        return None
    scale = np.ones(1) if multiplied is None else multiplied[1]
    layer = scale_inputs(call, x, scale)
    if shift is None:
        return layer
    rank = len(shape_of(call))
    extra = shifted_inputs(call, shift)
    bias = const((extra if op_name(call) == "matmul" else along(extra, rank, axis)).astype(dtype_of(call)))
    return walk.emit(relax.op.add(walk.emit(layer), bias), walk.name + ".bias")


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
