"""canonical_activations: spelled-out gelu, hard sigmoid and hard swish become one chain each."""

from __future__ import annotations

import math

import numpy as np
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import canonical_activations

root_half = np.array(math.sqrt(0.5), "float32")
root = np.array(math.sqrt(2 / math.pi), "float32")
sixth = np.array(1 / 6, "float32")


def test_gelu_in_any_order(becomes) -> None:
    @program
    def before(x: R.Tensor((3, 7), "float32")):
        a = R.multiply(x, R.const(root_half))
        b = R.erf(a)
        c = R.add(b, R.const(1.0))
        d = R.multiply(x, c)
        e = R.multiply(d, R.const(0.5))
        f = R.multiply(e, R.const(root_half))
        g = R.erf(f)
        h = R.add(g, R.const(1.0))
        i = R.multiply(e, R.const(0.5))
        y = R.multiply(i, h)
        return y

    @program
    def expected(x: R.Tensor((3, 7), "float32")):
        e = R.nn.gelu(x)
        y = R.nn.gelu(e)
        return y

    becomes(canonical_activations, before, expected)


def test_gelu_by_tanh(becomes) -> None:
    @program
    def before(x: R.Tensor((3, 7), "float32")):
        a = R.power(x, R.const(3.0))
        b = R.multiply(a, R.const(0.044715))
        c = R.add(x, b)
        d = R.multiply(c, R.const(root))
        e = R.tanh(d)
        f = R.add(e, R.const(1.0))
        g = R.multiply(x, R.const(0.5))
        y = R.multiply(g, f)
        return y

    @program
    def expected(x: R.Tensor((3, 7), "float32")):
        y = R.nn.gelu_tanh(x)
        return y

    becomes(canonical_activations, before, expected)


def test_hard_swish(becomes, compute) -> None:
    @program
    def before(x: R.Tensor((3, 7), "float32")):
        a = R.add(x, R.const(3.0))
        b = R.clip(a, 0.0, 6.0)
        c = R.multiply(x, b)
        y = R.multiply(c, R.const(sixth))
        return y

    x = np.linspace(-5, 5, 21, dtype="float32").reshape(3, 7)
    after = canonical_activations.run(before)
    ops = [binding.value.op.name for binding in after["main"].body.blocks[0].bindings]
    assert ops == ["relax.multiply", "relax.add", "relax.clip", "relax.multiply"]
    assert [float(v.value) for v in after["main"].body.blocks[0].bindings[2].value.args[1:]] == [0.0, 1.0]
    np.testing.assert_allclose(compute(after, x)[0], compute(before, x)[0], rtol=1e-5, atol=1e-6)


def test_stays_with_other_constants_or_other_operands(stays) -> None:
    @program
    def before(x: R.Tensor((3, 7), "float32"), z: R.Tensor((3, 7), "float32")):
        a = R.multiply(x, R.const(0.588))
        b = R.erf(a)
        c = R.add(b, R.const(1.0))
        d = R.multiply(x, c)
        e = R.multiply(d, R.const(0.5))
        f = R.add(e, R.const(3.0))
        g = R.clip(f, 0.0, 6.0)
        h = R.multiply(z, g)
        y = R.multiply(h, R.const(0.5))
        return y

    stays(canonical_activations, before)
