"""--shape: dynamic dimensions are fixed, everything else is refused with the valid names."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tvmflow.errors import ModelError

N = helper.make_node
F = np.float32


@pytest.fixture
def dynamic(model):
    reshape = [
        N("Shape", ["x"], ["s"]),
        N("Gather", ["s", "zero"], ["n"]),
        N("Unsqueeze", ["n", "axes"], ["n1"]),
        N("Concat", ["n1", "rest"], ["target"], axis=0),
        N("Reshape", ["x", "target"], ["r"], "flat"),
        N("Add", ["r", "z"], ["y"], "sum"),
    ]
    constants = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    return model(reshape, {"x": (F, ["batch", 3, "w"]), "z": (F, ["batch", 1])}, {"y": (F, ["batch", None])}, constants)


def test_one_shape_fixes_the_symbol_everywhere(dynamic, imported, operators):
    loaded = imported(dynamic, {"x": (2, 3, 4)})
    assert [i.shape for i in loaded.inputs] == [(2, 3, 4), (2, 1)]
    assert loaded.outputs[0].shape == (2, 12)
    assert operators(loaded.module) == [("flat", "relax.reshape"), ("sum", "relax.add")]


def test_missing_shape_lists_what_is_open(dynamic, imported):
    with pytest.raises(ModelError, match="dynamic input shape: x .batchx3xw., z .batchx1.") as e:
        imported(dynamic)
    assert "--shape x=batchx3xw" in e.value.remedy


def test_unknown_input_offers_the_nearest(dynamic, imported):
    with pytest.raises(ModelError, match="no input 'xx'") as e:
        imported(dynamic, {"xx": (2, 3, 4)})
    assert "did you mean 'x'?" in e.value.remedy and "valid: x, z" in e.value.remedy


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": (2, 3)}, "has 3 dimensions .batchx3xw., not 2"),
        ({"x": (2, 5, 4)}, "dimension 1 of 'x' is 3, not 5"),
        ({"x": (2, 3, 4), "z": (3, 1)}, "dimension 0 of 'z' is 2, not 3"),
        ({"x": (0, 3, 4)}, "must be positive"),
    ],
)
def test_wrong_shapes(dynamic, imported, shapes, message):
    with pytest.raises(ModelError, match=message):
        imported(dynamic, shapes)


def test_data_dependent_shape_is_refused_by_name(model, imported):
    with pytest.raises(ModelError, match="depends on data") as e:
        imported(model([N("NonZero", ["x"], ["y"], "where")], {"x": (F, [4])}, ["y"]))
    assert "'where'" in e.value.where
