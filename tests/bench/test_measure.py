"""Measuring and comparing, with sessions that report made-up times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
import pytest

from tvmflow.bench import compare as comparing
from tvmflow.bench.compare import Ours, Rounds, check_cpu, compare, with_peak
from tvmflow.bench.measure import BenchmarkResult, Device, MachinePeak, Work, bench
from tvmflow.bench.stats import Latency
from tvmflow.errors import EnvironmentProblem

INPUTS = {"x": np.zeros(1, np.float32)}


@dataclass
class Fake:
    """Says that each run took the next of ``times``; writes its calls into ``log``."""

    name: str
    times: tuple[float, ...] = (1e-3,)
    log: list[tuple[str, int, int]] = field(default_factory=list)
    version: str = "1"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        self._next = cycle(self.times)

    def benchmark(self, inputs: Mapping[str, np.ndarray], repeat: int, number: int) -> list[float]:
        assert inputs is INPUTS
        self.log.append((self.name, repeat, number))
        return [next(self._next) for _ in range(repeat)]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(inputs)


@dataclass
class FakePeak:
    """A peak that is measured lower when the machine is busy."""

    rates: tuple[MachinePeak, ...]
    calls: int = 0

    def fastest(self) -> FakePeak:
        return self

    def measure(self, repeat: int = 20) -> MachinePeak:
        self.calls += 1
        return self.rates[(self.calls - 1) % len(self.rates)]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "settle", lambda: None)


def test_bench_keeps_every_run() -> None:
    seen: list[tuple[str, int, int]] = []
    result = bench(Fake("ours"), INPUTS, runs=37, warmup=4, progress=lambda *step: seen.append(step))
    assert len(result.latency.seconds) == 37 and result.latency.number == 1
    assert seen[-1] == ("bench", 37, 37)


def test_bench_warms_up_first() -> None:
    ours = Fake("ours")
    bench(ours, INPUTS, runs=1, warmup=4)
    assert ours.log[0] == ("ours", 1, 4)
    ours.log.clear()
    bench(ours, INPUTS, runs=1, warmup=0)
    assert ours.log[0] == ("ours", 1, 1)


def test_short_runs_are_timed_together() -> None:
    result = bench(Fake("ours", (1e-6,)), INPUTS, runs=5)
    assert result.latency.number == 100 and len(result.latency.seconds) == 5


def test_the_time_limit_leaves_five_runs() -> None:
    assert len(bench(Fake("ours", (0.5,)), INPUTS, runs=50, seconds=0).latency.seconds) == 5


def test_no_runs_is_an_error() -> None:
    with pytest.raises(EnvironmentProblem, match="0 runs"):
        bench(Fake("ours"), INPUTS, runs=0)


def test_a_broken_clock_is_an_error() -> None:
    with pytest.raises(EnvironmentProblem, match="-0.001 seconds"):
        bench(Fake("board", (1e-3, -1e-3)), INPUTS, runs=4)


def test_rounds_are_interleaved_and_equal() -> None:
    log: list[tuple[str, int, int]] = []
    ours, first, second = Fake("ours", log=log), Fake("a", log=log), Fake("b", (4e-3,), log)
    result = compare(Ours(ours), [first, second], INPUTS, Rounds(rounds=3, runs=4))
    timed = [name for name, repeat, _ in log if repeat == 4]
    assert timed == ["ours", "a", "b"] * 3
    warmups = [log[i - 1] for i, (_, repeat, _) in enumerate(log) if repeat == 4]
    assert warmups == [("ours", 1, 10), ("a", 1, 10), ("b", 1, 2)] * 3, "10 ms each"
    assert len(result.latency.seconds) == 12
    assert [len(peer.latency.seconds) for peer in result.against] == [12, 12]


def test_ratio_is_theirs_over_ours() -> None:
    result = compare(Ours(Fake("ours", (1e-3, 2e-3, 3e-3))), [Fake("slow", (6e-3,))], INPUTS, Rounds(rounds=3, runs=3))
    (peer,) = result.against
    assert peer.ratio_min == pytest.approx(6.0) and peer.ratio_median == pytest.approx(3.0)


def test_the_best_peak_of_all_rounds_counts() -> None:
    peak = FakePeak((MachinePeak(100, 50), MachinePeak(1000, 40)))
    result = compare(Ours(Fake("ours"), work=Work(int8_gop=0.5)), [], INPUTS, Rounds(rounds=4, runs=1), peak=peak)
    assert peak.calls == 4 and result.machine_peak == MachinePeak(1000, 50)
    assert result.peak_fraction == pytest.approx(0.5)


def test_faster_than_the_machine_is_not_believed() -> None:
    with pytest.raises(EnvironmentProblem, match="200 % of the machine's peak"):
        compare(Ours(Fake("ours"), work=Work(2.0, 0.0)), [], INPUTS, Rounds(1, 1), peak=FakePeak((MachinePeak(1000, 1),)))
    with pytest.raises(EnvironmentProblem, match="peak"):
        with_peak(bench(Fake("ours"), INPUTS, runs=1), MachinePeak(1000, 1), Work(2.0, 0.0))


def test_a_pause_ends_when_the_process_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock in which threads spin for the first 0.05 s, and one in which they never stop."""
    monkeypatch.undo()
    now, spun = 0.0, 0.05

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(comparing.time, "sleep", sleep)
    monkeypatch.setattr(comparing.time, "perf_counter", lambda: now)
    monkeypatch.setattr(comparing.time, "process_time", lambda: min(now, spun))
    comparing.settle()
    assert 0.05 < now < 0.08
    spun = 1e9
    with pytest.raises(EnvironmentProblem, match="keeps computing"):
        comparing.settle()


def test_two_cpus_with_one_thread_is_an_error() -> None:
    with pytest.raises(EnvironmentProblem, match="1.50 CPUs with one thread"):
        check_cpu("onnxruntime", cpu=1.5, wall=1.0)
    check_cpu("onnxruntime", cpu=1.05, wall=1.0)
    check_cpu("too short to tell", cpu=0.002, wall=0.001)


def test_json_has_the_contracts_keys() -> None:
    result = BenchmarkResult(
        Latency((1e-3,)), "m.so", Device("local", "EPYC", ("avx2",)), 2, Work(1.0, 0.1), MachinePeak(2000, 500)
    )
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found.keys() == {
        "artifact",
        "device",
        "threads",
        "latency_ms",
        "work",
        "machine_peak",
        "peak_fraction",
        "load_average",
        "against",
    }
    assert found["device"] == {"name": "local", "cpu": "EPYC", "isa": ["avx2"]}
    assert found["work"] == {"int8_gop": 1.0, "fp32_gop": 0.1}
    assert found["machine_peak"] == {"int8_gops": 2000, "fp32_gflops": 500}
    assert found["latency_ms"].keys() >= {"min", "median", "p90", "p99", "runs"}


def test_unknown_work_has_no_peak_fraction() -> None:
    assert BenchmarkResult(Latency((1.0,)), machine_peak=MachinePeak(1, 1)).peak_fraction is None
    assert BenchmarkResult(Latency((1.0,)), work=Work(1, 1)).peak_fraction is None
