"""Reports as data: saved, read back, and gathered from the verbs' results."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tvmflow.bench.layers import LayerTime
from tvmflow.bench.measure import BenchmarkResult, Device, MachinePeak, PeerResult, Work
from tvmflow.bench.stats import Latency
from tvmflow.errors import DataError
from tvmflow.report import gather
from tvmflow.report.data import (
    Accuracy,
    Coverage,
    Entry,
    Island,
    LayerCost,
    ReportData,
    Runs,
    Size,
    TensorRange,
    decode,
    encode,
    read,
)

COMPILED = {
    "artifact": "m.so",
    "bytes": 100,
    "weight_bytes": 60,
    "target": "zen5",
    "precision": "int8",
    "operators": {
        "integer": 9,
        "float": 1,
        "boundaries": 2,
        "float_list": [{"name": "/s", "op": "softmax", "reason": "by recipe"}],
    },
    "kernels": {"total": 8, "specialised": 7, "tuned": 3},
    "import_check": {"max_abs_error": 1e-6, "against": "onnxruntime"},
    "stages": [{"name": "import", "seconds": 0.5}],
    "seconds": 1.0,
    "peak_rss_bytes": 1,
}


def test_round_trip(tmp_path: Path) -> None:
    data = ReportData(
        "m",
        summary=(Entry("a", 0.5, None, 3, {"1 thread": 1.5, "RPC": None}, best=True),),
        latency=(Runs("a", (1.0, 2.0), ours=True),),
        ranges=(TensorRange("t", "output", -1.0, 1.0, 0.1, counts=(1, 2)),),
        coverage=Coverage(1, 0, 0, (Island("a", "b", "c"),)),
        stages=(("import", 0.5),),
        provenance={"recipe": "int8"},
    )
    path = tmp_path / "report.json"
    path.write_bytes(encode(data))
    assert read(path) == data


def test_what_is_not_a_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a report"):
        decode(b"{}")
    with pytest.raises(DataError, match="not a report"):
        decode(b"{")
    with pytest.raises(DataError, match="newer"):
        decode(encode(ReportData("m", schema=99)))
    with pytest.raises(DataError, match="can't read"):
        read(tmp_path / "absent.json")


def test_gathered_from_a_compile() -> None:
    found = gather.add_compile(ReportData("m"), COMPILED)
    assert found.coverage == Coverage(9, 1, 2, (Island("/s", "softmax", "by recipe"),))
    assert found.sizes == (Size("artifact", 100), Size("of which weights", 60))
    assert found.stages == (("import", 0.5),) and "7 with a specialised schedule" in found.notes[0]
    assert "1e-06 against onnxruntime" in found.notes[0]
    skipped = gather.add_compile(ReportData("m"), {**COMPILED, "import_check": None})
    assert "Import check" not in skipped.notes[0]


def test_gathered_from_a_benchmark() -> None:
    ours, theirs = Latency((1e-3, 2e-3)), Latency((4e-3,))
    result = BenchmarkResult(
        ours,
        "m.so",
        Device("local", "EPYC", ("avx2",)),
        2,
        Work(1.0, 0.0),
        MachinePeak(2000, 500),
        (0.5, 0.4, 0.3),
        (PeerResult("onnxruntime", "1.31", "fp32", theirs, 4.0, 2.7),),
        (LayerTime("/a", "conv2d", 0.5, 0.1, 0.2),),
    )
    found = gather.add_benchmark(ReportData("m", precision="int8"), msgspec.json.decode(msgspec.json.encode(result.to_json())))
    assert found.latency == (Runs("tvmflow", (1.0, 2.0), "int8", ours=True), Runs("onnxruntime 1.31", (4.0,), "fp32"))
    assert found.device is not None and (found.device.threads, found.device.int8_gops) == (2, 2000)
    assert found.peak_fraction == pytest.approx(0.5)
    assert found.layers == (LayerCost("/a", "conv2d", 0.5, 0.1, 0.2),)


def test_gathered_from_a_benchmark_without_peak() -> None:
    found = gather.add_benchmark(ReportData("m"), BenchmarkResult(Latency((1.0,))).to_json())
    assert found.device is not None and found.device.int8_gops is None and found.peak_fraction is None


def test_gathered_from_an_evaluation() -> None:
    result = {
        "count": 5,
        "top1": 0.8,
        "top5": 1.0,
        "reference": {"name": "fp32", "top1": 0.9, "top5": 1.0},
        "agreement": 0.9,
        "sqnr_db": 30.0,
    }
    found = gather.add_evaluation(ReportData("m"), result, "int8")
    assert found.accuracy == (Accuracy("fp32", 0.9, 1.0), Accuracy("int8", 0.8, 1.0, 0.9, 30.0))
    alone = gather.add_evaluation(ReportData("m"), {**result, "reference": None})
    assert [row.name for row in alone.accuracy] == ["tvmflow"]


def test_gathered_from_a_manifest() -> None:
    manifest = {
        "target": "rpi4",
        "precision": "int8",
        "sha256": "cd" * 32,
        "operators": COMPILED["operators"],
        "provenance": {"model_sha256": "ab", "recipe": "int8", "tuning_log": "", "versions": {"tvm": "0.27"}},
    }
    found = gather.add_manifest(ReportData("m"), manifest)
    assert (found.target, found.precision) == ("rpi4", "int8") and found.coverage is not None and found.coverage.integer == 9
    assert found.provenance == {"model sha256": "ab", "recipe": "int8", "artifact sha256": "cd" * 32, "tvm version": "0.27"}
