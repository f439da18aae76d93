"""``tvmflow tune``: find the fastest decision for every kernel of a network, and remember it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tvmflow.flow.lower import Shapes
from tvmflow.flow.request import Request, request
from tvmflow.kernels import spec as ks
from tvmflow.target import get_target
from tvmflow.trace import Progress, Trace, silent
from tvmflow.worker import in_child

if TYPE_CHECKING:
    from tvmflow.tune.search import Searched, TaskState
    from tvmflow.tune.tasks import Task


@dataclass(frozen=True)
class TuneResult:
    """What was found. ``searched`` is None after a dry run."""

    target: str
    log: Path
    tasks: tuple[Task, ...]
    searched: Searched | None

    def to_json(self) -> dict[str, Any]:
        states = {s.task.kernel: s for s in self.searched.states} if self.searched else {}
        rows = [_row(task, states.get(task.kernel)) for task in self.tasks]
        known = [r for r in rows if r["default_ms"] is not None and r["best_ms"] is not None]
        found: dict[str, Any] = {
            "target": self.target,
            "log": str(self.log),
            "kernels": len(rows),
            "candidates": sum(r["candidates"] for r in rows),
            "default_ms": sum(r["count"] * r["default_ms"] for r in known),
            "tuned_ms": sum(r["count"] * r["best_ms"] for r in known),
            "tasks": rows,
        }
        if self.searched:
            s = self.searched
            found |= {"trials": s.trials, "failed": s.failed, "drifts": s.drifts, "seconds": s.seconds, "stopped": s.stopped}
        return found


def merge_logs(paths: Sequence[str | Path], out: str | Path) -> dict[str, Any]:
    """Writes the fastest few records of each kernel of several logs to ``out``, sorted; returns what ``--json`` prints.

    Raises ConfigError for a file that can't be read or has a line that is no record.
    """
    from tvmflow.tune import log

    records = [entry for path in paths for entry in log.read(Path(path), strict=True)]
    kept = log.merge(records)
    log.write(Path(out), kept)
    kernels = {(entry.target, ks.encode(entry.kernel)) for entry in kept}
    return {
        "log": str(out),
        "read": len(records),
        "kept": len(kept),
        "kernels": len(kernels),
        "targets": sorted({e.target for e in kept}),
    }


class KernelCall(msgspec.Struct, frozen=True):
    """One kernel call of a network."""

    layer: str
    function: str
    """Readable name of the kernel."""
    spec: ks.Kernel


def _row(task: Task, state: TaskState | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kernel": task.name, "layers": list(task.layers), "count": task.count, "candidates": len(task.candidates),
        "measured": 0, "quarantined": 0, "default_ms": None, "best_ms": None,
    }  # fmt: skip
    if state is not None:
        row |= {"measured": len(state.seconds), "quarantined": len(state.quarantined)}
        if state.seconds:
            row["best_ms"] = 1e3 * state.seconds[state.best]
            row["default_ms"] = 1e3 * state.seconds[task.default] if task.default in state.seconds else None
    return row


def kernels_of(job: Request, directory: Path, progress: Progress) -> tuple[KernelCall, ...]:
    """The child's side: the kernel calls of the network, in program order."""
    from tvmflow.schedule.apply import schedule

    _, kernels = schedule(job.lower(Trace(None, progress)).model, job.target)
    return tuple(KernelCall(k.layer, k.function, k.spec) for k in kernels)


def tune(
    model: Any,
    target: str = "native",
    *,
    quantize: str | Path | None = None,
    calibration: str | Path | None = None,
    boards: Sequence[str] = (),
    budget: float | None = None,
    trials: int | None = None,
    dry_run: bool = False,
    shapes: Shapes | None = None,
    tuning_log: str | Path | None = None,
    work_dir: str | Path = ".tvmflow",
    progress: Progress = silent,
) -> TuneResult:
    """Searches the schedule space of each kernel of ``model`` and appends what it measures to a log that compile uses.

    Parameters
    ----------
    boards : measure on this board instead of here (one; registered name or ``host:port``)
    budget : seconds; ``trials`` : measurements. Without either the search ends when nothing is left to gain
    dry_run : list the kernels and their spaces only
    tuning_log : file to append to; by default that of the target in ``work_dir``

    Raises TvmflowError, see :mod:`tvmflow.errors`.
    """
    from tvmflow.errors import UsageError
    from tvmflow.tune import log
    from tvmflow.tune.measure import MetaScheduleMeasurer
    from tvmflow.tune.search import Limits, search
    from tvmflow.tune.tasks import tasks

    if len(boards) > 1:
        raise UsageError("one board at a time", where="--board")
    chosen = get_target(target)
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        asked = request(
            model, chosen, Path(scratch), quantize=quantize, calibration=calibration, shapes=shapes,
            check_import=False, work_dir=work_dir,
        )  # fmt: skip
        found = tasks(in_child(kernels_of, asked, Path(scratch), progress, what="lowering"), chosen)
    path = Path(tuning_log) if tuning_log else log.local_log(chosen, Path(work_dir))
    if dry_run:
        return TuneResult(chosen.name, path, found, None)
    measurer = MetaScheduleMeasurer(chosen, boards[0] if boards else None)
    searched = search(found, chosen, measurer, path, Limits(trials, budget), progress)
    return TuneResult(chosen.name, path, found, searched)
