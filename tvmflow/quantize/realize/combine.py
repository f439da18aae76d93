"""Operators that bring several quantized tensors to one scale: add, subtract, mul, concat."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmflow.errors import ModelError
from tvmflow.kernels import spec as ks
from tvmflow.quantize.graph import op_of, shape_of
from tvmflow.quantize.patterns import clamp_of
from tvmflow.quantize.plan import Group
from tvmflow.quantize.qparams import QParam
from tvmflow.quantize.realize.emit import Emitter, floats, ints
from tvmflow.quantize.realize.products import Pending, finish

MAX_SHIFT = 22
"""A zero point shifted up by it still fits int32 beside the sum."""
MAX_MULTIPLIER = 2**15 - 1
"""Pairs of int16 products are one instruction on x86, and their error stays below a hundredth of a step."""


def add(e: Emitter, group: Group) -> None:
    """``a + b`` or ``a - b``."""
    (a, a_param), (b, b_param) = _operands(e, group)
    y = e.param(group.output)
    terms = _fixed_point(group, a_param, b_param, y, 1.0, _sign(e, group))
    quant = ints(e.zero(a_param), e.zero(b_param), e.zero(y), *_bounds(e, group, y), *terms)
    spec = ks.Binary("add", shape_of(a), shape_of(b), e.storage, e.storage)
    e.integers[group.output] = (e.reshape(e.kernel(group.layer, spec, (a, b, quant)), e.graph.shape(group.output)), y)


def add_to_convolution(e: Emitter, group: Group, convolution: str, pending: Pending) -> None:
    """The same sum in the epilogue of the convolution that writes one of the operands, the tensor named ``convolution``."""
    first, second = (v.name for v in e.graph.exprs[group.bindings[0]].args)
    other, signs = (second, (1.0, _sign(e, group))) if convolution == first else (first, (_sign(e, group), 1.0))
    value, b_param = e.integer(other)
    y = e.param(group.output)
    terms = _fixed_point(group, pending.param, b_param, y, *signs)
    quant = (e.zero(pending.param), e.zero(b_param), e.zero(y), *_bounds(e, group, y), *terms)
    e.integers[group.output] = (finish(e, pending, e.graph.shape(group.output), (value, quant)), y)


def mul(e: Emitter, group: Group) -> None:
    """``a * b``."""
    (a, a_param), (b, b_param) = _operands(e, group)
    y = e.param(group.output)
    multiplier = (
        np.float64(np.float32(a_param.scale[0])) * np.float64(np.float32(b_param.scale[0])) / np.float64(np.float32(y.scale[0]))
    )
    quant = ints(e.zero(a_param), e.zero(b_param), e.zero(y), *_bounds(e, group, y))
    spec = ks.Binary("mul", shape_of(a), shape_of(b), e.storage, e.storage)
    value = e.kernel(group.layer, spec, (a, b, floats([multiplier]), quant))
    e.integers[group.output] = (e.reshape(value, e.graph.shape(group.output)), y)


def concat(e: Emitter, group: Group) -> None:
    """Operands with the parameters of the result, then a copy."""
    call = e.graph.exprs[group.bindings[0]]
    y = e.param(group.output)
    operands = {name: e.integer_as(name, y) for name in group.inputs}
    fields = [operands[v.name] for v in call.args[0].fields]
    e.integers[group.output] = (e.emit(group.layer, relax.op.concat(fields, axis=int(call.attrs.axis))), y)


def fixed_point(a: float, b: float) -> tuple[int, int, int]:
    """Integers ``ma, mb, shift`` with ``ma / 2**shift`` near ``a`` and ``mb / 2**shift`` near ``b``.

    ``shift`` is the largest up to 22 for which both fit int16. Raises ValueError when none does (a ratio of 2**14 and more).
    """
    for shift in range(MAX_SHIFT, 0, -1):
        ma, mb = round(a * 2**shift), round(b * 2**shift)
        if max(abs(ma), abs(mb)) <= MAX_MULTIPLIER:
            return ma, mb, shift
    raise ValueError(f"no shift fits the ratios {a:g} and {b:g}")


def _fixed_point(group: Group, a: QParam, b: QParam, y: QParam, a_sign: float, b_sign: float) -> tuple[int, int, int]:
    a_ratio, b_ratio = (np.float64(np.float32(p.scale[0])) / np.float64(np.float32(y.scale[0])) for p in (a, b))
    try:
        return fixed_point(a_sign * float(a_ratio), b_sign * float(b_ratio))
    except ValueError as error:
        remedy = "calibrate on data that exercises this layer, or skip it in the recipe"
        raise ModelError("the result's scale is far below its operands'", where=group.layer, remedy=remedy) from error


def _sign(e: Emitter, group: Group) -> float:
    return -1.0 if op_of(e.graph.exprs[group.bindings[0]]) == "subtract" else 1.0


def _bounds(e: Emitter, group: Group, y: QParam) -> tuple[int, int]:
    return e.bounds(y, clamp_of(e.graph, group.bindings[-1]))


def _operands(e: Emitter, group: Group) -> list[tuple[relax.Expr, QParam]]:
    """Both operands as integers, of equal rank."""
    args = e.graph.exprs[group.bindings[0]].args
    pairs = [e.integer(v.name) if isinstance(v, relax.Var) else e.constant(v) for v in args]
    rank = max(len(shape_of(v)) for v, _ in pairs)
    return [(e.reshape(v, (1,) * (rank - len(shape_of(v))) + shape_of(v)), param) for v, param in pairs]
