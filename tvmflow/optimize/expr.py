"""Reading and writing single Relax expressions: static shapes, constants as numpy arrays, operators by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst


def op_name(expr: Any) -> str:
    """Name of the operator of a call without the leading ``relax.``; empty for everything else."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return expr.op.name.removeprefix("relax.")
    return ""


def has_static_shape(expr: Any) -> bool:
    """Whether ``expr`` is a tensor with a known, constant shape and dtype."""
    ty = expr.ty
    return (
        isinstance(ty, relax.TensorType)
        and isinstance(ty.shape, relax.ShapeExpr)
        and all(isinstance(d, tvm.tirx.IntImm) for d in ty.shape.values)
    )


def shape_of(expr: Any) -> tuple[int, ...]:
    """Static shape of a tensor expression."""
    return tuple(int(d) for d in expr.ty.shape)


def dtype_of(expr: Any) -> str:
    """dtype of a tensor expression, ``float32`` for instance."""
    return str(expr.ty.dtype)


def is_constant(expr: Any) -> bool:
    return isinstance(expr, GenericConst)


def array(constant: Any) -> np.ndarray:
    """Value of a constant."""
    return constant.value.numpy()


def const(value: np.ndarray) -> Any:
    """Constant of ``value``, which keeps its dtype."""
    return relax.const(np.ascontiguousarray(value).reshape(value.shape), str(value.dtype))


def scalar(expr: Any) -> float | None:
    """Value of a constant with a single element, None for everything else."""
    if not is_constant(expr):
        return None
    value = array(expr)
    return float(value.reshape(())) if value.size == 1 else None


def ints(values: Any) -> tuple[int, ...]:
    """Python integers of an attribute, ShapeExpr or tuple of primitive values."""
    if isinstance(values, relax.ShapeExpr):
        values = values.values
    elif isinstance(values, relax.Tuple):
        values = values.fields
    return tuple(int(v) for v in values)


def axes_of(attribute: Any, rank: int) -> tuple[int, ...]:
    """Axes of a reduction as non-negative numbers in ascending order; ``None`` means all."""
    if attribute is None:
        return tuple(range(rank))
    return tuple(sorted(int(a) % rank for a in attribute))


def same(a: Any, b: Any) -> bool:
    """Whether two expressions are one variable, or the same constant."""
    if is_constant(a) and is_constant(b):
        return a.same_as(b) or (dtype_of(a) == dtype_of(b) and np.array_equal(array(a), array(b)))
    return bool(a.same_as(b))


def per_channel(constant: Any, rank: int, axis: int) -> np.ndarray | None:
    """Values of a constant that varies along ``axis`` of a ``rank``-dimensional tensor at most: shape [C] or [1].

    None when ``constant`` is no floating-point constant, or broadcasts along another axis.
    """
    if not is_constant(constant) or not dtype_of(constant).startswith("float"):
        return None
    value = array(constant)
    if value.ndim > rank:
        return None
    full = (1,) * (rank - value.ndim) + value.shape
    if any(size != 1 for i, size in enumerate(full) if i != axis % rank):
        return None
    return value.reshape(-1)


def along(values: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """``values`` [C] shaped to broadcast along ``axis``: [1, C, 1, 1] for rank 4 and axis 1."""
    shape: Sequence[int] = [-1 if i == axis % rank else 1 for i in range(rank)]
    return values.reshape(shape)
