"""Operands: constants stand second, and differences and quotients by constants are sums and products.

::

    Before:  y = R.add(const, x)                     After:  y = R.add(x, const)
             z = R.divide(R.subtract(y, c), d)               z = R.multiply(R.add(y, -c), 1 / d)
             w = R.nn.silu(z)                                w = R.multiply(z, R.sigmoid(z))

1. add, multiply, maximum, minimum with the constant first swap their operands.
2. ``x - c`` is ``x + (-c)``; ``c - x`` stays. Floating point only: minus the lowest integer overflows.
3. ``x / c`` is ``x * (1 / c)`` for floating-point c without zeros.
4. silu is ``x * sigmoid(x)``; ``square`` and ``x ** 2`` are ``x * x``.
5. A constant second operand that varies along the last axis only loses its leading axes of 1: bias [1, N] is [N].
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


def _canonical(walk: Walk, call: Any) -> Any:
    """Cases 1 to 4; None where nothing changes."""
    name = op_name(call)
    a, b = (*call.args, None, None)[:2]
    if name in _COMMUTATIVE:
        return _COMMUTATIVE[name](b, a) if is_constant(a) and not is_constant(b) else None
    if name == "subtract" and _float_constant(b):
        return relax.op.add(a, const(-array(b)))
    if name == "divide" and _float_constant(b) and np.all(array(b)):
        return relax.op.multiply(a, const((1 / array(b).astype("float64")).astype(dtype_of(b))))
    if name == "nn.silu":
        return relax.op.multiply(a, walk.emit(relax.op.sigmoid(a), walk.name + ".sigmoid"))
    if name == "square" or (name == "power" and scalar(b) == 2.0 and dtype_of(call).startswith("float")):
        return relax.op.multiply(a, a)
    return None


def _without_leading_ones(call: Any) -> Any:
    """Case 5."""
    if op_name(call) not in _COMMUTATIVE:
        return None
    x, c = call.args
    if not is_constant(c) or len(shape_of(c)) < 2 or len(shape_of(x)) < len(shape_of(c)):
        return None
    *lead, last = shape_of(c)
    if any(size != 1 for size in lead) or last == 1:
        return None
    return _COMMUTATIVE[op_name(call)](x, const(array(c).reshape(last)))


def rule(walk: Walk, call: Any) -> Any:
    """Cases in order of the docstring."""
    if not has_static_shape(call):
        return None
    canonical = _canonical(walk, call)
    slim = _without_leading_ones(call if canonical is None else canonical)
    return canonical if slim is None else slim


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
