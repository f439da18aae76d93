"""Time of each layer: the kernels that ran, joined with what the artifact's manifest says of them.

The last row is what the virtual machine took between the kernels, so that the rows together are one whole run.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tvmflow.bench.measure import MachinePeak
    from tvmflow.runtime.profile import Profile

BETWEEN = "(between kernels)"
"""Name of the last row."""


class Described(Protocol):
    """One kernel call of the program as the manifest has it."""

    @property
    def name(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def gop(self) -> float: ...
    @property
    def kernel(self) -> str: ...
    @property
    def integer(self) -> bool: ...
    @property
    def schedule(self) -> str: ...
    @property
    def tuned(self) -> bool: ...


@dataclass(frozen=True)
class LayerTime:
    """One layer of one run."""

    name: str
    op: str
    ms: float
    gop: float = 0.0
    """1e9 operations, a multiply-add counted as two; 0 where data only moves."""
    peak_fraction: float | None = None
    """Share of the machine's peak in the layer's precision; None where there is no arithmetic or no peak."""
    schedule: str = ""
    tuned: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def layer_times(profile: Profile, layers: Iterable[Described], peak: MachinePeak | None = None) -> tuple[LayerTime, ...]:
    """Layers in the order in which they ran, then what the whole run took beside them.

    Parameters
    ----------
    profile : kernels in execution order, as ``Session.profile`` gives it
    layers : rows of the manifest in execution order; layers that share a kernel are told apart by that order

    A profiled kernel that the manifest lacks is kept under its own name, with the operator ``other``.
    """
    waiting: dict[str, deque[Described]] = defaultdict(deque)
    for layer in layers:
        waiting[layer.kernel or layer.name].append(layer)
    found = []
    for symbol, ms in profile.kernels:
        if not waiting[symbol]:
            found.append(LayerTime(symbol, "other", ms))
            continue
        layer = waiting[symbol].popleft()
        fraction = None
        if peak is not None and layer.gop > 0 and ms > 0:
            fraction = layer.gop / (peak.int8_gops if layer.integer else peak.fp32_gflops) / (ms / 1e3)
        found.append(LayerTime(layer.name, layer.op, ms, layer.gop, fraction, layer.schedule, layer.tuned))
    rest = profile.whole - sum(ms for _, ms in profile.kernels)
    return (*found, LayerTime(BETWEEN, "dispatch", max(0.0, rest)))
