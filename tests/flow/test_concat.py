"""Whole networks with concatenations: in place they compute what the oracle computes and what copies computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmflow.build import compile as build
from tvmflow.flow.lower import Lowered, host_runner, lower
from tvmflow.kernels.interpret import interpret
from tvmflow.target import get_target
from tvmflow.trace import Trace


def network() -> onnx.ModelProto:
    """A fire module (SqueezeNet), branches with pools (Inception), a dense block (DenseNet), an upsampled skip (U-Net)."""
    rng = np.random.default_rng(3)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def op(kind: str, out: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def conv(out: str, x: str, ic: int, oc: int, k: int = 1) -> str:
        w = (rng.standard_normal((oc, ic, k, k)) * np.sqrt(2 / (ic * k * k))).astype(np.float32)
        weights.extend([numpy_helper.from_array(w, f"{out}.w"), numpy_helper.from_array(np.zeros(oc, np.float32), f"{out}.b")])
        return op("Relu", out, op("Conv", f"{out}.conv", x, f"{out}.w", f"{out}.b", pads=[k // 2] * 4))

    def pool(out: str, x: str, kind: str = "MaxPool", stride: int = 1) -> str:
        return op(kind, out, x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride])

    squeeze = conv("squeeze", "x", 3, 8)
    fire = op("Concat", "fire", conv("expand1", squeeze, 8, 24), conv("expand3", squeeze, 8, 20, 3), axis=1)
    branches = [conv("b1", fire, 44, 12), conv("b3", conv("b3r", fire, 44, 8), 8, 16, 3), pool("bp", fire)]
    branches.append(conv("ba", pool("bap", fire, "AveragePool"), 44, 7))
    x, channels = op("Concat", "inception", *branches, axis=1), 79
    for i in range(2):
        x, channels = op("Concat", f"dense{i}", x, conv(f"grow{i}", x, channels, 12, 3), axis=1), channels + 12
    low = conv("low", pool("down", x, stride=2), channels, 16, 3)
    weights.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    up = op("Resize", "up", low, "", "scales", mode="nearest")
    op("Concat", "y", conv("skip", x, channels, 16), up, axis=1)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 18, 14]), ("y", [1, 32, 18, 14]))]
    graph = helper.make_graph(nodes, "concats", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


DATA = np.random.default_rng(1).standard_normal((8, 3, 18, 14)).astype(np.float32)


def lowered(folder: Path, **options: Any) -> Lowered:
    onnx.save(network(), folder / "concats.onnx")
    np.savez(folder / "data.npz", x=DATA)
    return lower(
        folder / "concats.onnx", get_target("native"), Trace(None), check_import=False, work_dir=folder / "work", **options
    )


def run(model: Lowered, sample: np.ndarray) -> list[np.ndarray]:
    return host_runner(model.model.module)([sample])


def test_integers_are_the_oracle_s(tmp_path: Path) -> None:
    model = lowered(tmp_path, quantize="int8", calibration=str(tmp_path / "data.npz"))
    (got,), (expected,) = run(model, DATA[:1]), interpret(model.model.module, [DATA[:1]])[0]
    np.testing.assert_array_equal(got, expected)


def test_floats_are_those_of_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lowered(tmp_path)
    (got,) = run(model, DATA[:1])
    monkeypatch.setattr(build, "hold_concats", lambda module: module)
    np.testing.assert_array_equal(got, run(model, DATA[:1])[0])
