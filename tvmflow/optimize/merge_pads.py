"""Explicit pads move into the padding of the operator behind them.

::

    Before:  p = R.nn.pad(x, (0, 0, 0, 0, 1, 1, 1, 1))       After:  y = R.nn.conv2d(x, w, padding=[1, 1, 1, 1])
             y = R.nn.conv2d(p, w, padding=[0, 0, 0, 0])

1. A pad of zeros along the spatial axes in front of conv1d, conv2d: paddings add up.
2. A pad of zeros in front of avg_pool2d that counts its padding, or has none (it counts afterwards).
3. A pad of -inf, or of the lowest finite number, in front of max_pool2d.
4. Not merged: other values, reflecting pads, pads of batch or channels, negative pads (they crop), ceil_mode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import dtype_of, has_static_shape, ints, op_name
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("loop nests named",)
ENSURES = ("pads merged",)

POOLS = {"nn.avg_pool2d": relax.op.nn.avg_pool2d, "nn.max_pool2d": relax.op.nn.max_pool2d}


def _spatial_pad(pad: Any, layout: str) -> tuple[int, ...] | None:
    """``(before..., after...)`` along the spatial axes; None when the pad touches others, crops or isn't constant."""
    widths = ints(pad.attrs.pad_width)
    pairs = {axis: widths[2 * i : 2 * i + 2] for i, axis in enumerate(layout)}
    if str(pad.attrs.pad_mode) != "constant" or min(widths) < 0 or any(pairs["N"]) or any(pairs["C"]):
        return None
    spatial = [axis for axis in layout if axis not in "NC"]
    return tuple(pairs[a][0] for a in spatial) + tuple(pairs[a][1] for a in spatial)


def _pool(call: Any, x: Any, padding: list[int], value: float, had_padding: bool) -> Any:
    """Cases 2 and 3."""
    average = op_name(call) == "nn.avg_pool2d"
    lowest = float(np.finfo(dtype_of(call)).min) if dtype_of(call).startswith("float") else None
    if call.attrs.ceil_mode or (value != 0.0 if average else value != -np.inf and value != lowest):
        return None
    if average and had_padding and not call.attrs.count_include_pad:
        return None
    a = call.attrs
    return POOLS[op_name(call)](
        x, ints(a.pool_size), ints(a.strides), padding, ints(a.dilation), False, average, str(a.layout), str(a.out_layout)
    )


def rule(walk: Walk, call: Any) -> Any:
    """Cases 1 to 3."""
    name = op_name(call)
    if name not in ("nn.conv1d", "nn.conv2d", *POOLS) or not has_static_shape(call):
        return None
    pad = walk.call(call.args[0], "nn.pad")
    if pad is None:
        return None
    extra = _spatial_pad(pad, str(call.attrs.layout if name in POOLS else call.attrs.data_layout))
    if extra is None:
        return None
    own = ints(call.attrs.padding)
    padding = [a + b for a, b in zip(own, extra, strict=True)]
    x, value = pad.args[0], float(pad.attrs.pad_value)
    if name in POOLS:
        return _pool(call, x, padding, value, any(own))
    if value != 0.0:
        return None
    a = call.attrs
    make = relax.op.nn.conv1d if name == "nn.conv1d" else relax.op.nn.conv2d
    layouts = (str(a.data_layout), str(a.kernel_layout), str(a.out_layout))
    out_dtype = None if a.out_dtype is None else str(a.out_dtype)
    return make(x, call.args[1], ints(a.strides), padding, ints(a.dilation), int(a.groups), *layouts, out_dtype)


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
