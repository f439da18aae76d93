"""The whole-graph oracle on a small module: kernels by their oracle, the rest by TVM, every tensor by its name."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmflow.kernels.call import kernel_call
from tvmflow.kernels.interpret import interpret
from tvmflow.kernels.reference import run_kernel
from tvmflow.kernels.spec import Conv2d, Dequantize, Quantize

X = np.random.default_rng(0).standard_normal((1, 3, 5, 4)).astype(np.float32)
QUANTIZE = Quantize((1, 5, 4, 3), True)
CONV = Conv2d(1, 5, 4, 3, 6, 3, 3, pad=(1, 1, 1, 1))
DEQUANTIZE = Dequantize((1, 5, 4, 6))
SCALE, ZERO = np.array([0.03], np.float32), np.array([120], np.int32)
WEIGHT = np.random.default_rng(1).integers(-127, 128, (6, 3, 3, 3)).astype(np.int8)
CONSTANTS = [WEIGHT, np.arange(6, dtype=np.int32), np.full(6, 0.002, np.float32), np.array([120, 128, 0, 255], np.int32)]


def module() -> object:
    """quantize -> conv2d -> reshape, and its float softmax; two outputs."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(X.shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            q = builder.emit(kernel_call(QUANTIZE, [x, relax.const(SCALE), relax.const(ZERO)]), name_hint="input/q")
            c = builder.emit(kernel_call(CONV, [q, *map(relax.const, CONSTANTS)]), name_hint="conv")
            f = builder.emit(kernel_call(DEQUANTIZE, [c, relax.const(SCALE), relax.const(ZERO)]), name_hint="float")
            flat = builder.emit(relax.op.reshape(c, (1, 120)), name_hint="flat")
            s = builder.emit(relax.op.nn.softmax(f, axis=-1), name_hint="softmax")
            out = builder.emit_output(relax.Tuple([flat, s]))
        builder.emit_func_output(out)
    return builder.get()


def test_small_graph() -> None:
    outputs, named = interpret(module(), [X])
    q = run_kernel(QUANTIZE, [X, SCALE, ZERO])
    c = run_kernel(CONV, [q, *CONSTANTS])
    f = run_kernel(DEQUANTIZE, [c, SCALE, ZERO])
    np.testing.assert_array_equal(named["input/q"], q)
    np.testing.assert_array_equal(named["conv"], c)
    np.testing.assert_array_equal(outputs[0], c.reshape(1, 120))
    assert outputs[0].dtype == np.uint8 and all(type(name) is str for name in named)
    e = np.exp(f - f.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(outputs[1], e / e.sum(axis=-1, keepdims=True), rtol=1e-5)
