"""Is the calibration data good enough? Signs that it isn't, gathered while it streams by, as notes for people."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from statistics import median

import numpy as np

from tvmflow.quantize.observers import Histogram

FEW_SAMPLES = 8
STILL_GROWING = 0.10
"""Share of its final range that a site may gain in the second half of the samples without a note."""
RAW_PIXEL_MAX = 64
"""Whole numbers from 0 to above this look like raw pixels."""


class Adequacy:
    """Watches samples and ranges. Memory grows with the logarithm of the number of samples, and 16 bytes for each."""

    def __init__(self) -> None:
        self.count = 0
        self._digests: set[bytes] = set()
        self._constant: dict[str, int] = {}
        self._whole: dict[str, bool] = {}
        self._inputs: dict[str, tuple[float, float]] = {}
        self._ranges: dict[int, dict[str, tuple[float, float]]] = {}

    def see(self, sample: Mapping[str, np.ndarray], seen: Mapping[str, Histogram]) -> None:
        """One sample, after ``seen`` has counted the values it causes."""
        self.count += 1
        digest = hashlib.blake2b(digest_size=16)
        for name, values in sample.items():
            digest.update(np.ascontiguousarray(values).data)
            low, high = float(values.min()), float(values.max())
            before = self._inputs.get(name, (low, high))
            self._inputs[name] = (min(low, before[0]), max(high, before[1]))
            self._constant[name] = self._constant.get(name, 0) + (low == high and values.size > 1)
            whole = values.dtype.kind == "f" and low >= 0 and bool((values == np.floor(values)).all())
            self._whole[name] = self._whole.get(name, True) and whole
        self._digests.add(digest.digest())
        if self.count & (self.count - 1) == 0:  # a power of two
            self._ranges[self.count] = {site: (h.low, h.high) for site, h in seen.items()}

    def convergence(self, seen: Mapping[str, Histogram]) -> list[tuple[int, float]]:
        """``(samples, median share of the final range that they had shown)`` at powers of two."""
        if not seen:
            return []
        return [(n, median(_share(r[s], h) for s, h in seen.items())) for n, r in self._ranges.items()]

    def notes(self, seen: Mapping[str, Histogram]) -> list[str]:
        """What is wrong with the data, as sentences; empty when nothing is."""
        found = []
        if self.count < FEW_SAMPLES:
            found.append(f"only {self.count} calibration samples: ranges will be too narrow, give at least 100")
        else:
            found += self._growth(seen)
        copies = self.count - len(self._digests)
        if copies:
            found.append(f"{copies} of {self.count} calibration samples are copies of others")
        for name, number in self._constant.items():
            if number:
                found.append(f"input {name!r} is constant in {number} of {self.count} calibration samples")
        for name, whole in self._whole.items():
            low, high = self._inputs[name]
            if whole and high > RAW_PIXEL_MAX:
                found.append(
                    f"input {name!r} holds whole numbers from {low:g} to {high:g}, which look like raw pixels: "
                    "is the normalisation that the model was trained with missing?"
                )
        dead = [site for site, h in seen.items() if h.low == h.high and self.count > 1]
        if dead:
            found.append(f"{len(dead)} tensors had a single value throughout, the first is {dead[0]!r}")
        return found

    def _growth(self, seen: Mapping[str, Histogram]) -> list[str]:
        half = max(n for n in self._ranges if n <= self.count / 2)
        gained = {s: 1 - _share(self._ranges[half][s], h) for s, h in seen.items()}
        growing = {s: g for s, g in gained.items() if g > STILL_GROWING}
        if not growing:
            return []
        worst = max(growing, key=lambda s: growing[s])
        return [
            f"{len(growing)} of {len(seen)} ranges still grew after the first {half} of {self.count} calibration samples, "
            f"{worst!r} by {100 * growing[worst]:.0f} %: give more samples, or use the recipe int8-percentile"
        ]


def _share(early: tuple[float, float], final: Histogram) -> float:
    """Width of an early range, zero included, as a share of the final one."""
    width = max(final.high, 0.0) - min(final.low, 0.0)
    return (max(early[1], 0.0) - min(early[0], 0.0)) / width if width > 0 else 1.0
