"""``tvmflow tune``: find the fastest decision for every kernel of a network, and remember it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    from tvmflow.tune.search import Searched
    from tvmflow.tune.state import TaskState


@dataclass(frozen=True)
class TuneResult:
    """What was found. ``searched`` is None after a dry run, and when all kernels had settled before."""

    target: str
    log: Path
    states: tuple[TaskState, ...]
    """What is known of each kernel, with the most modelled work first."""
    searched: Searched | None
    lost: Mapping[str, str] = field(default_factory=dict)
    """Boards that were given up on the way, and why; the others did their part."""

    def to_json(self) -> dict[str, Any]:
        from tvmflow.tune.search import TRIAL_SECONDS
        from tvmflow.tune.state import expected_trials, latency

        left = expected_trials(self.states)
        found: dict[str, Any] = {
            "target": self.target,
            "log": str(self.log),
            "kernels": len(self.states),
            "tuned_before": sum(s.tuned_before for s in self.states),
            "candidates": sum(len(s.task.candidates) for s in self.states),
            "expected_trials": left,
            "expected_seconds": left * TRIAL_SECONDS,
            "default_ms": 1e3 * latency(self.states, untuned=True),
            "tuned_ms": 1e3 * latency(self.states),
            "tasks": [_row(state) for state in self.states],
        }
        if self.searched:
            s = self.searched
            found |= {"trials": s.trials, "failed": s.failed, "drifts": s.drifts, "seconds": s.seconds, "stopped": s.stopped}
            found |= {"lost_boards": dict(self.lost)}
            found |= {"gain_left": s.gain, "history": [[p.seconds, p.trials, 1e3 * p.latency] for p in s.history]}
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


def _row(state: TaskState) -> dict[str, Any]:
    task, default = state.task, state.seconds.get(state.task.default)
    return {
        "kernel": task.name,
        "layers": list(task.layers),
        "count": task.count,
        "candidates": len(task.candidates),
        "tuned_before": state.tuned_before,
        "finished": state.finished,
        "measured": len(state.seconds),
        "quarantined": len(state.quarantined),
        "default_ms": None if default is None else 1e3 * default,
        "best_ms": None if state.incumbent is None else 1e3 * state.best,
    }


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
    again: bool = False,
    dry_run: bool = False,
    shapes: Shapes | None = None,
    tuning_log: str | Path | None = None,
    work_dir: str | Path = ".tvmflow",
    progress: Progress = silent,
) -> TuneResult:
    """Searches the schedule space of each kernel of ``model`` and appends what it measures to a log that compile uses.

    Parameters
    ----------
    boards : measure on these boards instead of here; they share the work. Registered names, ``host:port``, or
        ``tracker://HOST:PORT/KEY`` for all that are announced at a tracker of TVM under the key
    budget : seconds; ``trials`` : measured candidates. Without either the search ends when nothing is left to gain
    again : search kernels too that a shipped log or this one has settled
    dry_run : list the kernels and their spaces, and what a search would take
    tuning_log : file to append to; by default that of the target in ``work_dir``

    Raises TvmflowError, see :mod:`tvmflow.errors`.
    """
    from tvmflow.board.discover import boards_behind
    from tvmflow.tune import log
    from tvmflow.tune.measure import BoardMeasurer
    from tvmflow.tune.search import Limits, search
    from tvmflow.tune.state import restore
    from tvmflow.tune.tasks import tasks

    chosen = get_target(target)
    found_boards = boards_behind(boards)
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        asked = request(
            model, chosen, Path(scratch), quantize=quantize, calibration=calibration, shapes=shapes,
            check_import=False, work_dir=work_dir,
        )  # fmt: skip
        found = tasks(in_child(kernels_of, asked, Path(scratch), progress, what="lowering"), chosen)
    path = Path(tuning_log) if tuning_log else log.local_log(chosen, Path(work_dir))
    shipped = [entry for file in log.shipped_logs(chosen) for entry in log.read(file, strict=True)]
    states = restore(found, chosen, path, shipped, again)
    if dry_run or all(s.finished for s in states):
        return TuneResult(chosen.name, path, tuple(states), None)
    with BoardMeasurer(chosen, found_boards) as measurer:
        searched = search(states, chosen, measurer, path, Limits(trials, budget), progress)
    return TuneResult(chosen.name, path, searched.states, searched, measurer.lost)
