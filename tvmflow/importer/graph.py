"""An ONNX graph as the rules see it: nodes in order, constants as arrays, a static type for every tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmflow.errors import ModelError
from tvmflow.importer.names import unique

SMALL = 1024
"""Elements up to which a constant takes part in shape inference by value."""

DOMAINS = {"": "", "ai.onnx": "", "com.microsoft": "com.microsoft"}
"""Operator domains with a known meaning, each with its short form."""


def label(node: onnx.NodeProto) -> str:
    """How the user knows a node: its name, or its first output's."""
    return node.name or next((name for name in node.output if name), "?")


def describe(node: onnx.NodeProto) -> str:
    """Node name and operator, for errors."""
    domain = DOMAINS.get(node.domain, node.domain)
    return f"node {label(node)!r} ({domain + '.' if domain else ''}{node.op_type})"


class Graph:
    """A mutable ONNX graph between its file and Relax.

    ``nodes`` are in topological order, ``constants`` maps names to arrays, ``types`` maps tensor names to
    ``(numpy dtype, shape)``; a shape that is not static is None, a tensor of unknown dtype is absent.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.name = model.graph.name
        self.opsets = {DOMAINS.get(o.domain, o.domain): o.version for o in model.opset_import}
        self.ir_version = model.ir_version
        self.nodes = list(model.graph.node)
        self.constants: dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for sparse in model.graph.sparse_initializer:
            self.constants[sparse.values.name] = dense(sparse)
        self.inputs = [value for value in model.graph.input if value.name not in self.constants]
        self.outputs = list(model.graph.output)
        self.types: dict[str, tuple[np.dtype, tuple[int, ...] | None]] = {}
        self._fresh = 0
        self._tensors = {*self.constants, *(v.name for v in self.inputs), *(name for n in self.nodes for name in n.output)}
        self.sort()
        self._names = {value.name for value in self.inputs}
        self.name_nodes()
        self.infer()

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return self.opsets.get("", 1)

    # -- questions -----------------------------------------------------------------------------------------------------

    def const(self, name: str) -> np.ndarray | None:
        """Value of a constant tensor, None for a computed one."""
        return self.constants.get(name) if name else None

    def operand(self, node: onnx.NodeProto, index: int) -> str:
        """Name of an input, "" when it is left out."""
        return node.input[index] if index < len(node.input) else ""

    def result(self, node: onnx.NodeProto, index: int) -> str:
        """Name of an output that somebody reads, "" for one that nobody does."""
        name = node.output[index] if index < len(node.output) else ""
        return name if name and name in self.readers() else ""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Static shape, or None."""
        if name in self.constants:
            return self.constants[name].shape
        return self.types[name][1] if name in self.types else None

    def dtype(self, name: str) -> np.dtype | None:
        """Element type, or None when inference does not know it."""
        if name in self.constants:
            return self.constants[name].dtype
        return self.types[name][0] if name in self.types else None

    def readers(self) -> Counter[str]:
        """How many nodes and graph outputs read each tensor."""
        count = Counter(name for node in self.nodes for name in reads(node))
        count.update(value.name for value in self.outputs)
        return count

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a tensor."""
        return next((node for node in self.nodes if name in node.output), None) if name else None

    # -- changes -------------------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A tensor name that is not taken."""
        self._fresh += 1
        name = unique(f"{hint}/{self._fresh}~", self._tensors)
        self._tensors.add(name)
        return name

    def add_const(self, hint: str, value: Any, dtype: Any = None) -> str:
        """Adds a constant and returns its name."""
        name = self.fresh(hint)
        self.constants[name] = np.asarray(value, dtype)
        return name

    def claim(self, name: str) -> str:
        """A name for a node that no other has and no input: ``name``, with ``#2`` and so on behind it if it is taken."""
        self._names.add(found := unique(name, self._names))
        return found

    def replace(self, index: int, made: list[onnx.NodeProto]) -> None:
        """Puts nodes in the place of one; those that don't carry its name on get names that are not taken."""
        for node in made:
            if node.name != self.nodes[index].name:
                node.name = self.claim(node.name)
        self.nodes[index : index + 1] = made

    def rename_reads(self, old: str, new: str) -> None:
        """Lets every reader of ``old`` among the nodes read ``new``."""
        rename_in(self.nodes, old, new)

    def prune(self) -> None:
        """Drops nodes and constants that no output needs."""
        needed = {value.name for value in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(reads(node))
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in needed}

    def sort(self) -> None:
        """Topological order; an undefined tensor or a cycle is an error that names it."""
        ready = {value.name for value in self.inputs} | set(self.constants) | {""}
        made = {name for node in self.nodes for name in node.output}
        waiting, self.nodes = self.nodes, []
        while waiting:
            later = []
            for node in waiting:
                if all(name in ready for name in reads(node)):
                    self.nodes.append(node)
                    ready.update(node.output)
                else:
                    later.append(node)
            if len(later) == len(waiting):
                node = later[0]
                missing = next(name for name in reads(node) if name not in ready)
                what = "is part of a cycle" if missing in made else "is computed by no node, and is no input or initializer"
                raise ModelError(
                    f"its input {missing!r} {what}", where=describe(node), remedy="the file is damaged: export it again"
                )
            waiting = later
        for value in self.outputs:
            if value.name not in ready:
                raise ModelError(f"output {value.name!r} is computed by no node", remedy="the file is damaged: export it again")

    def name_nodes(self) -> None:
        """Gives every node a name of its own: the file's, or that of its first output; a repeated one gets ``#2`` and so on."""
        seen = set(self._names)
        self._names.update(map(label, self.nodes))
        for node in self.nodes:
            first = label(node) not in seen
            seen.add(label(node))
            node.name = label(node) if first else self.claim(label(node))

    def to_model(self, *, values_up_to: int | None = None) -> onnx.ModelProto:
        """The graph as a model. Constants with more than ``values_up_to`` elements become inputs, which keeps it light."""
        initializers, inputs = [], list(self.inputs)
        for name, value in self.constants.items():
            if values_up_to is None or value.size <= values_up_to:
                initializers.append(numpy_helper.from_array(value, name))
            else:
                inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape))
        graph = helper.make_graph(self.nodes, self.name or "graph", inputs, self.outputs, initializers)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=max(self.ir_version, 4))

    def infer(self) -> None:
        """Runs ONNX shape inference with data propagation and reads the types of all tensors."""
        model = onnx.shape_inference.infer_shapes(self.to_model(values_up_to=SMALL), data_prop=True)
        self.types = {}
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
            if value.type.WhichOneof("value") == "tensor_type" and value.type.tensor_type.elem_type:
                tensor = value.type.tensor_type
                self.types[value.name] = (helper.tensor_dtype_to_np_dtype(tensor.elem_type), static_shape(tensor))


def reads(node: onnx.NodeProto) -> list[str]:
    """Tensors that a node reads, those of its subgraphs' outer scope included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            inner = {t.name for t in graph.initializer} | {value.name for value in graph.input}
            for child in graph.node:
                names += [name for name in reads(child) if name not in inner]
                inner.update(child.output)
            names += [value.name for value in graph.output if value.name not in inner]
    return names


def rename_in(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Renames what nodes read, in their subgraphs too (ONNX forbids that an inner name shadows an outer one)."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                rename_in(graph.node, old, new)
                for value in graph.output:
                    if value.name == old:
                        value.name = new


def static_shape(tensor: onnx.TypeProto.Tensor) -> tuple[int, ...] | None:
    """Shape of a tensor type when every dimension is a number."""
    if not tensor.HasField("shape") or any(not dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """Value of a sparse initializer (ONNX: linear or per-axis indices)."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    out = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        out.reshape(-1)[indices] = values
    else:
        out[tuple(indices.T)] = values
    return out


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes as Python values; text is str."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def make(
    op: str, inputs: Sequence[str], outputs: Iterable[str], name: str, /, *, domain: str = "", **attrs: Any
) -> onnx.NodeProto:
    """A node. Attributes that are None are left out."""
    return helper.make_node(
        op, list(inputs), list(outputs), name, domain=domain, **{k: v for k, v in attrs.items() if v is not None}
    )
