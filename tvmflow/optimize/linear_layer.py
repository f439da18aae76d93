"""What convolutions and dense layers with constant weights have in common: output channels, input channels, a bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvmflow.optimize.expr import array, const, dtype_of, ints, is_constant, op_name, per_channel, shape_of
from tvmflow.optimize.walk import Walk

CONVOLUTIONS = ("nn.conv1d", "nn.conv2d", "nn.conv3d")
TRANSPOSED = ("nn.conv1d_transpose", "nn.conv2d_transpose", "nn.conv3d_transpose")


def is_linear(call: Any) -> bool:
    """Whether ``call`` is a convolution, transposed convolution or matmul by a floating-point constant."""
    name = op_name(call)
    if name not in (*CONVOLUTIONS, *TRANSPOSED, "matmul") or not is_constant(call.args[1]):
        return False
    if dtype_of(call.args[1]) != dtype_of(call) or not dtype_of(call).startswith("float"):
        return False
    if name == "matmul":
        return len(shape_of(call.args[1])) == 2 and len(shape_of(call.args[0])) >= 2
    return str(call.attrs.out_layout) == str(call.attrs.data_layout)


def channel_axis(call: Any) -> int:
    """Axis of the channels in the input and the output."""
    return len(shape_of(call)) - 1 if op_name(call) == "matmul" else str(call.attrs.data_layout).index("C")


def has_padding(call: Any) -> bool:
    """Whether some outputs see fewer inputs than others."""
    return op_name(call) != "matmul" and (op_name(call) in TRANSPOSED or any(ints(call.attrs.padding)))


def _kernel_axes(call: Any) -> tuple[int, int, int]:
    """Axis of output channels, axis of input channels, number of groups of the weight."""
    if op_name(call) == "matmul":
        return 1, 0, 1
    layout = str(call.attrs.kernel_layout)
    return layout.index("O"), layout.index("I"), int(call.attrs.groups)


def _grouped(weight: np.ndarray, axis: int, values: np.ndarray, groups: int, other: int) -> np.ndarray:
    """``values`` of all groups' channels along ``axis``, which counts one group's, shaped to multiply ``weight``.

    ``other`` is the axis that runs over all groups in turn.
    """
    if groups == 1 or values.size == 1:
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        return values.reshape(shape)
    table = np.repeat(values.reshape(groups, weight.shape[axis]), weight.shape[other] // groups, axis=0)
    shape = [weight.shape[i] if i in (axis, other) else 1 for i in range(weight.ndim)]
    return (table.T if axis < other else table).reshape(shape)


def scale_outputs(call: Any, scale: np.ndarray) -> Any:
    """The layer with output channel c multiplied by ``scale[c]``, without its bias."""
    weight = array(call.args[1])
    out, into, groups = _kernel_axes(call)
    if op_name(call) in TRANSPOSED:
        factor = _grouped(weight, out, scale, groups, into)
    else:
        factor = _grouped(weight, out, scale, 1, into)
    return _with_weight(call, call.args[0], weight.astype("float64") * factor)


def scale_inputs(call: Any, x: Any, scale: np.ndarray) -> Any:
    """The layer on ``x`` where it had ``x * scale[c]`` per input channel c."""
    weight = array(call.args[1])
    out, into, groups = _kernel_axes(call)
    if op_name(call) in TRANSPOSED:
        factor = _grouped(weight, into, scale, 1, out)
    else:
        factor = _grouped(weight, into, scale, groups, out)
    return _with_weight(call, x, weight.astype("float64") * factor)


def shifted_inputs(call: Any, shift: np.ndarray) -> np.ndarray:
    """What adding ``shift[c]`` to each input channel adds to the output channels, in float64. No padding."""
    weight = array(call.args[1]).astype("float64")
    out, into, groups = _kernel_axes(call)
    total = weight * _grouped(weight, into, shift.astype("float64"), groups, out)
    return total.sum(axis=tuple(i for i in range(weight.ndim) if i != out))


def _with_weight(call: Any, x: Any, weight: np.ndarray) -> Any:
    return relax.Call(call.op, [x, const(weight.astype(dtype_of(call)))], call.attrs, call.ty_args)


def split_bias(walk: Walk, expr: Any) -> tuple[Any, Any, np.ndarray] | None:
    """``(variable of the layer, the layer, its bias [C] or [1])`` when ``expr`` is a linear layer that may be rewritten.

    None when it isn't one, or when something else reads it or its biased result.
    """
    if not walk.only_use(expr):
        return None
    value, bias = walk.value(expr), np.zeros(1)
    if op_name(value) == "add":
        layer = walk.value(value.args[0])
        if not is_linear(layer) or not walk.only_use(value.args[0]):
            return None
        found = per_channel(value.args[1], len(shape_of(layer)), channel_axis(layer))
        return None if found is None else (value.args[0], layer, found.astype("float64"))
    return (expr, value, bias) if is_linear(value) else None
