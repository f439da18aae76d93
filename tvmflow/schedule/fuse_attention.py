"""Attention between quantized tensors becomes one kernel: scores, mask, softmax and weighted values, heads read where they stand.

Before: s = kernel matmul(q, k) -> float32;  t = R.add(s, mask);  p = R.nn.softmax(t);  i = kernel quantize(p);
        y = kernel matmul(i, v), with q, k, v = R.permute_dims([batch, rows, heads, depth]) and y permuted back behind it
After:  y = kernel attention(q, k, v, mask), without the permutations

1. the scores, the masked scores and the probabilities have no other reader
2. the mask is the same for all heads; there may be none
3. operands that were not permuted from ``[batch, rows, heads, depth]`` are permuted to it
4. depths that are no multiple of 4, and rows too long for the integer softmax: left as they are
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from tvmflow.kernels import spec as ks
from tvmflow.kernels.call import kernel_args, kernel_call, kernel_of
from tvmflow.kernels.exp2 import LONGEST_ROW, MASK_STEPS
from tvmflow.model import Model
from tvmflow.optimize.expr import array, ints, op_name, shape_of
from tvmflow.optimize.walk import Walk, rewrite

SWAP = (0, 2, 1, 3)
"""Heads and rows change places."""


def fuse_attention(model: Model) -> tuple[Model, tuple[str, ...]]:
    """``model`` with its attention as kernels, and the names of the float layers that went into them."""
    absorbed: list[str] = []

    def rule(walk: Walk, call: Any) -> Any:
        if op_name(call) == "permute_dims":
            return without_permutation(walk, call)
        spec = kernel_of(call)
        if not isinstance(spec, ks.MatMul) or spec.transpose_b or "float32" in (spec.x, spec.y):
            return None
        found = _Chain.of(walk, spec, call)
        if found is None:
            return None
        absorbed.extend(found.layers)
        return found.emit(walk, spec, call)

    return model.then("fuse_attention", rewrite(model.module, rule)), tuple(absorbed)


@dataclass(frozen=True)
class _Chain:
    """What stands before the product with the values."""

    scores: Any
    """The call of the product with the keys."""
    mask: Any
    """Its tensor ``[batches, queries, keys]``, or None."""
    quantize: Any
    """The call that quantizes the probabilities."""
    shape: tuple[int, int, int, int]
    """batch, heads, queries, keys"""
    layers: tuple[str, ...]

    @staticmethod
    def of(walk: Walk, values: ks.MatMul, call: Any) -> _Chain | None:
        quantize, _ = producer(walk, kernel_args(call)[0])
        probabilities = kernel_of(quantize)
        if not isinstance(probabilities, ks.Quantize) or probabilities.nchw:
            return None
        softmax, name = producer(walk, kernel_args(quantize)[0])
        rank = len(shape_of(softmax)) if op_name(softmax) == "nn.softmax" else 0
        if not rank or int(softmax.attrs.axis) not in (-1, rank - 1):
            return None
        batch, heads, m, n = shape_of(softmax) if rank == 4 else (values.batch, 1, values.m, values.k)
        shape = (batch, heads, m, n)
        layers, mask = [name], None
        before, name = producer(walk, softmax.args[0])
        if op_name(before) == "add":
            found = split_mask(walk, before, shape, lambda scores: isinstance(kernel_of(scores), ks.MatMul))
            if found is None:
                return None
            layers.append(name)
            before, mask = found
        scores = kernel_of(before)
        if not isinstance(scores, ks.MatMul) or scores.transpose_b or scores.x != values.x or scores.y != "float32":
            return None
        if prod(shape[:2]) != values.batch or shape[2:] != (values.m, values.k) or scores.batch != values.batch:
            return None
        if scores.k % 4 or values.n % 4 or values.k > LONGEST_ROW:
            return None
        return _Chain(before, mask, quantize, shape, tuple(layers))

    def emit(self, walk: Walk, values: ks.MatMul, call: Any) -> Any:
        batch, heads, m, n = self.shape
        q, k, score_multiplier, score_quant = kernel_args(self.scores)
        _, probability_scale, probability_quant = kernel_args(self.quantize)
        _, v, value_multiplier, value_quant = kernel_args(call)
        d, dv = shape_of(q)[-1], values.n
        steps = np.float64(array(score_multiplier)[0]) * MASK_STEPS
        multiplier = [steps, 1.0 / np.float64(array(probability_scale)[0]), array(value_multiplier)[0]]
        _, v_zero, y_zero, lo, hi = (int(x) for x in array(value_quant))
        quant = [int(array(score_quant)[0]), int(array(probability_quant)[0]), v_zero, y_zero, lo, hi]
        operands = [
            rows_first(walk, q, (batch, heads, m, d), SWAP),
            rows_first(walk, k, (batch, heads, d, n), (0, 3, 1, 2)),
            rows_first(walk, v, (batch, heads, n, dv), SWAP),
        ]
        constants = [relax.const(np.array(multiplier, np.float32)), relax.const(np.array(quant, np.int32))]
        masked = None if self.mask is None else (shape_of(self.mask)[0], shape_of(self.mask)[1])
        spec = ks.Attention(batch, heads, m, n, d, dv, masked, values.x, values.y)
        mask = [] if self.mask is None else [self.mask]
        kernel = walk.emit(kernel_call(spec, [*operands, *constants, *mask]), f"{walk.name}/attention")
        swapped = walk.emit(relax.op.permute_dims(kernel, SWAP), f"{walk.name}.heads")
        return walk.emit(relax.op.reshape(swapped, shape_of(call)))


def producer(walk: Walk, expr: Any) -> tuple[Any, str]:
    """The call that computes ``expr``, seen through reshapes, and its name; None where others read one of these tensors."""
    while isinstance(expr, relax.Var) and walk.only_use(expr):
        value = walk.value(expr)
        if op_name(value) != "reshape":
            return value, walk.name_of(expr)
        expr = value.args[0]
    return None, ""


def split_mask(
    walk: Walk, add: Any, shape: tuple[int, int, int, int], are_scores: Callable[[Any], bool]
) -> tuple[Any, Any] | None:
    """The scores and the mask ``[batches, queries, keys]`` that is added to them; None for any other sum."""
    for scores, mask in (add.args, add.args[::-1]):
        found, _ = producer(walk, scores)
        full = (1,) * (4 - len(shape_of(mask))) + shape_of(mask)
        fits = full[1] == 1 and full[3] == shape[3] and all(f in (1, s) for f, s in zip(full, shape, strict=True))
        if fits and len(shape_of(add)) == 4 and are_scores(found):
            return found, walk.emit(relax.op.reshape(mask, (full[0], full[2], full[3])), f"{walk.name}.mask")
    return None


def rows_first(walk: Walk, operand: Any, shape: tuple[int, int, int, int], axes: tuple[int, ...]) -> Any:
    """``operand`` of a product, in ``shape`` with its heads in front, as ``[batch, rows, heads, depth]`` by ``axes``."""
    expr, order, layout = operand, axes, tuple(shape)
    while True:
        call = walk.call(expr, "reshape", "permute_dims")
        if op_name(call) == "permute_dims" and shape_of(call) == layout:
            # order of what is read, in terms of the operand before this permutation
            inner = ints(call.attrs.axes)
            order = tuple(inner[a] for a in order)
            expr, layout = call.args[0], shape_of(call.args[0])
            if order == (0, 1, 2, 3):
                return expr
        elif op_name(call) == "reshape" and order == axes:
            expr = call.args[0]
        else:
            break
    laid_out = walk.emit(relax.op.reshape(expr, layout), f"{walk.name}.operand")
    return walk.emit(relax.op.permute_dims(laid_out, order), f"{walk.name}.rows")


def without_permutation(walk: Walk, call: Any) -> Any:
    """The attention's own result, where ``call`` undoes the permutation behind it."""
    inner = call.args[0]
    while walk.call(inner, "reshape") is not None:
        inner = walk.call(inner, "reshape").args[0]
    first = walk.call(inner, "permute_dims")
    if first is None or shape_of(first) != shape_of(call.args[0]) or call.attrs.axes is None:
        return None
    undone = tuple(ints(first.attrs.axes)[a] for a in ints(call.attrs.axes)) == (0, 1, 2, 3)
    return first.args[0] if undone and isinstance(kernel_of(walk.value(first.args[0])), ks.Attention) else None
