"""Layer and input names survive the import unchanged."""

from __future__ import annotations

import numpy as np
from onnx import helper

N = helper.make_node
F = np.float32


def test_node_names_are_kept_with_dots_and_slashes(model, imported, operators):
    nodes = [N("Relu", ["x:0"], ["a"], "/features/0.1/Relu"), N("Add", ["a", "c"], ["y"], "9.add")]
    loaded = imported(model(nodes, {"x:0": (F, [2, 3])}, ["y"], {"c": np.ones(3, F)}))
    assert operators(loaded.module) == [("/features/0.1/Relu", "relax.nn.relu"), ("9.add", "relax.add")]
    assert [p.name for p in loaded.module["main"].params] == ["x:0"]
    assert [(i.name, i.shape, i.dtype) for i in loaded.inputs] == [("x:0", (2, 3), "float32")]
    assert [(o.name, o.shape, o.dtype) for o in loaded.outputs] == [("y", (2, 3), "float32")]


def test_unnamed_node_takes_its_outputs_name(model, imported, operators):
    loaded = imported(model([N("Relu", ["x"], ["t1"]), N("Neg", ["t1"], ["y"])], {"x": (F, [2])}, ["y"]))
    assert [name for name, _ in operators(loaded.module)] == ["t1", "y"]


def test_repeated_names_become_unique(model, imported, operators):
    nodes = [N("Relu", ["x"], ["a"], "same"), N("Neg", ["a"], ["b"], "same"), N("Abs", ["b"], ["y"], "same")]
    loaded = imported(model(nodes, {"x": (F, [2])}, ["y"]))
    assert [name for name, _ in operators(loaded.module)] == ["same", "same#2", "same#3"]


def test_made_up_names_make_way_for_the_files(model, imported, operators):
    weights = {"w": np.ones((4, 3, 1, 1), F), "b": np.ones(4, F)}
    nodes = [
        N("Conv", ["x", "w", "b"], ["t"], "a"),
        N("Relu", ["t"], ["u"], "a/1"),
        N("Split", ["u"], ["l", "r"], "a", axis=1, num_outputs=2),
        N("Neg", ["l"], ["v"], "a#2"),
        N("Abs", ["r"], ["y"], "a#3:1"),
        N("IsInf", ["v"], ["z"], "outputs"),
    ]
    loaded = imported(model(nodes, {"x": (F, [1, 3, 4, 4])}, ["y", "z"], weights))
    names = [name for name, _ in operators(loaded.module)]
    assert len(set(names)) == len(names)
    assert {"a", "a/1", "a/1#2", "a#2", "a#3", "a#3:1", "a#3:1#2", "outputs", "outputs#2"} <= set(names)
    assert dict(operators(loaded.module))["a#2"] == "relax.negative"


def test_a_rules_names_make_way_for_the_files(model, imported, operators):
    nodes = [
        N("Mod", ["x", "d"], ["t"], "m"),
        N("Neg", ["t"], ["u"], "m/fmod"),
        N("Neg", ["u"], ["m/1~"], "last"),
        N("Abs", ["m/1~"], ["y"], "abs"),
    ]
    loaded = imported(model(nodes, {"x": (F, [3])}, ["y"], {"d": np.array([1, -2, 3], F)}))
    found = dict(operators(loaded.module))
    assert found["m/fmod"] == "relax.negative" and "m/fmod#2" in found and len(found) == len(operators(loaded.module))


def test_inner_bindings_belong_to_their_layer(model, imported, operators):
    weights = {"w": np.ones((4, 3, 1, 1), F), "b": np.ones(4, F)}
    loaded = imported(model([N("Conv", ["x", "w", "b"], ["y"], "stem/Conv")], {"x": (F, [1, 3, 4, 4])}, ["y"], weights))
    assert operators(loaded.module) == [("stem/Conv/1", "relax.nn.conv2d"), ("stem/Conv", "relax.add")]


def test_several_outputs_are_a_tuple(model, imported, operators):
    nodes = [N("Relu", ["x"], ["a"], "first"), N("Neg", ["x"], ["b"], "second")]
    loaded = imported(model(nodes, {"x": (F, [2])}, ["a", "b"]))
    assert operators(loaded.module) == [("first", "relax.nn.relu"), ("second", "relax.negative"), ("outputs", "Tuple")]


def test_output_that_is_an_input_or_a_constant(model, imported):
    nodes = [N("Identity", ["x"], ["y"]), N("Identity", ["c"], ["z"])]
    loaded = imported(model(nodes, {"x": (F, [2])}, ["y", "z"], {"c": np.arange(3, dtype=F)}))
    assert [o.shape for o in loaded.outputs] == [(2,), (3,)]
