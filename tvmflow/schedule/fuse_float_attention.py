"""float32 attention becomes one kernel: scores, scale, mask, softmax and weighted values, heads read where they stand.

Before: s = R.matmul(q, k);  t = R.multiply(s, const);  u = R.add(t, mask);  p = R.nn.softmax(u);  y = R.matmul(p, v), with
        q, k, v = R.permute_dims([batch, rows, heads, depth]) and y permuted back behind it
After:  y = kernel attention(q, k, v, scale, mask), without the permutations

1. scores, masked scores and probabilities have no other reader; a scale is one number, and there may be none
2. masks and operands as in fuse_attention
3. values with fewer columns than the narrowest vector, and products that broadcast: left as they are
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvmflow.kernels import spec as ks
from tvmflow.kernels.call import kernel_call
from tvmflow.model import Model
from tvmflow.optimize.expr import dtype_of, op_name, scalar, shape_of
from tvmflow.optimize.walk import Walk, rewrite
from tvmflow.schedule.fuse_attention import SWAP, producer, rows_first, split_mask, without_permutation

NARROWEST = 4
"""Lanes of the narrowest vector."""


def fuse_float_attention(model: Model) -> Model:
    """``model`` with its float attention as kernels."""
    return model.then("fuse_float_attention", rewrite(model.module, _rule))


def _rule(walk: Walk, call: Any) -> Any:
    if op_name(call) == "permute_dims":
        return without_permutation(walk, call)
    if not _is_product(call) or shape_of(call)[-1] < NARROWEST:
        return None
    softmax, _ = producer(walk, call.args[0])
    if op_name(softmax) != "nn.softmax" or int(softmax.attrs.axis) not in (-1, 3):
        return None
    if shape_of(softmax) != shape_of(call.args[0]):
        return None
    batch, heads, m, n = shape_of(softmax)
    shape = (batch, heads, m, n)
    before, _ = producer(walk, softmax.args[0])
    mask = None
    if op_name(before) == "add":
        found = split_mask(walk, before, shape, lambda scores: op_name(scores) in ("matmul", "multiply"))
        if found is None:
            return None
        before, mask = found
    scale = 1.0
    if op_name(before) == "multiply" and (factor := scalar(before.args[1])) is not None:
        scale = factor
        before, _ = producer(walk, before.args[0])
    if not _is_product(before) or shape_of(before) != shape:
        return None
    (q, k), v = before.args, call.args[1]
    d, dv = shape_of(q)[-1], shape_of(v)[-1]
    operands = [
        rows_first(walk, q, (batch, heads, m, d), SWAP),
        rows_first(walk, k, (batch, heads, d, n), (0, 3, 1, 2)),
        rows_first(walk, v, (batch, heads, n, dv), SWAP),
    ]
    masked = None if mask is None else (shape_of(mask)[0], shape_of(mask)[1])
    spec = ks.Attention(batch, heads, m, n, d, dv, masked, "float32", "float32")
    optional = [] if mask is None else [mask]
    factor = relax.const(np.array([scale], np.float32))
    kernel = walk.emit(kernel_call(spec, [*operands, factor, *optional]), f"{walk.name}/attention")
    return walk.emit(relax.op.permute_dims(kernel, SWAP))


def _is_product(call: Any) -> bool:
    """Whether ``call`` multiplies matrices of two float tensors ``[batch, heads, rows, columns]``, head by head."""
    if op_name(call) != "matmul" or dtype_of(call) != "float32" or len(shape_of(call)) != 4:
        return False
    return all(shape_of(arg)[:-2] == shape_of(call)[:2] for arg in call.args)
