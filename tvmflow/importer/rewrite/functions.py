"""Operators that ONNX itself defines by others (Celu, Attention, CenterCropPad, ...) become their definition."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import defs, helper, inliner, numpy_helper

from tvmflow.importer.graph import SMALL, Graph, label
from tvmflow.importer.rewrite.rule import Rule

EXPANDED = (
    "AffineGrid",
    "Attention",
    "BlackmanWindow",
    "CausalConvWithState",
    "Celu",
    "CenterCropPad",
    "FlexAttention",
    "LinearAttention",
    "GroupNormalization",
    "HammingWindow",
    "HannWindow",
    "MeanVarianceNormalization",
    "NegativeLogLikelihoodLoss",
    "RMSNormalization",
    "RotaryEmbedding",
    "SoftmaxCrossEntropyLoss",
    "Swish",
)
"""Operators that TVM lacks, or whose converter is for another operator of the same name."""


def expand(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """A function operator -> the nodes of its definition, for the types that it has here."""
    if node.op_type == "LayerNormalization" and not (graph.result(node, 1) or graph.result(node, 2)):
        return None
    version = graph.opsets.get(node.domain, graph.opset)
    if not defs.has(node.op_type, version, node.domain):
        return None
    schema: Any = defs.get_schema(node.op_type, version, node.domain)
    if not (schema.has_function or schema.has_context_dependent_function):
        return None
    model = alone(complete(node, schema), graph)
    if model is None:
        return None
    try:
        body = inliner.inline_selected_functions(model, [(node.domain, node.op_type)], inline_schema_functions=True).graph.node
    except RuntimeError:  # the inliner gives up on optional inputs that are left out: the operator is refused as it stands
        return None
    if len(body) == 1 and body[0].op_type == node.op_type:
        return None
    return scoped(list(body), node, graph)


def complete(node: onnx.NodeProto, schema: Any) -> onnx.NodeProto:
    """The node with all its attributes: the inliner forgets defaults."""
    full = onnx.NodeProto()
    full.CopyFrom(node)
    given = {attribute.name for attribute in node.attribute}
    defaults = [a.default_value for name, a in schema.attributes.items() if name not in given]
    full.attribute.extend(value for value in defaults if value.type != onnx.AttributeProto.UNDEFINED)
    return full


def alone(node: onnx.NodeProto, graph: Graph) -> onnx.ModelProto | None:
    """A model of one node, with the types of its inputs; None while one is unknown."""
    inputs, constants = [], []
    for name in dict.fromkeys(n for n in node.input if n):
        value, dtype = graph.const(name), graph.dtype(name)
        if dtype is None:
            return None
        if value is not None and value.size <= SMALL:
            constants.append(numpy_helper.from_array(value, name))
        inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), graph.shape(name)))
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    opsets = [helper.make_opsetid(domain, version) for domain, version in graph.opsets.items()]
    return helper.make_model(helper.make_graph([node], "alone", inputs, outputs, constants), opset_imports=opsets, ir_version=10)


def scoped(body: list[onnx.NodeProto], node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto]:
    """The nodes of a body under names of their own; the one that computes the first output keeps the node's name."""
    outer = {*node.input, *node.output, ""}
    names = {name: graph.fresh(node.name) for child in body for name in child.output if name not in outer}
    first = next((name for name in node.output if name), "")
    for count, child in enumerate(body, 1):
        child.input[:] = [names.get(name, name) for name in child.input]
        child.output[:] = [names.get(name, name) for name in child.output]
        for attribute in child.attribute:
            if attribute.HasField("g"):
                rename_free(attribute.g, names)
        child.name = label(node) if first in child.output else f"{label(node)}/{child.op_type}.{count}"
    return body


def rename_free(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames what a subgraph reads from outside."""
    inner = {t.name for t in graph.initializer} | {v.name for v in graph.input} | {name for n in graph.node for name in n.output}
    free = {old: new for old, new in names.items() if old not in inner}
    for child in graph.node:
        child.input[:] = [free.get(name, name) for name in child.input]
        for attribute in child.attribute:
            if attribute.HasField("g"):
                rename_free(attribute.g, free)
    for value in graph.output:
        value.name = free.get(value.name, value.name)


FUNCTIONS = (Rule(frozenset((*EXPANDED, "LayerNormalization")), expand, domains=frozenset({"", "ai.onnx", "ai.onnx.preview"})),)
