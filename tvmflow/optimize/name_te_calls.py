"""Names loop nests: a ``call_tir`` of a TE function that importers emit becomes the operator that it computes.

::

    Before:  y = R.call_tir(maximum, (x, lo))        After:  y = R.maximum(x, lo)
             z = R.call_tir(pad, (y,))                       z = R.nn.pad(y, (0, 0, 0, 0, 1, 1, 1, 1))

1. ``max(a[..], b[..])``, ``min(a[..], b[..])`` of two broadcast buffers: ``R.maximum``, ``R.minimum``.
2. ``if_then_else(inside, x[i - before, ..], constant)``: ``R.nn.pad`` with that constant.
3. Anything else, a reflecting pad for instance, stays a loop nest.

The body is read, not the name of the function.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, s_tir, tirx

from tvmflow.optimize.expr import has_static_shape, op_name, shape_of
from tvmflow.optimize.walk import Walk, rewrite

REQUIRES = ("static shapes",)
ENSURES = ("loop nests named",)


def _stored_value(function: Any) -> tuple[Any, list[Any]] | None:
    """Value that the single block of ``function`` stores, and the block's iteration variables."""
    node, block = function.body, None
    while not isinstance(node, tirx.BufferStore):
        if isinstance(node, s_tir.SBlockRealize):
            block = node.block
            node = block.body
        elif isinstance(node, tirx.For):
            node = node.body
        else:
            return None
    store = node
    if block is None:
        return None
    iters = [v.var for v in block.iter_vars]
    if len(store.indices) != len(iters) or not all(i.same_as(v) for i, v in zip(store.indices, iters, strict=True)):
        return None
    return store.value, iters


def _is_broadcast_load(value: Any, buffer: Any, iters: list[Any]) -> bool:
    """Whether ``value`` reads ``buffer`` by numpy's broadcast rules."""
    if not isinstance(value, tvm.ir.TensorLoad) or not value.source.same_as(buffer):
        return False
    tail = iters[len(iters) - len(value.indices) :]
    return all(
        index.same_as(var) or (int(size) == 1 and isinstance(index, tirx.IntImm) and int(index) == 0)
        for index, var, size in zip(value.indices, tail, buffer.ty.shape, strict=True)
    )


def _pad_before(index: Any, var: Any) -> int | None:
    """``before`` of the index ``var - before``."""
    if index.same_as(var):
        return 0
    if isinstance(index, tirx.Sub) and index.a.same_as(var) and isinstance(index.b, tirx.IntImm):
        return int(index.b)
    return None


def _as_pad(call: Any, x: Any, value: Any, iters: list[Any]) -> Any:
    """Case 2."""
    if not isinstance(value, relax.Call) or value.op.name != "prim.if_then_else":
        return None
    _, load, fill = value.args
    if not isinstance(load, tvm.ir.TensorLoad) or not isinstance(fill, tirx.FloatImm | tirx.IntImm):
        return None
    before = [_pad_before(i, v) for i, v in zip(load.indices, iters, strict=True)]
    widths: list[int] = []
    for first, size, padded in zip(before, shape_of(x), shape_of(call), strict=True):
        if first is None or padded - size - first < 0:
            return None
        widths += [first, padded - size - first]
    return relax.op.nn.pad(x, widths, "constant", float(fill.value))


def rule(walk: Walk, call: Any) -> Any:
    """Cases 1 and 2."""
    if op_name(call) != "call_tir" or not has_static_shape(call):
        return None
    function = walk.module[call.args[0]]
    found = _stored_value(function)
    if found is None:
        return None
    value, iters = found
    args = list(call.args[1].fields)
    if isinstance(value, tirx.Max | tirx.Min) and len(args) == 2:
        if not all(_is_broadcast_load(v, b, iters) for v, b in zip((value.a, value.b), function.params, strict=False)):
            return None
        return (relax.op.maximum if isinstance(value, tirx.Max) else relax.op.minimum)(*args)
    return _as_pad(call, args[0], value, iters) if len(args) == 1 else None


def run(module: tvm.IRModule) -> tvm.IRModule:
    return rewrite(module, rule)
