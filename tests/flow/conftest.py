"""A seeded network that has every kind of integer kernel, its calibration data, and the tool that compares tensors bit by bit."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]


def network() -> onnx.ModelProto:
    """Convolutions (strided, grouped, dilated, depthwise, pointwise), residual add, gate, pools, table, concat, dense."""
    rng = np.random.default_rng(7)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array, name))
        return name

    def op(kind: str, out: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def conv(out: str, x: str, ic: int, oc: int, k: int = 1, groups: int = 1, **attributes: Any) -> str:
        fan_in = ic // groups * k * k
        w = constant(f"{out}.w", (rng.standard_normal((oc, ic // groups, k, k)) * np.sqrt(2 / fan_in)).astype(np.float32))
        b = constant(f"{out}.b", (rng.standard_normal(oc) * 0.1).astype(np.float32))
        return op("Conv", out, x, w, b, group=groups, **attributes)

    first = op("Relu", "first.relu", conv("first", "x", 3, 24, 3, strides=[2, 2], pads=[1, 1, 1, 1]))
    pooled = op("MaxPool", "max", first, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    bounds = constant("lo", np.array(0, np.float32)), constant("hi", np.array(6, np.float32))
    deep = op("Clip", "deep.clip", conv("deep", pooled, 24, 24, 3, 24, pads=[1, 1, 1, 1]), *bounds)
    narrow = conv("narrow", deep, 24, 24)
    summed = op("Add", "sum", narrow, first)
    gate = op("Sigmoid", "gate.sigmoid", conv("gate", op("GlobalAveragePool", "mean", summed), 24, 24))
    gated = op("Mul", "gated", summed, gate)
    grouped = op("Relu", "grouped.relu", conv("grouped", gated, 24, 32, 3, 4, pads=[2, 2, 2, 2], dilations=[2, 2]))
    both = op("Concat", "both", grouped, gated, axis=1)
    small = op("AveragePool", "average", both, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    wide = op("Tanh", "wide.tanh", conv("wide", small, 56, 33, 2, strides=[2, 1], pads=[0, 1, 0, 0]))
    flat = op("Flatten", "flat", op("GlobalAveragePool", "mean2", wide))
    dense = constant("dense.w", (rng.standard_normal((33, 10)) * 0.3).astype(np.float32))
    op("Gemm", "y", flat, dense, constant("dense.b", rng.standard_normal(10).astype(np.float32)))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 21, 19]), ("y", [1, 10]))]
    graph = helper.make_graph(nodes, "every-kernel", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="session")
def every_kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments for ``tvmflow.compile``: the network in int8."""
    folder = tmp_path_factory.mktemp("every-kernel")
    onnx.save(network(), folder / "every-kernel.onnx")
    np.savez(folder / "data.npz", x=np.random.default_rng(1).standard_normal((16, 3, 21, 19)).astype(np.float32))
    return {
        "model": folder / "every-kernel.onnx",
        "quantize": "int8",
        "calibration": folder / "data.npz",
        "work_dir": folder / "work",
        "check_import": False,
    }


@pytest.fixture(scope="session")
def bit_exact() -> Any:
    """``tools/bit_exact.py`` as a module."""
    spec = importlib.util.spec_from_file_location("bit_exact", ROOT / "tools" / "bit_exact.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bit_exact"] = module
    spec.loader.exec_module(module)
    return module
