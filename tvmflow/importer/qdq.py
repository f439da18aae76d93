"""Quantized operators become their definition: dequantize, the float operator, quantize (QDQ), under the same parameters.

::

    Before   y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b)
    After    y = QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w), DequantizeLinear(b)), ys, yz)

Every quantized model reaches Relax as ``R.dequantize`` / ``R.quantize`` around float operators: the one form that realize reads
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from tvmflow.importer.graph import Graph, attributes, make
from tvmflow.importer.rewrite.rule import rule

MICROSOFT = "com.microsoft"


def parameter(name: str, graph: Graph) -> str:
    """A scale or zero point; a constant vector of one element becomes a scalar."""
    value = graph.const(name)
    if value is not None and value.ndim and value.size == 1:
        return graph.add_const(name, value.reshape(()), value.dtype)
    return name


class Body:
    """The nodes that replace one quantized node, collected in order."""

    def __init__(self, node: onnx.NodeProto, graph: Graph) -> None:
        self.node, self.graph, self.made = node, graph, list[onnx.NodeProto]()

    def emit(self, op: str, inputs: Sequence[str], output: str = "", **attrs: Any) -> str:
        """Adds a node; the one that computes the quantized node's output carries its name."""
        output = output or self.graph.fresh(self.node.name)
        name = self.node.name if output == self.node.output[0] else f"{self.node.name}/{op}.{len(self.made) + 1}"
        self.made.append(make(op, inputs, [output], name, **attrs))
        return output

    def dequantize(self, first: int, *, axis: int = 0) -> str:
        """DequantizeLinear of the operands (tensor, scale, zero point) from position ``first`` on."""
        q, scale, zero = (self.graph.operand(self.node, first + k) for k in range(3))
        return self.emit("DequantizeLinear", with_parameters(q, scale, zero, self.graph), axis=axis)

    def quantize(self, x: str, scale: str, zero: str) -> list[onnx.NodeProto]:
        """QuantizeLinear to the node's output: the end."""
        self.emit("QuantizeLinear", with_parameters(x, scale, zero, self.graph), self.node.output[0])
        return self.made


def with_parameters(x: str, scale: str, zero: str, graph: Graph) -> list[str]:
    """Operands of QuantizeLinear or DequantizeLinear; a zero point as long as its scale."""
    scale = parameter(scale, graph)
    if not zero:
        return [x, scale]
    zero = parameter(zero, graph)
    shape, value = graph.shape(scale), graph.const(zero)
    if shape and value is not None and value.shape != shape:
        zero = graph.add_const(zero, np.broadcast_to(value, shape), value.dtype)
    return [x, scale, zero]


@rule("QLinearConv")
def linear_conv(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """QLinearConv -> QDQ around Conv; the int32 bias has the scale x_scale * w_scale."""
    body = Body(node, graph)
    inputs = [body.dequantize(0), body.dequantize(3)]
    if graph.operand(node, 8):
        inputs.append(bias(body, node.input[8], node.input[1], node.input[4]))
    out = body.emit("Conv", inputs, **attributes(node))
    return body.quantize(out, node.input[6], node.input[7])


def bias(body: Body, q: str, x_scale: str, w_scale: str) -> str:
    """DequantizeLinear of an int32 bias."""
    graph = body.graph
    xs, ws = graph.const(x_scale), graph.const(w_scale)
    if xs is not None and ws is not None:
        scale = graph.add_const(q, (xs * ws).reshape(-1) if ws.size > 1 else (xs * ws).reshape(()), np.float32)
    else:
        scale = body.emit("Mul", [x_scale, w_scale])
    return body.emit("DequantizeLinear", [q, scale], axis=0)


@rule("QLinearMatMul")
def linear_matmul(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """QLinearMatMul -> QDQ around MatMul; a vector of scales belongs to rows of A or columns of B."""
    body = Body(node, graph)
    out = body.emit("MatMul", [body.dequantize(0, axis=-2), body.dequantize(3, axis=-1)])
    return body.quantize(out, node.input[6], node.input[7])


@rule("QGemm", domain=MICROSOFT)
def q_gemm(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """QGemm -> QDQ around Gemm; without an output scale the result stays float. The bias has the scale alpha * a * b."""
    attrs = attributes(node)
    if attrs.get("alpha", 1.0) != 1.0 and graph.operand(node, 6):
        return None
    body = Body(node, graph)
    inputs = [body.dequantize(0), body.dequantize(3, axis=0 if attrs.get("transB") else 1)]
    if graph.operand(node, 6):
        inputs.append(bias(body, node.input[6], node.input[1], node.input[4]))
    scale, zero = graph.operand(node, 7), graph.operand(node, 8)
    out = body.emit("Gemm", inputs, "" if scale else node.output[0], **attrs)
    return body.quantize(out, scale, zero) if scale else body.made


BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul"}


@rule(*BINARY, domain=MICROSOFT)
def linear_binary(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """QLinearAdd, QLinearMul -> QDQ around Add, Mul."""
    body = Body(node, graph)
    out = body.emit(BINARY[node.op_type], [body.dequantize(0), body.dequantize(3)])
    return body.quantize(out, node.input[6], graph.operand(node, 7))


UNARY = {
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearReduceMean": "ReduceMean",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
}


@rule(*UNARY, domain=MICROSOFT)
def linear_unary(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """QLinearSigmoid, QLinearAveragePool and the like -> QDQ around the float operator."""
    attrs = attributes(node)
    if attrs.pop("channels_last", 0) or attrs.pop("opset", 13) < 13:
        return None
    body = Body(node, graph)
    out = body.emit(UNARY[node.op_type], [body.dequantize(0)], **attrs)
    return body.quantize(out, node.input[3], graph.operand(node, 4))


@rule("QLinearConcat", domain=MICROSOFT)
def linear_concat(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """QLinearConcat(y_scale, y_zero, x0, s0, z0, x1, ...) -> QDQ around Concat."""
    body = Body(node, graph)
    out = body.emit("Concat", [body.dequantize(at) for at in range(2, len(node.input), 3)], axis=attributes(node)["axis"])
    return body.quantize(out, node.input[0], node.input[1])


@rule("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def standard_domain(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """com.microsoft.QuantizeLinear -> the standard operator (the same, with more types)."""
    x, scale, zero = (graph.operand(node, k) for k in range(3))
    return [make(node.op_type, with_parameters(x, scale, zero, graph), node.output, node.name, **attributes(node))]


@rule(
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    domain=MICROSOFT,
    note="integer products with a float result are computed in float",
)
def float_result(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """Integer matmul with a float result -> MatMul of dequantized operands, plus the bias."""
    body = Body(node, graph)
    if node.op_type == "DynamicQuantizeMatMul":
        a, b, b_scale, b_zero, c = (graph.operand(node, k) for k in range(5))
        q, a_scale, a_zero = (graph.fresh(node.name) for _ in range(3))
        body.made.append(make("DynamicQuantizeLinear", [a], [q, a_scale, a_zero], f"{node.name}/DynamicQuantizeLinear"))
    else:
        q, b, a_scale, b_scale, a_zero, b_zero, c = (graph.operand(node, k) for k in range(7))
    left = body.emit("DequantizeLinear", with_parameters(q, a_scale, a_zero, graph))
    right = body.emit("DequantizeLinear", with_parameters(b, b_scale, b_zero, graph), axis=-1)
    out = body.emit("MatMul", [left, right], "" if c else node.output[0])
    if c:
        body.emit("Add", [out, c], node.output[0])
    return body.made


@rule("Mul", note="integer products with scales found at run time are computed in float")
def scaled_integer_product(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """Mul(Cast(MatMulInteger(a, b, az, bz)), Mul(as, bs)) -> MatMul of dequantized operands (quantize_dynamic writes this).

    ConvInteger likewise. Fires only when nothing else reads what lies between.
    """
    for product, factor in (node.input, node.input[::-1]):
        cast, scales = graph.producer(product), graph.producer(factor)
        if cast is None or scales is None or cast.op_type != "Cast" or scales.op_type != "Mul":
            continue
        integer = graph.producer(cast.input[0])
        if integer is None or integer.op_type not in ("MatMulInteger", "ConvInteger"):
            continue
        readers = graph.readers()
        b_scale = next((n for n in scales.input if graph.const(n) is not None), "")
        a_scale = next((n for n in scales.input if n != b_scale), "")
        if not b_scale or scale_of(integer.input[0], graph) != a_scale or readers[product] > 1 or readers[cast.input[0]] > 1:
            continue
        body = Body(node, graph)
        a, b, a_zero, b_zero = (graph.operand(integer, k) for k in range(4))
        conv = integer.op_type == "ConvInteger"
        left = body.emit("DequantizeLinear", with_parameters(a, a_scale, a_zero, graph))
        right = body.emit("DequantizeLinear", with_parameters(b, b_scale, b_zero, graph), axis=0 if conv else -1)
        body.emit("Conv" if conv else "MatMul", [left, right], node.output[0], **(attributes(integer) if conv else {}))
        return body.made
    return None


def scale_of(q: str, graph: Graph) -> str:
    """The scale under which a tensor was quantized, "" when that is not known."""
    source = graph.producer(q)
    if source is None:
        return ""
    if source.op_type == "DynamicQuantizeLinear":
        return source.output[1]
    return source.input[1] if source.op_type == "QuantizeLinear" else ""


@rule("DynamicQuantizeLinear")
def dynamic_quantize(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """DynamicQuantizeLinear -> its definition; the scale of an all-zero tensor is 1, as in onnxruntime."""
    (x,) = node.input
    y, scale, zero = (*node.output, "", "")[:3]
    scale, zero = scale or graph.fresh(node.name), zero or graph.fresh(node.name)
    body = Body(node, graph)
    none, one, top = (graph.add_const(node.name, value, np.float32) for value in (0.0, 1.0, 255.0))
    low = body.emit("Min", [body.emit("ReduceMin", [x], keepdims=0), none])
    high = body.emit("Max", [body.emit("ReduceMax", [x], keepdims=0), none])
    step = body.emit("Div", [body.emit("Sub", [high, low]), top])
    body.emit("Where", [body.emit("Equal", [step, none]), one, step], scale)
    offset = body.emit("Round", [body.emit("Div", [body.emit("Neg", [low]), scale])])
    body.emit("Cast", [body.emit("Clip", [offset, none, top])], zero, to=onnx.TensorProto.UINT8)
    return body.quantize(x, scale, zero)


NARROW = {"int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}


@rule("DequantizeLinear")
def unpacked(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """DequantizeLinear of stored int4, uint4, int2, uint2 -> of the same numbers in 8 bits."""
    stored = graph.const(node.input[0])
    if stored is None or str(stored.dtype) not in NARROW:
        return None
    wide = NARROW[str(stored.dtype)]
    inputs = [graph.add_const(node.input[0], stored.astype(wide)), node.input[1]]
    if graph.operand(node, 2):
        zero = graph.const(node.input[2])
        if zero is None:
            return None
        inputs.append(graph.add_const(node.input[2], zero.astype(wide)))
    return [make(node.op_type, inputs, node.output, node.name, **attributes(node))]


QUANTIZED_RULES = (
    linear_conv,
    linear_matmul,
    q_gemm,
    linear_binary,
    linear_unary,
    linear_concat,
    standard_domain,
    float_result,
    scaled_integer_product,
    dynamic_quantize,
    unpacked,
)
