"""Transposed convolutions are convolutions of stride 1 followed by depth to space.

::

    Before:  t = R.nn.conv2d_transpose(x, w, strides=[s, s])         After:  c = R.nn.conv2d(x, w')  # s * s * O channels
             y = R.add(t, b)                                                 a = R.add(c, tile(b))
                                                                             y = crop(depth_to_space(a))

Output row ``s * u + p`` of the unpadded result is ``sum_j x[u - j] * w[s * j + p]``: a convolution with the flipped taps
``w[p], w[s + p], ...`` for each phase p. All phases together are one convolution with ``ceil(k / s)`` taps and s times the
channels per axis, whose rows interleave.

1. Constant float weights, any stride, padding, output padding, dilation and groups. A bias behind it moves in front of the
   interleaving.
2. Not lowered: weights that the graph computes or dequantizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import (
    along,
    array,
    const,
    dtype_of,
    has_static_shape,
    ints,
    is_constant,
    op_name,
    per_channel,
    shape_of,
)
from tvmflow.optimize.walk import Walk, rewrite

Pair = tuple[int, int]

REQUIRES = ("affine folded backwards",)
ENSURES = ("no transposed convolutions",)


def phase_kernels(weight: np.ndarray, strides: Pair, dilation: Pair, taps: Pair, groups: int) -> np.ndarray:
    """Kernel ``[groups * sh * sw * O, I, mh, mw]`` (OIHW) of a transposed convolution's ``[groups * I, O, kh, kw]`` (IOHW).

    ``taps`` are (mh, mw), at least as many as the dilated kernel needs. Output channel ``(g, p, q, o)`` is phase (p, q) of
    channel o of group g: interleaving moves runs of O channels.
    """
    total, out, kh, kw = weight.shape
    (sh, sw), (dh, dw), (mh, mw) = strides, dilation, taps
    wide = np.zeros((total, out, mh * sh, mw * sw), weight.dtype)
    wide[:, :, : (kh - 1) * dh + 1 : dh, : (kw - 1) * dw + 1 : dw] = weight
    # [g, i, o, mh, sh, mw, sw] to [g, sh, sw, o, i, mh, mw], taps flipped
    parts = wide.reshape(groups, total // groups, out, mh, sh, mw, sw).transpose(0, 4, 6, 2, 1, 3, 5)
    return parts[..., ::-1, ::-1].reshape(groups * sh * sw * out, total // groups, mh, mw)


def _lowered(walk: Walk, call: Any, name: str, bias: np.ndarray | None) -> Any:
    """The convolution (and bias), interleaved and cropped to the shape of ``call``."""
    a = call.attrs
    groups, strides, dilation, (top, left, _, _) = int(a.groups), ints(a.strides), ints(a.dilation), ints(a.padding)
    n, _, h, w = shape_of(call.args[0])
    _, channels, oh, ow = shape_of(call)
    # an output padding may reach beyond the kernel's last phase: one tap of zeros more
    kernel = shape_of(call.args[1])[2:]
    mh, mw = (
        max(-(-((k - 1) * d + 1) // s), -(-end // s) - size + 1)
        for k, d, s, end, size in zip(kernel, dilation, strides, (top + oh, left + ow), (h, w), strict=True)
    )
    phases = phase_kernels(array(call.args[1]), (strides[0], strides[1]), (dilation[0], dilation[1]), (mh, mw), groups)
    (sh, sw), rows, columns = strides, h + mh - 1, w + mw - 1
    x = relax.op.nn.conv2d(call.args[0], const(phases), padding=[mh - 1, mw - 1, mh - 1, mw - 1], groups=groups)
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
