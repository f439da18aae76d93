"""realize on small graphs: which kernels come out, how close they are to float, the same in both storage types."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from tvmflow.errors import ConfigError
from tvmflow.kernels.spec import Conv2d
from tvmflow.quantize.annotate import annotate
from tvmflow.quantize.realize import realize
from tvmflow.quantize.realize.combine import fixed_point
from tvmflow.quantize.recipe import Rule

RANDOM = np.random.default_rng(1)
IMAGE = [(1, 6, 7, 8)]


def normal(*shape):
    return relax.const(RANDOM.standard_normal(shape).astype(np.float32))


def scalar(value):
    return relax.const(np.float32(value))


def conv(emit, name, x, oc=8, k=3, groups=1, **attrs):
    channels = int(x.ty.shape[3])
    attrs = {"padding": (k // 2,) * 4, **attrs}
    weight = normal(oc, k, k, channels // groups)
    return emit(name, relax.op.nn.conv2d(x, weight, groups=groups, data_layout="NHWC", kernel_layout="OHWI", **attrs))


def bias(emit, name, x):
    return emit(name, relax.op.add(x, normal(*[1] * (len(x.ty.shape) - 1), int(x.ty.shape[-1]))))


def conv_bias_relu6(emit, x):
    return emit("clip", relax.op.clip(bias(emit, "bias", conv(emit, "conv", x)), 0, 6))


def strided_dilated(emit, x):
    return emit("relu", relax.op.nn.relu(conv(emit, "conv", x, strides=(2, 1), dilation=(1, 2), padding=(0, 2, 1, 1))))


def grouped(emit, x):
    return conv(emit, "conv", emit("relu", relax.op.nn.relu(conv(emit, "first", x))), oc=12, groups=4)


def depthwise(emit, x):
    return emit("relu", relax.op.nn.relu(bias(emit, "bias", conv(emit, "conv", x, groups=8))))


def dense(emit, x):
    product = emit("dense", relax.op.matmul(x, normal(10, 6)))
    return emit("relu", relax.op.nn.relu(bias(emit, "bias", product)))


def batched_matmul(emit, a, b):
    product = emit("scores", relax.op.matmul(a, b))
    scaled = emit("scaled", relax.op.divide(product, scalar(4.0)))
    return emit("again", relax.op.matmul(scaled, a))


def residual(emit, x):
    first = emit("relu1", relax.op.nn.relu(conv(emit, "conv1", x)))
    second = bias(emit, "bias2", conv(emit, "conv2", first))
    total = emit("add", relax.op.add(second, first))
    return conv(emit, "conv3", emit("relu2", relax.op.nn.relu(total)))


def residual_of_difference(emit, x):
    return conv(emit, "conv2", emit("sub", relax.op.subtract(x, conv(emit, "conv1", x))))


def broadcast_add(emit, a, b):
    return emit("relu", relax.op.nn.relu(emit("add", relax.op.add(a, b))))


def constant_add(emit, x):
    return emit("positions", relax.op.add(x, normal(5, 4)))


def squeeze_excite(emit, x):
    features = conv(emit, "conv", x)
    pooled = emit("pool", relax.op.mean(features, [1, 2], keepdims=True))
    gate = emit("sigmoid", relax.op.sigmoid(conv(emit, "gate", pooled, k=1)))
    return emit("mul", relax.op.multiply(features, gate))


def max_pool(emit, x):
    return emit("pool", relax.op.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1), ceil_mode=True, layout="NHWC"))


def avg_pool(emit, x):
    return emit("pool", relax.op.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1), ceil_mode=True, layout="NHWC"))


def avg_pool_with_padding(emit, x):
    return emit("pool", relax.op.nn.avg_pool2d(x, (3, 2), (1, 1), (1, 0, 1, 0), count_include_pad=True, layout="NHWC"))


def mean_of_rows(emit, x):
    return emit("mean", relax.op.mean(x, [2], keepdims=False))


def sum_of_last(emit, x):
    return emit("sum", relax.op.sum(x, [-1], keepdims=True))


def concat(emit, x):
    parts = [conv(emit, "a", x), emit("b.relu", relax.op.nn.relu(conv(emit, "b", x))), x]
    return conv(emit, "c", emit("concat", relax.op.concat(parts, axis=3)))


def movement(emit, x):
    padded = emit("pad", relax.op.nn.pad(x, [0, 0, 1, 2, 0, 1, 0, 0], "constant", 0.5))
    sized = emit("resize", relax.op.image.resize2d(padded, (18, 16), method="nearest_neighbor", layout="NHWC"))
    cut = emit("slice", relax.op.strided_slice(sized, [1, 2], [1, 0], [17, 15], [2, 3]))
    halves = emit("split", relax.op.split(cut, 2, axis=3))
    turned = emit("turn", relax.op.permute_dims(emit("half", halves[1]), [0, 3, 1, 2]))
    flat = emit("flat", relax.op.reshape(turned, (4, 40)))
    return emit("dense", relax.op.matmul(flat, normal(40, 5)))


def hard_swish(emit, x):
    shifted = emit("plus", relax.op.add(x, scalar(3)))
    gate = emit("div", relax.op.divide(emit("clip", relax.op.clip(shifted, 0, 6)), scalar(6)))
    return emit("mul", relax.op.multiply(x, gate))


def gelu(emit, x):
    half = emit("half", relax.op.multiply(x, scalar(0.5)))
    erf = emit("erf", relax.op.erf(emit("scaled", relax.op.divide(x, scalar(2**0.5)))))
    return emit("gelu", relax.op.multiply(half, emit("one", relax.op.add(erf, scalar(1)))))


def shared_sigmoid(emit, x):
    sigmoid = emit("sigmoid", relax.op.sigmoid(x))
    return [emit("silu", relax.op.multiply(x, sigmoid)), sigmoid]


def scale_shift(emit, x):
    scaled = emit("scale", relax.op.multiply(x, normal(8)))
    return emit("relu", relax.op.nn.relu(bias(emit, "shift", scaled)))


def nchw_input(emit, x):
    return conv(emit, "conv", emit("layout", relax.op.permute_dims(x, [0, 2, 3, 1])))


CASES = {
    conv_bias_relu6: (IMAGE, ["quantize", "conv2d", "dequantize"]),
    strided_dilated: (IMAGE, ["quantize", "conv2d", "dequantize"]),
    grouped: (IMAGE, ["quantize", "conv2d", "conv2d"]),
    depthwise: (IMAGE, ["quantize", "conv2d", "dequantize"]),
    dense: ([(3, 10)], ["quantize", "conv2d", "dequantize"]),
    batched_matmul: ([(2, 3, 5, 6), (2, 3, 6, 5)], ["quantize", "quantize", "matmul", "matmul"]),
    residual: (IMAGE, ["quantize", "conv2d", "conv2d", "conv2d"]),
    residual_of_difference: (IMAGE, ["quantize", "conv2d", "conv2d"]),
    broadcast_add: ([(1, 4, 5, 8), (1, 1, 1, 8)], ["quantize", "quantize", "binary", "dequantize"]),
    constant_add: ([(2, 5, 4)], ["quantize", "binary", "dequantize"]),
    squeeze_excite: (IMAGE, ["quantize", "conv2d", "pool2d", "conv2d", "lookup", "binary", "dequantize"]),
    max_pool: (IMAGE, ["quantize", "pool2d", "dequantize"]),
    avg_pool: (IMAGE, ["quantize", "pool2d", "dequantize"]),
    avg_pool_with_padding: (IMAGE, ["quantize", "pool2d", "dequantize"]),
    mean_of_rows: (IMAGE, ["quantize", "pool2d", "dequantize"]),
    sum_of_last: ([(2, 5, 16)], ["quantize", "pool2d", "dequantize"]),
    concat: (IMAGE, ["quantize", "conv2d", "conv2d", "lookup", "conv2d"]),
    movement: (IMAGE, ["quantize", "conv2d"]),
    hard_swish: (IMAGE, ["quantize", "lookup", "dequantize"]),
    gelu: ([(2, 9)], ["quantize", "lookup", "dequantize"]),
    shared_sigmoid: (IMAGE, ["quantize", "lookup", "binary", "dequantize", "dequantize"]),
    scale_shift: (IMAGE, ["quantize", "conv2d", "dequantize"]),
    nchw_input: ([(1, 3, 6, 5)], ["quantize", "conv2d"]),
}


@pytest.mark.parametrize("body", CASES, ids=lambda body: body.__name__)
def test_close_to_float_with_the_expected_kernels(quantized, body):
    shapes, kernels = CASES[body]
    q = quantized(body, shapes)
    assert q.ops == kernels
    assert q.coverage.float == 0 and q.coverage.float_list == ()
    assert q.coverage.boundaries == sum(op in ("quantize", "dequantize") for op in kernels) + (
        kernels[-1] in ("conv2d", "matmul")
    )
    assert [o.shape for o in q.outputs] == [o.shape for o in q.expected]
    assert q.sqnr > 25


@pytest.mark.parametrize("body", CASES, ids=lambda body: body.__name__)
def test_storage_types_compute_the_same(quantized, body, monkeypatch):
    results = []
    for storage in ("uint8", "int8"):
        monkeypatch.setattr(f"{__name__}.RANDOM", np.random.default_rng(2))
        results.append(quantized(body, CASES[body][0], storage).outputs)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_kernels_carry_the_names_of_layers(quantized):
    q = quantized(residual, IMAGE)
    assert list(q.kernels) == ["x0/quantize", "conv1", "conv2", "y"]
    assert [getattr(s, "residual", None) for s in q.kernels.values()] == [None, False, True, False]


def test_logits_are_not_rounded_to_eight_bits(quantized):
    q = quantized(grouped, IMAGE)
    assert q.kernels["y"].y == "float32"
    assert "y" not in q.calibration.qparams


def test_input_transpose_is_part_of_quantize(quantized):
    q = quantized(nchw_input, [(1, 3, 6, 5)])
    assert q.kernels["x0/quantize"].nchw and q.kernels["x0/quantize"].shape == (1, 6, 5, 3)


def test_dense_is_a_convolution_over_rows(quantized):
    q = quantized(dense, [(3, 10)])
    assert q.kernels["dense"] == Conv2d(1, 1, 3, 10, 6)


def test_skipped_layer_is_a_float_island(quantized, recipe):
    skipping = msgspec.structs.replace(recipe, rules=(Rule(layer="conv2", skip=True),))
    q = quantized(residual, IMAGE, recipe=skipping)
    assert [(f.op, f.reason) for f in q.coverage.float_list] == [
        ("conv2d", "skipped by the recipe"),
        ("add", "skipped by the recipe"),
    ]
    assert q.coverage.boundaries == 4
    assert q.sqnr > 25


def test_softmax_is_a_float_island_without_a_detour(quantized):
    def attention(emit, a, b):
        scores = emit("softmax", relax.op.nn.softmax(emit("scores", relax.op.matmul(a, b))))
        return emit("context", relax.op.matmul(emit("again", relax.op.reshape(scores, (1, 5, 5))), a))

    q = quantized(attention, [(1, 5, 6), (1, 6, 5)])
    assert q.ops == ["quantize", "quantize", "matmul", "quantize", "matmul"]
    assert [(f.name, f.op) for f in q.coverage.float_list] == [("softmax", "softmax")]
    assert q.sqnr > 25


def test_tiny_channel_keeps_its_bias(quantized):
    """microsoft/onnxruntime#11415: bias / (s_x * s_w) of a channel of tiny weights does not fit int32."""

    def tiny(emit, x):
        weight = RANDOM.standard_normal((4, 1, 1, 8)).astype(np.float32)
        weight[2] *= 1e-12
        product = relax.op.nn.conv2d(x, relax.const(weight), data_layout="NHWC", kernel_layout="OHWI")
        offset = relax.const(np.array([0, 1, 3, 0], np.float32).reshape(1, 1, 1, 4))
        return emit("bias", relax.op.add(emit("conv", product), offset))

    q = quantized(tiny, IMAGE)
    np.testing.assert_allclose(q.outputs[0][..., 2], 3.0, rtol=1e-5)


ratios = st.floats(min_value=2.0**-12, max_value=2.0**13)


@given(ratios, ratios, st.sampled_from([1, -1]))
def test_fixed_point_fits_int16_and_keeps_precision(a, b, sign):
    ma, mb, shift = fixed_point(a, sign * b)
    assert 1 <= shift <= 22 and max(abs(ma), abs(mb)) < 2**15
    assert shift == 22 or max(round(a * 2 ** (shift + 1)), round(b * 2 ** (shift + 1))) >= 2**15
    assert abs(ma / 2**shift - a) <= 2.0 ** -(shift + 1) and abs(mb / 2**shift - sign * b) <= 2.0 ** -(shift + 1)


def test_fixed_point_refuses_what_cannot_fit():
    with pytest.raises(ValueError, match="no shift fits"):
        fixed_point(2.0**24, 1.0)


def test_missing_parameters_are_named(model, recipe):
    floating = model(conv_bias_relu6, IMAGE)
    with pytest.raises(ConfigError, match="no quantization parameters") as error:
        realize(floating, annotate(floating, recipe), {}, "int8")
    assert error.value.where in ("x0", "conv:weight")
