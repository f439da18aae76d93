"""Every kind of bad input through the whole journey: what, where and what to do are said, and the exit code is right."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tvmflow import flow
from tvmflow.errors import (
    ArtifactError,
    BoardError,
    ConfigError,
    DataError,
    EnvironmentProblem,
    ModelError,
    UnsupportedOperator,
    UsageError,
)

GOOD = np.zeros((2, 3, 8, 8), "float32")


def compile_it(model: Any, tmp_path: Path, **options: Any) -> Any:
    return flow.compile(model, options.pop("target", "native"), work_dir=tmp_path / "w", check_import=False, **options)


def test_files_that_are_no_model(network: Path, tmp_path: Path) -> None:
    text, cut = tmp_path / "notes.onnx", tmp_path / "cut.onnx"
    text.write_text("hello")
    cut.write_bytes(network.read_bytes()[:-50])
    for path in (text, cut):
        with pytest.raises(ModelError, match="not an ONNX|truncated|damaged") as e:
            compile_it(path, tmp_path)
        assert path.name in e.value.where and e.value.exit_code == 1
    with pytest.raises(ModelError, match="no such file"):
        compile_it(tmp_path / "absent.onnx", tmp_path)


def test_unsupported_operator_is_named(tmp_path: Path) -> None:
    tensor = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], "/odd", domain="acme")], "g", [tensor("x")], [tensor("y")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)], ir_version=9)
    with pytest.raises(UnsupportedOperator, match="Frobnicate|acme") as e:
        compile_it(model, tmp_path)
    assert "/odd" in e.value.where and e.value.remedy


def test_shapes(network: Path, tmp_path: Path) -> None:
    model = onnx.load(network)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(ModelError, match="image"):  # missing
        compile_it(model, tmp_path)
    with pytest.raises(ModelError, match="imag"):  # of an input that does not exist
        compile_it(model, tmp_path, shapes={"imag": (1, 3, 8, 8)})
    with pytest.raises(ModelError, match="image"):  # of a rank that does not fit
        compile_it(model, tmp_path, shapes={"image": (1, 3)})


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"picture": GOOD}, "image"),
        ({"image": GOOD[:, :, :7]}, "7"),
        ({"image": GOOD.astype("complex64")}, "complex64"),
        ({"image": np.where(np.arange(8) == 3, np.nan, GOOD)}, "(?i)nan|finite"),
        ({"image": GOOD[:0]}, "no samples"),
    ],
)
def test_calibration_data(network: Path, tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **{name: a.astype("float32") if a.dtype == "float64" else a for name, a in arrays.items()})
    with pytest.raises(DataError, match=says) as e:
        compile_it(network, tmp_path, quantize="int8", calibration=path)
    assert "bad.npz" in str(e.value)


def test_no_calibration_data_and_data_without_a_recipe(network: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs calibration data") as e:
        compile_it(network, tmp_path, quantize="int8")
    assert "--calibrate" in e.value.remedy and e.value.exit_code == 2
    with pytest.raises(UsageError, match="without a recipe"):
        compile_it(network, tmp_path, calibration=data)


def test_mistyped_names_offer_the_nearest(network: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown target") as e:
        compile_it(network, tmp_path, target="zen55")
    assert "'zen5'" in e.value.remedy
    with pytest.raises(ConfigError, match="int88") as e:
        compile_it(network, tmp_path, quantize="int88", calibration=data)
    assert "'int8'" in e.value.remedy
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('schema = 1\nname = "mine"\ncentre = true\n')
    with pytest.raises(ConfigError, match="centre") as e:
        compile_it(network, tmp_path, quantize=recipe, calibration=data)
    assert "recipe.toml" in e.value.where and "center" in str(e.value)


def test_damaged_logs_and_parameters(network: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"not": "a record"}\n')
    with pytest.raises(ConfigError, match="not a tuning record") as e:
        compile_it(network, tmp_path, tuning_log=log)
    assert e.value.where.endswith("log.jsonl:1")
    params = tmp_path / "p.json"
    params.write_text("{}")
    with pytest.raises(ConfigError) as e:
        compile_it(network, tmp_path, params=params)
    assert "p.json" in e.value.where


def test_work_folder_that_can_not_be_written(network: Path, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("a file")
    with pytest.raises(EnvironmentProblem, match="can't write here") as e:
        compile_it(network, tmp_path)
    assert "--work-dir" in e.value.remedy and e.value.exit_code == 3


def test_full_disk_leaves_the_old_artifact(network: Path, tmp_path: Path, tvmflow: Any) -> None:
    """A limit on the size of files stands for the disk: the write of the artifact fails in its middle."""
    out = tmp_path / "net.so"
    out.write_bytes(b"the old file")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))
    ran = tvmflow("compile", network, "-o", out, "--no-import-check", "--json", preexec_fn=limit)
    error = json.loads(ran.stdout)["error"]
    assert ran.returncode == 3, ran.stderr
    assert "too large" in error["what"] and "Traceback" not in ran.stderr
    assert out.read_bytes() == b"the old file"
    assert [p for p in (tmp_path / ".tvmflow").rglob("*") if p.is_file()] == []


def test_artifacts_at_the_flow(network: Path, tmp_path: Path) -> None:
    good = compile_it(network, tmp_path).artifact.path
    whole = good.read_bytes()
    cut, flipped = tmp_path / "cut.so", tmp_path / "flipped.so"
    cut.write_bytes(whole[: len(whole) // 2])
    flipped.write_bytes(whole[:6000] + bytes([whole[6000] ^ 4]) + whole[6001:])
    for path in (cut, flipped):
        for journey in (flow.verify, flow.bench):
            with pytest.raises(ArtifactError, match="damaged|truncated"):
                journey(path)
    with pytest.raises(BoardError) as e:
        flow.verify(good, board="127.0.0.1:9")  # the discard port: nobody listens
    assert e.value.exit_code == 3 and "127.0.0.1" in str(e.value)


def test_artifact_for_another_cpu(network: Path, tmp_path: Path) -> None:
    arm = compile_it(network, tmp_path, target="rpi4").artifact.path
    with pytest.raises(ArtifactError, match="aarch64") as e:
        flow.verify(arm)
    assert e.value.exit_code == 1 and e.value.remedy
