"""canonical_shapes: one reshape or transpose, or none."""

from __future__ import annotations

import numpy as np
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import canonical_shapes

q, s, z = np.arange(6, dtype="int8").reshape(2, 3), np.array([1, 2], "float32"), np.zeros(2, "int8")
q_turned = q.T.reshape(3, 1, 2).copy()


def test_chains_merge(becomes) -> None:
    @program
    def before(x: R.Tensor((1, 8, 1, 1), "float32"), v: R.Tensor((2, 3, 4), "float32")):
        a = R.squeeze(x, axis=[2, 3])
        b = R.expand_dims(a, axis=0)
        c = R.reshape(b, R.shape([1, 4, 2]))
        d = R.permute_dims(v, axes=[1, 2, 0])
        e = R.permute_dims(d, axes=[2, 1, 0])
        f = R.permute_dims(d, axes=[2, 0, 1])
        g = R.flatten(f)
        y = (c, e, g)
        return y

    @program
    def expected(x: R.Tensor((1, 8, 1, 1), "float32"), v: R.Tensor((2, 3, 4), "float32")):
        c = R.reshape(x, R.shape([1, 4, 2]))
        e = R.permute_dims(v, axes=[0, 2, 1])
        g = R.reshape(v, R.shape([24]))
        y = (c, e, g)
        return y

    becomes(canonical_shapes, before, expected)


def test_quantized_constants_are_moved_as_integers(becomes, names) -> None:
    @program
    def before(x: R.Tensor((3, 1, 2), "float32")):
        w = R.dequantize(R.const(q), R.const(s), R.const(z), axis=0)
        t = R.permute_dims(w)
        r = R.reshape(t, R.shape([3, 1, 2]))
        y = R.add(x, r)
        return y

    @program
    def expected(x: R.Tensor((3, 1, 2), "float32")):
        w = R.dequantize(R.const(q_turned), R.const(s), R.const(z), axis=2)
        y = R.add(x, w)
        return y

    assert names(becomes(canonical_shapes, before, expected)) == ["w", "y"]


def test_stays_when_a_reshape_would_split_the_channel_axis(stays) -> None:
    wide, scales, zeros = np.arange(8, dtype="int8").reshape(4, 2), np.ones(4, "float32"), np.zeros(4, "int8")

    @program
    def before(x: R.Tensor((2, 2, 2), "float32")):
        w = R.dequantize(R.const(wide), R.const(scales), R.const(zeros), axis=0)
        r = R.reshape(w, R.shape([2, 2, 2]))
        y = R.add(x, r)
        return y

    stays(canonical_shapes, before)
