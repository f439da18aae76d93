"""Measuring one session: warm up, then time runs until there are enough of them or the time is up."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from tvmflow.bench.layers import LayerTime
from tvmflow.bench.stats import Latency
from tvmflow.errors import EnvironmentProblem
from tvmflow.trace import Progress, silent

SHORTEST_SAMPLE = 50e-6
"""Seconds. A shorter run is timed several at a time: reading the clock costs up to a microsecond, 2 % of this."""
BATCH_SECONDS = 0.25
"""Runs are asked for in batches of about this length, so that progress moves."""


class Timed(Protocol):
    """What can be measured: a local session, a session on a board, a peer."""

    def benchmark(self, inputs: Mapping[str, np.ndarray], repeat: int, number: int) -> list[float]:
        """``repeat`` times in seconds, each the mean of ``number`` consecutive runs on ``inputs``."""


@dataclass(frozen=True)
class Device:
    """Where it ran."""

    name: str = "local"
    cpu: str = ""
    isa: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """Arithmetic of one run in 1e9 operations, a multiply-add counted as two."""

    int8_gop: float = 0.0
    fp32_gop: float = 0.0


@dataclass(frozen=True)
class MachinePeak:
    """Highest rate of multiply-adds from registers: 1e9 operations a second, a multiply-add counted as two."""

    int8_gops: float
    fp32_gflops: float

    def seconds(self, work: Work) -> float:
        """Shortest time in which this machine can do ``work``."""
        return work.int8_gop / self.int8_gops + work.fp32_gop / self.fp32_gflops

    def best(self, other: MachinePeak) -> MachinePeak:
        """The higher of two measurements, rate by rate: a disturbed one is only ever too low."""
        return MachinePeak(max(self.int8_gops, other.int8_gops), max(self.fp32_gflops, other.fp32_gflops))


@dataclass(frozen=True)
class PeerResult:
    """A peer measured in turns with ours. A ratio is theirs over ours: above 1 means that ours is faster."""

    name: str
    version: str
    precision: str
    latency: Latency
    ratio_min: float
    ratio_median: float

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "precision": self.precision,
            "latency_ms": self.latency.to_json(),
            "ratio_min": self.ratio_min,
            "ratio_median": self.ratio_median,
        }


@dataclass(frozen=True)
class BenchmarkResult:
    """Latency of one artifact on one device, with what is needed to judge it."""

    latency: Latency
    artifact: str = ""
    device: Device = field(default_factory=Device)
    threads: int = 1
    work: Work = field(default_factory=Work)
    machine_peak: MachinePeak | None = None
    load_average: tuple[float, ...] = ()
    """1, 5 and 15 minutes, of the measuring machine, before the first run."""
    against: tuple[PeerResult, ...] = ()
    layers: tuple[LayerTime, ...] = ()

    @property
    def peak_fraction(self) -> float | None:
        """Share of the machine's peak that the fastest run reached; None when the peak or the work is unknown."""
        if self.machine_peak is None:
            return None
        return self.machine_peak.seconds(self.work) / self.latency.min or None

    def to_json(self) -> dict[str, Any]:
        """Keys of ``tvmflow bench --json``."""
        return {
            "artifact": self.artifact,
            "device": {"name": self.device.name, "cpu": self.device.cpu, "isa": list(self.device.isa)},
            "threads": self.threads,
            "latency_ms": self.latency.to_json(),
            "work": asdict(self.work),
            "machine_peak": None if self.machine_peak is None else asdict(self.machine_peak),
            "peak_fraction": self.peak_fraction,
            "load_average": list(self.load_average),
            "against": [peer.to_json() for peer in self.against],
            **({"layers": [layer.to_json() for layer in self.layers]} if self.layers else {}),
        }


def load_average() -> tuple[float, ...]:
    """1, 5 and 15 minutes; empty where the system keeps none."""
    try:
        return tuple(round(value, 2) for value in os.getloadavg())
    except OSError:
        return ()


def pick_number(session: Timed, inputs: Mapping[str, np.ndarray]) -> tuple[int, float]:
    """How many runs to time at once so that the clock can be trusted, and the seconds of one run."""
    (once,) = session.benchmark(inputs, 1, 1)
    if once >= SHORTEST_SAMPLE:
        return 1, once
    (mean,) = session.benchmark(inputs, 1, 10)
    return max(1, min(1000, round(2 * SHORTEST_SAMPLE / max(mean, 1e-9)))), mean


def bench(
    session: Timed,
    inputs: Mapping[str, np.ndarray],
    *,
    runs: int = 100,
    warmup: int = 10,
    seconds: float = 10.0,
    progress: Progress = silent,
) -> BenchmarkResult:
    """Latency of ``session`` on ``inputs``.

    Parameters
    ----------
    inputs : arrays by input name, as the user feeds them; taking them in is part of a run
    runs : timed runs wanted
    warmup : runs before the first timed one
    seconds : stop after this much timed work, though never before five runs (or ``runs``, if fewer)

    Raises EnvironmentProblem when the device reports impossible times.
    """
    if runs < 1:
        raise EnvironmentProblem(f"{runs} runs asked for", where="bench", remedy="ask for at least one run")
    load = load_average()
    if warmup:
        session.benchmark(inputs, 1, warmup)
    number, estimate = pick_number(session, inputs)
    batch = max(1, min(runs, round(BATCH_SECONDS / max(estimate * number, 1e-9))))
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < runs:
        times += session.benchmark(inputs, min(batch, runs - len(times)), number)
        progress("bench", len(times), runs)
        if time.perf_counter() - start > seconds and len(times) >= min(5, runs):
            break
    return BenchmarkResult(Latency(tuple(times), number), load_average=load)
