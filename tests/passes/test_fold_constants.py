"""fold_constants: calls on constants are computed, but never the dequantization of a weight."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import fold_constants

w = np.arange(6, dtype="float32").reshape(2, 3)
turned = (w.T + 1).copy()


def test_folds_arithmetic_and_shapes(becomes) -> None:
    @program
    def before(x: R.Tensor((4, 3), "float32")):
        a = R.permute_dims(R.const(w))
        b = R.add(a, R.const(1.0))
        y = R.matmul(x, b)
        return y

    @program
    def expected(x: R.Tensor((4, 3), "float32")):
        y = R.matmul(x, R.const(turned))
        return y

    becomes(fold_constants, before, expected)


def test_shape_of_a_static_tensor_is_a_constant() -> None:
    @program
    def before(x: R.Tensor((4, 3), "float32")):
        s = R.shape_of(x)
        t = R.shape_to_tensor(s)
        y = R.take(t, R.const(1, "int64"), axis=0)
        return y

    after = fold_constants.run(before)
    assert not after["main"].body.blocks or not after["main"].body.blocks[0].bindings
    assert int(after["main"].body.body.value.numpy()) == 3


def test_dequantize_stays(stays) -> None:
    q, s, z = np.ones((2, 3), "int8"), np.ones(2, "float32"), np.zeros(2, "int8")

    @program
    def before(x: R.Tensor((4, 2), "float32")):
        d = R.dequantize(R.const(q), R.const(s), R.const(z), axis=0)
        y = R.matmul(x, d)
        return y

    stays(fold_constants, before)


def test_large_broadcast_stays(stays) -> None:
    @program
    def before(x: R.Tensor((1024, 1024), "float32")):
        wide = R.broadcast_to(R.const(2.0), R.shape([1024, 1024]))
        y = R.add(x, wide)
        return y

    stays(fold_constants, before)


_X = relax.const(np.array([[0.5, -1.5, 2.5], [3.25, 0.75, -0.25]], "float32"))
_B = relax.const(np.array([[True, False, True]]))
CALLS = {
    "erf": relax.op.erf(_X),
    "floor_divide": relax.op.floor_divide(_X, relax.const(0.4)),
    "mean": relax.op.mean(_X, [1], keepdims=True),
    "round": relax.op.round(_X),
    "rsqrt": relax.op.rsqrt(relax.op.abs(_X)),
    "sigmoid": relax.op.sigmoid(_X),
    "strided_slice": relax.op.strided_slice(_X, [1], [2], [-10], [-1]),
    "take": relax.op.take(_X, relax.const(np.array([2, 0], "int64")), axis=1),
    "concat": relax.op.concat([_X, _X], axis=-1),
    "where": relax.op.where(_B, _X, relax.const(0.0)),
    "integer divide": relax.op.divide(relax.const(np.array([-7, 7], "int32")), relax.const(2, "int32")),
    "squeeze": relax.op.squeeze(relax.op.expand_dims(_X, [0, 2])),
}


@pytest.mark.parametrize("name", CALLS)
def test_equals_what_the_compiled_call_computes(name: str, compute) -> None:
    build = relax.BlockBuilder()
    with build.function("main", []):
        with build.dataflow():
            y = build.emit_output(build.emit(CALLS[name]))
        build.emit_func_output(y)
    module = build.get()
    folded = fold_constants.run(module)["main"].body.body
    assert isinstance(folded, tvm.ir.GenericConst)
    np.testing.assert_allclose(folded.value.numpy(), compute(module)[0], rtol=1e-5)
