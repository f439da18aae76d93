"""Constant folding: calls whose arguments are all constants are computed with numpy.

::

    Before:  lv = R.permute_dims(const[10, 1280])            After:  y = R.matmul(x, const[1280, 10])
             y = R.matmul(x, lv)

1. Arithmetic, comparison, shape and indexing operators of ``OPERATORS``.
2. ``shape_of`` a tensor of static shape is a shape, ``shape_to_tensor`` of it a constant, ``tensor_to_shape`` a shape again.
3. Not folded: ``quantize`` and ``dequantize`` (an already quantized model carries its weights as integers), operators that are
   not in the table, and results over ``LARGEST`` bytes that are larger than their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import array, const, dtype_of, has_static_shape, ints, is_constant, op_name, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("static shapes",)
ENSURES = ("constants folded",)

LARGEST = 1 << 20
"""A folded constant of more bytes must not be larger than its arguments together."""

Arrays = list[np.ndarray]

_UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "cos": np.cos,
    "erf": np.vectorize(math.erf),
    "exp": np.exp,
    "floor": np.floor,
    "isfinite": np.isfinite,
    "isinf": np.isinf,
    "isnan": np.isnan,
    "log": np.log,
    "logical_not": np.logical_not,
    "negative": np.negative,
    "round": np.rint,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sign": np.sign,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "square": np.square,
    "tanh": np.tanh,
}

_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add,
    "divide": lambda a, b: np.divide(a, b) if a.dtype.kind == "f" else np.trunc(np.divide(a, b)),
    "equal": np.equal,
    "floor_divide": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "multiply": np.multiply,
    "not_equal": np.not_equal,
    "power": np.power,
    "subtract": np.subtract,
}

_REDUCE: dict[str, Callable[..., np.ndarray]] = {"max": np.max, "mean": np.mean, "min": np.min, "prod": np.prod, "sum": np.sum}


def _slice(call: Any, x: np.ndarray) -> np.ndarray:
    """``strided_slice`` by the limits that type inference already made of its arguments."""
    axes, begin, end = (ints(a) for a in call.args[1:4])
    strides = ints(call.args[4]) if len(call.args) > 4 else (1,) * len(axes)
    index = [slice(None)] * x.ndim
    for axis, first, last, step in zip(axes, begin, end, strides, strict=True):
        stop = None if step < 0 and last < -x.shape[axis] else last
        index[axis] = slice(first, stop, step)
    return x[tuple(index)]


def _take(call: Any, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    axis = call.attrs.axis
    mode = {"fast": "raise", "wrap": "wrap", "clip": "clip"}[str(call.attrs.mode)]
    return np.take(x, indices, axis=None if axis is None else int(axis), mode=mode)  # type: ignore[call-overload]


def _concat(call: Any, *parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=int(call.attrs.axis or 0))


def _to_out_shape(call: Any, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    return x.reshape(shape_of(call))


_OTHERS: dict[str, Callable[..., np.ndarray]] = {
    "astype": lambda call, x: x,
    "broadcast_to": lambda call, x: np.broadcast_to(x, shape_of(call)),
    "concat": _concat,
    "expand_dims": _to_out_shape,
    "flatten": _to_out_shape,
    "full": lambda call, value: np.full(shape_of(call), value),
    "matmul": lambda call, a, b: np.matmul(a, b),
    "ones": lambda call: np.ones(shape_of(call)),
    "permute_dims": lambda call, x: np.transpose(x, None if call.attrs.axes is None else ints(call.attrs.axes)),
    "reshape": _to_out_shape,
    "squeeze": _to_out_shape,
    "stack": lambda call, *parts: np.stack(parts, axis=int(call.attrs.axis or 0)),
    "strided_slice": _slice,
    "take": _take,
    "where": lambda call, condition, a, b: np.asarray(np.where(condition, a, b)),
    "zeros": lambda call: np.zeros(shape_of(call)),
}

OPERATORS = tuple(sorted([*_UNARY, *_BINARY, *_REDUCE, *_OTHERS]))


def _tensors(call: Any) -> list[Any] | None:
    """Tensor arguments, those inside a tuple included; None when one of them isn't a constant."""
    flat: list[Any] = []
    for arg in call.args:
        flat.extend(arg.fields if isinstance(arg, relax.Tuple) else [arg])
    tensors = [a for a in flat if isinstance(a.ty, relax.TensorType)]
    return tensors if all(is_constant(t) for t in tensors) else None


def _evaluate(call: Any, tensors: Arrays) -> np.ndarray | None:
    name = op_name(call)
    with np.errstate(all="ignore"):
        if name in _UNARY and len(tensors) == 1:
            return _UNARY[name](tensors[0])
        if name in _BINARY and len(tensors) == 2:
            return _BINARY[name](*tensors)
        if name in _REDUCE and len(tensors) == 1:
            axis = None if call.attrs.axis is None else ints(call.attrs.axis)
            return _REDUCE[name](tensors[0], axis=axis, keepdims=bool(call.attrs.keepdims))
        if name in _OTHERS:
            return _OTHERS[name](call, *tensors)
    return None


def rule(walk: Walk, call: Any) -> Any:
    """Case 2, then case 1."""
    name = op_name(call)
    if name == "shape_of" and has_static_shape(call.args[0]):
        return relax.ShapeExpr(shape_of(call.args[0]))
    if name == "shape_to_tensor" and isinstance(call.args[0], relax.ShapeExpr):
        return const(np.array(ints(call.args[0]), dtype="int64"))
    if name == "tensor_to_shape" and is_constant(call.args[0]):
        return relax.ShapeExpr([int(v) for v in array(call.args[0])])
    if name not in OPERATORS or not has_static_shape(call):
        return None
    tensors = _tensors(call)
    if tensors is None:
        return None
    size = math.prod(shape_of(call)) * np.dtype(dtype_of(call)).itemsize
    arrays = [array(t) for t in tensors]
    if size > LARGEST and size > sum(a.nbytes for a in arrays):
        return None
    value = _evaluate(call, arrays)
    return None if value is None else const(np.asarray(value).astype(dtype_of(call)).reshape(shape_of(call)))


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
