"""Activations that exporters spell out become one chain each.

::

    Before:  e = R.add(R.erf(R.multiply(x, 0.70711)), 1.0)   After:  y = R.nn.gelu(x)
             y = R.multiply(R.multiply(x, e), 0.5)
             z = R.multiply(R.clip(R.add(w, 3.0), 0, 6), 1/6)        z = R.clip(R.add(R.multiply(w, 1/6), 0.5), 0, 1)

1. gelu: ``x * 0.5 * (1 + erf(x / sqrt(2)))`` in any order of the factors: ``R.nn.gelu``.
2. gelu by tanh: ``x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))``: ``R.nn.gelu_tanh``.
3. hard sigmoid: ``clip(x + b, 0, 1 / a) * a``: ``clip(x * a + b * a, 0, 1)``, the canonical form.
4. hard swish: ``x * clip(x + 3, 0, 6) * (1 / 6)`` in any order: x times the canonical hard sigmoid of x.
5. silu stays ``x * sigmoid(x)``. Other constants (1.7 for sqrt(2), say) are other functions and stay.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import dtype_of, has_static_shape, op_name, scalar, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("canonical clip",)
ENSURES = ("canonical activations",)


def _close(a: float | None, b: float) -> bool:
    return a is not None and math.isclose(a, b, rel_tol=1e-5)


def factors(walk: Walk, call: Any) -> tuple[float, list[Any]]:
    """A product as a number and the tensors that it multiplies; inner products that others read stay whole."""
    number = 1.0
    tensors: list[Any] = []
    for arg in call.args:
        value = scalar(arg)
        inner = walk.call(arg, "multiply")
        if value is not None:
            number *= value
        elif inner is not None and walk.only_use(arg):
            inner_number, inner_tensors = factors(walk, inner)
            number, tensors = number * inner_number, tensors + inner_tensors
        else:
            tensors.append(arg)
    return number, tensors


def _factors_of(walk: Walk, expr: Any) -> tuple[float, list[Any]]:
    call = walk.call(expr, "multiply")
    return (1.0, [expr]) if call is None else factors(walk, call)


def _plus(walk: Walk, expr: Any, number: float) -> Any:
    """u of ``u + number``."""
    call = walk.call(expr, "add")
    return call.args[0] if call is not None and _close(scalar(call.args[1]), number) else None


def _is_erf_of(walk: Walk, expr: Any, x: Any) -> bool:
    """``1 + erf(x / sqrt(2))``"""
    call = walk.call(_plus(walk, expr, 1.0), "erf")
    if call is None:
        return False
    number, tensors = _factors_of(walk, call.args[0])
    return _close(number, math.sqrt(0.5)) and len(tensors) == 1 and tensors[0].same_as(x)


def _is_tanh_of(walk: Walk, expr: Any, x: Any) -> bool:
    """``1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))``"""
    call = walk.call(_plus(walk, expr, 1.0), "tanh")
    if call is None:
        return False
    number, tensors = _factors_of(walk, call.args[0])
    total = walk.call(tensors[0], "add") if len(tensors) == 1 else None
    if total is None or not _close(number, math.sqrt(2 / math.pi)):
        return False
    for linear, cubic in (total.args, reversed(total.args)):
        number, tensors = _factors_of(walk, cubic)
        power = walk.call(tensors[0], "power") if len(tensors) == 1 else None
        if power is not None and _close(scalar(power.args[1]), 3.0):
            tensors = [power.args[0]] * 3
        if linear.same_as(x) and _close(number, 0.044715) and len(tensors) == 3 and all(t.same_as(x) for t in tensors):
            return True
    return False


def _hard_sigmoid(walk: Walk, expr: Any, slope: float) -> tuple[Any, Any] | None:
    """``(x, clip(x * slope + b * slope, 0, 1))`` for ``expr = clip(x + b, 0, 1 / slope)``."""
    clip = walk.call(expr, "clip")
    if clip is None or float(clip.args[1].value) != 0.0 or not _close(float(clip.args[2].value) * slope, 1.0):
        return None
    total = walk.call(clip.args[0], "add")
    shift = None if total is None else scalar(total.args[1])
    if shift is None:
        return None
    x, dtype = total.args[0], dtype_of(total)
    line = walk.emit(relax.op.multiply(x, relax.const(np.array(slope, dtype))), walk.name + ".slope")
    line = walk.emit(relax.op.add(line, relax.const(np.array(shift * slope, dtype))), walk.name + ".shift")
    return x, relax.op.clip(line, 0.0, 1.0)


def rule(walk: Walk, call: Any) -> Any:
    """Cases 1 to 4."""
    if op_name(call) != "multiply" or not has_static_shape(call) or not dtype_of(call).startswith("float"):
        return None
    number, tensors = factors(walk, call)
    if any(shape_of(t) != shape_of(call) for t in tensors):
        return None
    if len(tensors) == 1:
        found = _hard_sigmoid(walk, tensors[0], number)
        return None if found is None else found[1]
    if len(tensors) != 2:
        return None
    for x, other in (tensors, tensors[::-1]):
        if _close(number, 0.5) and _is_erf_of(walk, other, x):
            return relax.op.nn.gelu(x)
        if _close(number, 0.5) and _is_tanh_of(walk, other, x):
            return relax.op.nn.gelu_tanh(x)
        if number != 1.0 and (clip := walk.call(other, "clip")) is not None:
            total = walk.call(clip.args[0], "add")
            if total is None or not total.args[0].same_as(x):
                continue
            found = _hard_sigmoid(walk, other, number)
            if found is not None:
                return relax.op.multiply(x, walk.emit(found[1], walk.name + ".hard_sigmoid"))
    return None


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
