"""Ranking of candidates by gradient-boosted trees (XGBoost) on the terms of the templates' cycle models.

It learns what the cycle model gets wrong: the target is the logarithm of measured over modelled time, so that with no
measurement the ranking is the model's own, and a measurement of one kernel teaches something about the others.
Chen and Guestrin, XGBoost: A Scalable Tree Boosting System, KDD 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
import numpy as np

from tvmflow.kernels import spec as ks
from tvmflow.schedule.template import Tile, template_for
from tvmflow.target import Target

ENOUGH = 12
"""Measurements below which the trees would only memorise."""


@dataclass(frozen=True)
class Sample:
    """One measured candidate."""

    kernel: ks.Kernel
    tile: Tile
    seconds: float


DECISIONS = sorted({name for kind in get_args(Tile) for name in kind.__struct_fields__})
"""Fields of the templates' tiles, each a column; those that are no numbers stay 0."""
SIZES = ("h", "w", "ic", "oc", "kh", "groups", "residual", "m", "k", "n", "batch")


def features(kernel: ks.Kernel, tile: Tile, target: Target) -> list[float]:
    """Terms of the cycle model and the plain numbers of signature and tile, the large ones on a logarithmic scale."""
    modelled = template_for(kernel, target).estimate(kernel, tile, target)
    tiled, shape = msgspec.structs.asdict(tile), msgspec.structs.asdict(kernel)
    pixels = float(tiled.get("mh", 1)) * float(tiled.get("mw", tiled.get("mr", 1)))
    row = [
        math.log(modelled),
        math.log1p(kernel.ops),
        math.log(modelled / max(kernel.ops, 1)),
        pixels,
        pixels * tiled.get("nr", 1),
    ]
    row += [float(value) if isinstance(value := tiled.get(name, 0), int | float) else 0.0 for name in DECISIONS]
    row += [math.log1p(float(shape.get(name, 0))) for name in SIZES]
    return [*row, float(shape.get("stride", (1, 1))[1])]


class CostModel:
    """Predicted seconds of candidates; refitted as measurements come in."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._trees: Any = None
        self._scale = 0.0
        """Mean logarithm of measured seconds per modelled cycle."""

    def fit(self, samples: Sequence[Sample]) -> None:
        """Learns from all measurements so far."""
        if not samples:
            return
        rows = np.array([features(s.kernel, s.tile, self.target) for s in samples])
        residual = np.log([s.seconds for s in samples]) - rows[:, 0]
        self._scale = float(residual.mean())
        if len(samples) < ENOUGH:
            return
        import xgboost

        settings = {"max_depth": 5, "eta": 0.15, "subsample": 0.9, "lambda": 1.0, "nthread": 1, "seed": 0, "verbosity": 0}
        self._trees = xgboost.train(settings, xgboost.DMatrix(rows, residual - self._scale), num_boost_round=80)

    def seconds(self, kernel: ks.Kernel, tiles: Sequence[Tile]) -> np.ndarray:
        """Predicted seconds of each tile; before the first measurement only their order means something."""
        import xgboost

        rows = np.array([features(kernel, tile, self.target) for tile in tiles])
        correction = 0.0 if self._trees is None else self._trees.predict(xgboost.DMatrix(rows))
        return np.exp(rows[:, 0] + self._scale + correction)
