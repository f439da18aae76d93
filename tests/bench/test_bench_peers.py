"""``tools/bench_peers``: what is measured, believed and shown, with runtimes that only pretend."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tvmflow.bench.measure import MachinePeak

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def part(name: str) -> Any:
    return importlib.import_module(f"bench_peers_parts.{name}")


class Fake:
    """A worker whose every run takes ``seconds`` and ``cpus`` CPUs."""

    def __init__(
        self, seconds: float, cpus: float = 1.0, output: tuple[float, ...] = (1.0, 2.0), log: list[str] | None = None
    ) -> None:
        self.seconds, self.cpus, self.log = seconds, cpus, log
        self.ready = {"output": list(output), "version": "1.0"}

    def ask(self, **command: Any) -> dict[str, Any]:
        if self.log is not None:
            self.log.append(self.ready["version"])
        return {"times": [self.seconds] * 3, "wall": 3 * self.seconds, "cpu": 3 * self.seconds * self.cpus}


class FakePeak:
    """Measures ``rates`` in turn, the last of them ever after; fp32 is half of int8."""

    ready: dict[str, Any] = {}

    def __init__(self, rates: tuple[float, ...] = (100.0,), cpus: float = 1.0) -> None:
        self.rates, self.cpus = list(rates), cpus

    def ask(self, **command: Any) -> dict[str, Any]:
        rate = self.rates.pop(0) if len(self.rates) > 1 else self.rates[0]
        return {"int8_gops": rate, "fp32_gflops": rate / 2, "cpu": self.cpus, "wall": 1.0}


def row(name: str, precision: str, worker: Any = None, reason: str = "") -> Any:
    facts = {"version": "1.0"} if worker else {}
    return part("rounds").Row(name, precision, worker, reason, facts=facts)


def judged(*rows: Any, threads: int = 1, peak: FakePeak | None = None) -> Any:
    rounds = part("rounds")
    cell = rounds.Cell("net", 1, threads, 1.0, rows, *rounds.measure(rows, peak or FakePeak(), rounds=2, seconds=0.0))
    rounds.judge(cell)
    return cell


def test_everybody_takes_turns_and_the_highest_peak_counts() -> None:
    log: list[str] = []
    first, second = Fake(0.02, log=log), Fake(0.02, log=log)
    first.ready["version"], second.ready["version"] = "first", "second"
    cell = judged(row("tvmflow", "int8", first), row("onnxruntime", "int8", second), peak=FakePeak((60.0, 100.0)))
    assert log == ["first", "second"] * 2
    assert cell.peak == MachinePeak(100.0, 50.0)
    assert [len(r.times) for r in cell.rows] == [6, 6]
    assert cell.fraction(cell.rows[0]) == pytest.approx(0.5)


def test_more_than_one_cpu_with_one_thread_is_an_error() -> None:
    greedy = row("openvino", "fp32", Fake(0.1, cpus=1.8))
    judged(row("tvmflow", "fp32", Fake(0.1)), greedy)
    assert greedy.reason == "error: it used 1.80 CPUs with one thread" and greedy.minimum is None
    allowed = row("openvino", "fp32", Fake(0.1, cpus=1.8))
    judged(allowed, threads=2)
    assert allowed.reason == "" and allowed.minimum == 0.1


def test_nothing_above_the_peak_is_believed() -> None:
    fast, likely = row("openvino", "int8", Fake(0.009)), row("ncnn", "int8", Fake(0.0101))
    cell = judged(row("tvmflow", "int8", Fake(0.02)), fast, likely)
    assert fast.reason == "not believed: 111 % of the machine's peak"
    assert likely.reason == "", "the peak is a measurement too"
    (found,) = part("tables").ratio(part("rounds").to_json(cell), "int8")[:1]
    assert found == pytest.approx(0.0101 / 0.02), "the ratio is to the best that is believed"


def test_a_runtime_that_saves_operations_is_judged_by_its_own() -> None:
    ours = row("tvmflow", "int8", Fake(0.009))
    ours.gop = 0.5
    cell = judged(ours)
    assert ours.reason == "" and cell.fraction(ours) == pytest.approx(0.5 / 0.9)


def test_a_busy_machine_is_told() -> None:
    tables, rounds = part("tables"), part("rounds")
    quiet, busy = (
        rounds.to_json(judged(row("tvmflow", "int8", Fake(0.02)), threads=2, peak=FakePeak(cpus=c))) for c in (1.9, 1.1)
    )
    assert "DISTURBED" not in tables.table([quiet])
    assert "1.1 of 2 CPUs" in tables.table([busy])


def test_another_networks_output_is_an_error() -> None:
    other = row("ncnn", "fp32", Fake(0.1, output=(2.0, -1.0)))
    judged(row("onnxruntime", "fp32", Fake(0.1)), other, row("tvmflow", "fp32", Fake(0.1, output=(1.0, 2.01))))
    assert other.reason.startswith("error: its output is not the model's")
    short = row("ncnn", "fp32", Fake(0.1, output=(1.0,)))
    judged(row("onnxruntime", "fp32", Fake(0.1)), short)
    assert short.reason.startswith("error")


def test_a_worker_that_fails_keeps_its_reason_and_takes_no_more_turns() -> None:
    class Failing(Fake):
        def ask(self, **command: Any) -> dict[str, Any]:
            assert not self.cpus, "asked again"
            self.cpus = 1.0
            raise part("environments").Unavailable("it was ended by signal 11")

    broken = row("ncnn", "int8", Failing(0.1, cpus=0.0))
    judged(broken, row("tvmflow", "int8", Fake(0.1)))
    assert broken.reason == "it was ended by signal 11" and not broken.times


def test_a_missing_runtime_is_a_row_with_its_reason() -> None:
    reason = "not installed: no matching distribution"
    cell = judged(row("tvmflow", "int8", Fake(0.02)), row("onnxruntime", "int8", Fake(0.03)), row("ncnn", "int8", reason=reason))
    cells = json.loads(json.dumps([part("rounds").to_json(cell)]))
    text = part("tables").table(cells)
    assert any("ncnn" in line and reason in line for line in text.splitlines())
    assert "1.50x of onnxruntime int8" in text
    report = {"date": "2026-01-01", "cores": 2, "cpu": "a CPU", "command": "tools/bench_peers", "cells": cells}
    shown = part("tables").markdown(report)
    assert "| net | int8 | 1 | 20.000 / 20.000 | " in shown and "**1.50**" in shown
    assert f"(1) ncnn: {reason}" in shown
    assert len(cells[0]["rows"][0]["latency_ms"]["runs"]) == 6, "every raw run"


def test_pip_that_fails_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments = part("environments")
    monkeypatch.setenv("TVMFLOW_PEERS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(environments.Unavailable, match="not installed: .*tvmflow-no-such-runtime"):
        environments.python(environments.Peer("none", ("fp32",), ("tvmflow-no-such-runtime",)))
    assert not (tmp_path / "none" / ".installed").exists(), "it is tried again the next time"


PRETENDER = """
import time
import numpy as np

def version(): return "7"

def prepare(model, precision, calibration, folder):
    if precision == "int8": raise RuntimeError("it has no int8")
    (folder / "made").write_bytes(model.read_bytes())

def serve(folder, precision, threads):
    if precision == "crash":
        import os
        os._exit(3)
    print("a library that prints")
    def run(inputs):
        place = SHARED if precision == "mixed" else np.empty_like(inputs["x"])
        np.multiply(inputs["x"], 2, out=place)
        time.sleep(0.002)
        return place
    return run

SHARED = np.empty((1, 3), np.float32)
"""


@pytest.fixture
def pretender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime ``pretender`` and its calibration data; both in the folder returned."""
    package = tmp_path / "bench_peers_parts"
    package.mkdir()
    (package / "peer_pretender.py").write_text(PRETENDER)
    process, environments = part("process"), part("environments")
    found = environments.environment()
    found["PYTHONPATH"] += f":{tmp_path}"
    monkeypatch.setattr(process, "environment", lambda: found)
    np.savez(tmp_path / "data.npz", x=np.ones((2, 1, 3), np.float32))
    (tmp_path / "model").write_bytes(b"model")
    return tmp_path


def test_a_worker_in_its_process(pretender: Path) -> None:
    process, python = part("process"), Path(sys.executable)
    process.prepare(python, ("pretender", pretender / "model", "fp32", pretender / "data.npz", pretender))
    assert (pretender / "made").read_bytes() == b"model"
    worker = process.Worker(python, ("serve", "pretender", pretender, "fp32", 1, pretender / "data.npz"))
    try:
        assert worker.ready["version"] == "7" and worker.ready["output"] == [2.0, 2.0, 2.0]
        assert state(worker) == "T", "stopped between its turns"
        for _ in range(2):
            reply = worker.ask(seconds=0.01, warm=0.0)
            assert len(reply["times"]) >= 3 and min(reply["times"]) >= 0.002 and reply["cpu"] >= 0
            assert state(worker) == "T"
    finally:
        worker.close()


def test_workers_end_with_the_benchmark(pretender: Path) -> None:
    """Even when that is killed while they are stopped."""
    import os
    import subprocess
    import time

    code = f"""
import sys, time
sys.path[:0] = {[str(TOOLS), str(pretender), str(TOOLS.parent)]!r}
from bench_peers_parts import process
process.environment = lambda: {part("process").environment()!r}
from pathlib import Path
arguments = ("serve", "pretender", {str(pretender)!r}, "fp32", 1, {str(pretender / "data.npz")!r})
print(process.Worker(Path(sys.executable), arguments)._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        worker = int(benchmark.stdout.readline())
        os.kill(worker, 0)
        benchmark.kill()
    status = Path(f"/proc/{worker}/stat")
    deadline = time.monotonic() + 30
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


def state(worker: Any) -> str:
    """``T``: stopped."""
    return Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_workers_say_why_they_fail(pretender: Path) -> None:
    process, python, data = part("process"), Path(sys.executable), pretender / "data.npz"
    unavailable = part("environments").Unavailable
    with pytest.raises(unavailable, match="can't prepare the model: RuntimeError: it has no int8"):
        process.prepare(python, ("pretender", pretender / "model", "int8", data, pretender))
    with pytest.raises(unavailable):
        process.Worker(python, ("serve", "pretender", pretender, "crash", 1, data))


@dataclass(frozen=True)
class Files:
    """What a runtime loads."""

    precision: str
    folder: Path | None
    reason: str = ""
    peer: Any = field(default_factory=lambda: SimpleNamespace(name="pretender", requirements=()))


def test_sessions_beside_each_other(pretender: Path) -> None:
    """All of them run, and one that gets another's results is an error."""
    sessions, data = part("sessions"), pretender / "data.npz"
    np.savez(data, x=np.arange(6, dtype=np.float32).reshape(2, 1, 3))
    made = [Files("fp32", pretender), Files("mixed", pretender), Files("int8", None, "it has no int8")]
    found = sessions.measure("net", 1, made, (1, 2), data, 2, 0.1)
    rows = {(r["precision"], r["sessions"]): r for r in found}
    assert len(rows) == 6 and "worker" not in rows["fp32", 1]
    json.dumps(found)
    assert all(len(turn["runs"]) == 2 and min(turn["runs"]) > 0 for turn in rows["fp32", 2]["turns"])
    assert rows["mixed", 1]["reason"] == "" and "another session's" in rows["mixed", 2]["reason"]
    shown = sessions.table(found)
    assert "it has no int8" in shown and "1.00x" in shown and "another session's" in shown


def test_other_batch_sizes(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "to"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", float32, [1, 2, 3])],
        [helper.make_tensor_value_info("y", float32, [1, 4])],
        [numpy_helper.from_array(np.array([1, 6]), "to"), numpy_helper.from_array(np.ones((6, 4), np.float32), "w")],
    )
    found = part("models").with_batch(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), 4)
    onnx.checker.check_model(found, full_check=True)
    assert [d.dim_value for d in found.graph.output[0].type.tensor_type.shape.dim] == [4, 4]


@pytest.mark.peers
def test_real_runtimes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(TOOLS / "model_zoo"))
    command = ["bench_peers", "--models", "mobilenetv2", "--only-peer", "onnxruntime", "--threads", "1", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--seconds", "0.05", "--json", str(tmp_path / "out.json")])
    assert part("__main__").main() == 0
    (cell,) = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert {r["precision"] for r in cell["rows"] if r["name"] == "onnxruntime" and not r["reason"]} == {"fp32", "int8"}
    assert "of peak" in capsys.readouterr().out
