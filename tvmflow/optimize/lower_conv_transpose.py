"""Transposed convolutions are convolutions of stride 1 followed by depth to space.

::

    Before:  t = R.nn.conv2d_transpose(x, w, strides=[s, s])         After:  c = R.nn.conv2d(x, w')  # s * s * O channels
             y = R.add(t, b)                                                 a = R.add(c, tile(b))
                                                                             y = crop(depth_to_space(a))

Output row ``s * u + p`` of the unpadded result is ``sum_j x[u - j] * w[s * j + p]``: a convolution with the flipped taps
``w[p], w[s + p], ...`` for each phase p. All phases together are one convolution with ``ceil(k / s)`` taps and s times the
channels per axis, whose rows interleave.

1. Constant float weights, any stride, padding, output padding, dilation and groups. A bias behind it moves in front of the shuffle.
2. Not lowered: weights that the graph computes or dequantizes, and an output padding beyond the last phase.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import along, array, const, dtype_of, has_static_shape, ints, is_constant, op_name, per_channel, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("affine folded backwards",)
ENSURES = ("no transposed convolutions",)


def phase_kernels(weight: np.ndarray, strides: tuple[int, int], dilation: tuple[int, int], groups: int) -> np.ndarray:
    """Kernel ``[groups * sh * sw * O, I, mh, mw]`` (OIHW) of a transposed convolution's ``[groups * I, O, kh, kw]`` (IOHW).

    Output channel ``(g, p, q, o)`` is phase (p, q) of channel o of group g: interleaving moves runs of O channels.
    """
    total, out, kh, kw = weight.shape
    (sh, sw), (dh, dw) = strides, dilation
    taps = (kh - 1) * dh + 1, (kw - 1) * dw + 1
    mh, mw = -(-taps[0] // sh), -(-taps[1] // sw)
    wide = np.zeros((total, out, mh * sh, mw * sw), weight.dtype)
    wide[:, :, : taps[0] : dh, : taps[1] : dw] = weight
    # [g, i, o, mh, sh, mw, sw] to [g, sh, sw, o, i, mh, mw], taps flipped
    parts = wide.reshape(groups, total // groups, out, mh, sh, mw, sw).transpose(0, 4, 6, 2, 1, 3, 5)
    return parts[..., ::-1, ::-1].reshape(groups * sh * sw * out, total // groups, mh, mw)


def _lowered(walk: Walk, call: Any, name: str, bias: np.ndarray | None) -> Any:
    """The convolution (and bias), interleaved and cropped to the shape of ``call``."""
    a = call.attrs
    strides, (top, left, _, _) = ints(a.strides), ints(a.padding)
    kernel = phase_kernels(array(call.args[1]), strides, ints(a.dilation), int(a.groups))
    mh, mw = kernel.shape[2:]
    n, _, h, w = shape_of(call.args[0])
    _, channels, oh, ow = shape_of(call)
    groups, (sh, sw), rows, columns = int(a.groups), strides, h + mh - 1, w + mw - 1
    if top + oh > rows * sh or left + ow > columns * sw:
        return None
    x = relax.op.nn.conv2d(call.args[0], const(kernel), padding=[mh - 1, mw - 1, mh - 1, mw - 1], groups=groups)
    x = walk.emit(x, name)
    if bias is not None:
        tiled = np.repeat(np.broadcast_to(bias, (channels,)).reshape(groups, 1, -1), sh * sw, axis=1).reshape(-1)
        x = walk.emit(relax.op.add(x, const(along(tiled, 4, 1).astype(dtype_of(call)))), walk.name)
    x = walk.emit(relax.op.reshape(x, (n, groups, sh, sw, channels // groups, rows, columns)), name + ".phases")
    x = walk.emit(relax.op.permute_dims(x, [0, 1, 4, 5, 2, 6, 3]), name + ".interleaved")
    x = relax.op.reshape(x, (n, channels, rows * sh, columns * sw))
    if (top, left, oh, ow) == (0, 0, rows * sh, columns * sw):
        return x
    return relax.op.strided_slice(walk.emit(x, name + ".full"), [2, 3], [top, left], [top + oh, left + ow])


def _fits(call: Any) -> bool:
    if op_name(call) != "nn.conv2d_transpose" or not has_static_shape(call) or not is_constant(call.args[1]):
        return False
    a = call.attrs
    layouts = (str(a.data_layout), str(a.kernel_layout), str(a.out_layout))
    return layouts == ("NCHW", "IOHW", "NCHW") and dtype_of(call) == dtype_of(call.args[1])


def biased(walk: Walk, call: Any) -> Any:
    """Case 1 with a bias: the transposed convolution in front of it loses its only reader."""
    if op_name(call) != "add" or not has_static_shape(call):
        return None
    layer = walk.value(call.args[0])
    if not _fits(layer) or not walk.only_use(call.args[0]):
        return None
    bias = per_channel(call.args[1], 4, 1)
    return None if bias is None else _lowered(walk, layer, walk.name_of(call.args[0]), bias)


def unbiased(walk: Walk, call: Any) -> Any:
    """Case 1 without a bias."""
    return _lowered(walk, call, walk.name, None) if _fits(call) else None


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(rewrite(module, biased), unbiased)
