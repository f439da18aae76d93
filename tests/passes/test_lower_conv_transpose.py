"""lower_conv_transpose: transposed convolutions as convolution and depth to space."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import lower_conv_transpose

w = np.arange(24, dtype="float32").reshape(2, 3, 2, 2)
# [i, o, p, q] to [p, q, o, i]
phases = w.transpose(2, 3, 1, 0).reshape(12, 2, 1, 1).copy()
b = np.array([1, 2, 3], "float32").reshape(1, 3, 1, 1)
tiled = np.tile(b.reshape(3), 4).reshape(1, 12, 1, 1)


def test_kernel_equal_to_stride_is_a_1x1_convolution(becomes, names) -> None:
    @program
    def before(x: R.Tensor((1, 2, 4, 5), "float32")):
        up = R.nn.conv2d_transpose(x, R.const(w), strides=[2, 2])
        y = R.add(up, R.const(b))
        return y

    @program
    def expected(x: R.Tensor((1, 2, 4, 5), "float32")):
        up = R.nn.conv2d(x, R.const(phases))
        bias = R.add(up, R.const(tiled))
        split = R.reshape(bias, R.shape([1, 1, 2, 2, 3, 4, 5]))
        turned = R.permute_dims(split, axes=[0, 1, 4, 5, 2, 6, 3])
        y = R.reshape(turned, R.shape([1, 3, 8, 10]))
        return y

    assert names(becomes(lower_conv_transpose, before, expected))[0] == "up"


@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "output_padding", "dilation", "groups", "biased"),
    [
        ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (1, 1), 1, True),
        ((4, 4), (2, 2), (1, 1, 1, 1), (0, 0), (1, 1), 2, False),
        ((2, 3), (3, 1), (0, 0, 0, 0), (2, 0), (1, 1), 1, True),
        ((3, 2), (2, 3), (2, 0, 1, 1), (0, 0), (2, 1), 2, True),
        ((1, 1), (1, 1), (0, 0, 0, 0), (0, 0), (1, 1), 1, False),
    ],
)
def test_same_numbers(kernel, strides, padding, output_padding, dilation, groups, biased, compute) -> None:
    rng = np.random.default_rng(0)
    x = relax.Var("x", relax.TensorType((2, 4, 4, 5), "float32"))
    weight = relax.const(rng.standard_normal((4, 6 // groups, *kernel)).astype("float32"))
    build = relax.BlockBuilder()
    with build.function("main", [x]):
        with build.dataflow():
            y = relax.op.nn.conv2d_transpose(x, weight, strides, padding, output_padding, dilation, groups)
            y = build.emit(y)
            if biased:
                y = build.emit(relax.op.add(y, relax.const(rng.standard_normal((1, 6, 1, 1)).astype("float32"))))
            y = build.emit_output(y)
        build.emit_func_output(y)
    before = build.get()
    after = lower_conv_transpose.run(before)
    assert "conv2d_transpose" not in after.script()
    data = rng.standard_normal((2, 4, 4, 5)).astype("float32")
    np.testing.assert_allclose(compute(after, data)[0], compute(before, data)[0], rtol=1e-4, atol=1e-5)


def test_weight_that_the_graph_computes_stays(stays) -> None:
    @program
    def before(x: R.Tensor((1, 2, 4, 5), "float32"), v: R.Tensor((2, 3, 2, 2), "float32")):
        y = R.nn.conv2d_transpose(x, v, strides=[2, 2])
        return y

    stays(lower_conv_transpose, before)
    assert isinstance(lower_conv_transpose.run(before), tvm.IRModule)
