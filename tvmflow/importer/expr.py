"""Operands of the nodes that are lowered here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst


def value(expr: Any) -> np.ndarray:
    """Value of a constant operand; raises for a computed one."""
    if not isinstance(expr, GenericConst):
        raise ValueError("an operand that must be a constant is computed at run time")
    return expr.value.numpy()


def operand(inputs: Sequence[Any], index: int) -> Any:
    """An operand, None when it is left out."""
    return inputs[index] if index < len(inputs) else None


def sizes(expr: relax.Expr) -> list[int]:
    """Static shape of an expression."""
    return [int(dim) for dim in expr.ty.shape]
