"""Common subexpressions: a call that was made before with the same arguments isn't made again.

::

    Before:  a = R.permute_dims(x, [0, 2, 3, 1])             After:  a = R.permute_dims(x, [0, 2, 3, 1])
             b = R.permute_dims(x, [0, 2, 3, 1])                     y = R.nn.relu(a)
             y = R.nn.relu(b)

1. Operators of Relax with equal attributes on the same variables, shapes and equal constants of up to ``LARGEST`` elements.
2. Not merged: packed and loop-nest calls, which may have effects; equal large constants, which are different layers' weights.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmflow.optimize.expr import array, ints, is_constant, op_name
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("static shapes",)
ENSURES = ("no common subexpressions",)

LARGEST = 4096
_CALLS_OUT = ("call_tir", "call_tir_inplace", "call_packed", "call_dps_packed", "call_pure_packed", "print", "assert_op")
_IMPURE = ("builtin.", "multinomial", "random")


def _key(arg: Any) -> Any:
    """What makes an argument equal to another one."""
    if is_constant(arg):
        value = array(arg)
        if value.size <= LARGEST:
            return ("constant", str(value.dtype), value.shape, value.tobytes())
    if isinstance(arg, relax.Tuple):
        return tuple(_key(f) for f in arg.fields)
    if isinstance(arg, relax.ShapeExpr):
        return ("shape", ints(arg))
    if isinstance(arg, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return (str(arg.ty), arg.value)
    return arg


def run(module: tvm.IRModule) -> tvm.IRModule:
    first: dict[Any, Any] = {}

    def rule(walk: Walk, call: Any) -> Any:
        """Case 1."""
        name = op_name(call)
        if not name or name in _CALLS_OUT or name.startswith(_IMPURE):
            return None
        key = (name, tuple(_key(a) for a in call.args), str(call.attrs), str(call.ty))
        if key in first:
            return walk.now(first[key])
        first[key] = walk.var
        return None

    return rewrite(module, rule)
