"""Convolutions and dense layers with constant weights: the int8 codes and int32 biases that realize computes with."""

from __future__ import annotations

from math import prod

import numpy as np

from tvmflow.kernels import spec as ks
from tvmflow.quantize.export_qdq.writer import CHANNELS_FIRST, OnnxWriter, Tensor, plain
from tvmflow.quantize.graph import constant_of
from tvmflow.quantize.patterns import bias_of
from tvmflow.quantize.plan import Group
from tvmflow.quantize.realize.emit import Emitter
from tvmflow.quantize.realize.products import Linear, quantize_weights


def convolution(w: OnnxWriter, e: Emitter, group: Group, x: Tensor) -> Tensor:
    """Conv, grouped or depthwise, without its clamp."""
    call = e.graph.exprs[group.bindings[0]]
    weight = constant_of(call.args[1])
    assert weight is not None  # annotate checks
    x = w.reordered(x, CHANNELS_FIRST)
    codes, bias, scale = _quantized(e, group, weight)
    inputs = [x.name, _weight(w, group, codes.transpose(CHANNELS_FIRST), scale, 0), *_bias(w, e, group, bias, scale)]
    return Tensor(w.node("Conv", inputs, group.layer, **window(call.attrs)), _shape(e, group), CHANNELS_FIRST)


def window(attrs: object) -> dict[str, object]:
    """Attributes of Conv from those of conv2d."""
    return {
        "strides": [int(v) for v in attrs.strides],  # type: ignore[attr-defined]
        "pads": [int(v) for v in attrs.padding],  # type: ignore[attr-defined]
        "dilations": [int(v) for v in attrs.dilation],  # type: ignore[attr-defined]
        "group": int(attrs.groups),  # type: ignore[attr-defined]
    }


def dense(w: OnnxWriter, e: Emitter, group: Group, x: Tensor) -> Tensor:
    """Gemm over all rows; MatMul where there is no bias and no need to flatten.

    Gemm because its bias may be int32: a float Add behind a MatMul would round differently.
    """
    weight = constant_of(e.graph.exprs[group.bindings[0]].args[1])
    assert weight is not None  # annotate checks
    k, n = weight.shape[-2:]
    shape = _shape(e, group)
    codes, bias, scale = _quantized(e, group, weight.reshape(k, n).T.reshape(n, 1, 1, k))
    matrix = _weight(w, group, codes.reshape(n, k).T, scale, 1)
    bias_input = _bias(w, e, group, bias, scale)
    if not bias_input:
        x = w.reordered(x, plain(x.shape))
        return Tensor(w.node("MatMul", [x.name, matrix], group.layer), shape, plain(shape))
    rows = prod(x.shape[:-1])
    x = w.reshaped(x, (rows, k))
    flat = Tensor(w.node("Gemm", [x.name, matrix, *bias_input], group.layer), (rows, n), (0, 1))
    if len(shape) == 2:
        return flat
    return w.reshaped(w.again(flat, e.param(group.output) if e.is_site(group.output) else None), shape)


def _quantized(e: Emitter, group: Group, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of ``[oc, kh, kw, ic/groups]``, bias and scale, by realize's own rule."""
    oc, kh, kw, ic = weight.shape
    param = e.param(group.weight)
    bias = next((b for name in group.bindings[1:] if (b := bias_of(e.graph, name)) is not None), np.zeros(oc))
    scale = np.broadcast_to(np.asarray(param.scale, np.float32), (oc,))
    layer = Linear(ks.Conv2d(1, kh, kw, ic, oc, kh, kw), weight, bias, scale, -128 if param.observer == "model" else -127)
    return quantize_weights(layer, e.param(group.inputs[0]))


def _weight(w: OnnxWriter, group: Group, codes: np.ndarray, scale: np.ndarray, axis: int) -> str:
    """DequantizeLinear of the codes with one scale along ``axis``, or with one for all."""
    shared = bool((scale == scale[0]).all())
    steps = scale[0] if shared else scale
    inputs = [
        w.constant(codes, f"{group.weight}_quantized"),
        w.constant(steps, f"{group.weight}_scale"),
        w.constant(np.zeros(np.shape(steps), np.int8), f"{group.weight}_zero_point"),
    ]
    return w.node("DequantizeLinear", inputs, group.weight, **({} if shared else {"axis": axis}))


def _bias(w: OnnxWriter, e: Emitter, group: Group, bias: np.ndarray, scale: np.ndarray) -> list[str]:
    """DequantizeLinear of the int32 bias, whose scale is that of the products; nothing when the layer has no bias."""
    if all(bias_of(e.graph, name) is None for name in group.bindings[1:]):
        return []
    steps = (np.float64(np.float32(e.param(group.inputs[0]).scale[0])) * scale.astype(np.float64)).astype(np.float32)
    inputs = [
        w.constant(bias, f"{group.layer}:bias_quantized"),
        w.constant(steps, f"{group.layer}:bias_scale"),
        w.constant(np.zeros(bias.shape, np.int32), f"{group.layer}:bias_zero_point"),
    ]
    return [w.node("DequantizeLinear", inputs, f"{group.layer}:bias", axis=0)]


def _shape(e: Emitter, group: Group) -> tuple[int, ...]:
    return e.graph.shape(group.output)
