"""ONNX to Relax: read the file, bring the graph into what TVM converts correctly, convert node by node under the nodes' names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import tvm
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import external_data_helper, inliner
from tvm import IRModule, relax
from tvm.ir import GenericConst
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from tvmflow.errors import ModelError, UnsupportedOperator
from tvmflow.importer.check import onnx_references
from tvmflow.importer.fold import fold
from tvmflow.importer.graph import Graph, attributes, describe
from tvmflow.importer.lower import LOWERED
from tvmflow.importer.names import rename
from tvmflow.importer.reject import reject
from tvmflow.importer.rewrite import RULES
from tvmflow.importer.shapes import fix_shapes
from tvmflow.importer.source import EXACT_ARITHMETIC, HALF, QUANTIZED, Loaded, Say, Tolerance
from tvmflow.importer.tidy import tidy
from tvmflow.model import TensorInfo

if TYPE_CHECKING:
    from tvmflow.importer.worker import Job


def read(path: Path) -> onnx.ModelProto:
    """The model of an ``.onnx`` file with its external data.

    Raises
    ------
    ModelError : no file, not ONNX, truncated, or external data that is missing or too short
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as e:
        raise ModelError(f"can't be read: {e.strerror or e}", where=str(path)) from e
    except DecodeError as e:
        raise ModelError("is not an ONNX file, or is truncated", where=str(path), remedy="export or download it again") from e
    if not model.opset_import or not (model.graph.node or model.graph.output):
        raise ModelError("is not an ONNX model: it has no graph", where=str(path), remedy="export or download it again")
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as e:
        raise ModelError(
            f"its external data can't be read: {str(e).splitlines()[0]}",
            where=str(path),
            remedy="keep the data files beside the .onnx file, under the names that it was exported with",
        ) from e
    return model


def load(job: Job, say: Say) -> Loaded:
    """The file of a job, imported."""
    say("reading the file")
    path = Path(job.path)
    return from_model(read(path), job.shapes, say, path)


def from_model(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], say: Say, path: Path | None = None) -> Loaded:
    """A model imported; ``path`` is where it was read from, for a reference that reads it again."""
    original = model
    say("preparing the graph")
    work = onnx.ModelProto()
    work.CopyFrom(model)
    graph, notes = prepare(work, shapes)
    return Loaded(
        convert(graph, say),
        info(graph.inputs, graph),
        info(graph.outputs, graph),
        notes,
        tolerance(graph),
        lambda: onnx_references(original, path),
    )


def tolerance(graph: Graph) -> Tolerance:
    """How far numbers may be off: by rounding where the model quantizes or computes in half precision."""
    if any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in graph.nodes):
        return QUANTIZED
    if any(str(dtype) == "float16" for dtype, _ in graph.types.values()):
        return HALF
    return EXACT_ARITHMETIC


def prepare(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Graph, tuple[str, ...]]:
    """The graph with static shapes, folded, rewritten and free of what has no correct lowering; and notes on what was changed.

    Raises
    ------
    ModelError : invalid graph or open shapes
    UnsupportedOperator : an operator without a correct lowering
    """
    if model.ir_version < 3:
        raise ModelError(
            f"ONNX IR version {model.ir_version} is older than 3", remedy="export the model again with a newer exporter"
        )
    if model.functions:
        model = inliner.inline_local_functions(model)
    fix_shapes(model, shapes)
    notes: dict[str, list[str]] = {}
    try:
        graph = Graph(model)
        while fold(graph) or rewrite(graph, notes):
            graph.prune()
            graph.sort()
            graph.infer()
        graph.prune()
    except onnx.shape_inference.InferenceError as e:
        raise ModelError(
            f"its shapes don't fit: {str(e).splitlines()[0]}", remedy="check --shape, and the model with onnx.checker"
        ) from e
    reject(graph)
    return graph, tuple(
        f"{note}: {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "") for note, names in notes.items()
    )


def rewrite(graph: Graph, notes: dict[str, list[str]]) -> bool:
    """Applies the first rule that fits to each node, once through the graph; True when something changed."""
    changed, index = False, 0
    while index < len(graph.nodes):
        node = graph.nodes[index]
        made, note = replacement(node, graph)
        if made is None:
            index += 1
            continue
        if note:
            notes.setdefault(note, []).append(describe(node))
        graph.replace(index, made)
        index += len(made)
        changed = True
    return changed


def replacement(node: onnx.NodeProto, graph: Graph) -> tuple[list[onnx.NodeProto] | None, str]:
    """What the first rule that fits makes of a node, and the rule's note; None when none fits."""
    for rule in RULES:
        if node.op_type in rule.operators and node.domain in rule.domains:
            made = rule.apply(node, graph)
            if made is not None:
                return made, rule.note
    return None, ""


def info(values: list[onnx.ValueInfoProto], graph: Graph) -> tuple[TensorInfo, ...]:
    """Inputs or outputs with the types that inference found."""
    return tuple(TensorInfo(v.name, graph.shape(v.name) or (), str(graph.dtype(v.name))) for v in values)


def convert(graph: Graph, say: Say) -> IRModule:
    """The Relax module of a prepared graph: names, one dataflow block, static shapes.

    Raises
    ------
    UnsupportedOperator : TVM's converter of a node refuses it, or gives it a shape that is not static
    """
    bb = relax.BlockBuilder()
    values: dict[str, Any] = {
        name: relax.const(tvm.runtime.tensor(np.ascontiguousarray(v).reshape(v.shape))) for name, v in graph.constants.items()
    }
    params = []
    names: dict[str, str] = {}
    for index, value in enumerate(graph.inputs):
        param = relax.Var(f"input_{index}", relax.TensorType(graph.shape(value.name), str(graph.dtype(value.name))))
        params.append(param)
        values[value.name] = param
    with bb.function("main", params=params):
        with bb.dataflow():
            for node in graph.nodes:
                say(describe(node))
                results = convert_node(node, [values[n] if n else None for n in node.input], bb, graph, names)
                values.update({name: result for name, result in zip(node.output, results, strict=False) if name})
            outputs = [values[value.name] for value in graph.outputs]
            output = bb.emit_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
        bb.emit_func_output(output)
    return tidy(rename(bb.get(), names, {p.name: v.name for p, v in zip(params, graph.inputs, strict=True)}))


def convert_node(
    node: onnx.NodeProto, inputs: list[Any], bb: relax.BlockBuilder, graph: Graph, names: dict[str, str]
) -> list[Any]:
    """Emits one node; its result variables enter ``names`` under the node's name."""
    attrs = converter_attributes(node)
    try:
        if node.op_type in LOWERED:
            made = bb.normalize(LOWERED[node.op_type](bb, inputs, attrs))
        else:
            converter = frontend._get_convert_map()[node.op_type].get_converter(graph.opset)
            made = bb.normalize(converter(bb, frontend.onnx_input(inputs), attrs, [{}, {}]))
        if isinstance(made.ty, relax.TupleType):
            whole = made if isinstance(made, relax.Tuple) else bb.emit(made)
            items = (
                list(whole.fields)
                if isinstance(whole, relax.Tuple)
                else [bb.emit(relax.TupleGetItem(whole, i)) for i in range(len(made.ty.fields))]
            )
        else:
            items = [made]
        results = []
        for index, item in enumerate(items[: len(node.output)]):
            if not isinstance(item, relax.Var | GenericConst):
                item = bb.emit(item)
            if isinstance(item, relax.Var) and not item.name.startswith("input_"):
                names.setdefault(item.name, node.name if index == 0 else graph.claim(f"{node.name}:{index}"))
            check_static(item, node)
            results.append(item)
    except ModelError:
        raise
    except Exception as e:  # foreign converters fail with any kind of exception; every one means: this node can't be imported
        lines = [line for line in str(e).splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else type(e).__name__
        raise UnsupportedOperator(
            f"TVM can't convert it: {reason}",
            where=describe(node),
            remedy="export the model with other operators, or simplify it first",
        ) from e
    if len(results) < sum(1 for name in node.output if name):
        raise UnsupportedOperator(f"only {len(results)} of its {len(node.output)} outputs can be imported", where=describe(node))
    return results


def check_static(value: Any, node: onnx.NodeProto) -> None:
    shape = getattr(value.ty, "shape", None)
    if not isinstance(value.ty, relax.TensorType) or shape is None or not all(hasattr(dim, "value") for dim in shape.values):
        raise UnsupportedOperator(
            "its shape depends on data",
            where=describe(node),
            remedy="only static shapes can be compiled: fix them with --shape, or cut this node off the model",
        )


def converter_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes in the form that TVM's converters read: text as bytes, lists as tuples, and the node's name."""
    found: dict[str, Any] = {}
    for name, value in attributes(node).items():
        found[name] = value.encode() if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    found["tvm_custom"] = {"name": node.name, "num_outputs": len(node.output)}
    return found
