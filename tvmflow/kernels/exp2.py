"""``2**-x`` of fixed-point numbers in integer arithmetic: the same bits everywhere, and sums that no order of addition changes.

``2**-(k + f) = 2**-k * p(f)`` with a cubic p for the fraction f: the relative error is below 1e-4, a fortieth of a step of
an 8-bit probability. Scores are in steps of ``2**-FRACTION_BITS`` of the exponent, powers in steps of ``2**-VALUE_BITS``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 12
VALUE_BITS = 18
TERMS = (10228, 60313, 181147, 262124)
"""Magnitudes of the cubic's coefficients times ``2**VALUE_BITS``, highest power first; their signs alternate.
Least largest relative error on [0, 1), found by weighted least squares."""
LAST_SHIFT = 31
SCORE_LIMIT = 2**22 - 1
"""Scores and masks saturate at 1,024 in the exponent of 2."""
MASK_STEPS = float(np.float32(np.log2(np.e) * (1 << FRACTION_BITS)))
"""Steps in one of a mask, which is added to natural exponents."""
LONGEST_ROW = 2 ** (31 - VALUE_BITS) - 1
"""Elements whose powers fit into an int32 sum."""


def exp2_below(below: NDArray[Any]) -> NDArray[np.int32]:
    """``2**-below`` in steps of ``2**-VALUE_BITS`` for non-negative int32 ``below`` in steps of ``2**-FRACTION_BITS``."""
    below = np.minimum(below, LAST_SHIFT << FRACTION_BITS).astype(np.int32)
    fraction = below & ((1 << FRACTION_BITS) - 1)
    value = np.full_like(below, TERMS[0])
    for term in TERMS[1:]:
        value = term - ((fraction * value) >> FRACTION_BITS)
    return value >> (below >> FRACTION_BITS)
