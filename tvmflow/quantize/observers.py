"""Observers: from the values of a tensor to the range, or the scales, that its integers cover.

Activations stream through a :class:`Histogram` of fixed size, one per tensor, whatever the recipe; the rules ``minmax``,
``percentile`` and ``mse`` read the range from it afterwards. Memory doesn't grow with the number of samples, and one pass over
the data serves every rule. Weights are at hand as a whole: :func:`weight_scales` works on them directly.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tvmflow.quantize.recipe import ActivationConfig, WeightConfig

BINS = 8192
"""Bins of a histogram: 64 KiB. At least 2,048 of them lie between zero and the largest value, 16 per int8 step."""
LEVELS = 255
"""Steps of int8 activations: 256 codes."""
WEIGHT_MAX = 127
"""Largest weight code; -128 is not used, so that weights are symmetric."""
MIN_SCALE = 2.0**-60
"""Smallest scale. Products and ratios of three scales then stay normal float32 numbers."""

Values = NDArray[np.float64]

_LOWEST_EXPONENT = -100
_CANDIDATES = 64
_CHUNK = 1 << 16  # temporaries of this many values stay in the L2 cache: three times faster than whole tensors


class Histogram:
    """Streaming histogram of finite float32 values over ``[-limit, limit)``, with exact count, zeros, minimum and maximum.

    ``limit`` is a power of two that doubles when a larger value arrives; neighbouring bins then merge in pairs. The limit and the
    bounds of the bins are exact in binary, so the result depends on the values only, not on their order or batching.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.low, self.high = math.inf, -math.inf
        self.zeros = 0
        self._exponent = _LOWEST_EXPONENT

    @property
    def total(self) -> int:
        """Number of values seen."""
        return int(self.counts.sum())

    @property
    def limit(self) -> float:
        return 2.0**self._exponent

    @property
    def edges(self) -> NDArray[np.float64]:
        """The ``BINS + 1`` bounds of the bins."""
        return np.arange(-BINS // 2, BINS // 2 + 1, dtype=np.float64) * (self.limit / (BINS // 2))

    def update(self, values: np.ndarray) -> None:
        """Count ``values``, of any shape. They must be finite; raises ValueError otherwise."""
        flat = np.asarray(values, np.float32).ravel()
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values that are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.zeros += flat.size - int(np.count_nonzero(flat))
        self._grow(max(-low, high))
        factor = np.float64((BINS // 2) / self.limit)  # float64: the product is exact even where float32 would be subnormal
        for start in range(0, flat.size, _CHUNK):
            index = np.floor(flat[start : start + _CHUNK] * factor).astype(np.intp) + BINS // 2
            self.counts += np.bincount(index, minlength=BINS)

    def _grow(self, magnitude: float) -> None:
        exponent = max(math.frexp(magnitude)[1], _LOWEST_EXPONENT) if magnitude else _LOWEST_EXPONENT  # magnitude < 2**exponent
        while self._exponent < exponent:
            if not self.counts.any():
                self._exponent = exponent
                return
            merged = np.zeros_like(self.counts)
            merged[BINS // 4 : 3 * BINS // 4] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = merged
            self._exponent += 1

    def quantile(self, share: float) -> float:
        """Value that ``share`` of the values don't exceed, linear inside a bin, never outside the observed range."""
        target = share * self.total
        if target <= 0:
            return self.low
        cumulative = np.cumsum(self.counts)
        index = min(int(np.searchsorted(cumulative, target)), BINS - 1)
        inside = (target - (cumulative[index] - self.counts[index])) / self.counts[index]
        edges = self.edges
        value = edges[index] + inside * (edges[index + 1] - edges[index])
        return float(min(max(value, self.low), self.high))

    def density(self, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """``bins`` counts and their ``bins + 1`` edges over the observed range, for plots."""
        centres = (self.edges[:-1] + self.edges[1:]) / 2
        low, high = (self.low, self.high) if self.high > self.low else (self.low - 0.5, self.low + 0.5)
        used = self.counts > 0
        counts, edges = np.histogram(np.clip(centres[used], low, high), bins=bins, range=(low, high), weights=self.counts[used])
        return counts.astype(np.int64), edges


def observed_range(seen: Histogram, config: ActivationConfig) -> tuple[float, float]:
    """Range that a config's observer reads from a histogram of at least one value."""
    if config.observer == "percentile":
        return seen.quantile(1 - config.percentile / 100), seen.quantile(config.percentile / 100)
    if config.observer == "mse":
        return _least_error_range(seen, config.symmetric)
    return seen.low, seen.high


def _least_error_range(seen: Histogram, symmetric: bool) -> tuple[float, float]:
    """Range around zero with the least expected squared error: rounding inside it plus clipping outside.

    Rounding costs ``step**2 / 12`` for each value but zero, which is exact. Both bounds are searched over 64 shares of the
    observed ones, jointly: the clipping errors are sums over either side, the step couples them.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    shares = np.linspace(1.0, 1.0 / _CANDIDATES, _CANDIDATES)
    if symmetric:
        bound = max(-low, high)
        highs, lows = bound * shares, -bound * shares
    else:
        highs, lows = (high * shares)[:, None], (low * shares)[None, :]
    above, clipped_above = _beyond(seen, highs, 1)
    below, clipped_below = _beyond(seen, lows, -1)
    rounded = np.maximum(seen.total - seen.zeros - above - below, 0.0)
    error = clipped_above + clipped_below + rounded * ((highs - lows) / LEVELS) ** 2 / 12
    best = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(np.broadcast_to(lows, error.shape)[best]), float(np.broadcast_to(highs, error.shape)[best])


def _beyond(seen: Histogram, bounds: Values, sign: int) -> tuple[Values, Values]:
    """For each bound, how many values lie above it (below it with ``sign`` -1) and the sum of their squared distances to it."""
    counts = seen.counts[::sign].astype(np.float64)
    centres = (sign * (seen.edges[:-1] + seen.edges[1:]) / 2)[::sign]
    moments = [np.append(np.cumsum((counts * centres**k)[::-1])[::-1], 0.0) for k in range(3)]
    first = np.searchsorted(centres, sign * bounds, side="right")
    number, total, squares = (m[first] for m in moments)
    return number, np.maximum(squares - 2 * sign * bounds * total + bounds**2 * number, 0.0)


def weight_scales(weight: np.ndarray, axis: int | None, config: WeightConfig) -> NDArray[np.float32]:
    """Symmetric scales of a weight, float32 ``[C]`` along ``axis``, or ``[1]``: all of it, or where the config says so.

    A channel of zeros takes the largest scale of the others: its bias, in units of that scale, then keeps a usual precision.
    Raises ValueError for values that are not finite.
    """
    per_channel = config.per_channel and axis is not None
    rows = (
        np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        if per_channel and axis is not None
        else weight.reshape(1, -1)
    )
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("values that are not finite")
    largest = np.abs(rows).max(axis=1, initial=0.0)
    bound = _least_error_bound(rows, largest) if config.observer == "mse" else largest
    bound[bound == 0] = bound.max() if bound.max() > 0 else WEIGHT_MAX
    return np.maximum(bound / WEIGHT_MAX, MIN_SCALE).astype(np.float32)


def _least_error_bound(rows: Values, largest: Values) -> Values:
    """For each row, the bound between half and all of ``largest`` with the least squared error after rounding and clipping."""
    best, least = largest.copy(), np.full(len(rows), np.inf)
    for share in np.linspace(1.0, 0.5, _CANDIDATES):
        scale = np.where(largest > 0, largest * share / WEIGHT_MAX, 1.0)[:, None]
        error = ((np.clip(np.rint(rows / scale), -WEIGHT_MAX, WEIGHT_MAX) * scale - rows) ** 2).sum(axis=1)
        better = error < least
        best[better], least[better] = (largest * share)[better], error[better]
    return best
