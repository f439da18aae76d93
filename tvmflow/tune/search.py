"""The search: rank, build and measure the most promising candidates of every kernel, learn, stop when nothing is left to gain.

Every outcome is on disk before the next batch starts: measured ones in the tuning log, failed ones in a quarantine file beside
it. A search that was killed goes on where it stopped; nothing is measured twice, and what crashed once is never tried again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tvmflow.errors import EnvironmentProblem
from tvmflow.kernels import spec as ks
from tvmflow.schedule.template import Tile
from tvmflow.target import Target
from tvmflow.trace import Progress, silent
from tvmflow.tune import log
from tvmflow.tune.cost_model import CostModel, Sample
from tvmflow.tune.measure import Candidate, Measurer
from tvmflow.tune.tasks import Task

BATCH = 32
"""Candidates built at once: the builder's workers start anew for each batch, which costs seconds."""
PER_TASK = 4
"""Candidates of one kernel in a batch."""
LEAST_TRIED = 12
"""Candidates of a kernel that are tried before the cost model's word that nothing is left to gain is taken."""
LEAST_GAIN = 0.01
"""A kernel is left alone when its best unmeasured candidate is not predicted to be this much faster."""
DRIFT = 1.10
"""The machine's state is taken to have changed when the incumbent of a kernel becomes this much slower or faster."""


class Quarantined(msgspec.Struct, frozen=True):
    """A candidate that failed, and why. Never tried again."""

    kernel: ks.Kernel
    target: str
    tile: Tile
    error: str


@dataclass(frozen=True)
class Limits:
    """When to stop: after ``trials`` measurements or ``seconds``, whichever comes first; None is no limit."""

    trials: int | None = None
    seconds: float | None = None


@dataclass
class TaskState:
    """What is known of one kernel."""

    task: Task
    seconds: dict[Tile, float] = field(default_factory=dict)
    """Best measured time by decision."""
    quarantined: dict[Tile, str] = field(default_factory=dict)
    finished: bool = False

    @property
    def best(self) -> Tile:
        """The fastest measured decision, the default before there is one."""
        return min(self.seconds, key=lambda tile: self.seconds[tile]) if self.seconds else self.task.default

    @property
    def unmeasured(self) -> list[Tile]:
        known = self.seconds.keys() | self.quarantined.keys()
        return [tile for tile in self.task.candidates if tile not in known]


@dataclass(frozen=True)
class Searched:
    """Result of a search. ``trials`` and ``failed`` count this run only."""

    states: tuple[TaskState, ...]
    trials: int
    failed: int
    drifts: int
    seconds: float
    stopped: str
    """Why: ``no gain left``, ``trials``, ``time`` or ``interrupted``."""


def restore(tasks: Sequence[Task], target: Target, path: Path) -> list[TaskState]:
    """States from what earlier runs left in the log and in the quarantine beside it."""
    by_kernel = {ks.encode(t.kernel): TaskState(t) for t in tasks}
    for entry in log.read(path) if path.exists() else []:
        state = by_kernel.get(ks.encode(entry.kernel))
        if state is not None and entry.target == target.name:
            state.seconds[entry.tile] = min(entry.best, state.seconds.get(entry.tile, entry.best))
    for failed in read_quarantine(path):
        state = by_kernel.get(ks.encode(failed.kernel))
        if state is not None and failed.target == target.name:
            state.quarantined[failed.tile] = failed.error
    return list(by_kernel.values())


def quarantine_path(path: Path) -> Path:
    return path.with_suffix(".quarantine.jsonl")


def read_quarantine(path: Path) -> list[Quarantined]:
    """Failed candidates of earlier runs; a torn line is skipped."""
    file = quarantine_path(path)
    found = []
    for line in file.read_bytes().splitlines() if file.exists() else []:
        try:
            found.append(msgspec.json.decode(line, type=Quarantined))
        except (msgspec.ValidationError, msgspec.DecodeError):
            continue
    return found


def search(
    tasks: Sequence[Task], target: Target, measurer: Measurer, path: Path, limits: Limits, progress: Progress = silent
) -> Searched:
    """Tunes ``tasks`` and appends every outcome to the log at ``path``.

    Raises EnvironmentProblem when all candidates of the first batch fail: then it is not the candidates that are wrong.
    """
    started = time.monotonic()
    states = restore(tasks, target, path)
    model = CostModel(target)
    trials = failed = drifts = 0
    stopped = "no gain left"
    try:
        while batch := _next_batch(states, model, limits.trials and limits.trials - trials):
            outcomes = measurer.measure(batch)
            by_kernel = {s.task.kernel: s for s in states}
            for candidate, outcome in zip(batch, outcomes, strict=True):
                state = by_kernel[candidate.kernel]
                trials += 1
                if not outcome.seconds:
                    failed += 1
                    _quarantine(path, target, state, candidate, outcome.error)
                    continue
                entry = log.record(candidate.kernel, target, candidate.tile, outcome.seconds)
                log.append(path, entry)
                before = state.seconds.get(candidate.tile)
                if before is not None and not 1 / DRIFT < entry.best / before < DRIFT:
                    drifts += 1
                state.seconds[candidate.tile] = entry.best
            if trials == failed:
                raise EnvironmentProblem(
                    f"all {trials} candidates failed: {outcomes[0].error}",
                    where=target.name,
                    remedy="`tvmflow doctor` checks this machine",
                )
            model.fit([Sample(s.task.kernel, tile, t) for s in states for tile, t in s.seconds.items()])
            now, gain = latency(states), sum(p[0] for p in (_promise(s, model) for s in states if s.seconds and not s.finished))
            text = f"tune: network {1e3 * now:.3f} ms, {gain / now:.1%} more to gain by the model" if now else "tune"
            progress(text, trials, limits.trials or trials + _left(states))
            if limits.seconds is not None and time.monotonic() - started > limits.seconds:
                stopped = "time"
                break
            if limits.trials is not None and trials >= limits.trials:
                stopped = "trials"
                break
    except KeyboardInterrupt:
        stopped = "interrupted"
    return Searched(tuple(states), trials, failed, drifts, time.monotonic() - started, stopped)


def latency(states: Sequence[TaskState]) -> float:
    """Seconds that the tuned kernels of the network take together, with the best decision of each measured one."""
    return sum(s.task.count * s.seconds[s.best] for s in states if s.seconds)


def _next_batch(states: Sequence[TaskState], model: CostModel, limit: int | None) -> list[Candidate]:
    """Up to ``BATCH`` candidates, those of the kernels with the most time to gain first. Empty when no gain is left."""
    size = BATCH if limit is None else min(BATCH, limit)
    ranked = sorted((_promise(s, model) for s in states if not s.finished), key=lambda p: -p[0])
    batch: list[Candidate] = []
    for gain, state, tiles in ranked:
        if not tiles or (state.seconds and gain <= 0):
            state.finished = True
            continue
        batch += [Candidate(state.task.kernel, tile) for tile in tiles[: size - len(batch)]]
        if len(batch) >= size:
            break
    return batch


def _promise(state: TaskState, model: CostModel) -> tuple[float, TaskState, list[Tile]]:
    """Seconds of the network that a kernel may still gain, and the candidates to try for it.

    The first batch of a kernel has its default; later ones have its incumbent, measured again, so that a candidate is compared
    with what the machine does now.
    """
    tiles = state.unmeasured
    if not state.seconds:
        first = [state.task.default, *(t for t in tiles if t != state.task.default)]
        first = [t for t in first if t not in state.quarantined]
        return float("inf"), state, first[:PER_TASK]
    if not tiles:
        return 0.0, state, []
    predicted = model.seconds(state.task.kernel, tiles)
    order = sorted(range(len(tiles)), key=lambda i: predicted[i])
    best = state.seconds[state.best]
    gain = best - float(predicted[order[0]])
    if gain < LEAST_GAIN * best:
        if len(state.seconds) + len(state.quarantined) >= LEAST_TRIED:
            return 0.0, state, []
        gain = LEAST_GAIN * best
    return state.task.count * gain, state, [state.best, *(tiles[i] for i in order[: PER_TASK - 1])]


def _left(states: Sequence[TaskState]) -> int:
    """Trials that an unlimited search may still take, for the ETA."""
    return sum(PER_TASK for s in states if not s.finished and s.unmeasured)


def _quarantine(path: Path, target: Target, state: TaskState, candidate: Candidate, error: str) -> None:
    state.quarantined[candidate.tile] = error
    file = quarantine_path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as out:
        out.write(msgspec.json.encode(Quarantined(candidate.kernel, target.name, candidate.tile, error)) + b"\n")
