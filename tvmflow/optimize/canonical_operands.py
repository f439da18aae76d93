"""Operands: constants stand second, and differences and quotients by constants are sums and products.

::

    Before:  y = R.add(const, x)                     After:  y = R.add(x, const)
             z = R.divide(R.subtract(y, c), d)               z = R.multiply(R.add(y, -c), 1 / d)
             w = R.linear(x, weight, bias)                   w = R.add(R.matmul(x, weight.T), bias)

1. add, multiply, maximum, minimum with the constant first swap their operands.
2. ``x - c`` is ``x + (-c)``; ``c - x`` stays. Floating point only: minus the lowest integer overflows.
3. ``x / c`` is ``x * (1 / c)`` for floating-point c without zeros.
4. linear is a matmul with the transposed weight, and an add.
5. A constant second operand of rank 1 at most that matches the last axis loses its leading axes of 1: bias [1, N] is [N].
   Silu is ``x * sigmoid(x)``, relu6 is ``clip(x, 0, 6)``, ``square`` and ``x ** 2`` are ``x * x``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import array, const, dtype_of, has_static_shape, is_constant, op_name, scalar, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("constants folded",)
ENSURES = ("constants second",)

_COMMUTATIVE = {
    "add": relax.op.add,
    "multiply": relax.op.multiply,
    "maximum": relax.op.maximum,
    "minimum": relax.op.minimum,
}


def _float_constant(expr: Any) -> bool:
    return is_constant(expr) and dtype_of(expr).startswith("float")


def _linear(walk: Walk, call: Any) -> Any:
    """Case 4."""
    x, weight = call.args[:2]
    if len(shape_of(weight)) != 2:
        return None
    turned = const(array(weight).T) if is_constant(weight) else walk.emit(relax.op.permute_dims(weight))
    product = relax.op.matmul(x, turned)
    return relax.op.add(walk.emit(product), call.args[2]) if len(call.args) > 2 else product


def _without_leading_ones(call: Any) -> Any:
    """Case 5."""
    x, c = call.args
    if not is_constant(c) or len(shape_of(c)) < 2 or len(shape_of(x)) < len(shape_of(c)):
        return None
    *lead, last = shape_of(c)
    if any(size != 1 for size in lead) or last == 1:
        return None
    return _COMMUTATIVE[op_name(call)](x, const(array(c).reshape(last)))


def rule(walk: Walk, call: Any) -> Any:
    """Cases in order of the docstring."""
    name = op_name(call)
    if not has_static_shape(call):
        return None
    if name in _COMMUTATIVE:
        a, b = call.args
        if is_constant(a) and not is_constant(b):
            call = _COMMUTATIVE[name](b, a)
            return call if (slim := _without_leading_ones(call)) is None else slim
        return _without_leading_ones(call)
    if name == "subtract" and _float_constant(call.args[1]):
        return relax.op.add(call.args[0], const(-array(call.args[1])))
    if name == "divide" and _float_constant(call.args[1]) and np.all(array(call.args[1])):
        divisor = array(call.args[1])
        return relax.op.multiply(call.args[0], const((1 / divisor.astype("float64")).astype(divisor.dtype)))
    if name == "linear":
        return _linear(walk, call)
    if name == "nn.silu":
        return relax.op.multiply(call.args[0], walk.emit(relax.op.sigmoid(call.args[0])))
    if name == "nn.relu6":
        return relax.op.clip(call.args[0], 0.0, 6.0)
    if name == "square" or (name == "power" and scalar(call.args[1]) == 2.0 and dtype_of(call).startswith("float")):
        return relax.op.multiply(call.args[0], call.args[0])
    return None


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
