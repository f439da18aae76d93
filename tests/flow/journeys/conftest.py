"""A tiny network with everything that a classifier has, its data, and runs of the command line in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

REPOSITORY = Path(__file__).parents[3]


def make_network(channels: int = 8, name: str = "tiny") -> onnx.ModelProto:
    """conv-relu, depthwise-relu6, 1x1 conv, residual add, global pool, dense: image [1, 3, 8, 8] -> scores [1, 5]."""
    rng = np.random.default_rng(0)
    c = channels
    weight = lambda key, *shape: numpy_helper.from_array((0.3 * rng.standard_normal(shape)).astype("float32"), key)
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], "/stem/Conv", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c1"], ["r1"], "/stem/Relu"),
        node("Conv", ["r1", "w2"], ["c2"], "/block/Depthwise", kernel_shape=[3, 3], pads=[1] * 4, group=c),
        node("Clip", ["c2", "low", "high"], ["r2"], "/block/Clip"),
        node("Conv", ["r2", "w3"], ["c3"], "/block/Project", kernel_shape=[1, 1]),
        node("Add", ["c3", "r1"], ["sum"], "/block/Add"),
        node("GlobalAveragePool", ["sum"], ["pool"], "/pool"),
        node("Flatten", ["pool"], ["flat"], "/flatten"),
        node("Gemm", ["flat", "w4", "b4"], ["scores"], "/classifier", transB=1),
    ]
    constants = [
        weight("w1", c, 3, 3, 3), weight("b1", c), weight("w2", c, 1, 3, 3), weight("w3", c, c, 1, 1),
        weight("w4", 5, c), weight("b4", 5),
        numpy_helper.from_array(np.float32(0), "low"), numpy_helper.from_array(np.float32(6), "high"),
    ]  # fmt: skip
    tensor = lambda key, shape: helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, name, [tensor("image", [1, 3, 8, 8])], [tensor("scores", [1, 5])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    onnx.save(make_network(), path)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, image=np.random.default_rng(1).standard_normal((8, 3, 8, 8)).astype("float32"))
    return path


Tvmflow = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tvmflow(tmp_path: Path) -> Tvmflow:
    """``tvmflow("compile", ...)`` in a process of its own, in an empty folder."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "tvmflow", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload, no-any-return]

    return run
