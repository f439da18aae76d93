"""Which bindings become one kernel: one rule per kind of layer, tried in the order of :data:`RULES`.

A rule looks at one binding and answers a :class:`Group`, integer or with the reason why it can't be, or None when the binding is
none of its business. A rule never fuses across a tensor of ``pinned``: those must exist as integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from math import prod

import numpy as np
from tvm import relax

from tvmflow.quantize.elementwise import is_elementwise, scalar
from tvmflow.quantize.graph import Graph, axes_of, constant_of, op_of, read_by, shape_of
from tvmflow.quantize.plan import Group

INT32_MAX = 2**31 - 1
ACTIVATION_SPAN = 255
"""Largest ``|q - zero_point|``."""
WEIGHT_SPAN = 128

MOVEMENT = {
    "reshape": "reshape", "flatten": "reshape", "squeeze": "reshape", "expand_dims": "reshape", "permute_dims": "transpose",
    "strided_slice": "slice", "pad": "pad", "resize2d": "resize", "split": "split", "get_item": "split", "copy": "copy",
    "broadcast_to": "broadcast", "repeat": "repeat", "tile": "tile", "flip": "flip", "take": "take",
}  # fmt: skip
"""Relax operators that only move data, with the name of their groups."""

MOVES_FLOAT = "moves float32 data"
"""Reason of data movement among float layers, which computes nothing."""


def float_group(graph: Graph, name: str, reason: str, op: str = "") -> Group:
    """A group of one binding that stays in float32."""
    sources = tuple(dict.fromkeys(read_by(graph.exprs[name])))
    return Group(name, op or op_of(graph.exprs[name]), (name,), sources, name, integer=False, reason=reason)


def layer_name(bindings: Sequence[str]) -> str:
    """Name of the user's layer that the first binding is a part of: the importer calls parts of ``conv`` ``conv/1``, ``conv``."""
    whole, _, part = bindings[0].rpartition("/")
    return whole if part.isdigit() and whole in bindings else bindings[0]


def clamp_of(graph: Graph, name: str) -> tuple[float, float] | None:
    """Bounds of a ReLU or clip binding, None for every other one."""
    expr, op = graph.exprs[name], op_of(graph.exprs[name])
    if op in ("relu", "relu6"):
        return 0.0, 6.0 if op == "relu6" else np.inf
    return (scalar(expr.args[1]), scalar(expr.args[2])) if op == "clip" else None


def channel_constant(expr: relax.Expr, shape: tuple[int, ...]) -> np.ndarray | None:
    """A constant that varies along the last axis of ``shape`` only, as ``[C]``; None for anything else."""
    constant = constant_of(expr)
    if constant is None or not shape or constant.dtype != np.float32:
        return None
    if constant.size == 1:
        return np.broadcast_to(constant.reshape(1), (shape[-1],))
    fits = constant.ndim <= len(shape) and constant.shape[-1] == constant.size == shape[-1]
    return constant.reshape(-1) if fits else None


def split_constant(graph: Graph, name: str) -> tuple[str, relax.Expr, bool] | None:
    """Tensor, constant and whether the constant comes first, of a binary operator on one of each."""
    expr = graph.exprs[name]
    if not isinstance(expr, relax.Call) or len(expr.args) != 2:
        return None
    a, b = expr.args
    if isinstance(a, relax.Var) and constant_of(b) is not None:
        return str(a.name), b, False
    if isinstance(b, relax.Var) and constant_of(a) is not None:
        return str(b.name), a, True
    return None


def bias_of(graph: Graph, name: str) -> np.ndarray | None:
    """Bias ``[C]`` that an ``add`` binding adds to its other operand, None for every other binding."""
    parts = split_constant(graph, name) if op_of(graph.exprs[name]) == "add" else None
    return None if parts is None else channel_constant(parts[1], graph.shape(name))


def scale_of(graph: Graph, name: str) -> float | None:
    """Factor of a binding that multiplies or divides a tensor by a constant of one element."""
    op, parts = op_of(graph.exprs[name]), split_constant(graph, name)
    if op not in ("multiply", "divide") or parts is None:
        return None
    constant = constant_of(parts[1])
    if constant is None or constant.size != 1:
        return None
    if op == "divide":
        return None if parts[2] else 1.0 / scalar(parts[1])
    return scalar(parts[1])


def _next(graph: Graph, name: str, pinned: Set[str]) -> str:
    """The only reader of a tensor that need not exist, and that keeps its shape; empty otherwise."""
    reader = "" if name in pinned else graph.only_reader(name)
    return reader if reader and graph.shape(reader) == graph.shape(name) else ""


def _with_clamp(graph: Graph, chain: list[str], pinned: Set[str]) -> list[str]:
    after = _next(graph, chain[-1], pinned)
    return [*chain, after] if after and clamp_of(graph, after) else chain


def _with_bias_and_clamp(graph: Graph, name: str, pinned: Set[str]) -> tuple[str, ...]:
    chain = [name]
    after = _next(graph, name, pinned)
    if after and bias_of(graph, after) is not None:
        chain.append(after)
    return tuple(_with_clamp(graph, chain, pinned))


def conv2d(graph: Graph, name: str, pinned: Set[str]) -> Group | None:
    """Convolution with its bias and clamp; grouped and depthwise included."""
    if op_of(graph.exprs[name]) != "conv2d":
        return None
    call = graph.exprs[name]
    weight = constant_of(call.args[1])
    if weight is None:
        return float_group(graph, name, "the weight is not constant")
    if (call.attrs.data_layout, call.attrs.kernel_layout) != ("NHWC", "OHWI"):
        return float_group(graph, name, f"layout {call.attrs.data_layout}/{call.attrs.kernel_layout}, not NHWC/OHWI")
    if graph.dtype(name) != "float32":
        return float_group(graph, name, f"computes in {graph.dtype(name)}")
    if prod(weight.shape[1:]) * ACTIVATION_SPAN * WEIGHT_SPAN > INT32_MAX:
        return float_group(graph, name, f"a sum of {prod(weight.shape[1:])} products can overflow int32")
    groups = int(call.attrs.groups)
    op = "depthwise" if groups > 1 and groups == weight.shape[0] and weight.shape[3] == 1 else "conv2d"
    bindings = _with_bias_and_clamp(graph, name, pinned)
    layer = layer_name(bindings)
    return Group(layer, op, bindings, (str(call.args[0].name),), bindings[-1], weight=f"{layer}:weight")


def matmul(graph: Graph, name: str, pinned: Set[str]) -> Group | None:
    """Dense layer (constant right operand) with bias and clamp, or product of two activations with a scalar factor."""
    if op_of(graph.exprs[name]) != "matmul":
        return None
    a, b = graph.exprs[name].args
    if not isinstance(a, relax.Var):
        return float_group(graph, name, "the left operand is constant")
    if graph.dtype(name) != "float32":
        return float_group(graph, name, f"computes in {graph.dtype(name)}")
    a_shape, b_shape = shape_of(a), shape_of(b)
    if len(a_shape) < 2 or len(b_shape) < 2:
        return float_group(graph, name, "product with a vector")
    if a_shape[-1] * ACTIVATION_SPAN * ACTIVATION_SPAN > INT32_MAX:
        return float_group(graph, name, f"a sum of {a_shape[-1]} products can overflow int32")
    if prod(b_shape[:-2]) != 1 and a_shape[:-2] != b_shape[:-2]:
        return float_group(graph, name, f"batches {list(a_shape[:-2])} and {list(b_shape[:-2])} differ")
    if constant_of(b) is not None:
        if prod(b_shape[:-2]) != 1 or len(b_shape) > len(a_shape):
            return float_group(graph, name, "the constant operand has a batch")
        bindings = _with_bias_and_clamp(graph, name, pinned)
        layer = layer_name(bindings)
        return Group(layer, "dense", bindings, (str(a.name),), bindings[-1], weight=f"{layer}:weight")
    after = _next(graph, name, pinned)
    bindings = (name, after) if after and scale_of(graph, after) is not None else (name,)
    return Group(layer_name(bindings), "matmul", bindings, (str(a.name), str(b.name)), bindings[-1])


def lookup(graph: Graph, name: str, pinned: Set[str]) -> Group | None:
    """Elementwise functions of one tensor with one result: chains and diamonds such as ``x * clip(x + 3, 0, 6) / 6``."""
    sources = set(read_by(graph.exprs[name]))
    if len(sources) != 1 or not is_elementwise(graph, name):
        return None
    source = sources.pop()
    found = _elementwise_of(graph, source, name, pinned)
    last = name
    while last not in pinned and last not in graph.outputs and graph.readers[last] and found.issuperset(graph.readers[last]):
        last = max(graph.readers[last], key=graph.position.__getitem__)
    members = _single_result(graph, _ancestors(graph, last, found), name, pinned)
    bindings = tuple(sorted(members, key=graph.position.__getitem__))
    return Group(bindings[-1], "lookup", bindings, (source,), bindings[-1])


def _elementwise_of(graph: Graph, source: str, name: str, pinned: Set[str]) -> set[str]:
    """``name`` and the bindings that are, like it, elementwise functions of ``source`` alone."""
    found = {name}
    waiting = [*graph.readers[source], *graph.readers[name]]
    while waiting:
        binding = waiting.pop()
        if binding in found or not is_elementwise(graph, binding):
            continue
        if all(r == source or (r in found and r not in pinned) for r in read_by(graph.exprs[binding])):
            found.add(binding)
            waiting.extend(graph.readers[binding])
    return found


def _ancestors(graph: Graph, last: str, within: Set[str]) -> set[str]:
    """``last`` and what it is computed from, as far as that lies in ``within``."""
    members, waiting = {last}, [last]
    while waiting:
        for source in read_by(graph.exprs[waiting.pop()]):
            if source in within and source not in members:
                members.add(source)
                waiting.append(source)
    return members


def _single_result(graph: Graph, members: set[str], name: str, pinned: Set[str]) -> set[str]:
    """``members`` when only their last result is read from outside, else ``name`` alone."""
    seen_outside = [m for m in members if m in pinned or m in graph.outputs or not set(graph.readers[m]) <= members]
    return members if name in members and len(seen_outside) == 1 else {name}


def scale_shift(graph: Graph, name: str, pinned: Set[str]) -> Group | None:
    """Per-channel constants added to or multiplied with a tensor: a depthwise 1x1 convolution, with its clamp."""
    chain: list[str] = []
    link = name
    while link and _is_channelwise(graph, link):
        chain.append(link)
        link = _next(graph, link, pinned)
    if not chain:
        return None
    source, _, _ = split_constant(graph, name) or ("", None, False)
    bindings = tuple(_with_clamp(graph, chain, pinned))
    return Group(layer_name(bindings), "scale_shift", bindings, (source,), bindings[-1])


def _is_channelwise(graph: Graph, name: str) -> bool:
    op, parts = op_of(graph.exprs[name]), split_constant(graph, name)
    if op not in ("add", "subtract", "multiply", "divide") or parts is None or (op == "divide" and parts[2]):
        return False
    tensor, constant, _ = parts
    return graph.shape(tensor) == graph.shape(name) and channel_constant(constant, graph.shape(name)) is not None


def binary(graph: Graph, name: str, pinned: Set[str]) -> Group | None:
    """Sum, difference or product of two tensors, one of which may be constant, with its clamp."""
    op = op_of(graph.exprs[name])
    if op not in ("add", "subtract", "multiply"):
        return None
    if graph.dtype(name) != "float32":
        return float_group(graph, name, f"computes in {graph.dtype(name)}")
    bindings = tuple(_with_clamp(graph, [name], pinned))
    sources = tuple(dict.fromkeys(read_by(graph.exprs[name])))
    return Group(layer_name(bindings), "mul" if op == "multiply" else "add", bindings, sources, bindings[-1])


def pool(graph: Graph, name: str, pinned: Set[str]) -> Group | None:
    """Max and average pooling."""
    op = op_of(graph.exprs[name])
    if op not in ("max_pool2d", "avg_pool2d"):
        return None
    attrs, kind = graph.exprs[name].attrs, op.removesuffix("2d")
    if attrs.layout != "NHWC":
        return float_group(graph, name, f"layout {attrs.layout}, not NHWC", kind)
    if any(int(d) != 1 for d in attrs.dilation):
        return float_group(graph, name, "dilated pooling", kind)
    if kind == "avg_pool" and attrs.ceil_mode and attrs.count_include_pad:
        return float_group(graph, name, "ceil_mode with count_include_pad", kind)
    return Group(name, kind, (name,), tuple(read_by(graph.exprs[name])), name)


def mean(graph: Graph, name: str, pinned: Set[str]) -> Group | None:
    """Mean or sum over neighbouring axes; global average pooling."""
    op = op_of(graph.exprs[name])
    if op not in ("mean", "sum", "adaptive_avg_pool2d"):
        return None
    expr = graph.exprs[name]
    if graph.dtype(name) != "float32":
        return float_group(graph, name, f"computes in {graph.dtype(name)}")
    if op == "adaptive_avg_pool2d":
        if expr.attrs.layout != "NHWC" or graph.shape(name)[1:3] != (1, 1):
            return float_group(graph, name, "adaptive pooling to more than one element", "mean")
    else:
        axes = axes_of(expr.attrs.axis, len(shape_of(expr.args[0])))
        if axes != tuple(range(axes[0], axes[-1] + 1)):
            return float_group(graph, name, f"axes {list(axes)} are not neighbours")
    return Group(name, "mean", (name,), tuple(read_by(expr)), name)


def concat(graph: Graph, name: str, pinned: Set[str]) -> Group | None:
    """Concatenation of float tensors."""
    if op_of(graph.exprs[name]) != "concat":
        return None
    fields = graph.exprs[name].args[0]
    if graph.dtype(name) != "float32" or not isinstance(fields, relax.Tuple) or not all(isinstance(f, relax.Var) for f in fields):
        return float_group(graph, name, "operands that are constant or not float32")
    return Group(name, "concat", (name,), tuple(dict.fromkeys(read_by(fields))), name)


def movement(graph: Graph, name: str, pinned: Set[str]) -> Group | None:
    """Operators that only move data."""
    expr, op = graph.exprs[name], op_of(graph.exprs[name])
    sources = tuple(dict.fromkeys(read_by(expr)))
    if op not in MOVEMENT or len(sources) != 1 or graph.dtype(name) not in ("float32", ""):
        return None
    if op == "resize2d" and expr.attrs.method != "nearest_neighbor":
        return float_group(graph, name, f"{expr.attrs.method} interpolation", "resize")
    if op == "take" and not isinstance(expr.args[0], relax.Var):
        return float_group(graph, name, "embedding table")
    if op in ("split", "get_item") and graph.dtype(sources[0]) not in ("float32", ""):
        return None
    return Group(name, MOVEMENT[op], (name,), sources, name)


def anything(graph: Graph, name: str, pinned: Set[str]) -> Group:
    """What no other rule took: a float island."""
    op, dtype = op_of(graph.exprs[name]), graph.dtype(name)
    if op == "tuple":
        return float_group(graph, name, MOVES_FLOAT)
    if op in ("softmax", "log_softmax"):
        return float_group(graph, name, "exponentials and their sum are computed in float32")
    if op.endswith("_norm"):
        return float_group(graph, name, "normalization is computed in float32")
    if dtype not in ("float32", ""):
        return float_group(graph, name, f"works on {dtype} data")
    return float_group(graph, name, f"no integer kernel for {op}")


Rule = Callable[[Graph, str, Set[str]], Group | None]
RULES: tuple[Rule, ...] = (conv2d, matmul, pool, mean, concat, movement, lookup, scale_shift, binary, anything)
