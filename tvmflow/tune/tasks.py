"""Tuning tasks: the different kernels of a network that have more than one way to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tvmflow.kernels import spec as ks
from tvmflow.schedule.template import Tile, template_for
from tvmflow.target import Target


class Call(Protocol):
    """A kernel call of a network, as the schedule stage lists them."""

    @property
    def layer(self) -> str: ...
    @property
    def function(self) -> str: ...
    @property
    def spec(self) -> ks.Kernel: ...


@dataclass(frozen=True)
class Task:
    """One kernel signature on one target; layers that share it are tuned once."""

    kernel: ks.Kernel
    name: str
    layers: tuple[str, ...]
    default: Tile
    candidates: tuple[Tile, ...]
    """The enumerated space, best modelled first."""

    @property
    def count(self) -> int:
        """Calls of the kernel in the network."""
        return len(self.layers)


def tasks(kernels: Sequence[Call], target: Target) -> tuple[Task, ...]:
    """Tasks of a scheduled network, the one with the most modelled work first."""
    layers: dict[ks.Kernel, list[str]] = {}
    names: dict[ks.Kernel, str] = {}
    for kernel in kernels:
        layers.setdefault(kernel.spec, []).append(kernel.layer)
        names.setdefault(kernel.spec, kernel.function)
    found = []
    for spec, where in layers.items():
        template = template_for(spec, target)
        candidates = sorted(set(template.space(spec, target)), key=lambda tile: template.estimate(spec, tile, target))
        if len(candidates) > 1:
            found.append(Task(spec, names[spec], tuple(where), template.default(spec, target), tuple(candidates)))
    return tuple(sorted(found, key=lambda t: -t.count * t.kernel.ops))
