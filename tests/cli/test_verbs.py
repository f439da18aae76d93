"""What each verb hands to the flow, and what it prints of what comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tvmflow.runtime.verify import VerifyResult

REPORT = {
    "weight_bytes": 2_300_000,
    "target": "zen5",
    "precision": "int8",
    "operators": {
        "integer": 99,
        "float": 1,
        "boundaries": 2,
        "float_list": [{"name": "/soft", "op": "softmax", "reason": "no integer form"}],
    },
    "kernels": {"total": 53, "specialised": 53, "tuned": 12, "in_place": 4, "copies": 1, "one_by_one": 0},
    "import_check": {"max_abs_error": 1e-5, "against": "onnxruntime 1.31.1"},
    "stages": [{"name": "import", "seconds": 1.5}],
    "seconds": 12.5,
    "peak_rss_bytes": 900_000_000,
    "notes": ["rule 2 matches no layer"],
}


class Recorder:
    """Stands for a function of the flow: keeps how it was called, returns ``result``."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __call__(self, *positional: Any, **named: Any) -> Any:
        self.positional, self.named = positional, named
        return self.result


@pytest.fixture
def files(tmp_path: Path) -> SimpleNamespace:
    for name in ("m.onnx", "c.npz", "p.json", "log.jsonl", "a.so"):
        (tmp_path / name).write_bytes(b"")
    return SimpleNamespace(**{p.stem: p for p in tmp_path.iterdir()}, folder=tmp_path)


@pytest.fixture
def compiled(fake_flow: ModuleType) -> Recorder:
    artifact = SimpleNamespace(save=lambda path: Path(path).write_bytes(b"x" * 2_500_000))
    fake_flow.compile = Recorder(SimpleNamespace(artifact=artifact, report=SimpleNamespace(to_json=lambda: dict(REPORT))))  # type: ignore[attr-defined]
    return fake_flow.compile


def test_compile_hands_everything_over(cli: Callable[..., Any], compiled: Recorder, files: SimpleNamespace) -> None:
    out = files.folder / "out.so"
    options = ["-t", "zen5", "-q", "int8", "--calibrate", files.c, "--shape", "x=1x3", "--tuning-log", files.log, "--dump", "d"]
    ran = cli("compile", files.m, "-o", out, *options, "--params", files.p, "--no-import-check", "--work-dir", "w", "--json")
    assert ran.code == 0, ran.err
    assert compiled.positional == (str(files.m), "zen5")
    progress = compiled.named.pop("progress")
    assert compiled.named == {
        "quantize": "int8",
        "calibration": str(files.c),
        "shapes": {"x": (1, 3)},
        "tuning_log": files.log,
        "dump": Path("d"),
        "check_import": False,
        "params": files.p,
        "work_dir": Path("w"),
    }
    progress("build", 1, 2)
    assert ran.json == {**REPORT, "artifact": str(out), "bytes": 2_500_000}


def test_compile_tells_people_what_stayed_float(cli: Callable[..., Any], compiled: Recorder, files: SimpleNamespace) -> None:
    ran = cli("compile", files.m, "-o", files.folder / "out.so")
    assert all(
        text in ran.out for text in ("99 integer, 1 float", "/soft", "no integer form", "2.50 MB", "12 tuned", "rule 2 matches")
    )
    assert compiled.positional[1] == "native"


def test_compile_rejects_bad_options_before_any_work(cli: Callable[..., Any], compiled: Recorder, files: SimpleNamespace) -> None:
    out = files.folder / "out.so"
    for code, option, value in [
        (2, "--shape", "x=1y3"),
        (1, "--calibrate", files.folder / "nosuch.npz"),
        (1, "--tuning-log", files.folder / "nosuch.jsonl"),
        (1, "--params", files.folder / "nosuch.json"),
    ]:
        assert cli("compile", files.m, "-o", out, option, value).code == code, option
    assert not hasattr(compiled, "named")


def test_bench_against_several(cli: Callable[..., Any], fake_flow: ModuleType, files: SimpleNamespace) -> None:
    latency = {"min": 1.0, "median": 1.1, "p90": 1.2, "p99": 1.3, "runs": [1.0, 1.1, 1.3]}
    peer = {
        "name": "onnxruntime",
        "version": "1",
        "precision": "int8",
        "latency_ms": latency,
        "ratio_min": 2.0,
        "ratio_median": 2.5,
    }
    layer = {"name": "/conv", "op": "conv2d", "ms": 0.5, "gop": 0.1, "peak_fraction": None}
    layer |= {"schedule": "conv2d vnni512 1x14x2", "tuned": True}
    found = {
        "artifact": "a.so",
        "device": {"name": "local", "cpu": "EPYC", "isa": ["avx2"]},
        "threads": 2,
        "latency_ms": latency,
        "work": {"int8_gop": 0.2, "fp32_gop": 0.0},
        "machine_peak": {"int8_gops": 400.0, "fp32_gflops": 100.0},
        "peak_fraction": 0.5,
        "load_average": [0.1],
        "against": [peer],
        "layers": [layer],
    }
    fake_flow.bench = Recorder(SimpleNamespace(to_json=lambda: found))  # type: ignore[attr-defined]
    against = ["--against", "onnxruntime,openvino", "--against", "torch", "--model", files.m]
    ran = cli("bench", files.a, "--threads", "2", "--per-layer", *against, "--json")
    assert ran.json == found
    assert fake_flow.bench.named["against"] == ("onnxruntime", "openvino", "torch")
    assert fake_flow.bench.named["threads"] == 2
    shown = cli("bench", files.a).out
    assert all(text in shown for text in ("EPYC", "2.00x", "50 % of the machine's peak", "/conv", "1x14x2, tuned"))


def test_bench_against_needs_the_model(cli: Callable[..., Any], fake_flow: ModuleType, files: SimpleNamespace) -> None:
    ran = cli("bench", files.a, "--against", "onnxruntime")
    assert ran.code == 2
    assert "--model" in ran.err


def test_tune_takes_a_budget_or_trials(cli: Callable[..., Any], fake_flow: ModuleType, files: SimpleNamespace) -> None:
    task = {
        "kernel": "conv 3x3",
        "count": 2,
        "candidates": 90,
        "measured": 9,
        "default_ms": 0.5,
        "best_ms": 0.25,
        "tuned_before": False,
    }
    untried = {**task, "kernel": "dense", "measured": 0, "default_ms": None, "best_ms": None}
    found = {"target": "zen5", "log": "l.jsonl", "kernels": 2, "candidates": 180, "default_ms": 1.0, "tuned_ms": 0.5}
    found |= {"tasks": [task, untried], "trials": 9, "failed": 1, "seconds": 60.0, "stopped": "budget", "drifts": 2}
    found |= {"tuned_before": 1, "expected_trials": 60, "expected_seconds": 90.0, "gain_left": 0.025}
    found["lost_boards"] = {"b": "the board hung up"}
    fake_flow.tune = Recorder(SimpleNamespace(to_json=lambda: found))  # type: ignore[attr-defined]
    assert cli("tune", files.m, "--budget", "20m", "--board", "a", "--board", "b", "--json").json == found
    assert fake_flow.tune.named["budget"] == 1200
    assert fake_flow.tune.named["boards"] == ("a", "b")
    assert cli("tune", files.m, "--budget", "20m", "--trials", "5").code == 2
    assert cli("tune", files.m, "--budget", "soon").code == 2
    shown = cli("tune", files.m).out
    assert all(
        text in shown
        for text in (
            "2.00x",
            "dense",
            "9 measured, 1 failed",
            "1.000 ms -> 0.500 ms",
            "2 times",
            "2.5% more",
            "board b: the board hung up",
        )
    )
    for key in ("trials", "failed", "seconds", "stopped"):
        del found[key]
    shown = cli("tune", files.m, "--dry-run").out
    assert all(text in shown for text in ("2 kernels for zen5, 1 tuned before, 180 candidates", "60 measurements, 1.5 minutes"))


def test_quantize_knows_its_file_types(cli: Callable[..., Any], fake_flow: ModuleType, files: SimpleNamespace) -> None:
    layers = [{"layer": f"/conv{i}", "sqnr_db": db} for i, db in enumerate((30.0, 20.0, None))]
    found = {"out": "p.json", "recipe": "int8", "samples": 8, "operators": REPORT["operators"], "output_sqnr_db": 31.5}
    found |= {
        "layers": layers,
        "advice": [{"layer": "/conv1", "finding": "outliers", "remedy": "percentile"}],
        "notes": ["few samples"],
    }
    fake_flow.quantize = Recorder(SimpleNamespace(to_json=lambda: found))  # type: ignore[attr-defined]
    for name in ("p.json", "q.onnx"):
        assert cli("quantize", files.m, "--calibrate", files.c, "-o", name, "--json").json == found
        assert fake_flow.quantize.named["out"] == Path(name)
    assert cli("quantize", files.m, "--calibrate", files.c, "-o", "p.txt").code == 2
    shown = cli("quantize", files.m, "--calibrate", files.c, "-o", "p.json").out
    assert all(text in shown for text in ("31.5 dB", "/conv1: outliers -> percentile", "few samples", "no integer form"))
    assert shown.index("/conv1") < shown.index("/conv0"), "the worst layer comes first"


@pytest.mark.parametrize("passed", [True, False])
def test_failed_self_test_is_exit_code_1(
    cli: Callable[..., Any], fake_flow: ModuleType, files: SimpleNamespace, passed: bool
) -> None:
    found = VerifyResult(passed=passed, vectors=2, max_abs_error=float("inf"), bit_exact=passed)
    fake_flow.verify = Recorder(found)  # type: ignore[attr-defined]
    ran = cli("verify", files.a, "--json")
    assert ran.code == (0 if passed else 1)
    assert ran.json == {"passed": passed, "vectors": 2, "max_abs_error": None, "bit_exact": passed}
    assert cli("verify", files.a).out.startswith(
        "passed: 2 vectors, bit-exact" if passed else "FAILED: 2 vectors, largest error inf"
    )


def test_targets_list_is_the_default(cli: Callable[..., Any]) -> None:
    listed = cli("targets", "list", "--json").json
    assert listed == cli("targets", "--json").json
    assert {"zen5"} <= {target["name"] for target in listed["targets"]}
    assert "zen5" in cli("targets").out


def test_targets_show_prints_toml_that_reads_back(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(cli("targets", "show", "zen5").out)
    assert cli("targets", "show", path, "--json").json == cli("targets", "show", "zen5", "--json").json
    assert "did you mean 'zen5'?" in cli("targets", "show", "zn5").err


def test_boards_are_kept(cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMFLOW_BOARDS", str(tmp_path / "boards.toml"))
    assert cli("board", "list", "--json").json["boards"] == []
    assert cli("board", "add", "pi", "10.0.0.7:9301", "-t", "zen5", "--ssh", "pi@pi", "--key", "secret").code == 0
    (board,) = cli("board", "list", "--json").json["boards"]
    assert (board["name"], board["host"], board["port"], board["target"]) == ("pi", "10.0.0.7", 9301, "zen5")
    assert "secret" not in str(board)
    assert "did you mean 'pi'?" in cli("board", "remove", "pie").err
    assert cli("board", "remove", "pi").code == 0
    assert "no boards" in cli("board", "list").out
    assert cli("board", "add", "pi", "host:port").code == 2
    assert cli("board", "add", "pi", "-t", "zen55").code == 1


@pytest.mark.slow
def test_board_check_of_this_machine(cli: Callable[..., Any]) -> None:
    ran = cli("board", "check", "local", "--json")
    checks = {check["name"]: check["ok"] for check in ran.json["checks"]}
    assert ran.code == (0 if all(checks.values()) else 3)
    assert checks["reachable"] and checks["versions"] and checks["session"]


@pytest.mark.slow
def test_doctor_of_this_machine(cli: Callable[..., Any]) -> None:
    ran = cli("doctor", "--json")
    checks = {check["name"]: check["ok"] for check in ran.json["checks"]}
    assert ran.code == (0 if all(checks.values()) else 3)
    assert checks["apache-tvm"] and checks["tvm works"]
    assert all(check.keys() == {"name", "ok", "detail", "remedy"} for check in ran.json["checks"])
