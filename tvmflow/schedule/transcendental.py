"""exp and what follows from it on float32 vectors, as polynomials: no call of libm, no table, the same code on every target.

Errors against float64 (tests/numerics/test_float_islands.py measures them): exp 4e-7 relative; sigmoid, tanh, erf and the
normal distribution in gelu 5e-7 absolute.
"""

from __future__ import annotations

from collections.abc import Callable
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
ERF_P = 0.3275911
ERF_TERMS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error 1.5e-7."""


class Vector:
    """float32 arithmetic on ``lanes`` lanes with scalar constants spread over them."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

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
        integer = tir.lanes_of("int32", self.lanes)
        shifted = x * self.const(LOG2_E) + self.const(tir.Requantizer.MAGIC)
        # k by way of the bits: TVM would simplify (v + magic) - magic to v
        k = T.Bind(tirx.reinterpret(integer, shifted) - self._whole(tir.Requantizer.MAGIC_BITS))
        steps = T.Bind(k.astype(tir.lanes_of("float32", self.lanes)))
        r = T.Bind(x - steps * self.const(LN2_HIGH) - steps * self.const(LN2_LOW))
        power = tirx.reinterpret(tir.lanes_of("float32", self.lanes), (k + self._whole(127)) << self._whole(23))
        return self.polynomial(r, EXP_TERMS) * power

    def _whole(self, value: int) -> Expr:
        return tir.splat(tir.const(value, "int32"), self.lanes)

    def sigmoid(self, x: Expr) -> Expr:
        return self.const(1.0) / (self.const(1.0) + self.exp(self.const(0.0) - x))

    def tanh(self, x: Expr) -> Expr:
        return self.const(2.0) * self.sigmoid(self.const(2.0) * x) - self.const(1.0)

    def erf(self, x: Expr) -> Expr:
        size = T.Bind(tirx.max(x, self.const(0.0) - x))
        t = T.Bind(self.const(1.0) / (self.const(1.0) + self.const(ERF_P) * size))
        tail = T.Bind(self.polynomial(t, ERF_TERMS) * t * self.exp(self.const(0.0) - size * size))
        return tirx.Select(x < self.const(0.0), tail - self.const(1.0), self.const(1.0) - tail)

    def gelu(self, x: Expr) -> Expr:
        return self.const(0.5) * x * (self.const(1.0) + self.erf(x * self.const(0.7071067811865476)))

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
