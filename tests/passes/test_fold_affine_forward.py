"""fold_affine_forward: a product or sum per channel in front of a linear layer moves into its weight and bias."""

from __future__ import annotations

import numpy as np
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import fold_affine_forward

w = np.arange(24, dtype="float32").reshape(4, 2, 1, 3)
s = np.array([2, 0.5], "float32").reshape(1, 2, 1, 1)
t = np.array([8, 1], "float32").reshape(1, 2, 1, 1)
ws = w * s
extra = (w * t).sum(axis=(1, 2, 3)).reshape(1, 4, 1, 1)
depthwise = np.arange(6, dtype="float32").reshape(2, 1, 1, 3)
depthwise_scaled = depthwise * s.reshape(2, 1, 1, 1)


def test_product_and_sum_in_front_of_conv_without_padding(becomes, names) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32")):
        scaled = R.multiply(x, R.const(s))
        shifted = R.add(scaled, R.const(t))
        conv = R.nn.conv2d(shifted, R.const(w))
        y = R.nn.relu(conv)
        return y

    @program
    def expected(x: R.Tensor((1, 2, 5, 5), "float32")):
        conv = R.nn.conv2d(x, R.const(ws))
        bias = R.add(conv, R.const(extra))
        y = R.nn.relu(bias)
        return y

    assert names(becomes(fold_affine_forward, before, expected)) == ["conv", "conv.bias", "y"]


def test_product_folds_in_front_of_padding_and_depthwise(becomes) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32")):
        scaled = R.multiply(x, R.const(s))
        y = R.nn.conv2d(scaled, R.const(depthwise), padding=[1, 1, 1, 1], groups=2)
        return y

    @program
    def expected(x: R.Tensor((1, 2, 5, 5), "float32")):
        y = R.nn.conv2d(x, R.const(depthwise_scaled), padding=[1, 1, 1, 1], groups=2)
        return y

    becomes(fold_affine_forward, before, expected)


def test_sum_stays_in_front_of_padding(stays) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32")):
        shifted = R.add(x, R.const(t))
        y = R.nn.conv2d(shifted, R.const(w), padding=[1, 1, 1, 1])
        return y

    stays(fold_affine_forward, before)


def test_stays_when_the_product_has_another_reader(stays) -> None:
    @program
    def before(x: R.Tensor((1, 2, 1, 3), "float32")):
        scaled = R.multiply(x, R.const(s))
        conv = R.nn.conv2d(scaled, R.const(w))
        gate = R.mean(scaled, axis=[1], keepdims=True)
        y = R.add(conv, gate)
        return y

    stays(fold_affine_forward, before)
