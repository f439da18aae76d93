"""Models that carry their parameters: equal to onnxruntime, and what is not realized says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from tvm import relax

from tvmflow.importer import import_model
from tvmflow.kernels.interpret import interpret
from tvmflow.kernels.spec import Conv2d
from tvmflow.optimize import optimize
from tvmflow.quantize.graph import constant_of, op_of, view
from tvmflow.quantize.realize import realize
from tvmflow.quantize.realize.products import Linear, quantize_weights
from tvmflow.quantize.realize.qdq import plan_from_qdq, strip

SHAPE = (1, 3, 12, 12)


def network() -> onnx.ModelProto:
    """Convolutions, depthwise, residual add, concat, max pool, global average pool, dense: 3x12x12 to 5 logits."""
    random = np.random.default_rng(0)
    constants = {
        "w1": random.standard_normal((8, 3, 3, 3)) * 0.3,
        "b1": random.standard_normal(8),
        "w2": random.standard_normal((8, 1, 3, 3)) * 0.4,
        "b2": random.standard_normal(8),
        "w3": random.standard_normal((8, 8, 1, 1)) * 0.3,
        "b3": random.standard_normal(8),
        "w4": random.standard_normal((16, 5)) * 0.3,
        "b4": random.standard_normal(5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], "conv3"),
        helper.make_node("Add", ["c3", "r1"], ["s"], "add"),
        helper.make_node("Concat", ["s", "r2"], ["j"], "concat", axis=1),
        helper.make_node("MaxPool", ["j"], ["m"], "max", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["m"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], "dense"),
    ]
    values = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5))
    return helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], values), opset_imports=[helper.make_opsetid("", 17)], ir_version=10
    )


class Samples(CalibrationDataReader):
    def __init__(self) -> None:
        random = np.random.default_rng(1)
        self._left: Iterator[dict[str, np.ndarray]] = iter(
            [{"x": random.standard_normal(SHAPE).astype(np.float32)} for _ in range(8)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


VARIANTS = {
    "u8s8 per channel": {"per_channel": True, "activation_type": QuantType.QUInt8},
    "u8s8 per tensor": {"per_channel": False, "activation_type": QuantType.QUInt8},
    "s8s8 per channel": {"per_channel": True, "activation_type": QuantType.QInt8},
    "QLinear operators": {"per_channel": True, "quant_format": QuantFormat.QOperator},
}


def quantized_by_onnxruntime(path: Path, **options: object) -> onnx.ModelProto:
    onnx.save(network(), path / "float.onnx")
    options = {"weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ, **options}
    quantize_static(path / "float.onnx", path / "qdq.onnx", Samples(), **options)
    return onnx.load(path / "qdq.onnx")


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_onnxruntime(tmp_path, variant):
    """Activations, and so the logits, differ by no code, or by one where the fixed-point add rounds a tie the other way."""
    model = quantized_by_onnxruntime(tmp_path, **VARIANTS[variant])
    carried = plan_from_qdq(optimize(import_model(model, check=False).model))
    assert carried is not None
    floating, plan, params = carried
    realized, coverage = realize(floating, plan, params, "uint8")
    assert coverage.float == 0
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    step = float(params[plan.groups[-1].output].scale[0])
    random = np.random.default_rng(2)
    codes = []
    for _ in range(8):
        x = random.standard_normal(SHAPE).astype(np.float32)
        (expected,) = session.run(None, {"x": x})
        (got,), _ = interpret(realized.module, [x])
        codes.append(np.rint((got - expected) / step))
    assert np.abs(codes).max() <= 1
    assert np.mean(np.array(codes) != 0) <= 0.05


def test_codes_are_recovered_exactly(tmp_path):
    model = quantized_by_onnxruntime(tmp_path, per_channel=True)
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    floating, plan, params = plan_from_qdq(optimize(import_model(model, check=False).model))
    realized, _ = realize(floating, plan, params, "int8")
    arguments = {g.layer: None for g in plan.groups}
    for binding in realized.module["main"].body.blocks[0].bindings:
        if binding.var.name in arguments and op_of(binding.value) == "call_dps_packed":
            arguments[binding.var.name] = [constant_of(a) for a in binding.value.args[1].fields]
    for layer, number in (("conv1", 1), ("conv2", 2), ("conv3", 3)):
        weight, bias = arguments[layer][1:3]
        np.testing.assert_array_equal(weight, stored[f"w{number}_quantized"].transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(bias, stored[f"b{number}_quantized"])
    np.testing.assert_array_equal(arguments["dense"][1][:, 0, 0, :], stored["w4_quantized"].T)


def test_float_model_carries_nothing(model):
    assert plan_from_qdq(model(lambda e, x: e("relu", relax.op.nn.relu(x)), [(1, 4)])) is None


def pair(emit, name, x, scale=0.1, zero=3, dtype="int8", other_scale=None):
    """Quantize and dequantize with equal parameters, or not."""
    s, z = relax.const(np.array([scale], np.float32)), relax.const(np.array([zero], dtype))
    q = emit(f"{name}.q", relax.op.quantize(x, s, z, axis=-1, out_dtype=dtype))
    s = relax.const(np.float32(other_scale or scale))
    return emit(f"{name}.dq", relax.op.dequantize(q, s, relax.const(np.array(zero, dtype)), axis=-1, out_dtype="float32"))


def weight(emit, codes, scale, zero, axis):
    zero = np.full(np.shape(scale), zero, codes.dtype)
    call = relax.op.dequantize(relax.const(codes), relax.const(np.array(scale, np.float32)), relax.const(zero), axis=axis)
    return emit("weight", call)


def test_scalars_vectors_of_one_and_uint8(model):
    def body(e, x):
        return pair(e, "b", e("relu", relax.op.nn.relu(pair(e, "a", x, zero=131, dtype="uint8"))))

    _, found = strip(model(body, [(2, 5)]))
    assert {k: p.zero_point for k, p in found.params.items()} == {"x0": 3, "relu": 3}
    np.testing.assert_array_equal(found.params["x0"].scale, np.float32([0.1]))


def test_pair_that_disagrees_stays_float(model):
    floating, plan, params = plan_from_qdq(model(lambda e, x: pair(e, "a", x, other_scale=0.2), [(2, 5)]))
    assert params == {} and not any(g.integer for g in plan.groups)
    assert [op_of(v) for v in view(floating.module).exprs.values()] == ["quantize", "dequantize"]


def test_layers_without_parameters_say_so(model):
    codes = np.arange(-10, 10, dtype=np.int8).reshape(5, 4)

    def body(e, x):
        w = weight(e, codes, [0.1, 0.2, 0.3, 0.4], 0, -1)
        first = pair(e, "b", e("first", relax.op.matmul(pair(e, "a", x), w)))
        return e("sigmoid", relax.op.sigmoid(first))

    _, plan, params = plan_from_qdq(model(body, [(2, 5)]))
    reasons = {g.layer: g.reason for g in plan.groups}
    assert reasons == {"first": "", "y": "the model has no parameters for its result"}
    np.testing.assert_array_equal(params["first:weight"].scale, np.float32([0.1, 0.2, 0.3, 0.4]))


def test_scales_along_rows_stay_float(model):
    codes = np.arange(-10, 10, dtype=np.int8).reshape(5, 4)
    body = lambda e, x: e("f", relax.op.matmul(pair(e, "a", x), weight(e, codes, [0.1] * 5, 0, 0)))
    _, plan, _ = plan_from_qdq(model(body, [(2, 5)]))
    assert "axis other than the output channels" in plan.groups[0].reason


@pytest.mark.parametrize(("zero", "observer"), [(128, "model"), (100, "model"), (60, "rounded")])
def test_unsigned_weights(model, zero, observer):
    codes = np.array([[100, 130, 220], [90, 227, 101]], np.uint8)
    body = lambda e, x: pair(e, "b", e("f", relax.op.matmul(pair(e, "a", x), weight(e, codes, 0.5, zero, 0))))
    _, plan, params = plan_from_qdq(model(body, [(1, 2)]))
    param = params["f:weight"]
    assert param.observer == observer
    real = (codes.astype(np.float32) - zero) * 0.5
    layer = Linear(Conv2d(1, 1, 1, 2, 3), real.T, np.zeros(3), np.broadcast_to(param.scale, 3), -128)
    got, _, scale = quantize_weights(layer, params["x0"])
    if observer == "model":
        np.testing.assert_array_equal(got.T, codes.astype(int) - zero)
    else:
        np.testing.assert_allclose(got.T * scale, real, atol=float(scale.max()) / 2)


def padded_convolution(emit, x):
    """A pad, a pair, a convolution with its pair: what PyTorch's quantizers make of a network with asymmetric pads."""
    padded = emit("pad", relax.op.nn.pad(x, (0, 0, 0, 1, 0, 1, 0, 0)))
    codes = np.arange(-18, 18, dtype=np.int8).reshape(2, 3, 3, 2)
    layouts = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
    conv = relax.op.nn.conv2d(pair(emit, "a", padded), weight(emit, codes, 0.1, 0, 0), strides=2, **layouts)
    return pair(emit, "b", emit("conv", conv), scale=1.0)


def test_pad_before_a_pair_becomes_padding(model):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 6, 2)).astype(np.float32)
    qdq = model(lambda e, x: e("copied", relax.op.nn.relu(padded_convolution(e, x))), [x.shape])
    floating, plan, params = plan_from_qdq(qdq)
    assert "pad" not in [op_of(v) for v in view(floating.module).exprs.values()]
    integer, coverage = realize(floating, plan, params, "uint8")
    assert coverage.integer == 1 and coverage.boundaries == 2
    np.testing.assert_allclose(interpret(integer.module, [x])[0][0], interpret(qdq.module, [x])[0][0], atol=1e-5)


def test_pad_of_a_tensor_without_parameters_stays_float(model):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 6, 2)).astype(np.float32)
    qdq = model(lambda e, x: [padded_convolution(e, x), e("other", relax.op.sigmoid(x))], [x.shape])
    floating, plan, params = plan_from_qdq(qdq)
    assert [g.layer for g in plan.groups if g.integer] == ["conv"]
    integer, _ = realize(floating, plan, params, "uint8")
    for got, want in zip(interpret(integer.module, [x])[0], interpret(qdq.module, [x])[0], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
