"""canonical_operands: constants second; sums and products instead of differences and quotients."""

from __future__ import annotations

import numpy as np
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import canonical_operands

c = np.array([[1, 2, 4]], "float32")
flat, minus, inverse = c.reshape(3), -c.reshape(3), 1 / c.reshape(3)


def test_all_kinds(becomes) -> None:
    @program
    def before(x: R.Tensor((4, 3), "float32")):
        p = R.add(R.const(c), x)
        d = R.subtract(p, R.const(c))
        e = R.divide(d, R.const(c))
        f = R.power(e, R.const(2.0))
        y = R.nn.silu(f)
        return y

    @program
    def expected(x: R.Tensor((4, 3), "float32")):
        p = R.add(x, R.const(flat))
        d = R.add(p, R.const(minus))
        e = R.multiply(d, R.const(inverse))
        f = R.multiply(e, e)
        s = R.sigmoid(f)
        y = R.multiply(f, s)
        return y

    becomes(canonical_operands, before, expected)


def test_stays_for_constant_minus_x_zero_divisors_and_integers(stays) -> None:
    zero = np.array([1, 0, 2], "float32")

    @program
    def before(x: R.Tensor((4, 3), "float32"), i: R.Tensor((3,), "int32")):
        a = R.subtract(R.const(1.0), x)
        b = R.divide(a, R.const(zero))
        j = R.subtract(i, R.const(1, "int32"))
        k = R.divide(j, R.const(2, "int32"))
        y = (b, k)
        return y

    stays(canonical_operands, before)
