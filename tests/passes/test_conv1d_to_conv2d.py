"""conv1d_to_conv2d: 1-D layers are 2-D layers of height 1."""

from __future__ import annotations

import numpy as np
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import conv1d_to_conv2d

w = np.arange(24, dtype="float32").reshape(4, 2, 3)
w2d = w.reshape(4, 2, 1, 3)


def test_conv_and_pool(becomes) -> None:
    @program
    def before(x: R.Tensor((1, 4, 9), "float32")):
        c = R.nn.conv1d(x, R.const(w), strides=[2], padding=[1, 0], groups=2)
        y = R.nn.max_pool1d(c, pool_size=[2])
        return y

    @program
    def expected(x: R.Tensor((1, 4, 9), "float32")):
        a = R.reshape(x, R.shape([1, 4, 1, 9]))
        b = R.nn.conv2d(a, R.const(w2d), strides=[1, 2], padding=[0, 1, 0, 0], groups=2)
        c = R.reshape(b, R.shape([1, 4, 4]))
        d = R.reshape(c, R.shape([1, 4, 1, 4]))
        e = R.nn.max_pool2d(d, pool_size=[1, 2])
        y = R.reshape(e, R.shape([1, 4, 3]))
        return y

    becomes(conv1d_to_conv2d, before, expected)


def test_conv2d_stays(stays) -> None:
    @program
    def before(x: R.Tensor((1, 2, 1, 9), "float32")):
        y = R.nn.conv2d(x, R.const(w2d))
        return y

    stays(conv1d_to_conv2d, before)
