"""What depends on no input is computed at import."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

N = helper.make_node
F = np.float32


def test_constants_of_every_kind(model, imported, operators):
    nodes = [
        N("Constant", [], ["a"], value_floats=[1.0, 2.0]),
        N("Constant", [], ["b"], value_float=3.0),
        N("Constant", [], ["i"], value_ints=[4, 5]),
        N("Cast", ["i"], ["c"], to=TensorProto.FLOAT),
        N("Mul", ["a", "b"], ["ab"]),
        N("Add", ["ab", "c"], ["k"]),
        N("Add", ["x", "k"], ["y"], "only"),
    ]
    loaded = imported(model(nodes, {"x": (F, [2])}, ["y"]))
    assert operators(loaded.module) == [("only", "relax.add")]


def test_half_weights_behind_a_cast(model, imported, operators):
    nodes = [N("Cast", ["h"], ["w"], to=TensorProto.FLOAT), N("Conv", ["x", "w"], ["y"], "conv")]
    loaded = imported(model(nodes, {"x": (F, [1, 2, 4, 4])}, ["y"], {"h": np.ones((3, 2, 1, 1), np.float16)}))
    assert operators(loaded.module) == [("conv", "relax.nn.conv2d")]
    weight = loaded.module["main"].body.blocks[0].bindings[0].value.args[1]
    assert str(weight.ty.dtype) == "float32"


def test_stored_integers_stay_behind_dequantize(model, imported, operators):
    nodes = [
        N("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
        N("DequantizeLinear", ["q", "s", "z"], ["d"], "dq", axis=0),
        N("MatMul", ["x", "d"], ["y"], "mm"),
    ]
    constants = {"w": np.eye(3, dtype=F), "s": np.full(3, 0.01, F), "z": np.zeros(3, np.int8)}
    loaded = imported(model(nodes, {"x": (F, [2, 3])}, ["y"], constants))
    assert operators(loaded.module) == [("dq", "relax.dequantize"), ("mm", "relax.matmul")]


def test_identity_and_dropout_leave_no_trace(model, imported, operators):
    nodes = [N("Identity", ["x"], ["i"]), N("Dropout", ["i"], ["d"]), N("Relu", ["d"], ["y"], "relu")]
    loaded = imported(model(nodes, {"x": (F, [2])}, ["y"]))
    assert operators(loaded.module) == [("relu", "relax.nn.relu")]


def test_large_expansions_are_not_stored(model, imported, operators):
    nodes = [N("Expand", ["c", "big"], ["e"], "expand"), N("Add", ["e", "x"], ["y"], "add")]
    constants = {"c": np.ones((1, 1), F), "big": np.array([1100, 1000])}
    loaded = imported(model(nodes, {"x": (F, [1, 1])}, ["y"], constants))
    assert [name for name, _ in operators(loaded.module)][-1] == "add" and len(operators(loaded.module)) > 1
