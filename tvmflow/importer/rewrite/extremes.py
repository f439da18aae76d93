"""ReduceMax and ReduceMin: booleans, and rows that are infinite throughout.

TVM starts a maximum at the lowest finite number, so the maximum of a row of -inf (a fully masked row of attention) comes out
finite. ONNX says -inf.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from tvmflow.importer.graph import Graph, attributes, make
from tvmflow.importer.rewrite.rule import rule

MAKES_INFINITY = frozenset({"Div", "Exp", "Log", "Pow", "Reciprocal", "ReduceLogSum", "ReduceLogSumExp"})
BOUNDED = frozenset({"Clip", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Tanh"})


@rule("ReduceMax", "ReduceMin")
def boolean_extreme(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """ReduceMax(bool) -> ReduceMax of 0 and 1."""
    if str(graph.dtype(node.input[0])) != "bool":
        return None
    number, extreme = graph.fresh(node.name), graph.fresh(node.name)
    return [
        make("Cast", [node.input[0]], [number], f"{node.name}/number", to=TensorProto.INT32),
        make(node.op_type, [number, *node.input[1:]], [extreme], f"{node.name}/{node.op_type}", **attributes(node)),
        make("Cast", [extreme], node.output, node.name, to=TensorProto.BOOL),
    ]


@rule("ReduceMax", "ReduceMin")
def infinite_rows(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """ReduceMax(x) -> -inf where all of x is -inf, else ReduceMax(Max(x, lowest)). Only where x may be infinite."""
    dtype = graph.dtype(node.input[0])
    if str(dtype) not in ("float16", "float32", "float64") or dtype is None or not may_be_infinite(node.input[0], graph):
        return None
    maximum = node.op_type == "ReduceMax"
    limit = np.finfo(dtype).min if maximum else np.finfo(dtype).max
    infinity = graph.add_const(node.name, -np.inf if maximum else np.inf, dtype)
    finite = graph.add_const(node.name, limit, dtype)
    bounded, extreme, same, number, every, whole = (graph.fresh(node.name) for _ in range(6))
    rest, attrs = node.input[1:], attributes(node)
    return [
        make("Max" if maximum else "Min", [node.input[0], finite], [bounded], f"{node.name}/bounded"),
        make(node.op_type, [bounded, *rest], [extreme], f"{node.name}/{node.op_type}", **attrs),
        make("Equal", [node.input[0], infinity], [same], f"{node.name}/infinite"),
        make("Cast", [same], [number], f"{node.name}/number", to=TensorProto.INT32),
        make("ReduceMin", [number, *rest], [every], f"{node.name}/every", **attrs),
        make("Cast", [every], [whole], f"{node.name}/whole", to=TensorProto.BOOL),
        make("Where", [whole, infinity, extreme], node.output, node.name),
    ]


def may_be_infinite(name: str, graph: Graph) -> bool:
    """Whether an infinity can come from a constant or an operator on the way to a tensor; inputs are taken to be finite."""
    makers = {output: node for node in graph.nodes for output in node.output}
    waiting, seen = [name], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        value, source = graph.const(name), makers.get(name)
        if value is not None and value.dtype.kind == "f" and np.isinf(value).any():
            return True
        if source is None or source.op_type in BOUNDED or stops_infinity(source, graph):
            continue
        if source.op_type in MAKES_INFINITY:
            return True
        waiting.extend(n for n in source.input if n)
    return False


def stops_infinity(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether it is the bound that ``infinite_rows`` writes: a maximum or minimum with a finite constant."""
    bounds = [graph.const(n) for n in node.input] if node.op_type in ("Max", "Min") else []
    return any(bound is not None and np.isfinite(bound).all() for bound in bounds)


EXTREMES = (boolean_extreme, infinite_rows)
