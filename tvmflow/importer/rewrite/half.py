"""float16 operators that accumulate are computed in float32, as onnxruntime does: TVM would round every partial sum."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from tvmflow.importer.graph import Graph, attributes, make
from tvmflow.importer.rewrite.rule import rule

ACCUMULATING = (
    "AveragePool",
    "Conv",
    "ConvTranspose",
    "CumSum",
    "Einsum",
    "Elu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "InstanceNormalization",
    "LayerNormalization",
    "LogSoftmax",
    "LpPool",
    "LRN",
    "MatMul",
    "Mean",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Selu",
    "Softmax",
    "Softplus",
)


@rule(*ACCUMULATING, note="float16 operators that accumulate are computed in float32")
def widen_half(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """Op(float16) -> Cast to float32, Op, Cast back; constants are converted at once."""
    if str(graph.dtype(node.input[0])) != "float16":
        return None
    made: list[onnx.NodeProto] = []
    inputs: list[str] = []
    for name in node.input:
        if not name or str(graph.dtype(name)) != "float16":
            inputs.append(name)
        elif (value := graph.const(name)) is not None:
            inputs.append(graph.add_const(node.name, value, "float32"))
        else:
            inputs.append(graph.fresh(node.name))
            made.append(make("Cast", [name], [inputs[-1]], f"{node.name}/float32.{len(made) + 1}", to=TensorProto.FLOAT))
    wide = [graph.fresh(node.name) if name else "" for name in node.output]
    made.append(make(node.op_type, inputs, wide, f"{node.name}/{node.op_type}", **attributes(node)))
    for index, (inner, name) in enumerate(zip(wide, node.output, strict=True)):
        if name:
            made.append(
                make("Cast", [inner], [name], node.name if index == 0 else f"{node.name}:{index}", to=TensorProto.FLOAT16)
            )
    return made


HALF_RULES = (widen_half,)
