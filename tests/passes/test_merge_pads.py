"""merge_pads: explicit pads move into the padding of what is behind them."""

from __future__ import annotations

import math

import numpy as np
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import merge_pads

w = np.arange(24, dtype="float32").reshape(4, 2, 1, 3)
lowest = -math.inf


def test_conv_and_pools(becomes) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32")):
        p = R.nn.pad(x, (0, 0, 0, 0, 1, 2, 3, 4))
        a = R.nn.conv2d(p, R.const(w), padding=[1, 1, 1, 1])
        b = R.nn.avg_pool2d(p, pool_size=[5, 5])
        n = R.nn.pad(x, (0, 0, 0, 0, 1, 1, 1, 1), pad_value=lowest)
        c = R.nn.max_pool2d(n, pool_size=[3, 3])
        y = (a, b, c)
        return y

    @program
    def expected(x: R.Tensor((1, 2, 5, 5), "float32")):
        a = R.nn.conv2d(x, R.const(w), padding=[2, 4, 3, 5])
        b = R.nn.avg_pool2d(x, pool_size=[5, 5], padding=[1, 3, 2, 4], count_include_pad=True)
        c = R.nn.max_pool2d(x, pool_size=[3, 3], padding=[1, 1, 1, 1])
        y = (a, b, c)
        return y

    becomes(merge_pads, before, expected)


def test_stays_for_other_values_axes_and_modes(stays) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32"), z: R.Tensor((1, 1, 5, 5), "float32")):
        p = R.nn.pad(x, (0, 0, 0, 0, 1, 1, 1, 1), pad_value=1.0)
        a = R.nn.conv2d(p, R.const(w))
        q = R.nn.pad(x, (0, 0, 0, 0, 1, 1, 1, 1), pad_mode="reflect")
        b = R.nn.conv2d(q, R.const(w))
        r = R.nn.pad(z, (0, 0, 0, 1, 0, 0, 0, 0))
        c = R.nn.conv2d(r, R.const(w))
        s = R.nn.pad(x, (0, 0, 0, 0, 1, 1, 1, 1))
        d = R.nn.max_pool2d(s, pool_size=[3, 3])
        e = R.nn.avg_pool2d(s, pool_size=[3, 3], padding=[1, 1, 1, 1])
        y = (a, b, c, d, e)
        return y

    stays(merge_pads, before)
