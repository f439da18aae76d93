"""global_average_pool: one mean over both spatial axes."""

from __future__ import annotations

from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import global_average_pool


def test_every_spelling(becomes) -> None:
    @program
    def before(x: R.Tensor((1, 3, 5, 7), "float32")):
        a = R.nn.adaptive_avg_pool2d(x, output_size=[1, 1])
        b = R.nn.avg_pool2d(x, pool_size=[5, 7])
        c = R.mean(x, axis=[-1, -2])
        y = (a, b, c)
        return y

    @program
    def expected(x: R.Tensor((1, 3, 5, 7), "float32")):
        a = R.mean(x, axis=[2, 3], keepdims=True)
        b = R.mean(x, axis=[2, 3], keepdims=True)
        k = R.mean(x, axis=[2, 3], keepdims=True)
        c = R.reshape(k, R.shape([1, 3]))
        y = (a, b, c)
        return y

    becomes(global_average_pool, before, expected)


def test_stays_for_other_pools(stays) -> None:
    @program
    def before(x: R.Tensor((1, 3, 5, 7), "float32")):
        a = R.nn.adaptive_avg_pool2d(x, output_size=[1, 7])
        b = R.nn.avg_pool2d(x, pool_size=[7, 7], padding=[1, 0, 1, 0])
        c = R.nn.avg_pool2d(x, pool_size=[5, 6])
        d = R.mean(x, axis=[1, 3])
        y = (a, b, c, d)
        return y

    stays(global_average_pool, before)
