"""onnxruntime as a peer, on a model of two layers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmflow.bench.compare import Ours, Rounds, compare
from tvmflow.bench.peers import peers
from tvmflow.errors import ConfigError, DataError, MissingTool, ModelError, UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(3)
    weights = {
        "w": generator.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "b": generator.standard_normal(8).astype(np.float32),
        "v": generator.standard_normal((8, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "v"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path_factory.mktemp("peers") / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def samples(count: int = 4, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def quantized_nodes(folder: Path) -> Sequence[str]:
    (path,) = (folder / "peers").glob("*.onnx")
    return [node.op_type for node in onnx.load(path).graph.node]


def test_onnxruntime_means_float_and_static_int8(model: Path, tmp_path: Path) -> None:
    float32, int8 = peers(["onnxruntime"], model, calibration=samples(), work_dir=tmp_path)
    assert (float32.precision, int8.precision) == ("fp32", "int8")
    assert float32.version == int8.version != ""
    inputs = samples()[0]
    expected, found = float32.run(inputs)["y"], int8.run(inputs)["y"]
    assert found.dtype == np.float32 and found.shape == (1, 10)
    error = np.abs(found - expected).max()
    assert 0 < error < 0.1 * np.abs(expected).max(), "quantized, but close"
    assert "QuantizeLinear" in quantized_nodes(tmp_path)


def test_activations_are_unsigned_and_weights_signed_per_channel(model: Path, tmp_path: Path) -> None:
    peers(["onnxruntime-int8"], model, calibration=samples(), work_dir=tmp_path)
    (path,) = (tmp_path / "peers").glob("*.onnx")
    constants = {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    zeros = {name: value.dtype for name, value in constants.items() if name.endswith("_zero_point")}
    assert zeros["x_zero_point"] == np.uint8
    assert constants["w_quantized"].dtype == np.int8 and constants["w_scale"].shape == (8,)


def test_the_quantized_model_is_kept_by_content(model: Path, tmp_path: Path) -> None:
    peers(["onnxruntime-int8"], model, calibration=samples(), work_dir=tmp_path)
    (first,) = (tmp_path / "peers").iterdir()
    stamp = first.stat().st_mtime_ns
    peers(["onnxruntime-int8"], model, calibration=samples(), work_dir=tmp_path)
    assert [p.stat().st_mtime_ns for p in (tmp_path / "peers").iterdir()] == [stamp]
    peers(["onnxruntime-int8"], model, calibration=samples(seed=1), work_dir=tmp_path)
    assert len(list((tmp_path / "peers").iterdir())) == 2


def test_random_calibration_when_there_is_none(model: Path, tmp_path: Path) -> None:
    (peer,) = peers(["onnxruntime-int8"], model, work_dir=tmp_path)
    assert np.isfinite(peer.run(samples(1)[0])["y"]).all()


def test_dynamic_quantization(model: Path, tmp_path: Path) -> None:
    (peer,) = peers(["onnxruntime-dynamic"], model, work_dir=tmp_path)
    assert peer.precision == "int8-dynamic"
    assert "DynamicQuantizeLinear" in quantized_nodes(tmp_path)
    assert np.isfinite(peer.run(samples(1)[0])["y"]).all()


def test_a_model_of_an_old_opset(model: Path, tmp_path: Path) -> None:
    """Quantization per channel came with opset 13; onnxruntime's quantizer would write an invalid model of this one."""
    old = onnx.load(model)
    old.opset_import[0].version = 9
    path = tmp_path / "old.onnx"
    onnx.save(old, path)
    float32, int8 = peers(["onnxruntime"], path, calibration=samples(), work_dir=tmp_path)
    expected, found = float32.run(samples()[0])["y"], int8.run(samples()[0])["y"]
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_a_comparison_with_real_peers(model: Path, tmp_path: Path) -> None:
    ours, *others = peers(["onnxruntime-fp32", "onnxruntime-int8"], model, work_dir=tmp_path)
    result = compare(Ours(ours), others, samples(1)[0], Rounds(rounds=2, runs=3))
    assert len(result.latency.seconds) == 6 and result.latency.min > 0
    assert [peer.precision for peer in result.against] == ["int8"]


def test_unknown_peer_names_the_nearest(model: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'onnxruntime'"):
        peers(["onnxruntim"], model)


def test_without_onnxruntime(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingTool, match="pip install onnxruntime"):
        peers(["onnxruntime"], model)


def test_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="can't load it"):
        peers(["onnxruntime-fp32"], path)


def test_wrong_calibration_data(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        peers(["onnxruntime-int8"], model, calibration=[], work_dir=tmp_path)
    with pytest.raises(DataError, match="can't use the data"):
        peers(["onnxruntime-int8"], model, calibration=[{"z": np.zeros(3, np.float32)}], work_dir=tmp_path)
    with pytest.raises(DataError, match="refuses the inputs"):
        peers(["onnxruntime-fp32"], model)[0].run({"x": np.zeros((1, 2), np.float32)})
    assert not list((tmp_path / "peers").iterdir()), "a failure leaves nothing behind"


@pytest.mark.peers
def test_torch_runs_exported_programs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    (inputs,) = samples(1)
    path = tmp_path / "tiny.pt2"
    program = torch.export.export(module, (torch.from_numpy(inputs["x"]),))
    torch.export.save(program, path)
    (peer,) = peers(["torch"], path, threads=1)
    (name,) = program.graph_signature.user_inputs
    (found,) = peer.run({name: inputs["x"]}).values()
    np.testing.assert_allclose(found, module(torch.from_numpy(inputs["x"])).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert len(peer.benchmark({name: inputs["x"]}, 3, 2)) == 3
    with pytest.raises(DataError, match="missing inputs"):
        peer.run({})
    path.write_bytes(b"not a program")
    with pytest.raises(ModelError, match="torch can't load it"):
        peers(["torch"], path)


def test_a_peer_gets_models_of_its_own_kind(model: Path) -> None:
    with pytest.raises(UsageError, match="torch runs .pt2 programs"):
        peers(["torch"], model)
    with pytest.raises(UsageError, match="onnxruntime-fp32 runs ONNX files"):
        peers(["onnxruntime"], Path("m.pt2"))


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingTool, match=r"tvmflow\[torch\]"):
        peers(["torch"], Path("m.pt2"))
