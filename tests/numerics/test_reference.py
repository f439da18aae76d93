"""The oracle equals onnxruntime's quantized operators to the last bit.

Weights stay within +-64, as onnxruntime's kernels for x86 without VNNI add pairs of products in saturating int16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmflow.kernels.reference import run_kernel
from tvmflow.kernels.spec import Conv2d, Dequantize, MatMul, Pool2d, Quantize

STORED = ("uint8", "int8")
ONNX = {np.dtype("uint8"): TensorProto.UINT8, np.dtype("int8"): TensorProto.INT8, np.dtype("float32"): TensorProto.FLOAT}


def onnx_result(kind: str, x: np.ndarray, constants: list[Any], out: str, **attributes: Any) -> np.ndarray:
    """Output of one operator in onnxruntime; ``constants`` are its other inputs."""
    weights = [numpy_helper.from_array(np.asarray(c), f"c{i}") for i, c in enumerate(constants)]
    node = helper.make_node(kind, ["x", *[w.name for w in weights]], ["y"], **attributes)
    value = helper.make_tensor_value_info("x", ONNX[x.dtype], x.shape)
    result = helper.make_tensor_value_info("y", ONNX[np.dtype(out)], None)
    graph = helper.make_graph([node], "one", [value], [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def bytes_of(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def limits(dtype: str) -> list[int]:
    return [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("seed", range(6))
def test_convolution(dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, (kh, kw) = [1, 1, 2, 6, 1, 3][seed], [(3, 3), (1, 1), (3, 2), (3, 3), (5, 1), (2, 2)][seed]
    pad = (1, 0, 2, 1) if kh > 1 else (0, 0, 0, 0)
    stride, dilation = [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 2), (2, 1))][seed % 3]
    oc = 6 if groups == 6 else 9 * groups
    spec = Conv2d(1, 9, 8, 6, oc, kh, kw, stride, pad, dilation, groups, dtype, dtype)
    x, zx = bytes_of(rng, (1, 9, 8, 6), dtype), int(bytes_of(rng, (1,), dtype)[0])
    zy = int(rng.integers(-40, 40)) + (128 if dtype == "uint8" else 0)
    weight = rng.integers(-64, 65, (oc, kh, kw, 6 // groups)).astype(np.int8)
    bias = rng.integers(-3000, 3000, oc).astype(np.int32)
    sx, sy = np.float32(0.021), np.float32(0.11)
    sw = rng.uniform(0.002, 0.02, oc).astype(np.float32)
    multiplier = sx * sw / sy  # onnxruntime computes it in float32
    ours = run_kernel(spec, [x, weight, bias, multiplier, np.array([zx, zy, *limits(dtype)], np.int32)])
    # onnxruntime pads as ONNX says: begins first
    attributes = {"strides": stride, "pads": pad, "dilations": dilation, "group": groups}
    zeros = np.zeros(oc, np.int8)
    constants = [sx, np.array(zx, dtype), weight.transpose(0, 3, 1, 2), sw, zeros, sy, np.array(zy, dtype), bias]
    theirs = onnx_result("QLinearConv", x.transpose(0, 3, 1, 2).copy(), constants, dtype, **attributes)
    assert np.unique(ours).size > 20
    np.testing.assert_array_equal(ours, theirs.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 5, 3), (7, 33, 17), (4, 64, 16)])
def test_matrix_product(dtype: str, m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(m)
    a = bytes_of(rng, (1, m, k), dtype)
    b = (rng.integers(-64, 65, (1, k, n)) + (128 if dtype == "uint8" else 0)).astype(dtype)
    za, zb, zy = (int(v) for v in bytes_of(rng, (3,), dtype))
    sa, sb, sy = np.float32(0.03), np.float32(0.011), np.float32(0.9)
    quant = np.array([za, zb, zy, *limits(dtype)], np.int32)
    ours = run_kernel(MatMul(1, m, k, n, False, dtype, dtype), [a, b, np.array([sa * sb / sy], np.float32), quant])
    constants = [sa, np.array(za, dtype), b[0], sb, np.array(zb, dtype), sy, np.array(zy, dtype)]
    theirs = onnx_result("QLinearMatMul", a[0], constants, dtype)
    np.testing.assert_array_equal(ours[0], theirs)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("zero", [0, 3, 127])
def test_quantize_and_dequantize(dtype: str, zero: int) -> None:
    """Ties, values beyond the range, infinities; every byte on the way back."""
    scale = np.float32(0.037)
    ties = (np.arange(-300, 300) + 0.5).astype(np.float32) * scale
    x = np.concatenate([ties, np.random.default_rng(0).standard_normal(4000).astype(np.float32) * 4, [np.inf, -np.inf, -0.0]])
    x = x.astype(np.float32)
    args = [np.array([scale]), np.array([zero], np.int32)]
    ours = run_kernel(Quantize(x.shape, False, dtype), [x, *args])
    finite = np.isfinite(x)
    theirs = onnx_result("QuantizeLinear", x[finite], [scale, np.array(zero, dtype)], dtype)
    np.testing.assert_array_equal(ours[finite], theirs)
    assert ours[~finite].tolist() == limits(dtype)[::-1]
    every = np.arange(256).astype(np.uint8).view(dtype)
    back = onnx_result("DequantizeLinear", every, [scale, np.array(zero, dtype)], "float32")
    assert run_kernel(Dequantize(every.shape, dtype), [every, *args]).tobytes() == back.tobytes()


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(2, 2, (0, 0, 0, 0)), (3, 1, (1, 1, 1, 1)), (3, 2, (0, 1, 1, 0))])
def test_max_pool(dtype: str, kernel: int, stride: int, pad: tuple[int, int, int, int]) -> None:
    x = bytes_of(np.random.default_rng(kernel), (2, 9, 7, 5), dtype)
    spec = Pool2d("max", 2, 9, 7, 5, kernel, kernel, (stride, stride), pad, dtype, dtype)
    attributes = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": pad}
    theirs = onnx_result("MaxPool", x.transpose(0, 3, 1, 2).copy(), [], dtype, **attributes)
    np.testing.assert_array_equal(run_kernel(spec, [x]), theirs.transpose(0, 2, 3, 1))
