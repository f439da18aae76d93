"""The whole journey on a tiny network: what comes out, twice the same, and what of it crosses the process."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

import tvmflow
from tvmflow import flow
from tvmflow.target import get_target


@pytest.fixture(scope="module")
def compiled(network: Path, data: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("compiled")
    steps: list[tuple[str, int, int]] = []
    result = flow.compile(
        network, quantize="int8", calibration=data, work_dir=folder / "w", dump=folder / "dump",
        progress=lambda *s: steps.append(s),
    )  # fmt: skip
    return result, folder, steps


def test_report(compiled) -> None:
    report = compiled[0].report.to_json()
    assert report["operators"]["float_list"] == [] and report["operators"]["integer"] >= 6
    assert report["kernels"]["specialised"] == report["kernels"]["total"] > 0
    assert [s["name"] for s in report["stages"]][:2] == ["start", "import"] and {"quantize", "build", "package"} <= {
        s["name"] for s in report["stages"]
    }
    assert report["peak_rss_bytes"] > 50e6 and report["seconds"] >= sum(s["seconds"] for s in report["stages"])
    assert Path(report["artifact"]).stat().st_size == report["bytes"]


def test_progress_and_dumps_come_from_the_child(compiled) -> None:
    _, folder, steps = compiled
    assert any(what.startswith("import") for what, _, _ in steps)
    dumps = sorted(p.name for p in (folder / "dump").glob("*.py"))
    assert dumps[0].startswith("00_import") and dumps[-1].endswith("schedule.py")


def test_artifact_passes_its_own_test_and_is_near_the_float_network(compiled, network: Path) -> None:
    import onnxruntime

    result = compiled[0]
    verified = flow.verify(result.artifact.path)
    assert verified.passed and verified.bit_exact and verified.vectors == 2
    image = np.random.default_rng(5).standard_normal((1, 3, 8, 8)).astype("float32")
    expected = onnxruntime.InferenceSession(str(network)).run(None, {"image": image})[0]
    with tvmflow.load(result.artifact.path, threads=1) as session:
        found = session(image)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max() + 0.05


@pytest.mark.parametrize("board", [None, "local"])
def test_profile_tells_the_layers_apart(compiled, board: str | None) -> None:
    """Though a run is one call."""
    from tvmflow.flow.measure import open_session, sample_inputs

    artifact = compiled[0].artifact
    assert compiled[0].report.to_json()["kernels"]["one_by_one"] == 0
    with open_session(artifact.path, board, 1) as (session, _):
        profile = session.profile(sample_inputs(artifact.path, artifact.manifest), runs=2)
    assert [name for name, _ in profile.kernels] == [layer.kernel for layer in artifact.manifest.layers]


def test_nothing_is_left_beside_the_artifact(compiled) -> None:
    folder = compiled[1]
    assert [p.name for p in (folder / "w" / "artifacts").iterdir()] == [Path(compiled[0].report.artifact).name]


def test_same_inputs_same_bytes(compiled, network: Path, data: Path, tmp_path: Path) -> None:
    """Another process, another folder, another name of the same data, no calibration cache."""
    moved = tmp_path / "moved.npz"
    moved.write_bytes(data.read_bytes())
    again = flow.compile(network, quantize="int8", calibration=moved, work_dir=tmp_path / "other")
    digest = lambda path: hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert digest(again.artifact.path) == digest(compiled[0].artifact.path)


def test_model_in_memory_has_the_hash_of_its_file_and_a_log_for_another_target_is_not_used(network: Path, tmp_path: Path) -> None:
    model = onnx.load(network)
    other = tmp_path / "other.jsonl"
    from tvmflow.kernels import spec as ks
    from tvmflow.schedule.elementwise import FlatTile
    from tvmflow.tune import log

    kernel = ks.Quantize((1, 8, 8, 3))
    log.append(other, log.record(kernel, get_target("x86-64"), FlatTile(16), [1.0]))
    result = flow.compile(model, tuning_log=other, work_dir=tmp_path, check_import=False)
    assert result.report.precision == "fp32" and result.report.kernels["tuned"] == 0
    manifest = result.artifact.manifest
    assert manifest.name == "tiny" and len(manifest.provenance.model_sha256) == 64
    assert manifest.provenance.tuning_log == "other.jsonl, 0 kernels"
    assert flow.verify(result.artifact.path).passed
