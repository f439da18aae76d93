"""Channels last: convolutions, pools and resizes run in NHWC, and transposes are carried along until something needs them.

::

    Before:  c = R.nn.conv2d(x, w, data_layout="NCHW")       After:  t = R.permute_dims(x, [0, 2, 3, 1])
             y = R.nn.relu(R.add(c, b[1, C, 1, 1]))                  c = R.nn.conv2d(t, w', "NHWC", "OHWI")
             z = R.reshape(R.mean(y, [2, 3], True), (n, c))          y = R.nn.relu(R.add(c, b[1, 1, 1, C]))
                                                                     z = R.reshape(R.mean(y, [1, 2], True), (n, c))

1. conv2d, pools and resize2d read and write NHWC, kernels are OHWI; constants are transposed here.
2. Elementwise operators keep the layout of their largest argument; the others follow it.
3. concat, split, slice, pad, softmax, reductions, layer norm and friends act on the dimension where their axis now lies.
4. ``permute_dims`` and ``reshape`` cost nothing: they change the view (``views``). A matmul by a constant reads the flattened
   activation in memory's order and has its weight's rows permuted here.
5. Every other operator, and the output, gets the model's layout back; each tensor is transposed to one order at most once.
6. A model without spatial operators is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.canonical_shapes import permutation as axes_of_permute
from tvmflow.optimize.expr import array, const, has_static_shape, ints, is_constant, op_name, shape_of
from tvmflow.optimize.views import (
    Axis,
    Group,
    View,
    dimension_of,
    flat,
    permutation,
    plain,
    reshaped,
    sizes,
    transposed,
    whole_dimensions,
)
from tvmflow.optimize.walk import Writer, substitute, variables

REQUIRES = ("canonical shapes", "constants second")
ENSURES = ("channels last",)

CONVOLUTIONS = ("nn.conv2d",)
POOLS = ("nn.max_pool2d", "nn.avg_pool2d", "nn.adaptive_avg_pool2d")
SPATIAL = (*CONVOLUTIONS, *POOLS, "image.resize2d")

# fmt: off
ELEMENTWISE = (
    "abs", "add", "astype", "ceil", "clip", "cos", "divide", "equal", "erf", "exp", "floor", "floor_divide", "floor_mod",
    "greater", "greater_equal", "isfinite", "isinf", "isnan", "less", "less_equal", "log", "logical_and", "logical_not",
    "logical_or", "logical_xor", "maximum", "minimum", "mod", "multiply", "negative", "nn.gelu", "nn.gelu_tanh",
    "nn.leakyrelu", "nn.relu", "nn.selu", "nn.silu", "nn.softplus", "not_equal", "power", "round", "rsqrt", "sigmoid",
    "sign", "sin", "sqrt", "square", "subtract", "tan", "tanh", "where",
)
# fmt: on
REDUCTIONS = ("max", "mean", "min", "prod", "std", "sum", "variance")


class ChannelsLast(Writer):
    """One walk that keeps, for each old variable, the view that stands for it."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._views: dict[Any, Any] = {}
        self._laid_out: dict[Any, Any] = {}

    def run(self) -> tvm.IRModule:
        """The module with ``main`` in channels-last layout."""
        for param in self.main.params:
            self._views[param] = plain(param) if has_static_shape(param) else param
        for binding in self.old_bindings():
            self.name = str(binding.var.name)
            self._views[binding.var] = self._visit(binding.var, binding.value)
        return self.finish(self._as_meant(self.main.body.body))

    def _visit(self, var: Any, value: Any) -> Any:
        """View, tuple of views, or plain variable of a binding."""
        if isinstance(value, relax.Var):
            return self._views[value]
        if isinstance(value, relax.TupleGetItem):
            source = self._views[value.tuple_value]
            if isinstance(source, tuple):
                return source[value.index]
        handler = HANDLERS.get(op_name(value))
        result = handler(self, value) if handler is not None and self._is_plain(value) else None
        return self._verbatim(var, value) if result is None else result

    def _is_plain(self, call: Any) -> bool:
        """Whether tensors in and out have static shapes."""
        outputs = call.ty.fields if isinstance(call.ty, relax.TupleType) else [call.ty]
        return all(isinstance(t, relax.TensorType) and isinstance(t.shape, relax.ShapeExpr) for t in outputs)

    def _verbatim(self, var: Any, value: Any) -> Any:
        """Case 5."""
        new = self._as_meant(value)
        if new.same_as(value):
            self.bind(var, value)
        else:
            var = self.emit(new)
        return plain(var) if has_static_shape(var) else var

    def _as_meant(self, expr: Any) -> Any:
        """``expr`` on tensors in the model's layout."""
        return substitute(expr, {v: self._in_order(self._views[v]) for v in variables(expr)})

    def _in_order(self, view: Any) -> Any:
        if isinstance(view, tuple):
            return relax.Tuple([self._in_order(v) for v in view])
        return self.laid_out(view, view.logical) if isinstance(view, View) else view

    def view(self, expr: Any) -> View:
        """View of an argument; constants are as they are."""
        return plain(expr) if is_constant(expr) else self._views[expr]

    def laid_out(self, view: View, wanted: Sequence[Group]) -> Any:
        """The tensor of ``view`` with dimensions ``wanted`` in memory."""
        shape, order = sizes(wanted), flat(wanted)
        if flat(view.physical) == order:
            return self._reshape(view.var, shape)
        before = flat(view.physical)
        positions = tuple(before.index(a) for a in order)
        key = (view.var, tuple(a.size for a in before), positions, shape)
        if key not in self._laid_out:
            axes = permutation(view, wanted)
            if axes is not None:
                self._laid_out[key] = self._permute(view.var, axes)
            else:
                split = self._reshape(view.var, key[1])
                self._laid_out[key] = self._reshape(self._permute(split, positions), shape)
        return self._laid_out[key]

    def _reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        if shape_of(x) == shape:
            return x
        return (
            const(array(x).reshape(shape))
            if is_constant(x)
            else self.emit(relax.op.reshape(x, shape), self.name_of(x) + ".shape")
        )

    def _permute(self, x: Any, axes: Sequence[int]) -> Any:
        if is_constant(x):
            return const(np.transpose(array(x), axes))
        return self.emit(relax.op.permute_dims(x, list(axes)), self.name_of(x) + ".layout")

    def isolated(self, view: View, axes: Sequence[int]) -> tuple[View, list[int]]:
        """The view with a memory dimension for each of the model's ``axes``, and those dimensions."""
        found = [dimension_of(view, a) for a in axes]
        if all(d is not None for d in found):
            return view, [d for d in found if d is not None]
        whole = whole_dimensions(view)
        view = View(self.laid_out(view, whole), whole, view.logical)
        return view, [view.physical.index(view.logical[a]) for a in axes]

    def followed(self, view: View, leader: View) -> Any:
        """The tensor of ``view`` laid out to broadcast against ``leader``'s; None when no layout of dimensions does that."""
        lead = len(leader.logical) - len(view.logical)
        if lead < 0 or math.prod(view.shape) == 1:
            return None if lead < 0 else view.var if len(view.physical) <= len(leader.physical) else self._reshape(view.var, ())
        pairs = zip(leader.logical[lead:], view.shape, strict=True)
        slots = [(axis, size > 1) for group, size in pairs for axis in flat([group])]
        parts = [axis.size if varies else 1 for axis, varies in slots]
        fine = reshaped(view, parts) or reshaped(plain(self._in_order(view)), parts)
        if fine is None:
            return None
        varying = {axis for axis, varies in slots if varies}
        missing = {a for g in leader.physical if varying & set(g) for a in flat([g])} - varying
        if missing:
            if not is_constant(view.var):
                return None
            repeated = [axis.size if axis in missing else part for (axis, _), part in zip(slots, parts, strict=True)]
            fine = plain(const(np.broadcast_to(array(view.var).reshape(parts), repeated)))
        group_of = {axis: group for (axis, _), group in zip(slots, fine.logical, strict=True) if axis in varying | missing}
        wanted = [tuple(a for axis in flat([dim]) for a in group_of.get(axis, ())) for dim in leader.physical]
        if is_constant(view.var) and len(view.logical) == 1 and len(wanted) < 4 and flat(wanted) == flat(wanted[-1:]):
            wanted = wanted[-1:]
        return self.laid_out(fine, wanted)


def _rebuilt(call: Any, args: Sequence[Any]) -> Any:
    return relax.Call(call.op, list(args), call.attrs, call.ty_args)


def _is_tensor(expr: Any) -> bool:
    return isinstance(expr.ty, relax.TensorType)


def _conv2d(w: ChannelsLast, call: Any) -> View | None:
    """Case 1."""
    a = call.attrs
    data, kernel = str(a.data_layout), str(a.kernel_layout)
    if sorted(data) != sorted("NHWC") or sorted(kernel) != sorted("OHWI") or str(a.out_layout) != data:
        return None
    x, weight = w.view(call.args[0]), w.view(call.args[1])
    order = [data.index(axis) for axis in "NHWC"]
    x_var = w.laid_out(x, [x.logical[i] for i in order])
    w_var = w.laid_out(weight, [weight.logical[kernel.index(axis)] for axis in "OHWI"])
    out_dtype = None if a.out_dtype is None else str(a.out_dtype)
    y = relax.op.nn.conv2d(
        x_var, w_var, ints(a.strides), ints(a.padding), ints(a.dilation), int(a.groups), "NHWC", "OHWI", "NHWC", out_dtype
    )
    return plain(w.emit(y), order)


def _spatial(w: ChannelsLast, call: Any) -> View | None:
    """Case 1, pools and resize2d."""
    a, name = call.attrs, op_name(call)
    layout = str(a.layout)
    if sorted(layout) != sorted("NHWC") or (name in POOLS and str(a.out_layout) != layout):
        return None
    order = [layout.index(axis) for axis in "NHWC"]
    x = w.view(call.args[0])
    x_var = w.laid_out(x, [x.logical[i] for i in order])
    if name == "image.resize2d":
        out_dtype = None if a.out_dtype is None else str(a.out_dtype)
        modes = (str(a.method), str(a.coordinate_transformation_mode), str(a.rounding_method))
        numbers = (float(a.cubic_alpha), int(a.cubic_exclude), float(a.extrapolation_value))
        roi = tuple(float(r.value) for r in a.roi)
        y = relax.op.image.resize2d(x_var, call.args[1], roi, "NHWC", *modes, *numbers, out_dtype)
    elif name == "nn.adaptive_avg_pool2d":
        y = relax.op.nn.adaptive_avg_pool2d(x_var, None if a.output_size is None else ints(a.output_size), "NHWC")
    else:
        make = relax.op.nn.max_pool2d if name == "nn.max_pool2d" else relax.op.nn.avg_pool2d
        window = (ints(a.pool_size), ints(a.strides), ints(a.padding), ints(a.dilation))
        y = make(x_var, *window, bool(a.ceil_mode), bool(a.count_include_pad), "NHWC")
    return plain(w.emit(y), order)


def _elementwise(w: ChannelsLast, call: Any) -> View | None:
    """Case 2."""
    views = {i: w.view(arg) for i, arg in enumerate(call.args) if _is_tensor(arg)}
    leaders = [v for i, v in views.items() if not is_constant(call.args[i]) and v.shape == shape_of(call)]
    if not leaders:
        return None
    leader = next((v for v in leaders if not v.in_order), leaders[0])
    args = list(call.args)
    for i, view in views.items():
        args[i] = view.var if view is leader else w.followed(view, leader)
        if args[i] is None:
            return None
    return leader.having(w.emit(_rebuilt(call, args)))


def _resized(view: View, dims: Sequence[int], var: Any) -> View:
    """View of ``var``, which differs from ``view`` in the sizes of memory dimensions ``dims``."""
    physical, logical = list(view.physical), list(view.logical)
    for d in dims:
        old, new = physical[d], (Axis(shape_of(var)[d]),)
        which = next(i for i, g in enumerate(logical) if flat([g]) == flat([old]) and (flat([old]) or set(g) & set(old)))
        physical[d] = logical[which] = new
    return View(var, tuple(physical), tuple(logical))


def _reduction(w: ChannelsLast, call: Any) -> View | None:
    """Case 3."""
    source = w.view(call.args[0])
    rank = len(source.logical)
    axes = list(range(rank)) if call.attrs.axis is None else sorted(int(a) % rank for a in call.attrs.axis)
    view, dims = w.isolated(source, axes)
    make = getattr(relax.op, op_name(call))
    kept = bool(call.attrs.keepdims)
    var = w.emit(make(view.var, sorted(dims), keepdims=kept))
    if kept:
        return _resized(view, dims, var)
    physical = tuple(g for i, g in enumerate(view.physical) if i not in dims)
    return View(var, physical, tuple(g for i, g in enumerate(view.logical) if i not in axes))


def _softmax(w: ChannelsLast, call: Any) -> View:
    view = w.view(call.args[0])
    view, (dim,) = w.isolated(view, [int(call.attrs.axis) % len(view.logical)])
    make = relax.op.nn.softmax if op_name(call) == "nn.softmax" else relax.op.nn.log_softmax
    return view.having(w.emit(make(view.var, dim)))


def _layer_norm(w: ChannelsLast, call: Any) -> View | None:
    """One axis; its parameters are vectors."""
    view, a = w.view(call.args[0]), call.attrs
    if len(a.axes) != 1:
        return None
    view, (dim,) = w.isolated(view, [int(a.axes[0]) % len(view.logical)])
    params = [w._in_order(w.view(p)) for p in call.args[1:]]
    y = relax.op.nn.layer_norm(view.var, *params, [dim], float(a.epsilon), bool(a.center), bool(a.scale))
    return view.having(w.emit(y))


def _channel_norm(w: ChannelsLast, call: Any) -> View:
    """Group and instance norm; their parameters are vectors."""
    view, a = w.view(call.args[0]), call.attrs
    rank = len(view.logical)
    axes = [int(axis) % rank for axis in a.axes]
    view, (channel, *dims) = w.isolated(view, [int(a.channel_axis) % rank, *axes])
    params = [w._in_order(w.view(p)) for p in call.args[1:]]
    rest = (channel, dims, float(a.epsilon), bool(a.center), bool(a.scale))
    if op_name(call) == "nn.group_norm":
        return view.having(w.emit(relax.op.nn.group_norm(view.var, *params, int(a.num_groups), *rest)))
    return view.having(w.emit(relax.op.nn.instance_norm(view.var, *params, *rest)))


def _prelu(w: ChannelsLast, call: Any) -> View:
    view = w.view(call.args[0])
    view, (dim,) = w.isolated(view, [int(call.attrs.axis) % len(view.logical)])
    return view.having(w.emit(relax.op.nn.prelu(view.var, w._in_order(w.view(call.args[1])), dim)))


def _affine_quantization(w: ChannelsLast, call: Any) -> View:
    """quantize and dequantize: elementwise with one scale, else along an axis."""
    view = w.view(call.args[0])
    scale, zero = (w._in_order(w.view(p)) for p in call.args[1:])
    dim = -1
    if math.prod(shape_of(scale)) > 1:
        view, (dim,) = w.isolated(view, [int(call.attrs.axis) % len(view.logical)])
    make = relax.op.quantize if op_name(call) == "quantize" else relax.op.dequantize
    return view.having(w.emit(make(view.var, scale, zero, dim, str(call.attrs.out_dtype))))


def _concat(w: ChannelsLast, call: Any) -> View | None:
    """Memory order of the first part that isn't in the model's order; the others follow."""
    if not isinstance(call.args[0], relax.Tuple) or call.attrs.axis is None:
        return None
    views = [w.view(f) for f in call.args[0].fields]
    leader = next((v for v in views if not v.in_order), views[0])
    axis = int(call.attrs.axis) % len(leader.logical)
    order = [leader.logical.index(g) for g in whole_dimensions(leader)]
    parts = [w.laid_out(v, [v.logical[i] for i in order]) for v in views]
    return plain(w.emit(relax.op.concat(parts, order.index(axis))), order)


def _split(w: ChannelsLast, call: Any) -> tuple[View, ...] | None:
    view = w.view(call.args[0])
    view, (dim,) = w.isolated(view, [int(call.attrs.axis) % len(view.logical)])
    where = call.attrs.indices_or_sections
    y = w.emit(relax.op.split(view.var, int(where) if isinstance(where, tvm.tirx.IntImm | int) else list(ints(where)), dim))
    parts = [w.emit(relax.TupleGetItem(y, i), f"{w.name}.{i}") for i in range(len(y.ty.fields))]
    return tuple(_resized(view, [dim], part) for part in parts)


def _strided_slice(w: ChannelsLast, call: Any) -> View | None:
    if not all(isinstance(a, relax.Tuple) for a in call.args[1:]):
        return None
    view = w.view(call.args[0])
    view, dims = w.isolated(view, [a % len(view.logical) for a in ints(call.args[1])])
    limits = [list(ints(a)) for a in call.args[2:]]
    y = relax.op.strided_slice(view.var, dims, *limits, assume_inbound=bool(call.attrs.assume_inbound))
    return _resized(view, dims, w.emit(y))


def _pad(w: ChannelsLast, call: Any) -> View:
    widths, view = ints(call.attrs.pad_width), w.view(call.args[0])
    axes = [i for i in range(len(view.logical)) if any(widths[2 * i : 2 * i + 2])]
    view, dims = w.isolated(view, axes)
    new = [0] * (2 * len(view.physical))
    for axis, dim in zip(axes, dims, strict=True):
        new[2 * dim : 2 * dim + 2] = widths[2 * axis : 2 * axis + 2]
    y = relax.op.nn.pad(view.var, new, str(call.attrs.pad_mode), float(call.attrs.pad_value))
    return _resized(view, dims, w.emit(y))


def _permute_dims(w: ChannelsLast, call: Any) -> View:
    return transposed(w.view(call.args[0]), axes_of_permute(call))


def _reshape(w: ChannelsLast, call: Any) -> View:
    """Case 4; a shape whose dimensions don't divide is made in the model's order."""
    view = w.view(call.args[0])
    result = reshaped(view, shape_of(call))
    return plain(w.emit(relax.op.reshape(w._in_order(view), shape_of(call)))) if result is None else result


def _matmul(w: ChannelsLast, call: Any) -> View | None:
    """Case 4. Leading dimensions stay in memory's order too; the weight is ``[K, N]``."""
    x, weight = w.view(call.args[0]), w.view(call.args[1])
    if len(weight.logical) != 2 or len(x.logical) < 2 or x.shape[-1] == 1:
        return None
    depth = set(flat(x.logical[-1:]))
    order = flat(x.physical)
    inner = order[len(order) - len(depth) :]
    if set(inner) != depth:
        return None
    rows = reshaped(weight, [a.size for a in flat(x.logical[-1:])] + [weight.shape[1]])
    if rows is None:
        return None
    row_of = dict(zip(flat(x.logical[-1:]), rows.logical, strict=False))
    w_var = w.laid_out(rows, [tuple(a for axis in inner for a in row_of[axis]), rows.logical[-1]])
    outer = order[: len(order) - len(depth)]
    lead = x.logical[:-1] if outer == flat(x.logical[:-1]) else tuple((a,) for a in outer)
    x_var = w.laid_out(x, [*lead, inner])
    out_dtype = None if call.attrs.out_dtype is None else str(call.attrs.out_dtype)
    var = w.emit(relax.op.matmul(x_var, w_var, out_dtype))
    columns = (Axis(shape_of(var)[-1]),)
    return View(var, (*lead, columns), (*x.logical[:-1], columns))


Handler = Callable[[ChannelsLast, Any], Any]

HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys((*POOLS, "image.resize2d"), _spatial),
    "concat": _concat,
    "dequantize": _affine_quantization,
    "matmul": _matmul,
    "nn.conv2d": _conv2d,
    "nn.group_norm": _channel_norm,
    "nn.instance_norm": _channel_norm,
    "nn.layer_norm": _layer_norm,
    "nn.log_softmax": _softmax,
    "nn.pad": _pad,
    "nn.prelu": _prelu,
    "nn.softmax": _softmax,
    "permute_dims": _permute_dims,
    "quantize": _affine_quantization,
    "reshape": _reshape,
    "split": _split,
    "strided_slice": _strided_slice,
}
"""What each operator does with views; an operator that is not here gets the model's layout."""


def run(module: tvm.IRModule) -> tvm.IRModule:
    writer = ChannelsLast(module)
    if not any(op_name(b.value) in SPATIAL for b in writer.old_bindings()):
        return module
    return writer.run()
