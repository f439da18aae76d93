"""What a search knows of each kernel, and how it comes back from the log and the quarantine that earlier runs left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tvmflow.kernels import spec as ks
from tvmflow.schedule.template import Tile
from tvmflow.target import Target
from tvmflow.tune import log
from tvmflow.tune.tasks import Task

WIN = 0.98
"""A candidate beats the incumbent when its time is below this part of the incumbent's. Less is noise, or what differs between
caches that are warm, as here, and those of a network: of that the model knows more (MiniLM's 384x384 layers with pixels
outermost are 1 % faster alone and 7 % slower in the network)."""
TYPICAL_TRIALS, LEAST_LEFT = 24, 3
"""Trials that a kernel takes as a rule until nothing is left to gain, and that one takes still which has had as many."""


class Quarantined(msgspec.Struct, frozen=True):
    """A candidate that failed, and why. Never tried again."""

    kernel: ks.Kernel
    target: str
    tile: Tile
    error: str


@dataclass
class TaskState:
    """What is known of one kernel."""

    task: Task
    seconds: dict[Tile, float] = field(default_factory=dict)
    """Time by decision as last measured, in the state of the machine in which the first one was."""
    incumbent: Tile | None = None
    """The decision that no other has beaten twice."""
    quarantined: dict[Tile, str] = field(default_factory=dict)
    suggested: tuple[Tile, ...] = ()
    """Decisions from logs of other machines, or for a space that has changed since: tried first."""
    tuned_before: bool = False
    finished: bool = False
    record: log.TuningRecord | None = None
    """The incumbent's."""

    @property
    def unmeasured(self) -> list[Tile]:
        """Candidates to try, suggested ones and then the best modelled first."""
        known = self.seconds.keys() | self.quarantined.keys()
        return [tile for tile in dict.fromkeys((*self.suggested, *self.task.candidates)) if tile not in known]

    @property
    def challenger(self) -> Tile | None:
        """The fastest decision that has beaten the incumbent once."""
        if self.incumbent is None:
            return None
        fastest = min(self.seconds, key=lambda tile: self.seconds[tile])
        return fastest if self.seconds[fastest] < WIN * self.best else None

    @property
    def best(self) -> float:
        """Seconds of the incumbent. Raises KeyError without one."""
        if self.incumbent is None:
            raise KeyError(self.task.name)
        return self.seconds[self.incumbent]

    def give_up(self, tile: Tile, error: str) -> None:
        """A decision that failed is never tried again, were it the incumbent."""
        self.quarantined[tile] = error
        self.seconds.pop(tile, None)
        if tile == self.incumbent:
            self.incumbent = min(self.seconds, key=lambda t: self.seconds[t], default=None)
            self.record = None


def restore(
    tasks: Sequence[Task], target: Target, path: Path, shipped: Iterable[log.TuningRecord] = (), again: bool = False
) -> list[TaskState]:
    """States from what earlier runs left in the log and in the quarantine beside it, and from ``shipped`` records.

    A kernel that either has settled in the space that it has today is finished, unless ``again``.
    """
    by_kernel = {ks.encode(t.kernel): TaskState(t) for t in tasks}

    def known(entry: log.TuningRecord) -> tuple[TaskState, Tile] | None:
        state = by_kernel.get(ks.encode(entry.kernel))
        if state is None or entry.target != target.name:
            return None
        tile = log.fitting(entry.kernel, entry.tile, target)
        if tile is None:
            return None
        if entry.settled == len(state.task.candidates) and not again:
            state.tuned_before = state.finished = True
        return state, tile

    for entry in log.read(path) if path.exists() else []:
        if found := known(entry):
            state, tile = found
            state.seconds[tile] = entry.best
            if entry.accepted and (state.record is None or entry.best <= state.record.best):
                state.incumbent, state.record = tile, entry
    for failed in read_quarantine(path):
        if failed.target == target.name and (key := ks.encode(failed.kernel)) in by_kernel:
            by_kernel[key].give_up(failed.tile, failed.error)
    for entry in shipped:
        if found := known(entry):
            state, tile = found
            state.suggested += (tile,)
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


def quarantine(path: Path, failed: Quarantined) -> None:
    """Notes a failed candidate, on disk before this returns."""
    log.append_line(quarantine_path(path), msgspec.json.encode(failed))


def latency(states: Sequence[TaskState], untuned: bool = False) -> float:
    """Seconds that the measured kernels of the network take together, with the best decision of each or with the default."""
    found = 0.0
    for s in states:
        if s.incumbent is not None:
            found += s.task.count * (s.seconds.get(s.task.default, s.best) if untuned else s.best)
    return found


def expected_trials(states: Sequence[TaskState]) -> int:
    """Trials that an unlimited search may still take."""
    return sum(min(len(s.unmeasured), max(LEAST_LEFT, TYPICAL_TRIALS - len(s.seconds))) for s in states if not s.finished)
