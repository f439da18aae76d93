"""The search: rank, build and measure the most promising candidates of every kernel, learn, stop when nothing is left to gain.

A kernel's incumbent stands in every group of its candidates. Times are multiplied with what the incumbent took at first over
what it takes now, so that they stay comparable when the machine gets slower or faster; and a candidate becomes the incumbent
only when it wins again in its next group, for the fastest of many noisy times is mostly luck.

Every outcome is on disk before the next group is looked at: measured ones in the tuning log, failed ones in a quarantine file
beside it. A search that was killed goes on where it stopped; nothing is measured twice but what has to be confirmed, and what
failed once is never tried again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmflow.errors import EnvironmentProblem
from tvmflow.schedule.template import Tile
from tvmflow.target import Target
from tvmflow.trace import Progress, silent
from tvmflow.tune import log
from tvmflow.tune.cost_model import CostModel, Sample
from tvmflow.tune.measure import Group, Measurer, Outcome
from tvmflow.tune.state import WIN, Quarantined, TaskState, expected_trials, latency, quarantine, quarantine_path

BATCH = 40
"""Candidates between two fits of the cost model."""
PER_TASK = 5
"""New candidates of one kernel in a batch."""
LEAST_TRIED = 12
"""Candidates of a kernel that are tried before the cost model's word that nothing is left to gain is taken."""
LEAST_GAIN = 0.01
"""A kernel is left alone when its best unmeasured candidate is not predicted to be this much faster."""
DRIFT = 1.10
"""The machine's state is reported to have changed when an incumbent becomes this much slower or faster."""
TRIAL_SECONDS = 0.2
"""What a trial costs as a rule (ResNet-50 on two Zen 5 cores), for the estimate before the first one."""


@dataclass(frozen=True)
class Limits:
    """When to stop: after ``trials`` measured candidates or ``seconds``, whichever comes first; None is no limit."""

    trials: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Point:
    """The network's latency at some time of the search."""

    seconds: float
    trials: int
    latency: float


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
    gain: float
    """Part of the latency that the cost model expects of going on."""
    history: tuple[Point, ...]


class _Search:
    """One run of the search: its states, its cost model, and what it has counted."""

    def __init__(self, states: Sequence[TaskState], target: Target, path: Path, limits: Limits) -> None:
        self.states, self.target, self.path, self.limits = states, target, path, limits
        self.model = CostModel(target)
        self.trials = self.failed = self.drifts = 0
        self.history: list[Point] = []
        self.last_error = ""
        self.gain = 0.0
        """Part of the network's latency that the model expected to be left to gain when it was last fitted."""
        self._started = time.monotonic()
        self._by_kernel = {s.task.kernel: s for s in states}

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    @property
    def over(self) -> str:
        """Which limit is reached."""
        if self.limits.trials is not None and self.trials >= self.limits.trials:
            return "trials"
        return "time" if self.limits.seconds is not None and self.elapsed > self.limits.seconds else ""

    def run(self, measurer: Measurer, progress: Progress) -> str:
        """Searches until nothing is left to gain or a limit is reached; returns which."""
        self._fit()
        self._report(progress)
        while groups := self._next_groups():
            for group, outcomes in measurer.measure(groups):
                self._learn(group, outcomes)
                self._report(progress)
                if self.over == "time":
                    break
            if not any(s.seconds for s in self.states):
                raise self._all_failed()
            if self.over:
                break
            self._fit()
        if self.over == "time":  # what has won once is worth the second or two of its confirmation
            for group, outcomes in measurer.measure([_group(s, []) for s in self.states if s.challenger]):
                self._learn(group, outcomes)
        self._report(progress)
        return self.over or "no gain left"

    def _all_failed(self) -> EnvironmentProblem:
        # then it is not the candidates that are wrong
        what = f"all {self.failed} candidates failed: {self.last_error}"
        return EnvironmentProblem(what, where=self.target.name, remedy="`tvmflow doctor` checks this machine")

    def _fit(self) -> None:
        self.model.fit([Sample(s.task.kernel, tile, t) for s in self.states for tile, t in s.seconds.items()])
        now = latency(self.states)
        promised = sum(self._promise(s)[0] for s in self.states if s.incumbent is not None and not s.finished)
        self.gain = promised / now if now else 0.0

    def _learn(self, group: Group, outcomes: Sequence[Outcome]) -> None:
        """Takes in a measured group; all of it is on disk when this returns."""
        state = self._by_kernel[group.kernel]
        scale = 1.0
        if state.incumbent is not None and outcomes[0].seconds:
            scale = state.best / outcomes[0].best
            self.drifts += not 1 / DRIFT < scale < DRIFT
        for tile, outcome in zip(group.tiles, outcomes, strict=True):
            if tile == state.incumbent and outcome.seconds:
                continue  # it was measured to compare with
            self.trials += 1
            if not outcome.seconds:
                self.failed += 1
                self.last_error = outcome.error
                state.give_up(tile, outcome.error)
                quarantine(self.path, Quarantined(group.kernel, self.target.name, tile, outcome.error))
                continue
            again = tile in state.seconds
            accepted = state.incumbent is None or (again and scale * outcome.best < WIN * state.best)
            entry = log.record(group.kernel, self.target, tile, outcome.seconds, scale=scale, accepted=accepted)
            log.append(self.path, entry)
            state.seconds[tile] = entry.best
            if accepted:
                state.incumbent, state.record = tile, entry

    def _next_groups(self) -> list[Group]:
        """Up to ``BATCH`` candidates, those of the kernels with the most time to gain first. Empty when no gain is left."""
        left = BATCH if self.limits.trials is None else min(BATCH, self.limits.trials - self.trials)
        waiting = [s for s in self.states if s.challenger]
        if self.limits.trials is not None and left <= len(waiting):
            return [_group(s, []) for s in waiting[:left]]  # the last trials confirm what has been won
        groups: list[Group] = []
        ranked = sorted((self._promise(s) for s in self.states if not s.finished), key=lambda p: -p[0])
        for gain, state, tiles in ranked:
            if gain <= 0:
                self._settle(state)
                continue
            new = left - (state.challenger is not None)
            if new < 0:
                break
            groups.append(_group(state, tiles[:new]))
            left = new - len(tiles[:new])
            if not left:
                break
        return groups

    def _settle(self, state: TaskState) -> None:
        state.finished = True
        if state.record is not None and not state.tuned_before:
            state.record = log.settle(state.record, len(state.task.candidates))
            log.append(self.path, state.record)

    def _promise(self, state: TaskState) -> tuple[float, TaskState, list[Tile]]:
        """Seconds of the network that a kernel may still gain, and the new candidates to try for it."""
        tiles = state.unmeasured
        if state.incumbent is None:  # the default comes first: it is what the others have to beat
            tiles.sort(key=lambda tile: tile != state.task.default)
            return float("inf") if tiles else 0.0, state, tiles[: PER_TASK + 1]
        confirmed = 0.0 if state.challenger is None else state.best - state.seconds[state.challenger]
        if not tiles:
            return state.task.count * confirmed, state, []
        predicted = self.model.seconds(state.task.kernel, tiles)
        order = sorted(range(len(tiles)), key=lambda i: (tiles[i] not in state.suggested, predicted[i]))
        gain = max(confirmed, state.best - float(min(predicted)))
        if gain < LEAST_GAIN * state.best and state.challenger is None:
            if len(state.seconds) + len(state.quarantined) >= LEAST_TRIED:
                return 0.0, state, []
            gain = LEAST_GAIN * state.best
        return state.task.count * gain, state, [tiles[i] for i in order[:PER_TASK]]

    def _report(self, progress: Progress) -> None:
        now = latency(self.states)
        self.history.append(Point(self.elapsed, self.trials, now))
        total = self.limits.trials or self.trials + expected_trials(self.states)
        left = (total - self.trials) * (self.elapsed / self.trials if self.trials else TRIAL_SECONDS)
        if self.limits.seconds is not None:
            left = min(left, max(0.0, self.limits.seconds - self.elapsed))
        if not now:
            progress(f"tune: about {minutes(left)} left", self.trials, total)
            return
        fresh = sum(s.incumbent is None and not s.finished for s in self.states)
        untuned = latency(self.states, untuned=True)
        of = f", of {len(self.states) - fresh} of {len(self.states)} kernels" if fresh else ""
        text = f"tune: network {1e3 * now:.3f} ms{of}, untuned {1e3 * untuned:.3f} ms, {self.gain:.1%} to gain by the model"
        progress(f"{text}, about {minutes(left)} left", self.trials, total)


def search(
    states: Sequence[TaskState], target: Target, measurer: Measurer, path: Path, limits: Limits, progress: Progress = silent
) -> Searched:
    """Tunes the kernels of ``states`` and appends every outcome to the log at ``path``.

    Raises EnvironmentProblem when all candidates fail, in the first batch or, of kernels without any success, in earlier runs.
    """
    run = _Search(states, target, path, limits)
    try:
        stopped = run.run(measurer, progress)
    except KeyboardInterrupt:
        stopped = "interrupted"
    if stopped == "no gain left" and states and not any(s.seconds or s.tuned_before for s in states):
        failed = [error for s in states for error in s.quarantined.values()]
        raise EnvironmentProblem(
            f"all {len(failed)} candidates failed before: {failed[0]}",
            where=target.name,
            remedy=f"remove {quarantine_path(path)}",
        )
    return Searched(tuple(states), run.trials, run.failed, run.drifts, run.elapsed, stopped, run.gain, tuple(run.history))


def minutes(seconds: float) -> str:
    """``40 s``, ``3 min``."""
    return f"{seconds:.0f} s" if seconds < 99 else f"{seconds / 60:.0f} min"


def _group(state: TaskState, new: Sequence[Tile]) -> Group:
    """The incumbent, the challenger that has to win again, and ``new`` candidates."""
    tiles = [tile for tile in (state.incumbent, state.challenger) if tile is not None]
    return Group(state.task.kernel, (*tiles, *new))
