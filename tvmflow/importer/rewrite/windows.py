"""Rules for sliding windows: every convolution and pool gets explicit pads and a kernel shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from tvmflow.importer.graph import Graph, attributes, make
from tvmflow.importer.rewrite.rule import rule

WINDOWS = ("Conv", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "LpPool")


@rule(*WINDOWS)
def explicit_pads(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """auto_pad=SAME_UPPER, SAME_LOWER or VALID -> pads (ONNX: Conv)."""
    attrs = attributes(node)
    auto = attrs.pop("auto_pad", "NOTSET")
    shape = graph.shape(node.input[0])
    if auto in ("NOTSET", "") or shape is None:
        return None
    kernel = kernel_of(node, graph, attrs)
    if kernel is None:
        return None
    attrs["kernel_shape"] = kernel
    rank = len(kernel)
    pads = [0] * rank * 2
    if auto.startswith("SAME"):
        strides, dilations = attrs.get("strides", [1] * rank), attrs.get("dilations", [1] * rank)
        for axis, size in enumerate(shape[2:]):
            total = max(0, (-(-size // strides[axis]) - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - size)
            pads[axis], pads[axis + rank] = split(total, upper=auto == "SAME_UPPER")
    attrs["pads"] = pads
    if auto.startswith("SAME"):
        attrs.pop("ceil_mode", None)
    return [make(node.op_type, node.input, node.output, node.name, domain=node.domain, **attrs)]


def kernel_of(node: onnx.NodeProto, graph: Graph, attrs: dict[str, Any]) -> Sequence[int] | None:
    """Kernel size from the attribute or the weight."""
    if "kernel_shape" in attrs:
        return list(attrs["kernel_shape"])
    weight = graph.shape(node.input[3 if node.op_type == "QLinearConv" else 1])
    return None if weight is None else list(weight[2:])


def split(total: int, *, upper: bool) -> tuple[int, int]:
    """Padding before and after an axis; the odd one goes after for SAME_UPPER."""
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


@rule("ConvTranspose")
def explicit_transposed_pads(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """output_shape and auto_pad -> pads (TVM ignores output_shape)."""
    attrs = attributes(node)
    auto = attrs.pop("auto_pad", "NOTSET")
    wanted = attrs.pop("output_shape", None)
    shape, weight = graph.shape(node.input[0]), graph.shape(node.input[1])
    if (auto in ("NOTSET", "") and wanted is None) or shape is None or weight is None:
        return None
    rank = len(shape) - 2
    strides, dilations = attrs.get("strides", [1] * rank), attrs.get("dilations", [1] * rank)
    extra = list(attrs.get("output_padding", [0] * rank))
    pads = [0] * rank * 2
    if wanted is not None or auto.startswith("SAME"):
        for axis in range(rank):
            target = wanted[len(wanted) - rank + axis] if wanted is not None else shape[axis + 2] * strides[axis]
            total = (shape[axis + 2] - 1) * strides[axis] + extra[axis] + (weight[axis + 2] - 1) * dilations[axis] + 1 - target
            if total < 0:  # the output is larger: zeros after it, as onnxruntime has it
                extra[axis] -= total
                total = 0
            if extra[axis] >= strides[axis]:
                return None
            pads[axis], pads[axis + rank] = split(total, upper=auto == "SAME_UPPER")
    return [make(node.op_type, node.input, node.output, node.name, **{**attrs, "pads": pads, "output_padding": extra})]


WINDOW_RULES = (explicit_pads, explicit_transposed_pads)
