"""remove_identities: calls that return their argument unchanged disappear."""

from __future__ import annotations

import numpy as np
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import remove_identities

zeros = np.zeros((1, 7), "float32")
wide = np.zeros((2, 3, 7), "float32")


def test_all_kinds(becomes) -> None:
    @program
    def before(x: R.Tensor((3, 7), "float32")):
        a = R.add(x, R.const(zeros))
        b = R.multiply(R.const(1.0), a)
        c = R.astype(b, "float32")
        d = R.nn.pad(c, (0, 0, 0, 0))
        e = R.strided_slice(d, (1,), (0,), (9,))
        f = R.concat((e,), axis=0)
        g = R.nn.dropout(f, rate=0.5)
        h = g[0]
        y = R.nn.relu(h)
        return y

    @program
    def expected(x: R.Tensor((3, 7), "float32")):
        y = R.nn.relu(x)
        return y

    becomes(remove_identities, before, expected)


def test_stays_where_something_changes(stays) -> None:
    @program
    def before(x: R.Tensor((3, 7), "float32")):
        a = R.add(x, R.const(wide))
        b = R.strided_slice(a, (1,), (2,), (-4,), (-1,))
        c = R.quantize(b, R.const(0.5, "float32"), R.const(0, "int8"), axis=-1, out_dtype="int8")
        y = R.dequantize(c, R.const(0.5, "float32"), R.const(0, "int8"), axis=-1)
        return y

    stays(remove_identities, before)
