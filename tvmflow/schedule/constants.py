"""What the templates of convolutions do to their constants at compile time, on every device."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def fold_zero_point(weight: Array, bias: Array, quant: Array) -> Array:
    """Bias less what the input's zero point, ``quant[0]``, adds to every output, padding included."""
    total = weight.reshape(len(bias), -1).sum(axis=1, dtype=np.int64)
    return (bias.astype(np.int64) - int(quant[0]) * total).astype(np.int32)


def pad_groups(values: Array, groups: int, size: int) -> Array:
    """Per-channel values with each group's filled up with zeros to ``size``."""
    rows = values.reshape(groups, -1)
    return np.pad(rows, ((0, 0), (0, size - rows.shape[1]))).reshape(-1)
