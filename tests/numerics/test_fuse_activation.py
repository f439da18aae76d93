"""Functions behind float convolutions and dense layers: what is fused, what stays, what is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import relax

from tests.numerics.kernels import specs, tensors
from tvmflow.flow.lower import host_runner
from tvmflow.kernels.call import kernel_call
from tvmflow.kernels.interpret import interpret
from tvmflow.kernels.spec import UNARY, Conv2d
from tvmflow.model import Model
from tvmflow.schedule.fuse_activation import fuse_activation
from tvmflow.schedule.lower_float import lower_float

RNG = np.random.default_rng(5)
DENSE, BIAS = (RNG.standard_normal((7, 20)) / 3).astype(np.float32), RNG.standard_normal(20).astype(np.float32)
FILTER = (RNG.standard_normal((7, 3, 3, 7)) / 8).astype(np.float32)
X = RNG.standard_normal((1, 5, 6, 7)).astype(np.float32)

Line = Callable[..., Any]


def program(write: Callable[[Line, Any], Any]) -> Model:
    """``main(x)`` of the lines that ``write(line, x)`` binds, lowered to kernels."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(X.shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            results = write(lambda expr, name="": builder.emit(expr, name_hint=name), x)
            out = builder.emit_output(relax.Tuple(list(results)) if isinstance(results, tuple) else results)
        builder.emit_func_output(out)
    return lower_float(Model(builder.get(), (), (), "test"))


def dense(line: Line, x: Any) -> Any:
    return line(relax.op.add(line(relax.op.matmul(x, relax.const(DENSE)), "dense"), relax.const(BIAS)))


def convolution(line: Line, x: Any) -> Any:
    layouts = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
    return line(relax.op.nn.conv2d(x, relax.const(FILTER), padding=(1, 1, 1, 1), **layouts), "conv")


def unary(fn: str, x: Any) -> Any:
    return getattr(relax.op.nn if fn in ("gelu", "silu") else relax.op, fn)(x)


@pytest.mark.parametrize("fn", UNARY)
@pytest.mark.parametrize("layer", [dense, convolution])
def test_a_function_goes_into_the_layer(layer: Callable[[Line, Any], Any], fn: str) -> None:
    before = program(lambda line, x: line(unary(fn, layer(line, x))))
    after = fuse_activation(before)
    assert [getattr(spec, "activation", None) for spec in specs(after.module)] == [fn]
    expected = interpret(before.module, [X])[0][0]
    (got,), named = interpret(after.module, [X])
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_array_equal(named["dense" if layer is dense else "conv"].ravel(), got.ravel())
    np.testing.assert_allclose(host_runner(after.module)([X])[0], expected, rtol=1e-4, atol=1e-5)


def test_a_residual_is_added_before_the_function() -> None:
    before = program(lambda line, x: line(relax.op.nn.silu(line(relax.op.add(convolution(line, x), x)))))
    after = fuse_activation(before)
    (spec,) = specs(after.module)
    assert isinstance(spec, Conv2d) and spec.residual and spec.activation == "silu"
    np.testing.assert_allclose(host_runner(after.module)([X])[0], interpret(before.module, [X])[0][0], rtol=1e-4, atol=1e-5)


def clamped(line: Line, x: Any) -> Any:
    return line(relax.op.sigmoid(line(relax.op.nn.relu(convolution(line, x)))))


def read_twice(line: Line, x: Any) -> Any:
    before = convolution(line, x)
    return line(relax.op.tanh(before)), line(relax.op.add(before, x))


def integer(line: Line, x: Any) -> Any:
    spec = Conv2d(1, 5, 6, 7, 20, y="float32")
    codes, *constants = [relax.const(a) for a in tensors(spec)]
    return line(relax.op.nn.gelu(line(kernel_call(spec, [codes, *constants])))), line(relax.op.tanh(x))


@pytest.mark.parametrize("write", [clamped, read_twice, integer])
def test_functions_that_stay(write: Callable[[Line, Any], Any]) -> None:
    before = program(write)
    assert specs(fuse_activation(before).module) == specs(before.module)


def test_a_layer_takes_one_function_and_nothing_after_it() -> None:
    def write(line: Line, x: Any) -> Any:
        first = line(relax.op.tanh(convolution(line, x)))
        return line(relax.op.nn.relu(line(relax.op.add(line(relax.op.sigmoid(first)), x))))

    before = program(write)
    after = lower_float(fuse_activation(fuse_activation(before)))
    assert [getattr(spec, "activation", getattr(spec, "fn", "")) for spec in specs(after.module)] == ["tanh", "sigmoid"]
    np.testing.assert_allclose(host_runner(after.module)([X])[0], interpret(before.module, [X])[0][0], rtol=1e-4, atol=1e-5)
