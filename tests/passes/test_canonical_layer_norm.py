"""canonical_layer_norm: a spelled-out layer norm becomes one call."""

from __future__ import annotations

import numpy as np
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import canonical_layer_norm

gamma, beta = np.array([1, 2, 4], "float32"), np.array([5, 6, 7], "float32")


def test_with_gamma_and_beta(becomes, names) -> None:
    @program
    def before(x: R.Tensor((4, 3), "float32")):
        m = R.mean(x, axis=[-1], keepdims=True)
        d = R.subtract(x, m)
        s = R.multiply(d, d)
        v = R.mean(s, axis=[1], keepdims=True)
        e = R.add(v, R.const(0.5))
        r = R.sqrt(e)
        n = R.divide(d, r)
        g = R.multiply(n, R.const(gamma))
        y = R.add(g, R.const(beta))
        return y

    @program
    def expected(x: R.Tensor((4, 3), "float32")):
        y = R.nn.layer_norm(x, R.const(gamma), R.const(beta), axes=[1], epsilon=0.5)
        return y

    assert names(becomes(canonical_layer_norm, before, expected)) == ["y"]


def test_stays_when_the_means_differ(stays) -> None:
    @program
    def before(x: R.Tensor((3, 3), "float32")):
        m = R.mean(x, axis=[0], keepdims=True)
        d = R.subtract(x, m)
        s = R.multiply(d, d)
        v = R.mean(s, axis=[1], keepdims=True)
        e = R.add(v, R.const(0.5))
        r = R.sqrt(e)
        y = R.divide(d, r)
        return y

    stays(canonical_layer_norm, before)
