"""LSTM, GRU and RNN unrolled: equal to onnxruntime in every form that exporters write, refused by name in the others."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tvmflow.errors import UnsupportedOperator

F = np.float32
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, SIZE, HIDDEN = 20, 2, 5, 6


def layer(model, operator, *, outputs=("y", "h"), state="constant", bias=True, steps=STEPS, lengths=None, **attrs):
    """A model of one layer; more than FAN_IN steps, so that its result is joined twice."""
    random = np.random.default_rng(1)
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    rows = GATES[operator] * HIDDEN
    constants = {
        "w": random.standard_normal((directions, rows, SIZE)).astype(F) * 0.4,
        "r": random.standard_normal((directions, rows, HIDDEN)).astype(F) * 0.4,
    }
    inputs = {"x": (F, [steps, BATCH, SIZE])}
    if bias:
        constants["b"] = random.standard_normal((directions, 2 * rows)).astype(F)
    if lengths is not None:
        constants["n"] = np.array(lengths, np.int32)
    shape, names = (directions, BATCH, HIDDEN), ["h0", "c0"] if operator == "LSTM" else ["h0"]
    if state == "constant":
        constants.update({name: random.standard_normal(shape).astype(F) for name in names})
    elif state == "input":
        inputs.update({name: (F, list(shape)) for name in names})
    else:
        names = []
    operands = ["x", "w", "r", "b" if bias else "", "n" if lengths is not None else "", *names]
    node = helper.make_node(operator, operands, list(outputs), "cell", hidden_size=HIDDEN, **attrs)
    return model([node], inputs, [name for name in outputs if name], constants, opset=17)


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions(model, imported, operator, direction):
    loaded = imported(layer(model, operator, direction=direction))
    assert loaded.outputs[0].shape == (STEPS, 2 if direction == "bidirectional" else 1, BATCH, HIDDEN)


@pytest.mark.parametrize("options", [
    {"operator": "LSTM", "outputs": ("y", "h", "c"), "state": "input"},
    {"operator": "LSTM", "outputs": ("", "h"), "state": "", "bias": False},
    {"operator": "GRU", "linear_before_reset": 1, "direction": "bidirectional"},
    {"operator": "RNN", "activations": ["Relu"], "lengths": [STEPS, STEPS]},
    {"operator": "GRU", "steps": 1, "state": ""},
])  # fmt: skip
def test_forms(model, imported, options):
    imported(layer(model, **options))


def test_products_of_the_inputs_are_one_and_names_are_the_layers(model, imported, operators):
    found = operators(imported(layer(model, "LSTM", state="", outputs=("y",))).module)
    assert [op for _, op in found].count("relax.matmul") == STEPS + 1
    assert found[-1][0] == "cell" and all(name.startswith("cell/") for name, _ in found[:-1])


@pytest.mark.parametrize("options", [{"steps": 257}, {"clip": 1.0}, {"lengths": [STEPS, 3]}, {"activations": ["Softsign"]}])
def test_other_forms_are_refused(model, imported, options):
    with pytest.raises(UnsupportedOperator, match="only whole sequences of up to 256 steps"):
        imported(layer(model, "RNN", **options))
