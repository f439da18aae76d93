"""Models that carry their parameters: quantize/dequantize pairs (QDQ) become a float graph, a plan and parameters for realize.

::

    Before   y = dequantize(quantize(conv2d(x, dequantize(W)), s, z), s, z)
    After    y = conv2d(x, w)     parameters of y: s, z     parameters of the weight: the scale of W

1. A pair on an activation (int8 or uint8, one scale) disappears; the tensor in front of it has its parameters. Codes of uint8
   become codes of int8, 128 lower, and so does the zero point: the same real values.
2. A dequantized constant becomes a float constant; quantizing it again with its scale gives the same codes.
3. Weights with a zero point keep their codes where ``code - zero point`` fits int8; otherwise they are rounded again, one
   symmetric scale per channel, and their parameters say so (``observer`` is ``rounded``).
4. A tensor that is only pooled by maximum, reshaped, transposed or padded before a pair has that pair's parameters, if none of
   its own (PyTorch's x86 quantizer writes conv, relu, max_pool, pair): quantizing first gives the same codes.
5. A pad that stood before a pair moves into the padding of the layer behind it, as optimize/merge_pads.py does without pairs.
6. Everything else stays as it is, in float32: pairs of 16 bits, one scale per channel of an activation, two pairs of different
   parameters on one tensor (the first one counts), pairs that disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from tvm import relax

from tvmflow.model import Model
from tvmflow.optimize import merge_pads
from tvmflow.optimize.walk import Rule, Walk, rewrite
from tvmflow.quantize.annotate import group_bindings, weight_axis
from tvmflow.quantize.domains import ANCHORS, MOVING, resolve, sites_of, writes_float
from tvmflow.quantize.graph import Graph, constant_of, op_of, read_by, rebuild, view
from tvmflow.quantize.patterns import MOVEMENT, MOVES_FLOAT
from tvmflow.quantize.plan import Group, Plan
from tvmflow.quantize.qparams import QParam, QParams
from tvmflow.quantize.realize.emit import same
from tvmflow.quantize.realize.writer import Writer

KEEPS_PARAMETERS = frozenset({*MOVEMENT, "max_pool2d"})
COMMUTES = frozenset({"max_pool2d", "reshape", "flatten", "squeeze", "expand_dims", "permute_dims", "pad"})
"""Operators for which ``quantize(op(x)) = op(quantize(x))``."""
FROM_MODEL = "model"
ROUNDED = "rounded"


@dataclass(frozen=True)
class Codes:
    """A dequantized constant: ``real = scale * (codes - zero)``, ``scale`` and ``zero`` along ``axis`` or of one element."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    axis: int

    @property
    def shifted(self) -> np.ndarray:
        """``codes - zero``, int32."""
        return self.codes.astype(np.int32) - self._along(self.zero.astype(np.int32))

    @property
    def real(self) -> np.ndarray:
        """float32, as DequantizeLinear defines it: the difference times the scale."""
        return (self.shifted.astype(np.float32) * self._along(self.scale)).astype(np.float32)

    def _along(self, values: np.ndarray) -> np.ndarray:
        shape = [1] * self.codes.ndim
        if values.size > 1:
            shape[self.axis] = values.size
        return values.reshape(shape)


@dataclass
class Stripped:
    """What the pairs said: parameters by tensor, constants by the binding that reads them."""

    params: QParams = field(default_factory=dict)
    constants: dict[str, Codes] = field(default_factory=dict)


def plan_from_qdq(model: Model) -> tuple[Model, Plan, QParams] | None:
    """The float model without pairs, its plan and its parameters; None when the model has no pair.

    A layer is integer when the model has parameters for its operands, its weight and its result; the others stay float with that
    reason.
    """
    if not any(op_of(expr) == "quantize" for expr in view(model.module).exprs.values()):
        return None
    floating, found = strip(model)
    graph = view(floating.module)
    pinned = frozenset(found.params)
    groups, integers = resolve(graph, group_bindings(graph, _veto(found), pinned), pinned)
    params = dict(found.params)
    axes: dict[str, int | None] = {}
    for group in groups:
        if group.integer and group.weight:
            params[group.weight] = _weight_param(found.constants[group.bindings[0]], weight_axis(graph, group))
            axes[group.weight] = weight_axis(graph, group) if params[group.weight].scale.size > 1 else None
    return floating, Plan(sites_of(graph, groups, integers, axes), groups), params


def strip(model: Model) -> tuple[Model, Stripped]:
    """The model without the pairs of case 1 and 2, and what they said."""
    graph = view(model.module)
    found, writer = Stripped(), Writer()
    arguments = [relax.Var(v.name, v.ty) for v in model.module["main"].params]
    new: dict[str, relax.Expr] = {v.name: v for v in arguments}
    carried: dict[str, QParam] = {}
    codes: dict[str, Codes] = {}
    for name, expr in graph.exprs.items():
        constant, source = _constant(expr), next(read_by(expr), "")
        if constant is not None:
            codes[name], new[name] = constant, relax.const(constant.real)
        elif (param := _pair(graph, name)) is not None and _agrees(found.params, new[source], param):
            carried[name], new[name] = param, new[source]
            found.params[new[source].name] = param
        elif op_of(expr) == "dequantize" and source in carried:
            new[name] = new[source]
        else:
            new[name] = writer.emit(name, rebuild(expr, lambda var: new[var.name]))
            if source in carried:
                carried[name] = carried[source]
            constant_read = next((r for r in read_by(expr) if r in codes), "")
            if constant_read:
                found.constants[name] = codes[constant_read]
    result = rebuild(model.module["main"].body.body, lambda var: new[var.name])
    module = writer.finish(model.module, arguments, result)
    found.params.update(_before_moves(view(module), found.params))
    return model.then("strip", rewrite(module, _merge_pad(found.params))), found


def _merge_pad(params: QParams) -> Rule:
    """Case 5, where what is padded has parameters: the layer behind it reads it as integers."""

    def rule(walk: Walk, call: relax.Call) -> relax.Expr | None:
        pad = walk.call(call.args[0], "nn.pad") if call.args else None
        return merge_pads.rule(walk, call) if pad is not None and walk.name_of(pad.args[0]) in params else None

    return rule


def _before_moves(graph: Graph, params: QParams) -> QParams:
    """Parameters of tensors without their own that are read only by operators that commute with quantization."""
    more: dict[str, QParam] = {}
    for name in reversed(graph.exprs):
        param, source = params.get(name, more.get(name)), next(read_by(graph.exprs[name]), "")
        if param and op_of(graph.exprs[name]) in COMMUTES and graph.only_reader(source) and source not in params:
            more[source] = param
    return more


def _constant(expr: relax.Expr) -> Codes | None:
    """Codes of ``dequantize(constant)``."""
    if op_of(expr) != "dequantize":
        return None
    values, scale, zero = (constant_of(arg) for arg in expr.args)
    if values is None or scale is None or zero is None:
        return None
    return Codes(values, scale.astype(np.float32).reshape(-1), zero.reshape(-1), int(expr.attrs.axis) % max(values.ndim, 1))


def _pair(graph: Graph, name: str) -> QParam | None:
    """Parameters of a quantize binding of 8 bits whose codes are only moved, or dequantized with the same parameters."""
    expr = graph.exprs[name]
    if op_of(expr) != "quantize" or not isinstance(expr.args[0], relax.Var):
        return None
    param = _parameters(expr, str(expr.attrs.out_dtype))
    if param is None or not _undone(graph, name, param, str(expr.attrs.out_dtype)):
        return None
    return param


def _parameters(expr: relax.Call, dtype: str) -> QParam | None:
    """Parameters of a quantize or dequantize call in the int8 domain, None when they are not one constant pair of 8 bits."""
    scale, zero = (constant_of(arg) for arg in expr.args[1:])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or dtype not in ("int8", "uint8"):
        return None
    step, point = np.float32(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]) - (128 if dtype == "uint8" else 0)
    return QParam(np.array([step]), point, float(step) * (-128 - point), float(step) * (127 - point), FROM_MODEL)


def _undone(graph: Graph, name: str, param: QParam, dtype: str) -> bool:
    """Whether every reader of the codes ``name`` dequantizes them with ``param``, if need be after moving them."""
    if name in graph.outputs:
        return False
    for reader in graph.readers[name]:
        expr = graph.exprs[reader]
        if op_of(expr) == "dequantize":
            other = _parameters(expr, dtype)
            if other is None or not same(other, param):
                return False
        elif op_of(expr) not in KEEPS_PARAMETERS or not _undone(graph, reader, param, dtype):
            return False
    return True


def _agrees(params: QParams, tensor: relax.Expr, param: QParam) -> bool:
    """Whether ``param`` may be the parameters of ``tensor``, a variable without others."""
    return isinstance(tensor, relax.Var) and same(params.get(tensor.name, param), param)


def _veto(found: Stripped) -> Callable[[Graph, Group], str]:
    """Asked group by group in program order: why the parameters do not suffice, empty when they do."""
    known = set(found.params)

    def veto(graph: Graph, group: Group) -> str:
        passes = group.op in MOVING or group.op == "max_pool"
        missing = [t for t in group.inputs if t not in known]
        if missing:
            return MOVES_FLOAT if group.op in MOVING else f"the model has no parameters for its operand {missing[0]}"
        if group.weight:
            reason = _weight_reason(found.constants, group, weight_axis(graph, group))
            if reason:
                return reason
        if group.output not in known and not passes and not (group.op in ANCHORS and writes_float(graph, group)):
            return "the model has no parameters for its result"
        if passes:
            known.add(group.output)
        return ""

    return veto


def _weight_reason(constants: Mapping[str, Codes], group: Group, axis: int) -> str:
    codes = constants.get(group.bindings[0])
    if codes is None:
        return "its weight is not quantized in the model"
    if codes.scale.size > 1 and codes.axis != axis:
        return "its weight has scales along an axis other than the output channels"
    return ""


def _weight_param(codes: Codes, axis: int) -> QParam:
    """Scale that gives the model's codes back, or, where a zero point keeps them out of int8, one symmetric scale per channel."""
    real, shifted = codes.real, codes.shifted
    low, high = float(real.min()), float(real.max())
    if shifted.min() >= -128 and shifted.max() <= 127:
        return QParam(codes.scale, 0, low, high, FROM_MODEL)
    others = tuple(a for a in range(real.ndim) if a != axis)
    bound = np.abs(real).max(axis=others)
    return QParam((np.where(bound > 0, bound, 1.0) / 127.0).astype(np.float32), 0, low, high, ROUNDED)
