"""The optimize stage: one canonical form, arithmetic folded into weights, channels last."""

from __future__ import annotations

from tvmflow.optimize.pipeline import PASSES, optimize

__all__ = ["PASSES", "optimize"]
