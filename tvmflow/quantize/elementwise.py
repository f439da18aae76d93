"""Elementwise functions of one tensor in float64: what a 256-entry table is computed from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvmflow.quantize.graph import Graph, constant_of, op_of

Values = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Values) -> Values:
    return 1.0 / (1.0 + np.exp(-x))


def _gelu(x: Values) -> Values:
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: Values) -> Values:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _selu(x: Values) -> Values:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * np.where(x > 0, x, alpha * np.expm1(x))


FUNCTIONS: dict[str, Callable[..., Values]] = {
    "abs": np.abs, "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh, "atan": np.arctan,
    "atanh": np.arctanh, "ceil": np.ceil, "cos": np.cos, "cosh": np.cosh, "erf": _erf, "exp": np.exp, "floor": np.floor,
    "gelu": _gelu, "gelu_tanh": _gelu_tanh, "log": np.log, "negative": np.negative, "relu": lambda x: np.maximum(x, 0.0),
    "relu6": lambda x: np.clip(x, 0.0, 6.0), "round": np.rint, "rsqrt": lambda x: 1.0 / np.sqrt(x), "selu": _selu,
    "sigmoid": _sigmoid, "sign": np.sign, "silu": lambda x: x * _sigmoid(x), "sin": np.sin, "sinh": np.sinh,
    "softplus": lambda x: np.logaddexp(0.0, x), "sqrt": np.sqrt, "square": np.square, "tan": np.tan, "tanh": np.tanh,
    "trunc": np.trunc, "add": np.add, "divide": np.divide, "maximum": np.maximum, "minimum": np.minimum,
    "multiply": np.multiply, "power": np.power, "subtract": np.subtract, "clip": np.clip,
    "leakyrelu": lambda x, alpha: np.where(x >= 0, x, alpha * x),
}  # fmt: skip
"""Relax operators with the function that each computes; binary ones take tensors or constants of one element."""


def is_elementwise(graph: Graph, name: str) -> bool:
    """Whether the binding is one of :data:`FUNCTIONS` on tensors of its own shape and constants of one element."""
    expr, op = graph.exprs[name], op_of(graph.exprs[name])
    if op not in FUNCTIONS or graph.dtype(name) != "float32":
        return False
    if op == "softplus" and float(expr.attrs.beta) != 1.0:
        return False
    for arg in expr.args:
        if isinstance(arg, relax.Var) and graph.shape(arg.name) != graph.shape(name):
            return False
        constant = constant_of(arg)
        if constant is not None and constant.size != 1:
            return False
    return True


def evaluate(graph: Graph, bindings: Sequence[str], source: str, values: Values) -> Values:
    """Values of the last of ``bindings``, elementwise functions of the tensor ``source``, where that tensor is ``values``."""
    known = {source: values}
    with np.errstate(all="ignore"):
        for name in bindings:
            expr = graph.exprs[name]
            operands = [known[arg.name] if isinstance(arg, relax.Var) else scalar(arg) for arg in expr.args]
            if op_of(expr) == "leakyrelu":
                operands.append(float(expr.attrs.alpha))
            known[name] = np.asarray(FUNCTIONS[op_of(expr)](*operands), dtype=np.float64)
    return known[bindings[-1]]


def scalar(expr: relax.Expr) -> float:
    """Value of a constant of one element, or of a number such as the bounds of ``clip``."""
    constant = constant_of(expr)
    return float(constant.reshape(-1)[0]) if constant is not None else float(expr.value)
