"""fold_affine: a product or sum per channel behind a linear layer moves into its weight and bias."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import decompose_batch_norm, fold_affine

w = np.arange(24, dtype="float32").reshape(4, 2, 1, 3)
b = np.array([1, 2, 3, 4], "float32").reshape(1, 4, 1, 1)
s = np.array([2, 0.5, 4, -1], "float32").reshape(1, 4, 1, 1)
t = np.array([8, 1, 0, 2], "float32").reshape(1, 4, 1, 1)
three = np.full((1, 4, 1, 1), 3, "float32")
row = np.arange(5, dtype="float32")
ws, bst = w * s.reshape(4, 1, 1, 1), b * s + t


def test_product_and_sum_behind_conv_with_bias(becomes, names) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32")):
        conv = R.nn.conv2d(x, R.const(w))
        bias = R.add(conv, R.const(b))
        scaled = R.multiply(bias, R.const(s))
        shifted = R.add(scaled, R.const(t))
        y = R.nn.relu(shifted)
        return y

    @program
    def expected(x: R.Tensor((1, 2, 5, 5), "float32")):
        conv = R.nn.conv2d(x, R.const(ws))
        bias = R.add(conv, R.const(bst))
        y = R.nn.relu(bias)
        return y

    assert names(becomes(fold_affine, before, expected)) == ["conv", "bias", "y"]


def test_scalar_behind_conv_is_a_bias_per_channel(becomes) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32")):
        conv = R.nn.conv2d(x, R.const(w))
        y = R.add(conv, R.const(3.0))
        return y

    @program
    def expected(x: R.Tensor((1, 2, 5, 5), "float32")):
        conv = R.nn.conv2d(x, R.const(w))
        y = R.add(conv, R.const(three))
        return y

    becomes(fold_affine, before, expected)


def test_stays_when_the_layer_has_another_reader(stays) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 5), "float32")):
        conv = R.nn.conv2d(x, R.const(w))
        scaled = R.multiply(conv, R.const(s))
        y = R.add(scaled, conv)
        return y

    stays(fold_affine, before)


def test_stays_when_the_constant_varies_along_rows(stays) -> None:
    @program
    def before(x: R.Tensor((1, 2, 5, 7), "float32")):
        conv = R.nn.conv2d(x, R.const(w))
        y = R.multiply(conv, R.const(row))
        return y

    stays(fold_affine, before)


@pytest.mark.parametrize(
    ("kind", "groups"), [("conv", 1), ("conv", 2), ("conv", 6), ("transpose", 1), ("transpose", 2), ("matmul", 1), ("conv1d", 3)]
)
def test_batch_norm_behind_any_linear_layer(kind: str, groups: int, compute) -> None:
    rng = np.random.default_rng(groups)
    out = 12

    def const(*shape: int) -> relax.Expr:
        return relax.const(rng.uniform(0.5, 1.5, shape).astype("float32"))

    shape = {"matmul": (3, 6), "conv1d": (1, 6, 5)}.get(kind, (1, 6, 5, 4))
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    build = relax.BlockBuilder()
    with build.function("main", [x]):
        with build.dataflow():
            if kind == "conv":
                y = build.emit(relax.op.nn.conv2d(x, const(out, 6 // groups, 3, 2), padding=1, groups=groups))
            elif kind == "conv1d":
                y = build.emit(relax.op.nn.conv1d(x, const(out, 6 // groups, 3), padding=1, groups=groups))
            elif kind == "transpose":
                y = build.emit(relax.op.nn.conv2d_transpose(x, const(6, out // groups, 3, 2), strides=2, groups=groups))
            else:
                y = build.emit(relax.op.matmul(x, const(6, out)))
            y = build.emit(relax.op.add(y, const(*[out if i == 1 else 1 for i in range(len(shape))])))
            norm = build.emit(relax.op.nn.batch_norm(y, const(out), const(out), const(out), const(out), axis=1, training=False))
            y = build.emit_output(build.emit(relax.TupleGetItem(norm, 0)))
        build.emit_func_output(y)
    before = build.get()
    after = fold_affine.run(decompose_batch_norm.run(before))
    assert len(after["main"].body.blocks[0].bindings) == 2
    data = rng.standard_normal(shape).astype("float32")
    np.testing.assert_allclose(compute(after, data)[0], compute(before, data)[0], rtol=1e-4, atol=1e-4)


def test_batch_norm_in_training_mode_stays(stays) -> None:
    ones = np.ones(2, "float32")

    @program
    def before(x: R.Tensor((1, 2, 5, 7), "float32")):
        norm = R.nn.batch_norm(x, R.const(ones), R.const(ones), R.const(ones), R.const(ones), axis=1, training=True)
        y = norm[0]
        return y

    stays(decompose_batch_norm, before)


def test_batch_norm_alone_is_product_and_sum(becomes, names) -> None:
    gamma, beta = np.array([2, 3], "float32"), np.array([1, 5], "float32")
    mean, var = np.array([4, 1], "float32"), np.array([4, 16], "float32")
    scale = np.array([1, 0.75], "float32").reshape(1, 2, 1, 1)
    shift = np.array([-3, 4.25], "float32").reshape(1, 2, 1, 1)

    @program
    def before(x: R.Tensor((1, 2, 5, 7), "float32")):
        norm = R.nn.batch_norm(x, R.const(gamma), R.const(beta), R.const(mean), R.const(var), axis=1, epsilon=0.0, training=False)
        y = norm[0]
        z = R.nn.relu(y)
        return z

    @program
    def expected(x: R.Tensor((1, 2, 5, 7), "float32")):
        scaled = R.multiply(x, R.const(scale))
        norm = R.add(scaled, R.const(shift))
        z = R.nn.relu(norm)
        return z

    assert names(becomes(decompose_batch_norm, before, expected)) == ["norm.scale", "norm", "z"]
