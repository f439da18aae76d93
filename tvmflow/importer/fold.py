"""Constant folding on the ONNX graph: what depends on no input becomes an initializer, static shapes included.

::

    Before   Shape(x) -> Gather -> Concat -> Reshape(y, .)
    After    Reshape(y, const)

``DequantizeLinear`` of a stored integer tensor stays: it carries the parameters that the realize stage needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from tvmflow.importer.graph import Graph, attributes, dense, make

RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"})
STORED = frozenset({"int8", "uint8", "int16", "uint16", "int32", "int4", "uint4", "int2", "uint2"})
GROWTH_LIMIT = 1 << 20
"""Elements that a folded tensor may have when it is larger than what it was computed from."""


def fold(graph: Graph) -> bool:
    """Folds once through the graph; True when something changed."""
    outputs = {value.name for value in graph.outputs}
    kept: list[onnx.NodeProto] = []
    changed = False
    for node in graph.nodes:
        results = None if node.op_type == "Identity" and node.output[0] in outputs else evaluate(node, graph)
        if results is None:
            kept.append(node)
            continue
        changed = True
        for name, value in zip(node.output, results, strict=False):
            if name in outputs:  # an output stays one, of a constant
                kept.append(make("Identity", [graph.add_const(name, value)], [name], node.name))
            elif name:
                graph.constants[name] = value
    graph.nodes = kept
    return changed


def evaluate(node: onnx.NodeProto, graph: Graph) -> list[np.ndarray] | None:
    """Values of a node's outputs when they are known at compile time."""
    if node.op_type in ("Shape", "Size") and not node.domain:
        return measured(node, graph)
    if node.op_type == "Constant" and not node.domain:
        return constant(node)
    if node.domain not in ("", "ai.onnx") or node.op_type in RANDOM or any(a.HasField("g") for a in node.attribute):
        return None
    values = [known(name, graph) for name in node.input if name]
    if not values or any(value is None for value in values) or keeps_quantized(node, graph):
        return None
    shape = graph.shape(node.output[0])
    if shape is not None and int(np.prod(shape)) > max(GROWTH_LIMIT, *(value.size for value in values if value is not None)):
        return None
    results = run_node(node, graph)
    return results if results is not None and all(type(value) is np.ndarray for value in results) else None


def known(name: str, graph: Graph) -> np.ndarray | None:
    """Value of a constant, or of a tensor without elements."""
    shape, dtype = graph.shape(name), graph.dtype(name)
    if graph.const(name) is None and shape is not None and dtype is not None and 0 in shape:
        return np.zeros(shape, dtype)
    return graph.const(name)


def run_node(node: onnx.NodeProto, graph: Graph) -> list[np.ndarray] | None:
    """Computes a node of constants with ONNX's reference implementation; None where that has no implementation."""
    bare = onnx.NodeProto()
    bare.CopyFrom(node)
    bare.domain = ""
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [bare],
            "fold",
            [onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(n for n in node.input if n)],
            [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
        ),
        opset_imports=[onnx.helper.make_opsetid("", graph.opset)],
    )
    try:
        evaluator = ReferenceEvaluator(model)
        found = evaluator.run(None, {name: known(name, graph) for name in node.input if name})
    except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError, AssertionError):
        # Left in the graph, where the import of the node itself reports what is wrong with it.
        return None
    named = dict(zip([name for name in node.output if name], found, strict=False))
    return [np.asarray(named[name]) if name else np.zeros(0) for name in node.output]


def keeps_quantized(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a DequantizeLinear of a constant is one that the realize stage reads."""
    if node.op_type != "DequantizeLinear":
        return False
    return str(graph.dtype(node.input[0])) in STORED and not attributes(node).get("block_size")


def measured(node: onnx.NodeProto, graph: Graph) -> list[np.ndarray] | None:
    """Value of Shape or Size of a tensor with a static shape."""
    shape = graph.shape(node.input[0])
    if shape is None:
        return None
    attrs = attributes(node)
    if node.op_type == "Size":
        return [np.array(int(np.prod(shape)), np.int64)]
    return [np.array(shape[attrs.get("start", 0) : attrs.get("end", len(shape))], np.int64)]


def constant(node: onnx.NodeProto) -> list[np.ndarray] | None:
    """Value of a Constant node, whichever attribute holds it; None for text."""
    attrs: dict[str, Any] = attributes(node)
    if "value" in attrs:
        return [onnx.numpy_helper.to_array(attrs["value"])]
    if "sparse_value" in attrs:
        return [dense(attrs["sparse_value"])]
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in attrs:
            return [np.array(attrs[name], dtype)]
    return None
