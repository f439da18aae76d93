"""One-dimensional convolutions and pools are two-dimensional ones of height 1.

::

    Before:  y = R.nn.conv1d(x, w, strides=[2], padding=[1, 1])      After:  a = R.reshape(x, (n, c, 1, w))
                                                                             b = R.nn.conv2d(a, w', [1, 2], [0, 1, 0, 1])
                                                                             y = R.reshape(b, (n, o, w / 2))

1. conv1d in any layout, max_pool1d, avg_pool1d, adaptive_avg_pool1d.
2. conv1d_transpose in the layouts NCW and IOW.
3. The reshapes are free: channels_last carries them along, so that a chain of 1-D layers has one at each end.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmflow.optimize.expr import array, const, has_static_shape, ints, is_constant, op_name, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("static shapes",)
ENSURES = ("no 1-D convolutions",)


def _with_height(layout: str) -> str:
    """``NCW`` to ``NCHW``."""
    return layout.replace("W", "HW")


def _heightened(walk: Walk, expr: Any, layout: str) -> Any:
    """``expr`` with a dimension of 1 in front of its W."""
    shape = list(shape_of(expr))
    shape.insert(layout.index("W"), 1)
    return const(array(expr).reshape(shape)) if is_constant(expr) else walk.emit(relax.op.reshape(expr, shape), walk.name + ".2d")


def _pair(values: Any, first: int) -> list[int]:
    return [first, *ints(values)]


def _padding(values: Any) -> list[int]:
    left, right = ints(values)
    return [0, left, 0, right]


def _convolution(walk: Walk, call: Any) -> Any:
    a = call.attrs
    data, kernel = str(a.data_layout), str(a.kernel_layout)
    if len(data) != 3 or len(kernel) != 3 or str(a.out_layout) != data:
        return None
    x, weight = _heightened(walk, call.args[0], data), _heightened(walk, call.args[1], kernel)
    window = (_pair(a.strides, 1), _padding(a.padding))
    rest = (_pair(a.dilation, 1), int(a.groups), _with_height(data), _with_height(kernel), _with_height(data))
    out_dtype = None if a.out_dtype is None else str(a.out_dtype)
    if op_name(call) == "nn.conv1d":
        return relax.op.nn.conv2d(x, weight, *window, *rest, out_dtype)
    return relax.op.nn.conv2d_transpose(x, weight, *window, _pair(a.output_padding, 0), *rest, out_dtype)


def _pool(walk: Walk, call: Any) -> Any:
    a = call.attrs
    layout = str(a.layout)
    if len(layout) != 3 or str(a.out_layout) != layout:
        return None
    x = _heightened(walk, call.args[0], layout)
    if op_name(call) == "nn.adaptive_avg_pool1d":
        width = shape_of(call)[layout.index("W")]
        return relax.op.nn.adaptive_avg_pool2d(x, (1, width), _with_height(layout))
    make = relax.op.nn.max_pool2d if op_name(call) == "nn.max_pool1d" else relax.op.nn.avg_pool2d
    window = (_pair(a.pool_size, 1), _pair(a.strides, 1), _padding(a.padding), _pair(a.dilation, 1))
    return make(x, *window, bool(a.ceil_mode), bool(a.count_include_pad), _with_height(layout))


_RULES = {
    "nn.conv1d": _convolution,
    "nn.conv1d_transpose": _convolution,
    "nn.max_pool1d": _pool,
    "nn.avg_pool1d": _pool,
    "nn.adaptive_avg_pool1d": _pool,
}


def rule(walk: Walk, call: Any) -> Any:
    """All cases."""
    make = _RULES.get(op_name(call))
    if make is None or not has_static_shape(call):
        return None
    result = make(walk, call)
    return None if result is None else relax.op.reshape(walk.emit(result), shape_of(call))


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
