"""Quantized operators reach Relax as dequantize, float operator, quantize, and compute what onnxruntime computes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

N = helper.make_node
F = np.float32
rng = np.random.default_rng(0)
MS = {"com.microsoft": 1}


def integers(dtype, *shape):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def names_of(operators, loaded):
    return [op.removeprefix("relax.") for _, op in operators(loaded.module)]


@pytest.mark.parametrize("weight", [np.int8, np.uint8])
@pytest.mark.parametrize("channels", [1, 8])
def test_qlinear_conv(model, imported, operators, weight, channels):
    constants = {
        "xs": F(0.02), "xz": np.uint8(5), "w": integers(weight, 8, 4, 3, 3), "ws": rng.uniform(0.01, 0.03, channels).astype(F),
        "wz": np.zeros(channels, weight), "ys": F(0.5), "yz": np.uint8(10), "b": rng.integers(-100, 100, 8).astype(np.int32),
    }  # fmt: skip
    node = N("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"], "conv", pads=[1, 1, 1, 1])
    loaded = imported(
        model([node], {"x": (np.uint8, [1, 4, 6, 6])}, ["y"], constants), samples=[{"x": integers(np.uint8, 1, 4, 6, 6)}]
    )
    found = names_of(operators, loaded)
    assert found.count("dequantize") == 3 and found[-1] == "quantize" and "nn.conv2d" in found
    assert operators(loaded.module)[-1][0] == "conv"


def test_qlinear_matmul(model, imported, operators):
    constants = {
        "as": F(0.02), "az": np.uint8(5), "b": integers(np.int8, 8, 5), "bs": F(0.03), "bz": np.int8(0),
        "ys": F(0.5), "yz": np.uint8(9),
    }  # fmt: skip
    node = N("QLinearMatMul", ["x", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])
    loaded = imported(model([node], {"x": (np.uint8, [3, 8])}, ["y"], constants), samples=[{"x": integers(np.uint8, 3, 8)}])
    assert names_of(operators, loaded) == ["dequantize", "dequantize", "matmul", "quantize"]


TWO = {"as": F(0.02), "az": np.uint8(5), "bs": F(0.03), "bz": np.uint8(7), "ys": F(0.05), "yz": np.uint8(100)}
MICROSOFT = [
    (N("QLinearAdd", ["x", "as", "az", "z", "bs", "bz", "ys", "yz"], ["y"], domain="com.microsoft"), "add"),
    (N("QLinearMul", ["x", "as", "az", "z", "bs", "bz", "ys", "yz"], ["y"], domain="com.microsoft"), "multiply"),
    (N("QLinearSigmoid", ["x", "as", "az", "ys", "yz"], ["y"], domain="com.microsoft"), "sigmoid"),
    (N("QLinearLeakyRelu", ["x", "as", "az", "ys", "yz"], ["y"], domain="com.microsoft", alpha=0.1), "nn.leakyrelu"),
    (N("QLinearConcat", ["ys", "yz", "x", "as", "az", "z", "bs", "bz"], ["y"], domain="com.microsoft", axis=1), "concat"),
]


@pytest.mark.parametrize(("node", "operator"), MICROSOFT, ids=lambda v: v.op_type if hasattr(v, "op_type") else "")
def test_microsoft_operators(model, imported, operators, node, operator):
    used = {name: value for name, value in TWO.items() if name in node.input}
    shapes = {name: (np.uint8, [2, 8]) for name in ("x", "z") if name in node.input}
    sample = {name: integers(np.uint8, 2, 8) for name in shapes}
    loaded = imported(model([node], shapes, {"y": (np.uint8, None)}, used, domains=MS), samples=[sample])
    found = names_of(operators, loaded)
    assert operator in found and found[0] == "dequantize" and found[-1] == "quantize"


@pytest.mark.parametrize("scaled", [True, False])
def test_qgemm(model, imported, operators, scaled):
    constants = {
        "as": F(0.02), "az": np.uint8(5), "b": integers(np.int8, 5, 8), "bz": np.zeros(5, np.int8),
        "bs": rng.uniform(0.01, 0.02, 5).astype(F),
        "c": np.arange(5, dtype=np.int32), **({"ys": F(0.05), "yz": np.uint8(100)} if scaled else {}),
    }  # fmt: skip
    inputs = ["x", "as", "az", "b", "bs", "bz", "c", *(["ys", "yz"] if scaled else [])]
    node = N("QGemm", inputs, ["y"], "fc", domain="com.microsoft", transB=1)
    kind = np.uint8 if scaled else F
    loaded = imported(
        model([node], {"x": (np.uint8, [2, 8])}, {"y": (kind, None)}, constants, domains=MS),
        samples=[{"x": integers(np.uint8, 2, 8)}],
    )
    assert (names_of(operators, loaded)[-1] == "quantize") is scaled


def test_dynamic_quantization_becomes_a_float_product(model, imported, operators):
    nodes = [
        N("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "dynamic"),
        N("MatMulInteger", ["q", "b", "z", "bz"], ["i"], "integer"),
        N("Cast", ["i"], ["f"], to=1),
        N("Mul", ["s", "bs"], ["scale"]),
        N("Mul", ["f", "scale"], ["y"], "product"),
    ]
    constants = {"b": integers(np.int8, 8, 5), "bz": np.int8(0), "bs": F(0.01)}
    loaded = imported(model(nodes, {"x": (F, [3, 8])}, ["y"], constants))
    assert loaded.notes == ("integer products with scales found at run time are computed in float: node 'product' (Mul)",)
    found = operators(loaded.module)
    assert found[-1] == ("product", "relax.matmul") and [op for _, op in found].count("relax.dequantize") == 2


def test_dynamic_quantization_of_zeros(model, imported):
    built = model([N("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])], {"x": (F, [3, 8])}, ["q", "s", "z"])
    imported(built, samples=[{"x": np.zeros((3, 8), F)}, {"x": np.linspace(-3, 1, 24, dtype=F).reshape(3, 8)}])


@pytest.mark.parametrize("op", ["MatMulInteger", "ConvInteger"])
def test_integer_products_stay_exact(model, imported, op):
    shapes = ([3, 600], (600, 5)) if op == "MatMulInteger" else ([1, 64, 5, 5], (4, 64, 3, 3))
    node = N(op, ["x", "w", "xz", "wz"], ["y"])
    built = model(
        [node], {"x": (np.uint8, shapes[0])}, ["y"], {"w": integers(np.uint8, *shapes[1]), "xz": np.uint8(3), "wz": np.uint8(250)}
    )
    imported(built, samples=[{"x": integers(np.uint8, *shapes[0])}])


def test_four_bit_weights(model, imported, operators):
    import ml_dtypes

    nodes = [N("DequantizeLinear", ["w", "s", "z"], ["d"], "dq", axis=1), N("MatMul", ["x", "d"], ["y"])]
    constants = {
        "w": rng.integers(-8, 8, (6, 4)).astype(ml_dtypes.int4),
        "s": rng.random(4).astype(F),
        "z": np.zeros(4, ml_dtypes.int4),
    }
    loaded = imported(model(nodes, {"x": (F, [2, 6])}, ["y"], constants))
    assert names_of(operators, loaded) == ["dequantize", "matmul"]
    assert str(loaded.module["main"].body.blocks[0].bindings[0].value.args[0].ty.dtype) == "int8"
