"""Quantization parameters of sites: computed by calibrate, saved as JSON, edited by hand if one likes, used by realize."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class QParam:
    """Affine parameters of one site: ``real = scale * (q - zero_point)`` with int8 q.

    ``scale`` float32 ``[1]`` or ``[C]`` (along the site's channel axis); ``zero_point`` in [-128, 127], 0 for weights.
    ``low`` and ``high`` are the observed range in real values, ``observer`` says how it was found.
    """

    scale: np.ndarray
    zero_point: int
    low: float
    high: float
    observer: str


QParams = dict[str, QParam]
"""Parameters by site id."""
