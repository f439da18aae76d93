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
    return [make("Equal", [node.input[0], graph.add_const(node.name, infinity, graph.dtype(node.input[0]))], node.output, node.name)]


@rule("BitShift")
def wide_shift(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """BitShift -> 0 where the amount is not within the type's width (TVM leaves that to the processor).

    A constant amount within the width needs no guard.
    """
    dtype = graph.dtype(node.input[0])
    if dtype is None or node.name.endswith("/shift"):
        return None
    bits = dtype.itemsize * 8
    amount = graph.const(node.input[1])
    if amount is not None and (amount >= 0).all() and (amount < bits).all():
        return None
    fills = dtype.kind == "i" and attributes(node)["direction"] == "RIGHT"  # with the sign
    width, zero, low = (graph.add_const(node.name, value, dtype) for value in (bits, 0, 0))
    instead = graph.add_const(node.name, bits - 1 if fills else 0, dtype)
    below, above, inside, safe, shifted = (graph.fresh(node.name) for _ in range(5))
    result = node.output[0] if fills else shifted
    made = [
        make("Less", [node.input[1], width], [below], f"{node.name}/below"),
        make("GreaterOrEqual", [node.input[1], low], [above], f"{node.name}/above"),
        make("And", [below, above], [inside], f"{node.name}/inside"),
        make("Where", [inside, node.input[1], instead], [safe], f"{node.name}/amount"),
        make("BitShift", [node.input[0], safe], [result], f"{node.name}/shift", direction=attributes(node)["direction"]),
    ]
    return made if fills else [*made, make("Where", [inside, shifted, zero], node.output, node.name)]


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


ELEMENTWISE = (signed_infinity, wide_shift, constant_eye, plain_cast)
