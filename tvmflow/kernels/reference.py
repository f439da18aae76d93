"""The numpy oracle: what every integer kernel computes, to the last bit, on every target.

Written for clarity over speed. Sources: ONNX QLinearConv and QLinearMatMul (requantize), ../design of tvmflow for ``add``.
float32 kernels are computed by numpy and agree with the generated code to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmflow.kernels import spec as ks
from tvmflow.kernels.exp2 import MASK_STEPS, SCORE_LIMIT, exp2_below

Array = NDArray[Any]


def requantize(acc: Array, multiplier: Array, y_zero: int, lo: int, hi: int, dtype: str) -> Array:
    """``clip(int32(rint(float32(acc) * multiplier)) + y_zero, lo, hi)``: every step is an IEEE operation rounded to nearest even.

    The product is clipped to +-2^30 before the conversion, which no result notices and which keeps it inside int32.
    """
    scaled = np.rint(acc.astype(np.float32) * multiplier.astype(np.float32))
    whole = np.clip(scaled, np.float32(-(2**30)), np.float32(2**30)).astype(np.int32)
    return np.clip(whole + y_zero, lo, hi).astype(dtype)


def _windows(x: Array, kh: int, kw: int, stride: tuple[int, int], dilation: tuple[int, int], oh: int, ow: int) -> Array:
    """View ``[n, oh, ow, kh, kw, c]`` of the receptive fields of a padded NHWC tensor."""
    n, _, _, c = x.shape
    sn, sh, sw, sc = x.strides
    return np.lib.stride_tricks.as_strided(
        x,
        (n, oh, ow, kh, kw, c),
        (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sc),
        writeable=False,
    )


def _pad(x: Array, pad: tuple[int, int, int, int], value: Any) -> Array:
    top, left, bottom, right = pad
    return np.ascontiguousarray(np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value))


def _correlate(spec: ks.Conv2d, x: Array, weight: Array) -> Array:
    """Sum of products in the dtype of the operands; ``x`` is padded and shifted by its zero point already."""
    fields = _windows(x, spec.kh, spec.kw, spec.stride, spec.dilation, spec.oh, spec.ow)
    per_group = spec.ic // spec.groups
    outputs = spec.oc // spec.groups
    fields = fields.reshape(*fields.shape[:5], spec.groups, per_group)
    kernel = weight.reshape(spec.groups, outputs, spec.kh, spec.kw, per_group)
    if per_group == 1 and outputs == 1:
        result = np.einsum("nhwijg,gij->nhwg", fields[..., 0], kernel[:, 0, :, :, 0], optimize=True)
    else:
        rows = spec.n * spec.oh * spec.ow
        parts = [fields[..., g, :].reshape(rows, -1) @ kernel[g].reshape(outputs, -1).T for g in range(spec.groups)]
        result = np.stack(parts, axis=1)
    return np.ascontiguousarray(result).reshape(spec.out_shape)


def _conv2d(spec: ks.Conv2d, args: Sequence[Array]) -> Array:
    if not spec.is_integer:
        x, weight, bias, bounds = args[:4]
        x = x.transpose(0, 2, 3, 1) if spec.nchw else x
        out = _correlate(spec, _pad(x, spec.pad, 0), weight) + bias
        if spec.residual:
            out = out + args[4].reshape(out.shape)
        if spec.activation:
            return _function(spec.activation, out)
        return np.clip(out, bounds[0], bounds[1]).astype(np.float32)
    x, weight, bias, multiplier, quant = args[:5]
    x_zero, y_zero, lo, hi = (int(v) for v in quant[:4])
    shifted = _pad(x.astype(np.float64) - x_zero, spec.pad, 0)
    # float64 holds these integers exactly and has a fast matrix product
    acc = (_correlate(spec, shifted, weight.astype(np.float64)).astype(np.int64) + bias).astype(np.int32)
    if spec.y == "float32":
        return acc.astype(np.float32) * multiplier
    out = requantize(acc, multiplier, y_zero, lo, hi, spec.y)
    if spec.residual:
        return _fixed_point_add(out, args[5].reshape(out.shape), quant[4:], spec.y)
    return out


def _chain(spec: ks.Chain, args: Sequence[Array]) -> Array:
    x, *rest = args
    count = spec.CONSTANTS
    for i, stage in enumerate(spec.stages):
        last = rest[len(spec.stages) * count :] if i == len(spec.stages) - 1 else []
        x = _conv2d(stage, [x, *rest[i * count : (i + 1) * count], *last])
    return x


def _fixed_point_add(a: Array, b: Array, quant: Array, dtype: str) -> Array:
    a_zero, b_zero, y_zero, lo, hi, ma, mb, shift = (int(v) for v in quant)
    total = (a.astype(np.int32) - a_zero) * ma + (b.astype(np.int32) - b_zero) * mb
    return np.clip(((total + (1 << (shift - 1))) >> shift) + y_zero, lo, hi).astype(dtype)


def _binary(spec: ks.Binary, args: Sequence[Array]) -> Array:
    if spec.fn == "add":
        a, b, quant = args
        return _fixed_point_add(a, b, quant, spec.y)
    a, b, multiplier, quant = args
    a_zero, b_zero, y_zero, lo, hi = (int(v) for v in quant)
    product = (a.astype(np.int32) - a_zero) * (b.astype(np.int32) - b_zero)
    return requantize(product, multiplier, y_zero, lo, hi, spec.y)


def _matmul(spec: ks.MatMul, args: Sequence[Array]) -> Array:
    a, b = args[:2]
    if spec.transpose_b:
        b = b.transpose(0, 2, 1)
    if not spec.is_integer:
        return np.matmul(a, b).astype(np.float32)
    multiplier, quant = args[2:]
    a_zero, b_zero, y_zero, lo, hi = (int(v) for v in quant)
    acc = np.matmul(a.astype(np.float64) - a_zero, b.astype(np.float64) - b_zero).astype(np.int32)
    if spec.y == "float32":
        return acc.astype(np.float32) * multiplier
    return requantize(acc, multiplier, y_zero, lo, hi, spec.y)


def _attention(spec: ks.Attention, args: Sequence[Array]) -> Array:
    return (_integer_attention if spec.is_integer else _float_attention)(spec, args)


def _float_attention(_spec: ks.Attention, args: Sequence[Array]) -> Array:
    q, k, v, multiplier, *mask = (a.astype(np.float64) for a in args)
    scores = np.einsum("bmhd,bnhd->bhmn", q, k, optimize=True) * multiplier[0]
    if mask:
        scores = scores + mask[0][:, None]
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhmn,bnhd->bmhd", powers / powers.sum(axis=-1, keepdims=True), v, optimize=True).astype(np.float32)


def _integer_attention(spec: ks.Attention, args: Sequence[Array]) -> Array:
    q, k, v, multiplier, quant, *mask = args
    q_zero, p_zero, v_zero, y_zero, lo, hi = (int(value) for value in quant)
    info = np.iinfo(spec.x)
    centred = k.astype(np.float64) - (info.min + 128)  # the signed code
    acc = np.einsum("bmhd,bnhd->bhmn", q.astype(np.float64) - q_zero, centred, optimize=True).astype(np.float32)
    scores = _score_steps(acc * multiplier[0])
    if mask:
        scores = scores + _score_steps(mask[0] * np.float32(MASK_STEPS))[:, None]
    powers = exp2_below(scores.max(axis=-1, keepdims=True) - scores)
    scale = multiplier[1] / powers.sum(axis=-1, keepdims=True, dtype=np.int32).astype(np.float32)
    steps = np.rint(np.minimum(powers.astype(np.float32) * scale, np.float32(info.max - p_zero)))
    acc = np.einsum("bhmn,bnhd->bmhd", steps.astype(np.float64), v.astype(np.float64) - v_zero, optimize=True)
    return requantize(acc.astype(np.int32), multiplier[2], y_zero, lo, hi, spec.y)


def _score_steps(value: Array) -> Array:
    return np.rint(np.clip(value, np.float32(-SCORE_LIMIT), np.float32(SCORE_LIMIT))).astype(np.int32)


def _pool2d(spec: ks.Pool2d, args: Sequence[Array]) -> Array:
    x = args[0]
    if spec.fn == "max":
        lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
        fields = _windows(_pad(x, spec.pad, lowest), spec.kh, spec.kw, spec.stride, (1, 1), spec.oh, spec.ow)
        return fields.max(axis=(3, 4))
    multiplier, quant = args[1:]
    x_zero, y_zero, lo, hi = (int(v) for v in quant)
    shifted = _pad(x.astype(np.int32) - x_zero, spec.pad, 0)
    inside = _pad(np.ones(x.shape, np.int32), spec.pad, 0)
    total = _windows(shifted, spec.kh, spec.kw, spec.stride, (1, 1), spec.oh, spec.ow).sum(axis=(3, 4), dtype=np.int32)
    count = _windows(inside, spec.kh, spec.kw, spec.stride, (1, 1), spec.oh, spec.ow).sum(axis=(3, 4))
    return requantize(total, multiplier[count], y_zero, lo, hi, spec.y)


def _lookup(spec: ks.Lookup, args: Sequence[Array]) -> Array:
    x, table = args
    return table[x.astype(np.int32) + (128 if spec.x == "int8" else 0)]


def _quantize(spec: ks.Quantize, args: Sequence[Array]) -> Array:
    x, scale, quant = args
    if spec.nchw:
        x = x.transpose(0, 2, 3, 1)
    return _codes(x / scale[0], int(quant[0]), spec.y)


def _codes(steps: Array, zero: int, dtype: str) -> Array:
    info = np.iinfo(dtype)
    # the bounds are taken before the shift so that infinities saturate and no float is converted out of int32's range
    steps = np.clip(np.rint(steps), np.float32(info.min - zero), np.float32(info.max - zero))
    return (steps.astype(np.int32) + zero).astype(dtype)


def _dequantize(spec: ks.Dequantize, args: Sequence[Array]) -> Array:
    x, scale, quant = args
    return (x.astype(np.int32) - int(quant[0])).astype(np.float32) * scale[0]


def _unary(spec: ks.Unary, args: Sequence[Array]) -> Array:
    return _function(spec.fn, args[0])


def _function(name: str, x: Array) -> Array:
    from math import erf, sqrt

    x = x.astype(np.float64)
    gauss = np.vectorize(erf, otypes=[np.float64])
    with np.errstate(over="ignore"):
        functions: dict[str, Callable[[Array], Array]] = {
            "exp": np.exp,
            "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
            "tanh": np.tanh,
            "erf": gauss,
            "gelu": lambda v: 0.5 * v * (1 + gauss(v / sqrt(2))),
            "silu": lambda v: v / (1 + np.exp(-v)),
        }
        return functions[name](x).astype(np.float32)


def _softmax(_spec: ks.Softmax, args: Sequence[Array]) -> Array:
    x = args[0].astype(np.float64)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)).astype(np.float32)


def _layer_norm(spec: ks.LayerNorm, args: Sequence[Array]) -> Array | tuple[Array, Array]:
    x, gamma, beta, epsilon = (a.astype(np.float64) for a in args[:4])
    if spec.residual:
        x = x + args[4]
    centred = x - x.mean(axis=-1, keepdims=True)
    y = (centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * gamma + beta).astype(np.float32)
    if not spec.quantized:
        return y
    multiplier, quant = args[-2:]
    return y, _codes(y * multiplier[0], int(quant[0]), spec.quantized)


_ORACLES: dict[type, Callable[[Any, Sequence[Array]], Array | tuple[Array, ...]]] = {
    ks.Conv2d: _conv2d,
    ks.Chain: _chain,
    ks.MatMul: _matmul,
    ks.Attention: _attention,
    ks.Binary: _binary,
    ks.Pool2d: _pool2d,
    ks.Lookup: _lookup,
    ks.Quantize: _quantize,
    ks.Dequantize: _dequantize,
    ks.Unary: _unary,
    ks.Softmax: _softmax,
    ks.LayerNorm: _layer_norm,
}


def run_kernel(spec: ks.Kernel, args: Sequence[Array]) -> Array:
    """Result of ``spec`` on ``args``, in the order of ``spec.ARGS``; shape ``spec.out_shape``, dtype ``spec.out_dtype``."""
    return run_outputs(spec, args)[0]


def run_outputs(spec: ks.Kernel, args: Sequence[Array]) -> tuple[Array, ...]:
    """Every result of ``spec`` on ``args``, with the shapes of ``spec.outputs``."""
    results = _ORACLES[type(spec)](spec, args)
    results = results if isinstance(results, tuple) else (results,)
    return tuple(result.reshape(shape) for result, (shape, _) in zip(results, spec.outputs, strict=True))
