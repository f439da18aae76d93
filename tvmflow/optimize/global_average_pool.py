"""Global average pool: every spelling becomes one mean over both spatial axes, which are kept.

::

    Before:  y = R.nn.adaptive_avg_pool2d(x, [1, 1])         After:  y = R.mean(x, axis=[2, 3], keepdims=True)
             z = R.mean(w, axis=[2, 3])                              z = R.reshape(R.mean(w, [2, 3], True), (n, c))

1. adaptive_avg_pool2d to 1x1.
2. avg_pool2d whose window is the whole unpadded image, with one output pixel.
3. A mean over the spatial axes of a 4-D tensor that drops them: keeps them, and a reshape drops them.
4. A pool with padding, dilation or more than one output pixel stays.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmflow.optimize.expr import axes_of, has_static_shape, ints, op_name, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("static shapes",)
ENSURES = ("canonical global average pool",)


def _is_global(call: Any, height: int, width: int) -> bool:
    """Cases 1 and 2."""
    shape = shape_of(call)
    if (shape[height], shape[width]) != (1, 1):
        return False
    if op_name(call) == "nn.adaptive_avg_pool2d":
        return True
    image = shape_of(call.args[0])
    return (
        ints(call.attrs.pool_size) == (image[height], image[width])
        and not any(ints(call.attrs.padding))
        and set(ints(call.attrs.dilation)) == {1}
    )


def rule(walk: Walk, call: Any) -> Any:
    """All cases."""
    name = op_name(call)
    if not has_static_shape(call):
        return None
    if name in ("nn.adaptive_avg_pool2d", "nn.avg_pool2d"):
        layout = str(call.attrs.layout)
        if layout not in ("NCHW", "NHWC") or str(call.attrs.out_layout) != layout:
            return None
        height, width = layout.index("H"), layout.index("W")
        return relax.op.mean(call.args[0], [height, width], keepdims=True) if _is_global(call, height, width) else None
    if name == "mean" and len(shape_of(call.args[0])) == 4 and not call.attrs.keepdims:
        axes = axes_of(call.attrs.axis, 4)
        if axes in ((2, 3), (1, 2)):
            return relax.op.reshape(walk.emit(relax.op.mean(call.args[0], list(axes), keepdims=True)), shape_of(call))
    return None


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
