"""Statistics of latencies. All raw runs are kept; every figure is a property of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvmflow.errors import EnvironmentProblem


def percentile(values: Sequence[float], share: float) -> float:
    """Value below which ``share`` (0 to 1) of ``values`` lie, linear between the two nearest (NumPy's default)."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    if ordered[low] == ordered[high]:
        return ordered[low]
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True)
class Latency:
    """Times of single runs in seconds, in the order in which they were measured.

    Raises EnvironmentProblem when there are none, or when one is not a positive number: a clock or a device that
    reports such a time can't be trusted with the others either.
    """

    seconds: tuple[float, ...]
    number: int = 1
    """Consecutive calls that each time is the mean of."""

    def __post_init__(self) -> None:
        if not self.seconds:
            raise EnvironmentProblem("no run was measured", where="bench", remedy="ask for at least one run")
        for value in self.seconds:
            if not (math.isfinite(value) and value > 0):
                raise EnvironmentProblem(f"a run took {value} seconds", where="bench", remedy="check the device's clock")

    @property
    def min(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return percentile(self.seconds, 0.5)

    @property
    def p90(self) -> float:
        return percentile(self.seconds, 0.9)

    @property
    def p99(self) -> float:
        return percentile(self.seconds, 0.99)

    @property
    def mad(self) -> float:
        """Median absolute deviation from the median: the spread of a usual run, blind to outliers."""
        middle = self.median
        return percentile([abs(value - middle) for value in self.seconds], 0.5)

    def to_json(self) -> dict[str, Any]:
        """Milliseconds."""
        figures = {name: getattr(self, name) * 1e3 for name in ("min", "median", "p90", "p99", "mad")}
        return {**figures, "runs": [value * 1e3 for value in self.seconds], "number": self.number}
