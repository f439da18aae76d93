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
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from tvmflow.optimize.canonical_shapes import permutation as axes_of_permute
from tvmflow.optimize.expr import ints, is_constant, op_name, shape_of
from tvmflow.optimize.layout_writer import Handler, LayoutWriter
from tvmflow.optimize.views import Axis, View, flat, plain, reshaped, transposed, whole_dimensions

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


def _rebuilt(call: Any, args: Sequence[Any]) -> Any:
    return relax.Call(call.op, list(args), call.attrs, call.ty_args)


def _is_tensor(expr: Any) -> bool:
    return isinstance(expr.ty, relax.TensorType)


def _conv2d(w: LayoutWriter, call: Any) -> View | None:
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


def _spatial(w: LayoutWriter, call: Any) -> View | None:
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


def _elementwise(w: LayoutWriter, call: Any) -> View | None:
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


def _reduction(w: LayoutWriter, call: Any) -> View | None:
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


def _softmax(w: LayoutWriter, call: Any) -> View:
    view = w.view(call.args[0])
    view, (dim,) = w.isolated(view, [int(call.attrs.axis) % len(view.logical)])
    make = relax.op.nn.softmax if op_name(call) == "nn.softmax" else relax.op.nn.log_softmax
    return view.having(w.emit(make(view.var, dim)))


def _layer_norm(w: LayoutWriter, call: Any) -> View | None:
    """One axis; its parameters are vectors."""
    view, a = w.view(call.args[0]), call.attrs
    if len(a.axes) != 1:
        return None
    view, (dim,) = w.isolated(view, [int(a.axes[0]) % len(view.logical)])
    params = [w.in_order(w.view(p)) for p in call.args[1:]]
    y = relax.op.nn.layer_norm(view.var, *params, [dim], float(a.epsilon), bool(a.center), bool(a.scale))
    return view.having(w.emit(y))


def _channel_norm(w: LayoutWriter, call: Any) -> View:
    """Group and instance norm; their parameters are vectors."""
    view, a = w.view(call.args[0]), call.attrs
    rank = len(view.logical)
    axes = [int(axis) % rank for axis in a.axes]
    view, (channel, *dims) = w.isolated(view, [int(a.channel_axis) % rank, *axes])
    params = [w.in_order(w.view(p)) for p in call.args[1:]]
    rest = (channel, dims, float(a.epsilon), bool(a.center), bool(a.scale))
    if op_name(call) == "nn.group_norm":
        return view.having(w.emit(relax.op.nn.group_norm(view.var, *params, int(a.num_groups), *rest)))
    return view.having(w.emit(relax.op.nn.instance_norm(view.var, *params, *rest)))


def _prelu(w: LayoutWriter, call: Any) -> View:
    view = w.view(call.args[0])
    view, (dim,) = w.isolated(view, [int(call.attrs.axis) % len(view.logical)])
    return view.having(w.emit(relax.op.nn.prelu(view.var, w.in_order(w.view(call.args[1])), dim)))


def _affine_quantization(w: LayoutWriter, call: Any) -> View:
    """quantize and dequantize: elementwise with one scale, else along an axis."""
    view = w.view(call.args[0])
    scale, zero = (w.in_order(w.view(p)) for p in call.args[1:])
    dim = -1
    if math.prod(shape_of(scale)) > 1:
        view, (dim,) = w.isolated(view, [int(call.attrs.axis) % len(view.logical)])
    make = relax.op.quantize if op_name(call) == "quantize" else relax.op.dequantize
    return view.having(w.emit(make(view.var, scale, zero, dim, str(call.attrs.out_dtype))))


def _concat(w: LayoutWriter, call: Any) -> View | None:
    """Memory order of the first part that isn't in the model's order; the others follow."""
    if not isinstance(call.args[0], relax.Tuple) or call.attrs.axis is None:
        return None
    views = [w.view(f) for f in call.args[0].fields]
    leader = next((v for v in views if not v.in_order), views[0])
    axis = int(call.attrs.axis) % len(leader.logical)
    order = [leader.logical.index(g) for g in whole_dimensions(leader)]
    parts = [w.laid_out(v, [v.logical[i] for i in order]) for v in views]
    return plain(w.emit(relax.op.concat(parts, order.index(axis))), order)


def _split(w: LayoutWriter, call: Any) -> tuple[View, ...] | None:
    view = w.view(call.args[0])
    view, (dim,) = w.isolated(view, [int(call.attrs.axis) % len(view.logical)])
    where = call.attrs.indices_or_sections
    y = w.emit(relax.op.split(view.var, int(where) if isinstance(where, tvm.tirx.IntImm | int) else list(ints(where)), dim))
    parts = [w.emit(relax.TupleGetItem(y, i), f"{w.name}.{i}") for i in range(len(y.ty.fields))]
    return tuple(_resized(view, [dim], part) for part in parts)


def _strided_slice(w: LayoutWriter, call: Any) -> View | None:
    if not all(isinstance(a, relax.Tuple) for a in call.args[1:]):
        return None
    view = w.view(call.args[0])
    view, dims = w.isolated(view, [a % len(view.logical) for a in ints(call.args[1])])
    limits = [list(ints(a)) for a in call.args[2:]]
    y = relax.op.strided_slice(view.var, dims, *limits, assume_inbound=bool(call.attrs.assume_inbound))
    return _resized(view, dims, w.emit(y))


def _pad(w: LayoutWriter, call: Any) -> View:
    widths, view = ints(call.attrs.pad_width), w.view(call.args[0])
    axes = [i for i in range(len(view.logical)) if any(widths[2 * i : 2 * i + 2])]
    view, dims = w.isolated(view, axes)
    new = [0] * (2 * len(view.physical))
    for axis, dim in zip(axes, dims, strict=True):
        new[2 * dim : 2 * dim + 2] = widths[2 * axis : 2 * axis + 2]
    y = relax.op.nn.pad(view.var, new, str(call.attrs.pad_mode), float(call.attrs.pad_value))
    return _resized(view, dims, w.emit(y))


def _permute_dims(w: LayoutWriter, call: Any) -> View:
    return transposed(w.view(call.args[0]), axes_of_permute(call))


def _reshape(w: LayoutWriter, call: Any) -> View:
    """Case 4; a shape whose dimensions don't divide is made in the model's order."""
    view = w.view(call.args[0])
    result = reshaped(view, shape_of(call))
    return plain(w.emit(relax.op.reshape(w.in_order(view), shape_of(call)))) if result is None else result


def _matmul(w: LayoutWriter, call: Any) -> View | None:
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
    writer = LayoutWriter(module, HANDLERS)
    if not any(op_name(b.value) in SPATIAL for b in writer.old_bindings()):
        return module
    return writer.run()
