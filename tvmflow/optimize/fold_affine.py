"""Batch-norm folding, backwards: a product or sum per channel behind a linear layer moves into its weight and bias.

::

    Before:  c = R.nn.conv2d(x, w)                           After:  c = R.nn.conv2d(x, w * s)
             y = R.add(R.multiply(R.add(c, b), s), t)                y = R.add(c, b * s + t)

1. conv, conv + bias, depthwise and grouped conv, transposed conv, matmul; the constant has one element or one per channel.
2. ``+ scalar`` directly behind the layer becomes a bias of one element per channel.
3. Not folded: a layer or biased layer that something else reads too, a constant that varies along other axes, integer weights.

The layer and its bias keep their names. Products are formed in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import along, const, dtype_of, has_static_shape, op_name, per_channel, shape_of
from tvmflow.optimize.linear_layer import channel_axis, scale_outputs, split_bias
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("constants second", "no batch norm")
ENSURES = ("affine folded backwards",)


def rule(walk: Walk, call: Any) -> Any:
    """All cases."""
    name = op_name(call)
    if name not in ("add", "multiply") or not has_static_shape(call) or shape_of(call) != shape_of(call.args[0]):
        return None
    found = split_bias(walk, call.args[0])
    if found is None:
        return None
    var, layer, bias = found
    rank, axis, dtype = len(shape_of(call)), channel_axis(layer), dtype_of(call)
    values = per_channel(call.args[1], rank, axis)
    if values is None:
        return None
    has_bias = not var.same_as(call.args[0])
    channels = shape_of(call)[axis]
    full = np.broadcast_to(values.astype("float64"), (channels,))
    if name == "add" and not has_bias and values.size == channels:
        return None
    name_of_bias = walk.name_of(call.args[0]) if has_bias else walk.name
    if name == "add":
        return walk.emit(relax.op.add(var, _bias(bias + full, call, axis, dtype)), name_of_bias)
    scaled = scale_outputs(layer, full)
    if not has_bias:
        return walk.emit(scaled, walk.name_of(var))
    kept = walk.emit(scaled, walk.name_of(var))
    return walk.emit(relax.op.add(kept, _bias(bias * full, call, axis, dtype)), name_of_bias)


def _bias(values: np.ndarray, call: Any, axis: int, dtype: str) -> Any:
    """The constant of a bias: [C] for the last axis, else as wide as needed to broadcast, [1, C, 1, 1] for instance."""
    rank = len(shape_of(call))
    shaped = values if axis == rank - 1 and rank < 4 else along(values, rank, axis)
    return const(shaped.astype(dtype))


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
