"""Our own converters of ONNX nodes to Relax, for what TVM's frontend turns into opaque loops, lacks, or gets wrong.

Each takes ``(bb, inputs, attrs)`` as TVM's converters do; constants are still constants here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax import op as R

from tvmflow.importer.expr import operand, sizes, value
from tvmflow.importer.recurrent import RECURRENT

Lower = Callable[[relax.BlockBuilder, Sequence[Any], Mapping[str, Any]], relax.Expr]


def clip(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    """``R.clip`` for constant bounds of a float tensor, maximum and minimum otherwise."""
    x = inputs[0]
    dtype = str(x.ty.dtype)
    low, high = operand(inputs, 1), operand(inputs, 2)
    low = relax.const(attrs["min"], dtype) if "min" in attrs else low
    high = relax.const(attrs["max"], dtype) if "max" in attrs else high
    bounds = [b for b in (low, high) if b is not None]
    if bounds and dtype == "float32" and all(isinstance(b, GenericConst) for b in bounds):
        lo = -np.inf if low is None else float(value(low).reshape(()))
        hi = np.inf if high is None else float(value(high).reshape(()))
        if np.isfinite(lo) and np.isfinite(hi) and lo <= hi:
            return R.clip(x, lo, hi)
    if low is not None:
        x = R.maximum(x, low)
    return x if high is None else R.minimum(x, high)


def pad(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    """Padding by constant, edge, reflection or wrap; negative amounts crop."""
    x = inputs[0]
    rank = len(x.ty.shape)
    mode = attrs.get("mode", b"constant").decode()
    amounts = value(inputs[1]).tolist() if len(inputs) > 1 else list(attrs.get("pads", attrs.get("paddings", ())))
    axes = value(inputs[3]).tolist() if operand(inputs, 3) is not None else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        before[axis], after[axis] = amounts[index], amounts[index + len(axes)]
    if mode != "constant":
        for axis in range(rank):
            if before[axis] or after[axis]:
                x = bb.normalize(
                    R.take(x, relax.const(border(sizes(x)[axis], before[axis], after[axis], mode), "int64"), axis=axis)
                )
        return x
    fill = value(inputs[2]).reshape(()).item() if operand(inputs, 2) is not None else attrs.get("value", 0)
    if any(n < 0 for n in before + after):
        shape = sizes(x)
        begin = [max(0, -n) for n in before]
        end = [size - max(0, -n) for size, n in zip(shape, after, strict=True)]
        x = bb.normalize(R.strided_slice(x, list(range(rank)), begin, end))
    widths = [max(0, n) for pair in zip(before, after, strict=True) for n in pair]
    if any(widths):
        if str(x.ty.dtype) == "bool":
            return R.astype(R.nn.pad(R.astype(x, "int8"), widths, pad_value=float(fill)), "bool")
        x = R.nn.pad(x, widths, pad_value=fill)
    return x


def border(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """Source index of every element of an axis that is padded by edge, reflection or wrap."""
    at = np.arange(-before, size + after)
    if mode == "edge":
        return at.clip(0, size - 1)
    if mode == "wrap":
        return at % size
    if mode == "reflect":
        period = max(1, 2 * (size - 1))
        at = np.abs(at) % period
        return np.where(at >= size, period - at, at)
    raise ValueError(f"unknown padding mode {mode!r}")


def tile(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    return R.tile(inputs[0], value(inputs[1]).tolist())


def einsum(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    return R.einsum(relax.Tuple(list(inputs)), attrs["equation"].decode().replace(" ", ""))


def cumsum(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    """Running sum; ``exclusive`` leaves the element itself out, ``reverse`` runs from the end."""
    x, axis = inputs[0], int(value(inputs[1]).reshape(()))
    if attrs.get("reverse"):
        x = bb.normalize(R.flip(x, axis))
    out = R.cumsum(x, axis=axis, dtype=x.ty.dtype, exclusive=bool(attrs.get("exclusive", 0)))
    return R.flip(bb.normalize(out), axis) if attrs.get("reverse") else out


def cumprod(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    """Running product, as cumsum."""
    x, axis = inputs[0], int(value(inputs[1]).reshape(()))
    if attrs.get("reverse"):
        x = bb.normalize(R.flip(x, axis))
    out = R.cumprod(x, axis=axis, dtype=x.ty.dtype, exclusive=bool(attrs.get("exclusive", 0)))
    return R.flip(bb.normalize(out), axis) if attrs.get("reverse") else out


def bit_shift(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    """Shift by any amount: past the type's width no bit is left (processors take the amount modulo the width)."""
    x, amount = inputs
    right, dtype = attrs["direction"] == b"RIGHT", np.dtype(str(x.ty.dtype))
    shift, bits = R.right_shift if right else R.left_shift, dtype.itemsize * 8
    if isinstance(amount, GenericConst) and ((value(amount) >= 0) & (value(amount) < bits)).all():
        return shift(x, amount)
    signed = right and dtype.kind == "i"  # the sign fills what becomes free
    low, width, instead = (relax.const(n, str(dtype)) for n in (0, bits, bits - 1 if signed else 0))
    above, below = bb.normalize(R.greater_equal(amount, low)), bb.normalize(R.less(amount, width))
    inside = bb.normalize(R.logical_and(above, below))
    shifted = bb.normalize(shift(x, bb.normalize(R.where(inside, amount, instead))))
    return shifted if signed else R.where(inside, shifted, low)


def conv_integer(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    """Exact int32 convolution of integers less their zero points, NCHW."""
    x, w = (widen(bb, t, operand(inputs, i + 2), per_row=i == 1) for i, t in enumerate(inputs[:2]))
    if len(x.ty.shape) != 4 or attrs.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ValueError("only 2-D convolutions with explicit pads have an integer form")
    pads = attrs.get("pads", (0, 0, 0, 0))
    return R.nn.conv2d(
        x,
        w,
        strides=attrs.get("strides", (1, 1)),
        padding=pads,
        dilation=attrs.get("dilations", (1, 1)),
        groups=attrs.get("group", 1),
        out_dtype="int32",
    )


def widen(bb: relax.BlockBuilder, q: relax.Expr, zero: Any, *, per_row: bool) -> relax.Expr:
    """``int32(q) - int32(zero)``; a vector of zero points belongs to the first axis of a weight."""
    wide = bb.normalize(R.astype(q, "int32"))
    if zero is None:
        return wide
    z = bb.normalize(R.astype(zero, "int32"))
    if per_row and len(z.ty.shape) == 1 and sizes(z)[0] > 1:
        z = bb.normalize(R.reshape(z, (-1, *[1] * (len(q.ty.shape) - 1))))
    elif len(z.ty.shape) == 1:
        z = bb.normalize(R.reshape(z, ()))
    return bb.normalize(R.subtract(wide, z))


def gather(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    """``R.take``; negative indices count from the end, and one that is out of range reads the edge instead of foreign memory."""
    x, indices = inputs
    axis = attrs.get("axis", 0) % len(x.ty.shape)
    size = sizes(x)[axis]
    if isinstance(indices, GenericConst):
        at = value(indices)
        return R.take(x, relax.const(np.where(at < 0, at + size, at).astype(at.dtype)), axis=axis, mode="clip")
    dtype = str(indices.ty.dtype)
    wrapped = bb.normalize(R.add(indices, relax.const(size, dtype)))
    indices = bb.normalize(R.where(bb.normalize(R.less(indices, relax.const(0, dtype))), wrapped, indices))
    return R.take(x, indices, axis=axis, mode="clip")


CONVOLUTIONS = {3: (R.nn.conv1d, "NCW", "OIW"), 4: (R.nn.conv2d, "NCHW", "OIHW"), 5: (R.nn.conv3d, "NCDHW", "OIDHW")}


def conv(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    """Convolution with explicit pads (see rewrite/windows.py); a constant bias is added in the shape [1, C, 1, 1]."""
    x, w, bias = inputs[0], inputs[1], operand(inputs, 2)
    rank = len(x.ty.shape)
    operator, data, kernel = CONVOLUTIONS[rank]
    spatial = [1] * (rank - 2)
    out = operator(
        x,
        w,
        strides=attrs.get("strides", spatial),
        padding=attrs.get("pads", [0] * 2 * (rank - 2)),
        dilation=attrs.get("dilations", spatial),
        groups=attrs.get("group", 1),
        data_layout=data,
        kernel_layout=kernel,
    )
    return out if bias is None else R.add(bb.normalize(out), reshaped(bb, bias, [1, -1, *spatial]))


def gemm(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    """``alpha * A' B' + beta * C`` as a matmul and an add, transposes and factors folded into constants."""
    a, b, c = inputs[0], inputs[1], operand(inputs, 2)
    alpha, beta = attrs.get("alpha", 1.0), attrs.get("beta", 1.0)
    a = transposed(bb, a) if attrs.get("transA") else a
    b = transposed(bb, b) if attrs.get("transB") else b
    if alpha != 1.0 and isinstance(b, GenericConst):
        b, alpha = scaled(bb, b, alpha), 1.0
    out = scaled(bb, bb.normalize(R.matmul(a, b)), alpha)
    if c is None or beta == 0.0:
        return out
    c = scaled(bb, c, beta)
    if isinstance(c, GenericConst) and len(c.ty.shape) == 2 and sizes(c)[0] == 1:
        c = reshaped(bb, c, [-1])
    return R.add(out, c)


def transposed(bb: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    """A matrix transposed, at once when it is constant."""
    if isinstance(x, GenericConst):
        return relax.const(np.ascontiguousarray(value(x).T))
    return bb.normalize(R.permute_dims(x))


def scaled(bb: relax.BlockBuilder, x: relax.Expr, factor: float) -> relax.Expr:
    """A tensor times a number, at once when it is constant."""
    if factor == 1.0:
        return x
    if isinstance(x, GenericConst):
        return relax.const((value(x) * np.float32(factor)).astype(value(x).dtype))
    return bb.normalize(R.multiply(x, relax.const(factor, x.ty.dtype)))


def reshaped(bb: relax.BlockBuilder, x: relax.Expr, shape: Sequence[int]) -> relax.Expr:
    """A tensor in another shape, at once when it is constant."""
    if isinstance(x, GenericConst):
        return relax.const(value(x).reshape(shape))
    return bb.normalize(R.reshape(x, shape))


LOWERED: Mapping[str, Lower] = {
    "BitShift": bit_shift,
    "Conv": conv,
    "Gather": gather,
    "Gemm": gemm,
    "Clip": clip,
    "Pad": pad,
    "Tile": tile,
    "Einsum": einsum,
    "CumProd": cumprod,
    "CumSum": cumsum,
    "ConvInteger": conv_integer,
    **RECURRENT,
}
"""Converters that take precedence over TVM's, by operator."""
