"""Rules that change the graph's structure and no arithmetic: identities, dropout, function operators, constant branches."""

from __future__ import annotations

import onnx

from tvmflow.importer.graph import Graph, attributes, make
from tvmflow.importer.rewrite.rule import rule


@rule("Identity")
def drop_identity(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """Identity(x) -> x, except where it names a graph output."""
    return alias(node, graph)


@rule("Dropout")
def drop_dropout(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """Dropout at inference -> its input; the mask is all true."""
    if graph.opset >= 12:
        training = graph.const(graph.operand(node, 2))
        ratio = graph.const(graph.operand(node, 1))
        off = not graph.operand(node, 2) or (training is not None and not training.any())
        if not off and (ratio is None or ratio.any()):
            return None
    made = [make("Identity", [node.input[0]], [node.output[0]], node.name)]
    if graph.result(node, 1):
        same = graph.fresh(node.name)
        made += [
            make("Equal", [node.input[0], node.input[0]], [same], f"{node.name}/equal"),
            make("Or", [same, graph.add_const(node.name, True)], [node.output[1]], f"{node.name}/mask"),
        ]
    return made


def alias(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """Removes a node that passes its first input through."""
    if node.output[0] in {value.name for value in graph.outputs}:
        return None
    graph.rename_reads(node.output[0], node.input[0])
    return []


@rule("If")
def constant_branch(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """If(constant) -> the nodes of the branch that is taken."""
    condition = graph.const(node.input[0])
    if condition is None:
        return None
    branch = attributes(node)["then_branch" if condition.reshape(-1)[0] else "else_branch"]
    local = {t.name for t in branch.initializer} | {name for child in branch.node for name in child.output}
    scoped = {name: f"{node.name}/{name}" for name in local if name}
    for tensor in branch.initializer:
        graph.constants[scoped[tensor.name]] = onnx.numpy_helper.to_array(tensor)
    made = []
    for child in branch.node:
        if any(a.HasField("g") for a in child.attribute):
            return None
        copy = onnx.NodeProto()
        copy.CopyFrom(child)
        copy.name = f"{node.name}/{child.name or child.output[0]}"
        copy.input[:] = [scoped.get(name, name) for name in child.input]
        copy.output[:] = [scoped.get(name, name) for name in child.output]
        made.append(copy)
    for index, (result, inner) in enumerate(zip(node.output, branch.output, strict=True)):
        made.append(
            make("Identity", [scoped.get(inner.name, inner.name)], [result], node.name if index == 0 else f"{node.name}:{index}")
        )
    return made


STRUCTURE = (drop_identity, drop_dropout, constant_branch)
