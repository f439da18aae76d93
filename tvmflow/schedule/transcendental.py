"""exp and what follows from it, and erf, on float32 vectors: polynomials, no call of libm, no table, the same code everywhere.

Errors against float64 (tests/numerics/test_float_islands.py measures them): exp 4e-7 relative; sigmoid, tanh, erf and the
normal distribution in gelu 5e-7 absolute.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.schedule import tir

Expr = Any

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 in two parts, the first exact in few bits (Cody and Waite, Software Manual for the Elementary Functions, 1980)."""
EXP_TERMS = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
"""Taylor coefficients: on [-ln 2 / 2, ln 2 / 2] the seventh-order remainder is 1.2e-7."""
EXP2_TERMS = tuple(term * log(2) ** (6 - i) for i, term in enumerate(EXP_TERMS))
SQRT_HALF = 0.7071067811865476
ERF_END = 4.0
"""erf(4) = 1 - 1.5e-8 is 1 in float32."""
ERF_ABOVE = (1.97480540e-6, 2.88041066e-4, 4.00368921e-3, 5.34676165e-2, 1.96250190e-1, 1.12837898)
ERF_BELOW = (3.74805831e-5, 1.21636771e-3, 1.54445129e-2, 1.16476907e-1, 5.07253362e-1, 1.0)
"""``erf(x) = x * above(x * x) / below(x * x)`` on [-4, 4], least largest error (2.2e-8) by weighted least squares; all terms are
positive, so that no cancellation costs digits."""

NORMAL_END = ERF_END / SQRT_HALF
NORMAL_ABOVE = tuple(term * SQRT_HALF**11 * 2.0**i / 2 for i, term in enumerate(ERF_ABOVE))
NORMAL_BELOW = tuple(term * SQRT_HALF**10 * 2.0**i for i, term in enumerate(ERF_BELOW))
"""The same for ``erf(x * SQRT_HALF) / 2``: how far the normal distribution is above one half."""


class Vector:
    """float32 arithmetic on ``lanes`` lanes with scalar constants spread over them."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.integer = lanes, tir.lanes_of("int32", lanes)

    def const(self, value: float) -> Expr:
        return tir.splat(tir.const(value, "float32"), self.lanes)

    def polynomial(self, x: Expr, terms: tuple[float, ...]) -> Expr:
        """Horner's rule, highest power first."""
        total = self.const(terms[0])
        for term in terms[1:]:
            total = total * x + self.const(term)
        return total

    def exp(self, x: Expr) -> Expr:
        """2**k * e**r with k = round(x / ln 2): saturates near the ends of float32's range, never NaN for finite x."""
        x = tir.clip(x, self.const(-87.0), self.const(88.0))
        shifted = x * self.const(LOG2_E) + self.const(tir.Requantizer.MAGIC)
        # k by way of the bits: TVM would simplify (v + magic) - magic to v
        k = T.Bind(tirx.reinterpret(self.integer, shifted) - self._whole(tir.Requantizer.MAGIC_BITS))
        steps = T.Bind(k.astype(tir.lanes_of("float32", self.lanes)))
        r = T.Bind(x - steps * self.const(LN2_HIGH) - steps * self.const(LN2_LOW))
        return self.polynomial(r, EXP_TERMS) * self._power(k)

    def exp2(self, x: Expr) -> Expr:
        """2**k * 2**f with k = round(x), for x below 128; what is below 2**-126 becomes that."""
        x = T.Bind(tirx.max(x, self.const(-126.0)))
        k = T.Bind(
            tirx.reinterpret(self.integer, x + self.const(tir.Requantizer.MAGIC)) - self._whole(tir.Requantizer.MAGIC_BITS)
        )
        fraction = T.Bind(x - k.astype(tir.lanes_of("float32", self.lanes)))
        return self.polynomial(fraction, EXP2_TERMS) * self._power(k)

    def _power(self, k: Expr) -> Expr:
        """2**k by way of the bits."""
        return tirx.reinterpret(tir.lanes_of("float32", self.lanes), (k + self._whole(127)) << self._whole(23))

    def _whole(self, value: int) -> Expr:
        return tir.splat(tir.const(value, "int32"), self.lanes)

    def sigmoid(self, x: Expr) -> Expr:
        return self.const(1.0) / (self.const(1.0) + self.exp(self.const(0.0) - x))

    def tanh(self, x: Expr) -> Expr:
        return self.const(2.0) * self.sigmoid(self.const(2.0) * x) - self.const(1.0)

    def erf(self, x: Expr) -> Expr:
        x = T.Bind(tir.clip(x, self.const(-ERF_END), self.const(ERF_END)))
        square = T.Bind(x * x)
        return x * self.polynomial(square, ERF_ABOVE) / self.polynomial(square, ERF_BELOW)

    def gelu(self, x: Expr) -> Expr:
        # where erf has ended, the distribution is 0 but for its last bit, which a large x would magnify
        bounded = T.Bind(tirx.max(x, self.const(-NORMAL_END)))
        inside = T.Bind(tirx.min(bounded, self.const(NORMAL_END)))
        square = T.Bind(inside * inside)
        normal = inside * self.polynomial(square, NORMAL_ABOVE) / self.polynomial(square, NORMAL_BELOW)
        return bounded * (self.const(0.5) + normal)

    def silu(self, x: Expr) -> Expr:
        return x * self.sigmoid(x)

    def function(self, name: str) -> Callable[[Expr], Expr]:
        """The function of kernels/spec.py UNARY called ``name``."""
        functions = {
            "exp": self.exp,
            "sigmoid": self.sigmoid,
            "tanh": self.tanh,
            "erf": self.erf,
            "gelu": self.gelu,
            "silu": self.silu,
        }
        return functions[name]
