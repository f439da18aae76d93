"""What has no correct lowering is refused before TVM, with the node, the operator, the reason and a way out."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tvmflow.errors import ModelError, UnsupportedOperator

N = helper.make_node
F = np.float32
X = {"x": (F, [1, 2, 4, 4])}
Y = {"y": (F, None)}
STATISTICS = {name: np.ones(2, F) for name in "sbmv"}


def refused(imported, built, name, operator, reason):
    with pytest.raises(UnsupportedOperator, match=reason) as e:
        imported(built)
    assert repr(name) in e.value.where and f"({operator})" in e.value.where and e.value.remedy


CASES = [
    ("acme.Relu", N("Relu", ["x"], ["y"], "n", domain="acme"), {}, "domain 'acme' are unknown"),
    ("NoSuchOperator", N("NoSuchOperator", ["x"], ["y"], "n"), {}, "type can't be inferred|no lowering"),
    ("MaxPool", N("MaxPool", ["x"], ["y", "i"], "n", kernel_shape=[2, 2]), {}, "the indices"),
    ("Det", N("Det", ["x"], ["y"], "n"), {}, "no lowering"),
    ("NonZero", N("NonZero", ["x"], ["y"], "n"), {}, "depends on data"),
    (
        "BatchNormalization",
        N("BatchNormalization", ["x", *"sbmv"], ["y", "m1", "v1"], "n", training_mode=1),
        STATISTICS,
        "training mode",
    ),
    ("Cast", N("Cast", ["x"], ["y"], "n", to=TensorProto.FLOAT8E4M3FN), {}, "float8_e4m3fn"),
    (
        "RoiAlign",
        N("RoiAlign", ["x", "r", "b"], ["y"], "n", mode="max"),
        {"r": np.zeros((1, 4), F), "b": np.zeros(1, np.int64)},
        "average mode",
    ),
]


@pytest.mark.parametrize(("operator", "node", "constants", "reason"), CASES, ids=[c[0] for c in CASES])
def test_refused_by_name(model, imported, operator, node, constants, reason):
    outputs = {"y": (F, None), **({"i": (np.int64, None)} if operator == "MaxPool" else {})}
    if operator in ("NonZero", "Cast"):
        del outputs["y"]
        built = model([node], X, ["y"], constants, domains={"acme": 1})
    else:
        built = model([node], X, outputs, constants, domains={"acme": 1})
    refused(imported, built, "n", operator, reason)


def test_training_dropout(model, imported):
    constants = {"r": F(0.5), "t": np.array(True)}
    refused(imported, model([N("Dropout", ["x", "r", "t"], ["y"], "n")], X, ["y"], constants), "n", "Dropout", "training mode")


def test_resize_by_computed_scales(model, imported):
    built = model([N("Resize", ["x", "", "s"], ["y"], "n")], {**X, "s": (F, [4])}, {"y": (F, [1, 2, 8, 8])})
    refused(imported, built, "n", "Resize", "run time")


def test_integer_powers(model, imported):
    built = model([N("Pow", ["x", "e"], ["y"], "n")], {"x": (np.int32, [3]), "e": (np.int32, [3])}, ["y"])
    refused(imported, built, "n", "Pow", "powers of integers")


def test_text_input(model, imported):
    import onnx

    built = model([N("Identity", ["x"], ["y"])], {"x": (F, [3])}, ["y"])
    built.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    built.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    with pytest.raises(UnsupportedOperator, match="type string"):
        imported(built)


def test_undefined_tensor_is_named(model, imported):
    with pytest.raises(ModelError, match="its input 'ghost' is computed by no node") as e:
        imported(model([N("Add", ["x", "ghost"], ["y"], "add")], X, Y))
    assert "'add'" in e.value.where


def test_cycle_is_named(model, imported):
    nodes = [N("Add", ["x", "b"], ["a"], "one"), N("Relu", ["a"], ["b"], "two"), N("Neg", ["b"], ["y"])]
    with pytest.raises(ModelError, match="part of a cycle"):
        imported(model(nodes, X, Y))


def test_a_plain_maxpool_is_not_refused(model, imported):
    imported(model([N("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])], X, ["y"]))
