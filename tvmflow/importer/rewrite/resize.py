"""Resize as what it is along each axis: a constant selection (nearest) or a constant matrix (linear, cubic, antialiased).

TVM's own resize stays where it is exact and quantizable: nearest, by integer factors, of the last two of four axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tvmflow.importer.graph import Graph, attributes, make
from tvmflow.importer.rewrite.rule import rule


@rule("Upsample")
def upsample(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """Upsample -> Resize with asymmetric coordinates and floor, which is what it was."""
    attrs = attributes(node)
    scales = graph.const(graph.operand(node, 1)) if "scales" not in attrs else np.array(attrs["scales"], np.float32)
    if scales is None:
        return None
    mode = "nearest" if attrs.get("mode", "nearest") == "nearest" else "linear"
    inputs = [node.input[0], "", graph.add_const(node.name, scales, np.float32)]
    options = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return [make("Resize", inputs, node.output, node.name, **options)]


@rule("Resize")
def resize(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """Resize by constants -> Gather or MatMul along each axis that changes."""
    return per_axis(node, graph)


def per_axis(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """A chain of one-axis resizes, or TVM's form of it; None where the result depends on more than constants."""
    shape, attrs = graph.shape(node.input[0]), attributes(node)
    if shape is None or attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    scales = factors(node, shape, graph)
    if scales is None:
        return None
    mode = attrs.get("mode", "nearest")
    sizes = [matrix.shape[0] for matrix in scales]
    if mode == "nearest" and exact_in_tvm(shape, scales):
        repeat = np.array([new / old for old, new in zip(shape, sizes, strict=True)], np.float32)
        options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        if len(node.input) == 3 and {**attrs, **options} == attrs:
            return None
        return [make("Resize", [node.input[0], "", graph.add_const(node.name, repeat)], node.output, node.name, **options)]
    changed = [axis for axis, matrix in enumerate(scales) if not np.array_equal(matrix, np.eye(shape[axis]))]
    if not changed:
        return [make("Identity", [node.input[0]], node.output, node.name)]
    made: list[onnx.NodeProto] = []
    value = node.input[0]
    for axis in changed:
        out = node.output[0] if axis == changed[-1] else graph.fresh(node.name)
        name = node.name if axis == changed[-1] else f"{node.name}/axis{axis}"
        if mode == "nearest":
            made.append(
                make("Gather", [value, graph.add_const(node.name, scales[axis].argmax(1), np.int64)], [out], name, axis=axis)
            )
        else:
            made += product(value, scales[axis], axis, len(shape), out, name, graph, graph.dtype(node.input[0]))
        value = out
    return made


def exact_in_tvm(shape: tuple[int, ...], matrices: list[np.ndarray]) -> bool:
    """Whether a nearest resize repeats whole pixels of an NCHW tensor."""
    if len(shape) != 4 or matrices[0].shape[0] != shape[0] or matrices[1].shape[0] != shape[1]:
        return False
    for size, matrix in zip(shape[2:], matrices[2:], strict=True):
        factor = matrix.shape[0] // size
        if factor < 1 or not np.array_equal(matrix, np.repeat(np.eye(size, dtype=matrix.dtype), factor, axis=0)):
            return False
    return True


def product(
    x: str, matrix: np.ndarray, axis: int, rank: int, out: str, name: str, graph: Graph, dtype: np.dtype | None
) -> list[onnx.NodeProto]:
    """``matrix`` [new, old] applied along an axis."""
    if axis == rank - 1:
        return [make("MatMul", [x, graph.add_const(name, matrix.T, dtype)], [out], name)]
    weight = graph.add_const(name, matrix, dtype)
    if axis == rank - 2:
        return [make("MatMul", [weight, x], [out], name)]
    order = [a for a in range(rank) if a != axis] + [axis]
    last, mixed = graph.fresh(name), graph.fresh(name)
    return [
        make("Transpose", [x], [last], f"{name}/last", perm=order),
        make("MatMul", [last, graph.add_const(name, matrix.T, dtype)], [mixed], f"{name}/MatMul"),
        make("Transpose", [mixed], [out], name, perm=list(np.argsort(order))),
    ]


def factors(node: onnx.NodeProto, shape: tuple[int, ...], graph: Graph) -> list[np.ndarray] | None:
    """The matrix [new, old] of every axis, as ONNX's reference implementation computes it on an identity matrix."""
    attrs = attributes(node)
    axes = [axis % len(shape) for axis in attrs.pop("axes", range(len(shape)))]
    old = graph.opset < 11 and len(node.input) == 2
    scales = graph.const(graph.operand(node, 1 if old else 2))
    sizes = None if old else graph.const(graph.operand(node, 3))
    policy = attrs.pop("keep_aspect_ratio_policy", "stretch")
    if sizes is not None and sizes.size:
        wanted = [float(size) / shape[axis] for size, axis in zip(sizes, axes, strict=True)]
        if policy != "stretch":
            common = (min if policy == "not_larger" else max)(wanted)
            sizes = np.array([int(np.floor(common * shape[axis] + 0.5)) for axis in axes])
            wanted = [common] * len(axes)
        lengths = [int(size) for size in sizes]
    elif scales is not None and scales.size:
        wanted = [float(scale) for scale in scales]
        lengths = [int(np.floor(np.float32(scale) * shape[axis])) for scale, axis in zip(scales, axes, strict=True)]
    else:
        return None
    if old:
        attrs.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    if attrs.get("coordinate_transformation_mode") == "align_corners" and any(
        scale * shape[axis] != length for axis, scale, length in zip(axes, wanted, lengths, strict=True)
    ):
        return None  # onnxruntime and the specification disagree
    matrices = [np.eye(size, dtype=np.float32) for size in shape]
    for axis, scale, length in zip(axes, wanted, lengths, strict=True):
        if length != shape[axis] or scale != 1.0:
            matrix = one_axis(shape[axis], scale, length if sizes is not None and sizes.size else None, attrs)
            if matrix.shape[0] != length:
                return None
            matrices[axis] = matrix
    return matrices


def one_axis(size: int, scale: float, length: int | None, attrs: dict[str, Any]) -> np.ndarray:
    """Resize of the rows of an identity matrix, by ``scale`` or to ``length`` rows."""
    inputs = ["x", "", "scales"] if length is None else ["x", "", "", "sizes"]
    node = make("Resize", inputs, ["y"], "one_axis", axes=[0], **attrs)
    empty = [helper.make_empty_tensor_value_info(name) for name in inputs if name]
    graph = helper.make_graph([node], "one_axis", empty, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    given = {"scales": np.array([scale], np.float32)} if length is None else {"sizes": np.array([length], np.int64)}
    (out,) = ReferenceEvaluator(model).run(None, {"x": np.eye(size, dtype=np.float32), **given})
    return np.asarray(out, np.float32)


RESIZE_RULES = (upsample, resize)
