"""Layout changes of constants, which converters emit as operators, done at once.

::

    Before   b = R.reshape(bias, [1, C, 1, 1]);  y = R.add(x, b)
    After    y = R.add(x, const[1, C, 1, 1])

``R.quantize`` and ``R.dequantize`` of constants stay: realize reads their parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from tvm import IRModule, relax, runtime
from tvm.ir import Expr, GenericConst, Op

from tvmflow.importer.names import substitute, with_main


def shape_of(call: relax.Call) -> tuple[int, ...]:
    return tuple(int(dim) for dim in call.ty.shape)


def permuted(value: np.ndarray, call: relax.Call) -> np.ndarray:
    return np.transpose(value, None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes])


def cast(value: np.ndarray, call: relax.Call) -> np.ndarray:
    return value.astype(str(call.ty.dtype))


def reshaped(value: np.ndarray, call: relax.Call) -> np.ndarray:
    return value.reshape(shape_of(call))


LAYOUT: Mapping[str, Callable[[np.ndarray, relax.Call], np.ndarray]] = {
    "relax.permute_dims": permuted,
    "relax.astype": cast,
    "relax.reshape": reshaped,
    "relax.expand_dims": reshaped,
    "relax.squeeze": reshaped,
}
"""Operators that only move or convert the elements of their first operand."""


def tidy(module: IRModule) -> IRModule:
    """Applies every layout operator of a constant."""
    func = module["main"]
    known: dict[Expr, Expr] = {}

    def leaf(expr: Expr) -> Expr:
        return known.get(expr, expr) if isinstance(expr, relax.Var) else expr

    kept = []
    for binding in (b for block in func.body.blocks for b in block.bindings):
        value = substitute(binding.value, leaf)
        if (
            isinstance(value, relax.Call)
            and isinstance(value.op, Op)
            and value.op.name in LAYOUT
            and isinstance(value.args[0], GenericConst)
        ):
            moved = LAYOUT[value.op.name](value.args[0].value.numpy(), value)
            known[binding.var] = relax.const(runtime.tensor(np.array(moved, order="C")))
        else:
            kept.append(relax.VarBinding(binding.var, value))
    return with_main(module, list(func.params), kept, substitute(func.body.body, leaf))
