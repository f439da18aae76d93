"""Everybody in turns, then a verdict on each: what can't be true is not believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from bench_peers_parts.environments import Unavailable

from tvmflow.bench.compare import LONGEST_CHECKED, MOST_CPU_PER_THREAD, MOST_OF_PEAK
from tvmflow.bench.measure import MachinePeak
from tvmflow.bench.stats import Latency

WARM = 0.05
"""Seconds of untimed runs before each turn: caches, clocks, and threads that have to find a core each."""
LEAST_COSINE = 0.9
"""Between a runtime's output and onnxruntime's in fp32: below, it computes something else."""


class Asked(Protocol):
    """A worker process, as far as it matters here."""

    ready: dict[str, Any]

    def ask(self, **command: Any) -> dict[str, Any]: ...


@dataclass
class Row:
    """One runtime with one precision in one cell of the table."""

    name: str
    precision: str
    worker: Asked | None = None
    reason: str = ""
    """Why there are no figures, or why they are not believed."""
    gop: float | None = None
    """1e9 operations of one run of its own, where they are known: fewer than the model's when some are saved (Winograd)."""
    times: list[float] = field(default_factory=list)
    cpu: float = 0.0
    wall: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def take(self, seconds: float) -> None:
        """One turn. A worker that fails takes no further turns."""
        if self.worker is None:
            return
        try:
            reply = self.worker.ask(seconds=seconds, warm=WARM)
        except Unavailable as error:
            self.worker, self.reason = None, str(error)
            return
        self.times += reply["times"]
        self.cpu += reply["cpu"]
        self.wall += reply["wall"]

    @property
    def family(self) -> str:
        """``fp32``, ``bf16`` or ``int8``: what it is compared within."""
        return self.precision.split("-")[0]

    @property
    def minimum(self) -> float | None:
        """Seconds; None when there is no figure to be believed."""
        return min(self.times) if self.times and not self.reason else None


@dataclass(frozen=True)
class Cell:
    """One model at one batch size with one number of threads."""

    model: str
    batch: int
    threads: int
    gop: float | None
    rows: tuple[Row, ...]
    peak: MachinePeak | None
    cpus: float = 0.0
    """That the peak's kernels got, of as many as there are threads: fewer when other programs ran."""

    def fraction(self, row: Row) -> float | None:
        """Share of the machine's peak that the fastest run reached; all arithmetic counted as the row's precision."""
        rates = {} if self.peak is None else {"int8": self.peak.int8_gops, "fp32": self.peak.fp32_gflops}
        gop = row.gop or self.gop
        if gop is None or not row.times or row.family not in rates:
            return None
        return gop / rates[row.family] / min(row.times)

    def best_peer(self, family: str, ours: str) -> Row | None:
        """The fastest other runtime."""
        others = [r for r in self.rows if r.family == family and r.name != ours and r.minimum]
        return min(others, key=lambda r: r.minimum or 0.0, default=None)


def measure(rows: Sequence[Row], peak: Asked, rounds: int, seconds: float) -> tuple[MachinePeak | None, float]:
    """``rounds`` turns of each row, ``seconds`` long, the machine's peak between them: the highest, and the CPUs that it had."""
    best: MachinePeak | None = None
    cpu = wall = 0.0
    for _ in range(rounds):
        for row in rows:
            row.take(seconds)
        reply = peak.ask(seconds=seconds)
        now = MachinePeak(reply["int8_gops"], reply["fp32_gflops"])
        best = now if best is None else best.best(now)
        cpu, wall = cpu + reply["cpu"], wall + reply["wall"]
    return best, cpu / wall


def judge(cell: Cell) -> None:
    """Gives each row that is not to be believed its reason."""
    reference = next((r for r in cell.rows if (r.name, r.precision) == ("onnxruntime", "fp32") and r.worker), None)
    for row in cell.rows:
        if row.reason or not row.times:
            continue
        used, fraction = row.cpu / row.wall, cell.fraction(row)
        if cell.threads == 1 and row.cpu > LONGEST_CHECKED and used > MOST_CPU_PER_THREAD:
            row.reason = f"error: it used {used:.2f} CPUs with one thread"
        elif fraction is not None and fraction > MOST_OF_PEAK:
            row.reason = f"not believed: {100 * fraction:.0f} % of the machine's peak"
        elif reference is not None and reference.worker is not None and row.worker is not None:
            row.facts["cosine"] = cosine(row.worker.ready["output"], reference.worker.ready["output"])
            if row.facts["cosine"] < LEAST_COSINE:
                row.reason = f"error: its output is not the model's (cosine {row.facts['cosine']:.3f})"


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Of the angle between two outputs; 0 when their sizes differ."""
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def to_json(cell: Cell) -> dict[str, Any]:
    """Every raw run."""
    peak = cell.peak and {"int8_gops": cell.peak.int8_gops, "fp32_gflops": cell.peak.fp32_gflops}
    rows = []
    for row in cell.rows:
        found: dict[str, Any] = {"name": row.name, "precision": row.precision, "reason": row.reason, **row.facts}
        if row.times:
            found["latency_ms"] = Latency(tuple(row.times)).to_json()
            found["cpu_per_wall"] = row.cpu / row.wall
            found["peak_fraction"] = cell.fraction(row)
        rows.append(found)
    head = {
        "model": cell.model,
        "batch": cell.batch,
        "threads": cell.threads,
        "gop": cell.gop,
        "machine_peak": peak,
        "peak_cpus": cell.cpus,
    }
    return {**head, "rows": rows}
