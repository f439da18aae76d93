"""Convolutions, dense layers, products of two activations, per-channel scale and shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import msgspec
import numpy as np
from tvm import relax

from tvmflow.kernels import spec as ks
from tvmflow.quantize.graph import Graph, constant_of, op_of, shape_of
from tvmflow.quantize.patterns import INT32_MAX, bias_of, channel_constant, clamp_of, scale_of, split_constant
from tvmflow.quantize.plan import Group
from tvmflow.quantize.qparams import QParam
from tvmflow.quantize.realize.emit import Emitter, floats, ints


@dataclass(frozen=True)
class Linear:
    """A layer with constant weights in float: ``spec`` without dtypes, weight ``[oc, kh, kw, ic/groups]``, bias ``[oc]``."""

    spec: ks.Conv2d
    weight: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    """Weight scale ``[oc]``."""
    lowest: int = -127
    """Smallest weight code."""


@dataclass(frozen=True)
class Pending:
    """A convolution held back because the residual add that follows it joins its epilogue."""

    name: str
    spec: ks.Conv2d
    args: tuple[relax.Expr, ...]
    quant: tuple[int, ...]
    param: QParam


def conv2d(e: Emitter, group: Group, hold: bool = False) -> Pending | None:
    """Convolution, grouped or depthwise."""
    call = e.graph.exprs[group.bindings[0]]
    n, h, w, ic = e.graph.shape(group.inputs[0])
    weight = constant_of(call.args[1])
    assert weight is not None  # annotate checks
    oc, kh, kw, _ = weight.shape
    attrs = call.attrs
    spec = ks.Conv2d(
        n, h, w, ic, oc, kh, kw, _pair(attrs.strides), _sides(attrs.padding), _pair(attrs.dilation), int(attrs.groups)
    )  # fmt: skip
    return _linear(e, group, _described(e, group, spec, weight), hold)


def dense(e: Emitter, group: Group, hold: bool = False) -> Pending | None:
    """Product with a constant matrix ``[K, N]``: a 1x1 convolution over the rows."""
    weight = constant_of(e.graph.exprs[group.bindings[0]].args[1])
    assert weight is not None  # annotate checks
    k, n = weight.shape[-2:]
    spec = ks.Conv2d(1, 1, prod(e.graph.shape(group.inputs[0])[:-1]), k, n)
    return _linear(e, group, _described(e, group, spec, weight.reshape(k, n).T.reshape(n, 1, 1, k)), hold)


def scale_shift(e: Emitter, group: Group) -> None:
    """``x * a[c] + b[c]``: a depthwise 1x1 convolution; its weights are a channel's one number, exact at code 127."""
    shape = e.graph.shape(group.output)
    a, b = np.ones(shape[-1]), np.zeros(shape[-1])
    for name in group.bindings:
        parts = split_constant(e.graph, name)
        if parts is None:
            continue
        constant = channel_constant(parts[1], shape)
        assert constant is not None  # annotate checks
        a, b = _apply(op_of(e.graph.exprs[name]), a, b, constant.astype(np.float64), parts[2])
    rows = (1, 1, prod(shape[:-1]), shape[-1]) if len(shape) != 4 else shape
    spec = ks.Conv2d(*rows, rows[-1], groups=rows[-1])
    scale = np.where(a == 0, 1.0, np.abs(a) / 127.0)
    _linear(e, group, Linear(spec, a.reshape(-1, 1, 1, 1), b, scale))


def _apply(op: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, constant_first: bool) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of ``op(x * a + b, c)``."""
    if op == "multiply":
        return a * c, b * c
    if op == "divide":
        return a / c, b / c
    if op == "subtract":
        return (-a, c - b) if constant_first else (a, b - c)
    return a, b + c


def _described(e: Emitter, group: Group, spec: ks.Conv2d, weight: np.ndarray) -> Linear:
    param = e.param(group.weight)
    bias = next((b for name in group.bindings[1:] if (b := bias_of(e.graph, name)) is not None), np.zeros(spec.oc))
    scale = np.broadcast_to(np.asarray(param.scale, np.float32), (spec.oc,))
    return Linear(spec, weight, bias, scale, -128 if param.observer == "model" else -127)


def _linear(e: Emitter, group: Group, layer: Linear, hold: bool = False) -> Pending | None:
    """Quantizes weights and bias and emits the kernel, or holds it back."""
    value, x = e.integer(group.inputs[0])
    spec = msgspec.structs.replace(layer.spec, x=e.storage, y=e.storage if e.is_site(group.output) else "float32")
    value = e.reshape(value, (spec.n, spec.h, spec.w, spec.ic))
    weight, bias, scale = quantize_weights(layer, x)
    real = np.float64(np.float32(x.scale[0])) * scale.astype(np.float64)
    if spec.y == "float32":
        args = (value, relax.const(weight), relax.const(bias), floats(real), ints(e.zero(x), 0, 0, 0))
        e.floats[group.output] = e.reshape(e.kernel(group.layer, spec, args), e.graph.shape(group.output))
        e.boundaries += 1
        return None
    y = e.param(group.output)
    quant = (e.zero(x), e.zero(y), *e.bounds(y, clamp_of(e.graph, group.bindings[-1])))
    multiplier = floats(real / np.float64(np.float32(y.scale[0])))
    pending = Pending(group.layer, spec, (value, relax.const(weight), relax.const(bias), multiplier), quant, y)
    if hold:
        return pending
    e.integers[group.output] = (finish(e, pending, e.graph.shape(group.output)), y)
    return None


def finish(
    e: Emitter, pending: Pending, shape: tuple[int, ...], residual: tuple[relax.Expr, tuple[int, ...]] | None = None
) -> relax.Expr:
    """Emits a held convolution, with the residual tensor and the arguments of the add when there is one."""
    spec, quant, args = pending.spec, pending.quant, pending.args
    if residual is None:
        return e.reshape(e.kernel(pending.name, spec, (*args, ints(*quant))), shape)
    other, add = residual
    spec = msgspec.structs.replace(spec, residual=True)
    return e.reshape(e.kernel(pending.name, spec, (*args, ints(*quant, *add), e.reshape(other, spec.out_shape))), shape)


def quantize_weights(layer: Linear, x: QParam) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights int8, bias int32 and the scale per channel that was used.

    A channel of tiny weights gives its bias a scale so fine that the bias leaves int32 (microsoft/onnxruntime#11415); its
    scale is raised until bias and products fit together.
    """
    channels = layer.spec.oc
    weight = layer.weight.reshape(channels, -1).astype(np.float32)
    bias, x_scale = layer.bias.astype(np.float64), np.float64(np.float32(x.scale[0]))
    room = INT32_MAX - weight.shape[1] * 255 * -layer.lowest
    needed = np.abs(bias) / (x_scale * room)
    scale = layer.scale.astype(np.float32)
    scale = np.where(needed > scale, np.nextafter(needed.astype(np.float32), np.float32(np.inf)), scale)
    codes = np.clip(np.rint(weight / scale[:, None]), layer.lowest, 127).astype(np.int8)
    steps = np.clip(np.rint(bias / (x_scale * scale.astype(np.float64))), -room, room)
    return codes.reshape(layer.weight.shape), steps.astype(np.int32), scale


def matmul(e: Emitter, group: Group) -> None:
    """Product of two activations, batches first, with a scalar factor folded into the multiplier."""
    (a, a_param), (b, b_param) = (e.integer(name) for name in _operands(e.graph, group.bindings[0]))
    factor = scale_of(e.graph, group.bindings[-1]) if len(group.bindings) > 1 else None
    real = (
        np.float64(np.float32(a_param.scale[0])) * np.float64(np.float32(b_param.scale[0])) * (1.0 if factor is None else factor)
    )
    batch, rows = _batch(a, b)
    k, n = shape_of(b)[-2:]
    y = e.storage if e.is_site(group.output) else "float32"
    spec = ks.MatMul(batch, rows, k, n, x=e.storage, y=y)
    operands = (e.reshape(a, (batch, rows, spec.k)), e.reshape(b, (batch, spec.k, spec.n)))
    zeros = (e.zero(a_param), e.zero(b_param))
    shape = e.graph.shape(group.output)
    if y == "float32":
        e.floats[group.output] = e.reshape(e.kernel(group.layer, spec, (*operands, floats([real]), ints(*zeros, 0, 0, 0))), shape)
        e.boundaries += 1
        return
    y_param = e.param(group.output)
    quant = ints(*zeros, e.zero(y_param), *e.bounds(y_param, None))
    multiplier = floats([real / np.float64(np.float32(y_param.scale[0]))])
    e.integers[group.output] = (e.reshape(e.kernel(group.layer, spec, (*operands, multiplier, quant)), shape), y_param)


def _operands(graph: Graph, name: str) -> tuple[str, str]:
    a, b = graph.exprs[name].args
    return a.name, b.name


def _batch(a: relax.Expr, b: relax.Expr) -> tuple[int, int]:
    """Batch and rows: one batch of all rows when the right operand has none."""
    a_shape, b_shape = (shape_of(v) for v in (a, b))
    if prod(b_shape[:-2]) == 1:
        return 1, prod(a_shape[:-1])
    return prod(a_shape[:-2]), a_shape[-2]


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second


def _sides(values: Sequence[int]) -> tuple[int, int, int, int]:
    top, left, bottom, right = (int(v) for v in values)
    return top, left, bottom, right
