"""Two tiny kernels, and a measurer that only computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tvmflow.kernels.spec import Kernel
from tvmflow.schedule.template import Tile, template_for
from tvmflow.target import Target, get_target
from tvmflow.tune.measure import Group, Outcome
from tvmflow.tune.tasks import Task


@dataclass
class Computed:
    """Measures nothing: ``time`` says how long a candidate takes, None that it fails."""

    time: Callable[[Group, Tile], float | None]
    groups: list[Group] = field(default_factory=list)
    batches: int = 0
    stop_after: int | None = None
    """Groups after which the user presses Ctrl-C."""

    @property
    def asked(self) -> list[tuple[Kernel, Tile]]:
        """Everything that was timed, incumbents included."""
        return [(g.kernel, tile) for g in self.groups for tile in g.tiles]

    def measure(self, groups: Sequence[Group]) -> Iterator[tuple[Group, list[Outcome]]]:
        self.batches += 1
        for group in reversed(groups):  # no order is promised
            if self.stop_after is not None and len(self.groups) >= self.stop_after:
                raise KeyboardInterrupt
            self.groups.append(group)
            times = [self.time(group, tile) for tile in group.tiles]
            yield group, [Outcome((t, 1.1 * t)) if t is not None else Outcome((), "SIGILL") for t in times]


@pytest.fixture
def computed() -> type[Computed]:
    return Computed


@pytest.fixture
def target() -> Target:
    return get_target("x86-64-v3")


@pytest.fixture
def task(target: Target) -> Callable[..., Task]:
    def make(kernel, layers: Sequence[str] = ("/conv",)) -> Task:
        template = template_for(kernel, target)
        space = sorted(set(template.space(kernel, target)), key=lambda tile: template.estimate(kernel, tile, target))
        return Task(kernel, "conv", tuple(layers), template.default(kernel, target), tuple(space))

    return make


@pytest.fixture
def modelled(target: Target) -> Callable[[object, Tile], float]:
    """Seconds by the cycle model, at 1 GHz."""
    return lambda kernel, tile: 1e-9 * template_for(kernel, target).estimate(kernel, tile, target)  # type: ignore[arg-type]
