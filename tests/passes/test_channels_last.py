"""channels_last: NHWC throughout, transposes carried along until something needs them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import tvm
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import channels_last

w = np.arange(24, dtype="float32").reshape(4, 2, 1, 3)
w_ohwi = w.transpose(0, 2, 3, 1)
depthwise = np.arange(12, dtype="float32").reshape(4, 1, 1, 3)
depthwise_ohwi = depthwise.transpose(0, 2, 3, 1)
b = np.array([1, 2, 3, 4], "float32").reshape(1, 4, 1, 1)
b_last = b.reshape(1, 1, 1, 4)
dense = np.arange(8, dtype="float32").reshape(4, 2)
flat_dense = np.arange(4 * 5 * 3 * 2, dtype="float32").reshape(60, 2)
flat_dense_rows = flat_dense.reshape(4, 5, 3, 2).transpose(1, 2, 0, 3).reshape(60, 2)


def transposes(module: tvm.IRModule) -> int:
    """How many ``permute_dims`` are left."""
    ops = Counter(b.value.op.name for block in module["main"].body.blocks for b in block.bindings)
    return ops["relax.permute_dims"]


def test_one_transpose_behind_the_input_and_none_elsewhere(becomes, names) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32")):
        conv = R.nn.conv2d(x, R.const(w))
        bias = R.add(conv, R.const(b))
        act = R.nn.relu(bias)
        dw = R.nn.conv2d(act, R.const(depthwise), groups=4, padding=[0, 1, 0, 1])
        both = R.add(dw, act)
        pool = R.mean(both, axis=[2, 3], keepdims=True)
        flat = R.reshape(pool, R.shape([1, 4]))
        y = R.matmul(flat, R.const(dense))
        return y

    @program
    def expected(x: R.Tensor((1, 2, 5, 5), "float32")):
        x_layout = R.permute_dims(x, axes=[0, 2, 3, 1])
        conv = R.nn.conv2d(x_layout, R.const(w_ohwi), data_layout="NHWC", kernel_layout="OHWI")
        bias = R.add(conv, R.const(b_last))
        act = R.nn.relu(bias)
        dw = R.nn.conv2d(act, R.const(depthwise_ohwi), groups=4, padding=[0, 1, 0, 1], data_layout="NHWC", kernel_layout="OHWI")
        both = R.add(dw, act)
        pool = R.mean(both, axis=[1, 2], keepdims=True)
        flat = R.reshape(pool, R.shape([1, 4]))
        y = R.matmul(flat, R.const(dense))
        return y

    after = becomes(channels_last, before, expected)
    assert names(after) == ["x.layout", "conv", "bias", "act", "dw", "both", "pool", "pool.shape", "y"]


def test_flatten_permutes_the_rows_of_the_dense_weight(becomes) -> None:
    @program
    def before(x: R.Tensor((1, 5, 5, 2), "float32")):
        nchw = R.permute_dims(x, axes=[0, 3, 1, 2])
        conv = R.nn.conv2d(nchw, R.const(w))
        flat = R.reshape(conv, R.shape([1, 60]))
        act = R.nn.relu(flat)
        y = R.matmul(act, R.const(flat_dense))
        return y

    @program
    def expected(x: R.Tensor((1, 5, 5, 2), "float32")):
        conv = R.nn.conv2d(x, R.const(w_ohwi), data_layout="NHWC", kernel_layout="OHWI")
        act = R.nn.relu(conv)
        flat = R.reshape(act, R.shape([1, 60]))
        y = R.matmul(flat, R.const(flat_dense_rows))
        return y

    becomes(channels_last, before, expected)


def test_axes_follow_the_layout(becomes) -> None:
    @program
    def before(x: R.Tensor((1, 5, 5, 2), "float32")):
        nchw = R.permute_dims(x, axes=[0, 3, 1, 2])
        pool = R.nn.max_pool2d(nchw, pool_size=[3, 3])
        padded = R.nn.pad(pool, (0, 0, 1, 0, 0, 0, 0, 2), pad_value=1.0)
        cat = R.concat((padded, padded), axis=1)
        soft = R.nn.softmax(cat, axis=1)
        part = R.strided_slice(soft, (1,), (1,), (4,), (2,))
        big = R.image.resize2d(part, R.shape([6, 10]), layout="NCHW", method="nearest_neighbor")
        y = R.permute_dims(big, axes=[0, 2, 3, 1])
        return y

    @program
    def expected(x: R.Tensor((1, 5, 5, 2), "float32")):
        pool = R.nn.max_pool2d(x, pool_size=[3, 3], layout="NHWC")
        padded = R.nn.pad(pool, (0, 0, 0, 0, 0, 2, 1, 0), pad_value=1.0)
        cat = R.concat((padded, padded), axis=3)
        soft = R.nn.softmax(cat, axis=3)
        part = R.strided_slice(soft, (3,), (1,), (4,), (2,))
        big = R.image.resize2d(part, R.shape([6, 10]), layout="NHWC", method="nearest_neighbor")
        return big

    becomes(channels_last, before, expected)


def test_channel_shuffle_is_one_transpose(compute) -> None:
    @program
    def before(x: R.Tensor((2, 5, 5, 2), "float32")):
        nchw = R.permute_dims(x, axes=[0, 3, 1, 2])
        conv = R.nn.conv2d(nchw, R.const(w))
        groups = R.reshape(conv, R.shape([2, 2, 2, 5, 3]))
        turned = R.permute_dims(groups, axes=[0, 2, 1, 3, 4])
        shuffled = R.reshape(turned, R.shape([2, 4, 5, 3]))
        dw = R.nn.conv2d(shuffled, R.const(depthwise), groups=4)
        y = R.permute_dims(dw, axes=[0, 2, 3, 1])
        return y

    after = channels_last.run(before)
    assert transposes(after) == 1
    x = np.random.default_rng(0).standard_normal((2, 5, 5, 2)).astype("float32")
    np.testing.assert_allclose(compute(after, x)[0], compute(before, x)[0], rtol=1e-4)


def test_quantized_weight_and_bias_keep_their_integers(compute) -> None:
    q = np.arange(24, dtype="int8").reshape(4, 2, 1, 3)
    scales, zeros = np.array([0.5, 1, 2, 4], "float32"), np.zeros(4, "int8")

    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32")):
        xq = R.quantize(x, R.const(0.5, "float32"), R.const(0, "int8"), axis=-1, out_dtype="int8")
        xd = R.dequantize(xq, R.const(0.5, "float32"), R.const(0, "int8"), axis=-1, out_dtype="float32")
        wd = R.dequantize(R.const(q), R.const(scales), R.const(zeros), axis=0, out_dtype="float32")
        y = R.nn.conv2d(xd, wd)
        return y

    from tvmflow.optimize import canonical_shapes

    after = canonical_shapes.run(channels_last.run(before))
    weight = next(b.value for b in after["main"].body.blocks[0].bindings if b.var.name == "wd")
    np.testing.assert_array_equal(weight.args[0].value.numpy(), q.transpose(0, 2, 3, 1))
    assert int(weight.attrs.axis) == 0
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype("float32")
    np.testing.assert_array_equal(compute(after, x)[0], compute(before, x)[0])


def test_stays_without_spatial_operators(stays) -> None:
    @program
    def before(x: R.Tensor((1, 4, 6), "float32")):
        turned = R.permute_dims(x, axes=[0, 2, 1])
        y = R.nn.relu(turned)
        return y

    stays(channels_last, before)


def test_unknown_operator_gets_the_models_layout(compute) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32")):
        conv = R.nn.conv2d(x, R.const(w))
        total = R.cumsum(conv, axis=1)
        y = R.nn.max_pool2d(total, pool_size=[2, 2])
        return y

    after = channels_last.run(before)
    assert transposes(after) == 4
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype("float32")
    np.testing.assert_allclose(compute(after, x)[0], compute(before, x)[0], rtol=1e-4)
