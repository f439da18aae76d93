"""Ours and peers, measured in turns, so that a slow minute of the machine is everybody's.

Each round gives every contender the same treatment: a pause until the threads of the one before have stopped spinning, runs for
some milliseconds to wake its own threads and fill the caches, then the timed runs. The machine's peak is measured between
rounds too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from tvmflow.bench.measure import BenchmarkResult, MachinePeak, PeerResult, Timed, Work, load_average, pick_number
from tvmflow.bench.peak import PeakMeter
from tvmflow.bench.stats import Latency
from tvmflow.errors import EnvironmentProblem
from tvmflow.trace import Progress, silent

SLICE = 0.01
"""Seconds between two looks at whether this process is idle. Measured: TVM's threads spin for 1 ms after a run before they sleep,
onnxruntime's for 25 to 120 ms, in which they would take a core from whoever comes next. (Its option that stops them at once
makes its own next run slower, so it is not used.)"""
IDLE = 0.1
"""CPU time over wall time below which the process counts as idle."""
LONGEST_PAUSE = 1.0
"""Seconds."""
WARM_UP = 0.01
"""Seconds of runs before the timed ones of each turn."""
MOST_CPU_PER_THREAD = 1.1
MOST_OF_PEAK = 1.05
"""The peak is a measurement too; above this share of it a time is taken for an error, not for speed."""
LONGEST_CHECKED = 0.02
"""Seconds of CPU time below which the kernel's accounting is too coarse for a verdict."""


class Peer(Timed, Protocol):
    """Another runtime with a model loaded."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def precision(self) -> str: ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs by name."""


@dataclass(frozen=True)
class Rounds:
    """How long to compare: ``rounds`` turns of each contender, ``runs`` timed runs a turn, about ``seconds`` a turn at most."""

    rounds: int = 10
    runs: int = 10
    seconds: float = 0.5


@dataclass(frozen=True)
class Ours:
    """Our session, and what is known of it."""

    session: Timed
    threads: int = 1
    """What it and every peer were set up with."""
    work: Work = field(default_factory=Work)
    """Arithmetic of one run, checked against the peak."""
    local: bool = True
    """It runs in this process, so that its CPU time can be checked."""


@dataclass
class _Turns:
    """One contender's times so far."""

    label: str
    session: Timed
    repeat: int
    number: int
    warmup: int
    times: list[float]
    wall: float = 0.0
    cpu: float = 0.0

    def take(self, inputs: Mapping[str, np.ndarray]) -> None:
        settle()
        self.session.benchmark(inputs, 1, self.warmup)
        wall, cpu = time.perf_counter(), time.process_time()
        self.times += self.session.benchmark(inputs, self.repeat, self.number)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def latency(self) -> Latency:
        return Latency(tuple(self.times), self.number)


def compare(
    ours: Ours,
    peers: Sequence[Peer],
    inputs: Mapping[str, np.ndarray],
    plan: Rounds | None = None,
    *,
    peak: PeakMeter | None = None,
    progress: Progress = silent,
) -> BenchmarkResult:
    """Latency of ours with the peers', runs interleaved (A B C A B C ...), everybody with the same number of rounds.

    Parameters
    ----------
    inputs : arrays by input name; the same for everybody
    plan : how long; ``Rounds()`` unless told
    peak : kernels that measure the machine's peak between rounds

    Raises EnvironmentProblem when a single-threaded contender used more than one CPU, or when ours seems to be faster than
    the machine can be: such figures are not to be believed.
    """
    plan = plan or Rounds()
    load = load_average()
    contenders = [
        _Turns(label, session, 1, 1, 1, []) for label, session in [("ours", ours.session), *((p.name, p) for p in peers)]
    ]
    for turns in contenders:
        turns.session.benchmark(inputs, 1, 3)
        turns.number, once = pick_number(turns.session, inputs)
        turns.warmup = max(1, round(WARM_UP / once))
        turns.repeat = max(1, min(plan.runs, int(plan.seconds / (once * turns.number))))
    meter = None if peak is None else peak.fastest()
    best: MachinePeak | None = None
    for done in range(plan.rounds):
        for turns in contenders:
            turns.take(inputs)
        if meter is not None:
            now = meter.measure()
            best = now if best is None else best.best(now)
        progress("bench", done + 1, plan.rounds)
    if ours.threads == 1:
        for turns in contenders[0 if ours.local else 1 :]:
            check_cpu(turns.label, turns.cpu, turns.wall)
    mine = contenders[0].latency()
    against = tuple(_against(peer, turns.latency(), mine) for peer, turns in zip(peers, contenders[1:], strict=True))
    result = BenchmarkResult(mine, threads=ours.threads, work=ours.work, machine_peak=best, load_average=load, against=against)
    check_peak(result)
    return result


def settle() -> None:
    """Waits until no thread of this process computes. Raises EnvironmentProblem when one does not stop."""
    for _ in range(round(LONGEST_PAUSE / SLICE)):
        cpu, wall = time.process_time(), time.perf_counter()
        time.sleep(SLICE)
        if time.process_time() - cpu < IDLE * (time.perf_counter() - wall):
            return
    raise EnvironmentProblem(
        "another thread of this process keeps computing",
        where="bench",
        remedy="run the comparison in a process of its own",
    )


def _against(peer: Peer, theirs: Latency, ours: Latency) -> PeerResult:
    return PeerResult(
        peer.name, peer.version, peer.precision, theirs, ratio_min=theirs.min / ours.min, ratio_median=theirs.median / ours.median
    )


def check_cpu(label: str, cpu: float, wall: float) -> None:
    """Raises EnvironmentProblem when a contender that was given one thread used the time of more."""
    if cpu > LONGEST_CHECKED and cpu / wall > MOST_CPU_PER_THREAD:
        raise EnvironmentProblem(
            f"{label} used {cpu / wall:.2f} CPUs with one thread",
            where="bench",
            remedy="something in this process computes beside it; run the comparison in a process of its own",
        )


def check_peak(result: BenchmarkResult) -> None:
    """Raises EnvironmentProblem when the fastest run is faster than the machine's peak allows."""
    fraction = result.peak_fraction
    if fraction is not None and fraction > MOST_OF_PEAK:
        raise EnvironmentProblem(
            f"the fastest run would be {100 * fraction:.0f} % of the machine's peak, which can't be",
            where="bench",
            remedy="the machine was too busy while its peak was measured; measure again when it is quiet",
        )


def with_peak(result: BenchmarkResult, peak: MachinePeak, work: Work) -> BenchmarkResult:
    """A result of ``bench`` with the machine's peak and the model's work, checked against each other."""
    complete = replace(result, machine_peak=peak, work=work)
    check_peak(complete)
    return complete
