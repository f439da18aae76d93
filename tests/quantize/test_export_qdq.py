"""QDQ export: a valid file, equal to the oracle in onnxruntime, and read again to the same integers."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tvm import relax

from tvmflow.errors import ConfigError, UnsupportedOperator
from tvmflow.importer import import_model
from tvmflow.kernels.interpret import interpret
from tvmflow.model import TensorInfo
from tvmflow.optimize import optimize
from tvmflow.quantize.export_qdq import export_qdq, qdq_properties, save_qdq
from tvmflow.quantize.qparams import Origin
from tvmflow.quantize.realize import realize
from tvmflow.quantize.realize.qdq import plan_from_qdq
from tvmflow.quantize.recipe import Rule

RANDOM = np.random.default_rng(3)
IMAGE = [(1, 8, 6, 7)]
"""One input in NCHW, as users have it."""


def normal(*shape):
    return relax.const(RANDOM.standard_normal(shape).astype(np.float32))


def scalar(value):
    return relax.const(np.float32(value))


def channels_last(emit, x):
    return emit("layout", relax.op.permute_dims(x, [0, 2, 3, 1]))


def channels_first(emit, x):
    return emit("back", relax.op.permute_dims(x, [0, 3, 1, 2]))


def conv(emit, name, x, oc=8, k=3, groups=1, strides=(1, 1)):
    weight = normal(oc, k, k, int(x.ty.shape[3]) // groups)
    attrs = {"padding": (k // 2,) * 4, "data_layout": "NHWC", "kernel_layout": "OHWI"}
    product = emit(f"{name}/1", relax.op.nn.conv2d(x, weight, groups=groups, strides=strides, **attrs))
    return emit(name, relax.op.add(product, normal(1, 1, 1, oc)))


def mobile(emit, x):
    """Convolution, depthwise, residual add, max pool, global average pool, dense."""
    stem = emit("relu1", relax.op.clip(conv(emit, "stem", channels_last(emit, x)), 0, 6))
    depthwise = emit("relu2", relax.op.nn.relu(conv(emit, "depthwise", stem, groups=8)))
    total = emit("sum", relax.op.add(conv(emit, "project", depthwise, k=1), stem))
    small = emit("max", relax.op.nn.max_pool2d(total, (2, 2), (2, 2), layout="NHWC"))
    mean = emit("mean", relax.op.mean(small, [1, 2], keepdims=True))
    dense = emit("dense/1", relax.op.matmul(emit("flat", relax.op.reshape(mean, (1, 8))), normal(8, 5)))
    return emit("dense", relax.op.add(dense, normal(5)))


def grouped(emit, x):
    first = emit("relu1", relax.op.nn.relu(conv(emit, "first", channels_last(emit, x), strides=(2, 1))))
    return channels_first(emit, emit("relu2", relax.op.nn.relu(conv(emit, "second", first, oc=12, groups=4))))


def branches(emit, x):
    x = channels_last(emit, x)
    parts = [emit("relu1", relax.op.nn.relu(conv(emit, "a", x))), emit("relu2", relax.op.nn.relu(conv(emit, "b", x, k=1)))]
    return channels_first(emit, emit("concat", relax.op.concat(parts, axis=3)))


def hard_swish(emit, x):
    x = conv(emit, "conv", channels_last(emit, x))
    gate = emit("clip", relax.op.clip(emit("plus", relax.op.add(x, scalar(3))), 0, 6))
    product = emit("mul", relax.op.multiply(x, emit("div", relax.op.divide(gate, scalar(6)))))
    return channels_first(emit, product)


def squeeze_excite(emit, x):
    features = conv(emit, "conv", channels_last(emit, x))
    pooled = emit("pool", relax.op.mean(features, [1, 2], keepdims=True))
    gate = emit("sigmoid", relax.op.sigmoid(conv(emit, "gate", pooled, k=1)))
    return channels_first(emit, emit("scale", relax.op.multiply(features, gate)))


def flattened(emit, x):
    """A reshape that reads channels-last memory in order: the one that needs a transpose in NCHW."""
    x = emit("relu", relax.op.nn.relu(conv(emit, "conv", channels_last(emit, x))))
    return emit("dense", relax.op.matmul(emit("flat", relax.op.reshape(x, (1, 336))), normal(336, 4)))


def movement(emit, x):
    padded = emit("pad", relax.op.nn.pad(channels_last(emit, x), [0, 0, 1, 2, 0, 1, 0, 0], "constant", 0.5))
    sized = emit("resize", relax.op.image.resize2d(padded, (18, 16), method="nearest_neighbor", layout="NHWC"))
    cut = emit("slice", relax.op.strided_slice(sized, [1, 2], [1, 0], [17, 15], [2, 3]))
    halves = emit("split", relax.op.split(cut, 2, axis=3))
    turned = emit("flip", relax.op.flip(emit("half", halves[1]), 1))
    flat = emit("flat", relax.op.reshape(turned, (4, 40)))
    return emit("dense", relax.op.matmul(flat, normal(40, 5)))


def attention(emit, x):
    """Rank 3 dense with bias, constant added, product of activations with a factor, softmax as a float island."""
    x = emit("positions", relax.op.add(emit("rows", relax.op.reshape(x, (1, 8, 42))), normal(8, 42)))
    q = emit("q", relax.op.add(emit("q/1", relax.op.matmul(x, normal(42, 6))), normal(6)))
    k = emit("k", relax.op.permute_dims(emit("k/1", relax.op.matmul(x, normal(42, 6))), [0, 2, 1]))
    scores = emit("scaled", relax.op.multiply(emit("scores", relax.op.matmul(q, k)), scalar(0.4)))
    return emit("context", relax.op.matmul(emit("softmax", relax.op.nn.softmax(scores)), x))


EXACT = "same codes"
FLOAT_END = (
    "float32 rounding: onnxruntime has no QLinearConv, QLinearMatMul with a float result and computes that layer in float32"
)
ROUNDED = "one code: computed in float32 there, by a table or in fixed-point here; differences of later layers included"

CASES = {
    mobile: EXACT,
    grouped: EXACT,
    branches: EXACT,
    hard_swish: ROUNDED,
    squeeze_excite: ROUNDED,
    flattened: FLOAT_END,
    movement: FLOAT_END,
    attention: ROUNDED,
}


def session(proto):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # without this, machines without VNNI add two products in 16 bits and saturate
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(proto.SerializeToString(), options)


def exported(q, **properties):
    proto = export_qdq(q.floating, q.plan, q.calibration.qparams, properties)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def images(count=4):
    random = np.random.default_rng(5)
    return [random.standard_normal(IMAGE[0]).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("body", CASES, ids=lambda body: body.__name__)
def test_onnxruntime_equals_the_oracle(quantized, body):
    q = quantized(body, IMAGE)
    runner = session(exported(q))
    last = q.plan.groups[-1].output
    step = float(q.calibration.qparams[last].scale[0]) if last in q.calibration.qparams else 0.0
    for x in images():
        (want,), _ = interpret(q.integer.module, [x])
        (got,) = runner.run(None, {"x0": x})
        assert got.shape == want.shape
        if CASES[body] == EXACT:
            np.testing.assert_array_equal(got, want)
        elif CASES[body] == FLOAT_END:
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
        else:
            np.testing.assert_allclose(got, want, atol=max(step * 1.01, 0.02 * np.abs(want).max()))


@pytest.mark.parametrize("body", CASES, ids=lambda body: body.__name__)
def test_reading_again_gives_the_same_integers(quantized, body):
    q = quantized(body, IMAGE)
    carried = plan_from_qdq(optimize(import_model(exported(q), check=False).model))
    assert carried is not None
    again, coverage = realize(*carried, "uint8")
    assert coverage.integer >= q.coverage.integer
    assert [f.op for f in coverage.float_list] == [f.op for f in q.coverage.float_list]
    for x in images():
        (want,), _ = interpret(q.integer.module, [x])
        (got,), _ = interpret(again.module, [x])
        np.testing.assert_array_equal(got, want)


def test_every_layer_of_a_convolutional_network_is_fused(quantized, tmp_path):
    proto = exported(quantized(mobile, IMAGE))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options)
    ops = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert not {"Conv", "Gemm", "Add", "Relu", "Clip"} & set(ops)
    assert ops.count("QLinearConv") == 3 and ops.count("QGemm") == 1


def test_layers_keep_their_names_and_need_no_transposes(quantized):
    proto = exported(quantized(mobile, IMAGE))
    names = {n.name: n.op_type for n in proto.graph.node}
    assert [names.get(layer) for layer in ("stem", "depthwise", "project")] == ["Conv"] * 3
    assert "Transpose" not in names.values()
    assert [i.name for i in proto.graph.input] == ["x0"] and [o.name for o in proto.graph.output] == ["y"]


def test_integers_are_uint8_int8_and_int32(quantized):
    proto = exported(quantized(mobile, IMAGE))
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    assert stored["stem:weight_quantized"].dtype == np.int8 and stored["stem:weight_quantized"].shape == (8, 8, 3, 3)
    assert stored["stem:weight_scale"].shape == (8,) and stored["stem:bias_quantized"].dtype == np.int32
    np.testing.assert_array_equal(stored["stem:bias_scale"], stored["x0_scale"] * stored["stem:weight_scale"])
    assert stored["x0_zero_point"].dtype == np.uint8


def test_float_layers_read_unrounded_tensors(quantized, recipe):
    """A float layer beside an integer one reads the float tensor, not what came out of the other's pair."""

    def both(emit, x):
        skipped = emit("skipped", relax.op.sigmoid(x))
        return emit("sum", relax.op.add(channels_first(emit, conv(emit, "conv", channels_last(emit, x))), skipped))

    skipping = msgspec.structs.replace(recipe, rules=(Rule(layer="skipped", skip=True),))
    q = quantized(both, IMAGE, recipe=skipping)
    proto = exported(q)
    assert next(n for n in proto.graph.node if n.op_type == "Sigmoid").input[0] == "x0"
    runner = session(proto)
    for x in images():
        np.testing.assert_allclose(
            runner.run(None, {"x0": x})[0], interpret(q.integer.module, [x])[0][0], atol=0.02 * np.abs(q.expected[0]).max()
        )


def test_several_outputs_and_an_input_that_is_one(quantized):
    def shared(emit, x):
        gate = emit("sigmoid", relax.op.sigmoid(x))
        return [gate, emit("silu", relax.op.multiply(x, gate)), gate, x]

    q = quantized(shared, IMAGE)
    infos = tuple(TensorInfo(n, IMAGE[0], "float32") for n in ("gate", "silu", "sigmoid", "same"))
    proto = export_qdq(replace(q.floating, outputs=infos), q.plan, q.calibration.qparams)
    onnx.checker.check_model(proto, full_check=True)
    x = images(1)[0]
    for got, want in zip(session(proto).run(None, {"x0": x}), interpret(q.integer.module, [x])[0], strict=True):
        np.testing.assert_allclose(got, want, atol=0.05)


def test_unknown_operator_names_its_layer(quantized):
    q = quantized(lambda e, x: e("after", relax.op.nn.relu(e("running", relax.op.cumsum(x, axis=1)))), IMAGE)
    with pytest.raises(UnsupportedOperator, match="cumsum can't be written to a QDQ model") as error:
        exported(q)
    assert error.value.where == "running" and ".json" in error.value.remedy


def test_missing_parameters_are_named(quantized):
    q = quantized(grouped, IMAGE)
    params = {k: v for k, v in q.calibration.qparams.items() if k != "relu1"}
    with pytest.raises(ConfigError, match="no quantization parameters") as error:
        export_qdq(q.floating, q.plan, params)
    assert error.value.where == "relu1"


def test_file_says_where_its_parameters_come_from(quantized, tmp_path):
    properties = qdq_properties("int8", Origin("m" * 64, "c" * 64, 4, {}))
    save_qdq(tmp_path / "new" / "q.onnx", exported(quantized(grouped, IMAGE), **properties))
    stored = {p.key: p.value for p in onnx.load(tmp_path / "new" / "q.onnx").metadata_props}
    assert stored["tvmflow.recipe"] == "int8" and stored["tvmflow.calibration_sha256"] == "c" * 64
    assert stored["tvmflow.calibration_samples"] == "4" and stored["tvmflow.version"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["q.onnx"]
