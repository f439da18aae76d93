"""Operators that only move data: the same Relax operator on the integer tensor."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmflow.kernels import spec as ks
from tvmflow.optimize.canonical_shapes import TO_CHANNELS_LAST, permutation
from tvmflow.quantize.graph import op_of
from tvmflow.quantize.plan import Group
from tvmflow.quantize.realize.emit import Emitter


def move(e: Emitter, group: Group) -> None:
    """Parameters pass through; a channels-last transpose of a float input is part of its Quantize kernel."""
    source, expr = group.inputs[0], e.graph.exprs[group.bindings[0]]
    op = op_of(expr)
    if op == "permute_dims" and source not in e.integers and source in e.graph.params and permutation(expr) == TO_CHANNELS_LAST:
        param = e.param(source)
        spec = ks.Quantize(e.graph.shape(group.output), nchw=True, y=e.storage)
        e.boundaries += 1
        e.pass_on(group, e.kernel(f"{source}/quantize", spec, (e.floats[source], *e.quantize_args(param))), param)
        return
    value, param = e.integer(source)
    if op == "copy":
        e.pass_on(group, value, param)
    elif op == "get_item":
        e.pass_on(group, e.emit(group.layer, relax.TupleGetItem(value, expr.index)), param)
    elif group.op == "reshape":
        e.pass_on(group, e.reshape(value, e.graph.shape(group.output)), param)
    elif op == "pad":
        code = np.rint(np.float64(expr.attrs.pad_value) / np.float64(np.float32(param.scale[0]))) + e.zero(param)
        lo, hi = e.bounds(param, None)
        padded = relax.op.nn.pad(value, list(expr.attrs.pad_width), expr.attrs.pad_mode, int(np.clip(code, lo, hi)))
        e.pass_on(group, e.emit(group.layer, padded), param)
    else:
        e.pass_on(group, e.emit(group.layer, relax.Call(expr.op, [value, *expr.args[1:]], expr.attrs, expr.ty_args)), param)
