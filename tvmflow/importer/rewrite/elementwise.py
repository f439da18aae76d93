"""Rules for elementwise operators, generators and casts."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from tvmflow.importer.graph import Graph, attributes, make
from tvmflow.importer.rewrite.rule import rule


@rule("IsInf")
def signed_infinity(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """IsInf with detect_negative=0 or detect_positive=0 -> comparison with one infinity (TVM ignores both flags)."""
    attrs = attributes(node)
    negative, positive = attrs.get("detect_negative", 1), attrs.get("detect_positive", 1)
    if negative and positive:
        return None
    infinity = np.inf if positive else -np.inf if negative else np.nan
    return [
        make("Equal", [node.input[0], graph.add_const(node.name, infinity, graph.dtype(node.input[0]))], node.output, node.name)
    ]


@rule("EyeLike")
def constant_eye(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """EyeLike of a static shape -> the matrix."""
    shape = graph.shape(node.input[0])
    attrs = attributes(node)
    if shape is None or len(shape) != 2:
        return None
    dtype = helper.tensor_dtype_to_np_dtype(attrs["dtype"]) if "dtype" in attrs else graph.dtype(node.input[0])
    name = graph.add_const(node.name, np.eye(*shape, k=attrs.get("k", 0)), dtype)
    return [make("Identity", [name], node.output, node.name)]


@rule("CastLike")
def plain_cast(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """CastLike(x, like) -> Cast(x)."""
    dtype = graph.dtype(node.input[1])
    if dtype is None:
        return None
    return [make("Cast", [node.input[0]], node.output, node.name, to=helper.np_dtype_to_tensor_dtype(dtype))]


@rule("Mod")
def float_modulo(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """Mod(float) with the divisor's sign -> fmod, and one divisor more where the signs differ (infinite divisors included)."""
    dtype = graph.dtype(node.input[0])
    if attributes(node).get("fmod") or dtype is None or dtype.kind != "f":
        return None
    a, b = node.input
    zero = graph.add_const(node.name, 0, dtype)
    rest, negative, below, differ, nothing, some, wrong, more = (graph.fresh(node.name) for _ in range(8))
    return [
        make("Mod", [a, b], [rest], f"{node.name}/fmod", fmod=1),
        make("Less", [rest, zero], [negative], f"{node.name}/negative"),
        make("Less", [b, zero], [below], f"{node.name}/below"),
        make("Xor", [negative, below], [differ], f"{node.name}/differ"),
        make("Equal", [rest, zero], [nothing], f"{node.name}/nothing"),
        make("Not", [nothing], [some], f"{node.name}/some"),
        make("And", [differ, some], [wrong], f"{node.name}/wrong"),
        make("Add", [rest, b], [more], f"{node.name}/more"),
        make("Where", [wrong, more, rest], node.output, node.name),
    ]


@rule("Pow")
def integer_power(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """Pow of unlike types -> the exponent cast to the base's type; Pow(integer, small constant) -> products."""
    base, exponent = graph.dtype(node.input[0]), graph.dtype(node.input[1])
    if base is None or exponent is None:
        return None
    if base.kind == "f" and base != exponent:
        cast = graph.fresh(node.name)
        to = helper.np_dtype_to_tensor_dtype(base)
        return [
            make("Cast", [node.input[1]], [cast], f"{node.name}/exponent", to=to),
            make("Pow", [node.input[0], cast], node.output, node.name),
        ]
    value = graph.const(node.input[1])
    if base.kind not in "iu" or value is None or value.size != 1 or float(value.reshape(())) not in (1.0, 2.0, 3.0, 4.0):
        return None
    if value.ndim > len(graph.shape(node.input[0]) or ()):
        return None
    made = []
    product = node.input[0]
    for count in range(2, int(value.reshape(())) + 1):
        last = count == int(value.reshape(()))
        out = node.output[0] if last else graph.fresh(node.name)
        made.append(make("Mul", [product, node.input[0]], [out], node.name if last else f"{node.name}/power{count}"))
        product = out
    return made or [make("Identity", [product], node.output, node.name)]


@rule("LpNormalization")
def lp_normalization(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """LpNormalization -> x / norm, 0 where the norm is 0."""
    attrs = attributes(node)
    axis, dtype = attrs.get("axis", -1), graph.dtype(node.input[0])
    if dtype is None:
        return None
    op = "ReduceL1" if attrs.get("p", 2) == 1 else "ReduceL2"
    norm, empty, safe, zero, one = (
        *(graph.fresh(node.name) for _ in range(3)),
        *(graph.add_const(node.name, v, dtype) for v in (0, 1)),
    )
    if graph.opset >= 18:
        reduce = make(op, [node.input[0], graph.add_const(node.name, [axis], np.int64)], [norm], f"{node.name}/norm", keepdims=1)
    else:
        reduce = make(op, [node.input[0]], [norm], f"{node.name}/norm", axes=[axis], keepdims=1)
    return [
        reduce,
        make("Equal", [norm, zero], [empty], f"{node.name}/empty"),
        make("Where", [empty, one, norm], [safe], f"{node.name}/safe"),
        make("Div", [node.input[0], safe], node.output, node.name),
    ]


@rule("OneHot")
def scalar_depth(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """OneHot with a depth that is a vector or no int64 -> a comparison of the indices with 0 .. depth-1."""
    depth, shape, dtype = graph.const(node.input[1]), graph.shape(node.input[0]), graph.dtype(node.input[2])
    if depth is None or shape is None or dtype is None:
        return None
    count, axis = int(depth.reshape(())), attributes(node).get("axis", -1) % (len(shape) + 1)
    along = [1] * (len(shape) + 1)
    along[axis] = count
    positions = graph.add_const(node.name, np.arange(count).reshape(along), np.int64)
    limit, zero = graph.add_const(node.name, count, np.int64), graph.add_const(node.name, 0, np.int64)
    column = graph.add_const(node.name, [*shape[:axis], 1, *shape[axis:]], np.int64)
    first, second = graph.add_const(node.name, 0, np.int64), graph.add_const(node.name, 1, np.int64)
    index, wide, negative, above, wrapped, hot, off, on = (graph.fresh(node.name) for _ in range(8))
    return [
        make("Cast", [node.input[0]], [index], f"{node.name}/index", to=onnx.TensorProto.INT64),
        make("Reshape", [index, column], [wide], f"{node.name}/column"),
        make("Less", [wide, zero], [negative], f"{node.name}/negative"),
        make("Add", [wide, limit], [above], f"{node.name}/above"),
        make("Where", [negative, above, wide], [wrapped], f"{node.name}/wrapped"),
        make("Equal", [wrapped, positions], [hot], f"{node.name}/hot"),
        make("Gather", [node.input[2], first], [off], f"{node.name}/off"),
        make("Gather", [node.input[2], second], [on], f"{node.name}/on"),
        make("Where", [hot, on, off], node.output, node.name),
    ]


ELEMENTWISE = (
    signed_infinity,
    constant_eye,
    plain_cast,
    float_modulo,
    integer_power,
    lp_normalization,
    scalar_depth,
)
