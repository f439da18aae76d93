"""float32 convolutions, dense layers and matrix products become kernels, with bias, clamp and residual add fused.

Before: lv = R.nn.conv2d(x, w, ...);  lv1 = R.add(lv, bias);  lv2 = R.add(lv1, shortcut);  lv3 = R.nn.relu(lv2)
After:  lv = R.call_dps_packed('tvmflow.kernel {"op":"conv2d","x":"float32","residual":true,...}', (x, w, bias, bounds, shortcut))

1. conv2d NHWC/OHWI with constant weights: a kernel without bias; the steps after it fold in one by one, while it has one user
2. matmul with a constant right operand: the same kernel over ``1 x rows`` pixels
3. matmul of two activations of equal batch dimensions: the MatMul kernel, a transposed right operand read in place
4. max pool over NHWC, softmax and layer_norm over the last axis, elementwise functions: kernels of their own
"""

from __future__ import annotations

from math import prod
from typing import Any

import msgspec
import numpy as np
from tvm import relax

from tvmflow.kernels import spec as ks
from tvmflow.kernels.call import kernel_args, kernel_call, kernel_of
from tvmflow.model import Model
from tvmflow.optimize.canonical_shapes import permutation
from tvmflow.optimize.expr import array, dtype_of, is_constant, op_name, shape_of
from tvmflow.optimize.walk import Walk, rewrite


def lower_float(model: Model) -> Model:
    """Float multiply-accumulate operators of ``model`` as kernel calls; everything else untouched."""
    return model.then("lower_float", rewrite(model.module, _rule))


def _rule(walk: Walk, call: Any) -> Any:
    lower = _RULES.get(op_name(call))
    if lower is None or not isinstance(call.ty, relax.TensorType) or dtype_of(call) != "float32":
        return None
    return lower(walk, call)


def _conv2d(_walk: Walk, call: Any) -> Any:
    x, weight = call.args
    attrs = call.attrs
    if not is_constant(weight) or attrs.data_layout != "NHWC" or attrs.kernel_layout != "OHWI":
        return None
    n, h, w, ic = shape_of(x)
    oc, kh, kw, _ = shape_of(weight)
    pad = [int(p) for p in attrs.padding]
    spec = ks.Conv2d(
        n, h, w, ic, oc, kh, kw,
        stride=(int(attrs.strides[0]), int(attrs.strides[1])),
        pad=(pad[0], pad[1], pad[2], pad[3]),
        dilation=(int(attrs.dilation[0]), int(attrs.dilation[1])),
        groups=int(attrs.groups),
        x="float32", y="float32",
    )  # fmt: skip
    return _float_conv(spec, x, array(weight), np.zeros(oc, np.float32))


def _matmul(walk: Walk, call: Any) -> Any:
    a, b = call.args
    if is_constant(b) and len(shape_of(b)) == 2:
        *rows, k = shape_of(a)
        weight = array(b)
        spec = ks.Conv2d(1, 1, prod(rows), k, weight.shape[1], x="float32", y="float32")
        x = _view(walk, a, (1, 1, prod(rows), k), "rows")
        kernel = walk.emit(_float_conv(spec, x, weight.T.reshape(-1, 1, 1, k), np.zeros(weight.shape[1], np.float32)))
        return _view(walk, kernel, shape_of(call))
    if is_constant(a) or len(shape_of(a)) < 2 or shape_of(a)[:-2] != shape_of(b)[:-2]:
        return None
    permute = walk.call(b, "permute_dims")
    rank = len(shape_of(b))
    swapped = permute is not None and permutation(permute) == (*range(rank - 2), rank - 1, rank - 2)
    if swapped:
        b = permute.args[0]
    *batch, m, k = shape_of(a)
    spec2 = ks.MatMul(prod(batch), m, k, shape_of(call)[-1], swapped, "float32", "float32")
    flat = [_view(walk, t, (prod(batch), *shape_of(t)[-2:]), side) for t, side in ((a, "a"), (b, "b"))]
    return _view(walk, walk.emit(kernel_call(spec2, flat)), shape_of(call))


def _add(walk: Walk, call: Any) -> Any:
    for mine, other in (call.args, call.args[::-1]):
        fused = Fused.of(walk, mine)
        if fused is None or fused.spec.residual or np.isfinite(fused.bounds).any():
            continue
        if is_constant(other) and array(other).size == fused.spec.oc and shape_of(other)[-1:] == (fused.spec.oc,):
            return fused.emit(walk, fused.spec, array(other).reshape(-1) + fused.bias, fused.bounds, fused.residual)
        if not is_constant(other) and shape_of(other) == shape_of(call) == shape_of(mine):
            residual = _view(walk, other, fused.spec.out_shape, "residual") if fused.shape else other
            return fused.emit(walk, msgspec.structs.replace(fused.spec, residual=True), fused.bias, fused.bounds, [residual])
    return None


def _clamp(walk: Walk, call: Any) -> Any:
    fused = Fused.of(walk, call.args[0])
    if fused is None:
        return None
    lo, hi = (0.0, np.inf) if op_name(call) == "nn.relu" else (_scalar(call.args[1]), _scalar(call.args[2]))
    if lo > fused.bounds[1] or hi < fused.bounds[0]:
        return None
    return fused.emit(walk, fused.spec, fused.bias, np.clip(fused.bounds, lo, hi).astype(np.float32), fused.residual)


def _max_pool(_walk: Walk, call: Any) -> Any:
    n, h, w, c = shape_of(call.args[0])
    attrs = call.attrs
    (kh, kw), (top, left, bottom, right) = (int(v) for v in attrs.pool_size), (int(v) for v in attrs.padding)
    stride = (int(attrs.strides[0]), int(attrs.strides[1]))
    spec = ks.Pool2d("max", n, h, w, c, kh, kw, stride, (top, left, bottom, right), "float32", "float32")
    dilated = any(int(d) != 1 for d in attrs.dilation)
    if attrs.layout != "NHWC" or dilated or spec.out_shape != shape_of(call):  # ceil_mode may add windows
        return None
    return kernel_call(spec, [call.args[0]])


def _unary(_walk: Walk, call: Any) -> Any:
    fn = op_name(call).removeprefix("nn.")
    return kernel_call(ks.Unary(fn, shape_of(call)), [call.args[0]])


def _softmax(walk: Walk, call: Any) -> Any:
    shape = shape_of(call)
    if int(call.attrs.axis) not in (-1, len(shape) - 1):
        return None
    spec = ks.Softmax(prod(shape[:-1]), shape[-1])
    x = _view(walk, call.args[0], spec.out_shape, "rows")
    return _view(walk, walk.emit(kernel_call(spec, [x])), shape)


def _layer_norm(walk: Walk, call: Any) -> Any:
    x, gamma, beta = call.args
    shape, attrs = shape_of(call), call.attrs
    last = [int(a) for a in attrs.axes] in ([-1], [len(shape) - 1])
    if not last or not (is_constant(gamma) and is_constant(beta) and attrs.center and attrs.scale):
        return None
    spec = ks.LayerNorm(prod(shape[:-1]), shape[-1])
    flat = _view(walk, x, spec.out_shape, "rows")
    epsilon = relax.const(np.array([float(attrs.epsilon)], np.float32))
    return _view(walk, walk.emit(kernel_call(spec, [flat, gamma, beta, epsilon])), shape)


_RULES = {
    **dict.fromkeys(("exp", "sigmoid", "tanh", "erf", "nn.gelu", "nn.silu"), _unary),
    "nn.softmax": _softmax, "nn.layer_norm": _layer_norm,
    "nn.max_pool2d": _max_pool, "nn.conv2d": _conv2d, "matmul": _matmul, "add": _add, "nn.relu": _clamp, "clip": _clamp,
}  # fmt: skip


class Fused:
    """A float convolution kernel that only the visited call reads, seen through the reshape of a dense layer."""

    def __init__(self, call: Any, spec: ks.Conv2d, name: str, shape: tuple[int, ...]) -> None:
        self.spec, self.name, self.shape = spec, name, shape
        self.x, self.weight, bias, bounds, *self.residual = kernel_args(call)
        self.bias, self.bounds = array(bias), array(bounds)

    @staticmethod
    def of(walk: Walk, expr: Any) -> Fused | None:
        if not isinstance(expr, relax.Var) or not walk.only_use(expr):
            return None
        shape: tuple[int, ...] = ()
        value = walk.value(expr)
        if op_name(value) == "reshape":
            inner = value.args[0]
            if not isinstance(inner, relax.Var) or not walk.only_use(inner):
                return None
            expr, value, shape = inner, walk.value(inner), shape_of(value)
        spec = kernel_of(value)
        if not isinstance(spec, ks.Conv2d) or spec.is_integer or spec.activation:
            return None
        return Fused(value, spec, walk.name_of(expr), shape)

    def emit(self, walk: Walk, spec: ks.Conv2d, bias: Any, bounds: Any, residual: list[Any]) -> Any:
        args = [self.x, self.weight, relax.const(np.asarray(bias, np.float32)), relax.const(bounds), *residual]
        kernel = walk.emit(kernel_call(spec, args), self.name)
        return _view(walk, kernel, self.shape) if self.shape else kernel


def _float_conv(spec: ks.Conv2d, x: Any, weight: Any, bias: Any) -> Any:
    bounds = np.array([-np.inf, np.inf], np.float32)
    return kernel_call(spec, [x, relax.const(np.ascontiguousarray(weight)), relax.const(bias), relax.const(bounds)])


def _view(walk: Walk, tensor: Any, shape: tuple[int, ...], role: str = "shape") -> Any:
    """``tensor`` with another shape, under a name of its own: the layer's name belongs to its kernel."""
    return walk.emit(relax.op.reshape(tensor, shape), f"{walk.name}.{role}")


def _scalar(expr: Any) -> float:
    """Value of a bound of R.clip, which is an immediate or a constant."""
    return float(array(expr)) if is_constant(expr) else float(expr.value)
