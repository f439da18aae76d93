"""What TVM imports wrongly or not at all, right after the rewrites: each is compared with onnxruntime on real numbers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

N = helper.make_node
F = np.float32
X = {"x": (F, [1, 2, 5, 7])}
rng = np.random.default_rng(0)


@pytest.mark.parametrize(("negative", "positive"), [(0, 1), (1, 0), (1, 1), (0, 0)])
def test_isinf_flags(model, imported, negative, positive):
    node = N("IsInf", ["x"], ["y"], detect_negative=negative, detect_positive=positive)
    imported(model([node], {"x": (F, [3])}, ["y"]), samples=[{"x": np.array([np.inf, -np.inf, np.nan], F)}])


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_conv_transpose_output_shape(model, imported, auto_pad):
    node = N("ConvTranspose", ["x", "w"], ["y"], strides=[3, 2], output_shape=[14, 15], auto_pad=auto_pad)
    loaded = imported(model([node], X, ["y"], {"w": rng.standard_normal((2, 3, 3, 3)).astype(F)}))
    assert loaded.outputs[0].shape == (1, 3, 14, 15)


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(model, imported, operators, op, auto_pad):
    kernel = {} if op == "Conv" else {"kernel_shape": [2, 4]}
    inputs = ["x", "w"] if op == "Conv" else ["x"]
    node = N(op, inputs, ["y"], strides=[2, 1], auto_pad=auto_pad, **kernel)
    loaded = imported(model([node], X, ["y"], {"w": rng.standard_normal((3, 2, 2, 4)).astype(F)} if op == "Conv" else {}))
    assert len(operators(loaded.module)) == 1


RESIZES = [
    {"mode": "nearest"},
    {"mode": "nearest", "coordinate_transformation_mode": "align_corners", "nearest_mode": "ceil"},
    {"mode": "linear"},
    {"mode": "linear", "antialias": 1},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    {"mode": "cubic", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "cubic", "exclude_outside": 1},
]


@pytest.mark.parametrize("attrs", RESIZES, ids=lambda a: "-".join(map(str, a.values())))
@pytest.mark.parametrize("sizes", [[1, 2, 10, 14], [1, 2, 3, 4], [1, 2, 8, 5]], ids=str)
def test_resize(model, imported, attrs, sizes):
    imported(model([N("Resize", ["x", "", "", "s"], ["y"], **attrs)], X, ["y"], {"s": np.array(sizes)}))


def test_integer_nearest_resize_stays_a_resize(model, imported, operators):
    attrs = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel"}
    node = N("Resize", ["x", "", "s"], ["y"], "up", **attrs)
    loaded = imported(model([node], X, ["y"], {"s": np.array([1, 1, 2, 3], F)}))
    assert operators(loaded.module) == [("up", "relax.image.resize2d")]


def test_upsample(model, imported, operators):
    loaded = imported(model([N("Upsample", ["x", "s"], ["y"], "up")], X, ["y"], {"s": np.array([1, 1, 2, 2], F)}, opset=9))
    assert operators(loaded.module) == [("up", "relax.image.resize2d")]


def test_layer_normalization_with_all_outputs(model, imported):
    imported(
        model(
            [N("LayerNormalization", ["x", "s"], ["y", "m", "i"])], X, ["y", "m", "i"], {"s": rng.random(7).astype(F)}, opset=17
        )
    )


def test_dropout_mask(model, imported):
    imported(model([N("Dropout", ["x"], ["y", "m"])], {"x": (F, [3])}, ["y", "m"]))


@pytest.mark.parametrize("fmod", [0, 1])
@pytest.mark.parametrize("dtype", [np.int32, F])
def test_mod_signs(model, imported, fmod, dtype):
    if dtype is F and not fmod:
        pytest.skip("ONNX had no such operator before opset 27; onnxruntime has none")
    divisor = {"d": np.array([3, -3, 3, -3], dtype)}
    sample = {"x": np.array([-7, 7, 7, -7], dtype)}
    imported(model([N("Mod", ["x", "d"], ["y"], fmod=fmod)], {"x": (dtype, [4])}, ["y"], divisor), samples=[sample])


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bit_shift_beyond_the_width(model, imported, direction):
    node = N("BitShift", ["x", "n"], ["y"], direction=direction)
    inputs = {"x": (np.uint32, [4]), "n": (np.uint32, [4])}
    built = model([node], inputs, ["y"])
    sample = {"x": np.array([1, 2**31, 5, 7], np.uint32), "n": np.array([31, 31, 32, 40], np.uint32)}
    from tvmflow.importer.check import run_module
    from tvmflow.importer.onnx import from_model

    got = run_module(from_model(built, {}, lambda what: None).module)([sample["x"], sample["n"]])[0]
    want = [2**31, 0, 0, 0] if direction == "LEFT" else [0, 1, 0, 0]
    assert got.tolist() == want


def test_half_precision_accumulates_in_float(model, imported, operators):
    weight = {"w": rng.standard_normal((8, 64, 3, 3)).astype(np.float16)}
    loaded = imported(model([N("Conv", ["x", "w"], ["y"], "conv")], {"x": (np.float16, [1, 64, 6, 6])}, ["y"], weight))
    assert [op for _, op in operators(loaded.module)] == ["relax.astype", "relax.nn.conv2d", "relax.astype"]
    assert operators(loaded.module)[-1][0] == "conv"


def test_model_local_function(model, imported):
    body = [N("Relu", ["a"], ["r"]), N("Add", ["r", "a"], ["b"])]
    function = helper.make_function("mine", "Foo", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    foo = N("Foo", ["x"], ["y"], domain="mine")
    imported(model([foo], {"x": (F, [3])}, {"y": (F, [3])}, domains={"mine": 1}, functions=[function]))


@pytest.mark.parametrize("taken", [True, False])
def test_constant_condition(model, imported, operators, taken):
    branches = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
        out = helper.make_tensor_value_info("o", 1, [3])
        branches[name] = helper.make_graph([N(op, ["x"], ["o"])], name, [], [out])
    loaded = imported(model([N("If", ["c"], ["y"], "choice", **branches)], {"x": (F, [3])}, ["y"], {"c": np.array(taken)}))
    assert [op for _, op in operators(loaded.module)] == ["relax.negative" if taken else "relax.abs"]


@pytest.mark.parametrize("attrs", [{"op": "Celu", "alpha": 0.7}, {"op": "HardSwish"}, {"op": "MeanVarianceNormalization"}])
def test_function_operators(model, imported, attrs):
    attrs = dict(attrs)
    imported(model([N(attrs.pop("op"), ["x"], ["y"], **attrs)], X, ["y"], opset=14))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad_modes_become_relax_operators(model, imported, operators, mode):
    node = N("Pad", ["x", "p"], ["y"], mode=mode)
    loaded = imported(
        model([node], X, ["y"], {"p": np.array([0, 0, 1, 2, 0, 1, 3, 1] if mode == "constant" else [0, 0, 1, 2, 0, 0, 3, 1])})
    )
    assert "relax.call_tir" not in [op for _, op in operators(loaded.module)]


def test_negative_pads_crop(model, imported):
    imported(model([N("Pad", ["x", "p"], ["y"])], X, ["y"], {"p": np.array([0, 0, -1, 2, 0, 0, -1, -1])}))


def test_clip_is_relax_clip(model, imported, operators):
    loaded = imported(model([N("Clip", ["x", "a", "b"], ["y"], "c")], X, ["y"], {"a": F(0), "b": F(6)}))
    assert operators(loaded.module) == [("c", "relax.clip")]


def test_gemm_folds_its_transposes_and_factors(model, imported, operators):
    node = N("Gemm", ["x", "w", "b"], ["y"], "fc", transB=1, alpha=0.5, beta=2.0)
    weights = {"w": rng.standard_normal((4, 6)).astype(F), "b": rng.standard_normal((1, 4)).astype(F)}
    loaded = imported(model([node], {"x": (F, [2, 6])}, ["y"], weights))
    assert operators(loaded.module) == [("fc/1", "relax.matmul"), ("fc", "relax.add")]


def test_one_dimensional_convolution(model, imported):
    node = N("Conv", ["x", "w", "b"], ["y"], pads=[1, 2], strides=[2], dilations=[2], group=2)
    weights = {"w": rng.standard_normal((6, 2, 3)).astype(F), "b": rng.standard_normal(6).astype(F)}
    imported(model([node], {"x": (F, [2, 4, 11])}, ["y"], weights))


@pytest.mark.parametrize(("op", "sign"), [("ReduceMax", -1), ("ReduceMin", 1)])
def test_extreme_of_infinite_rows(model, op, sign):
    from tvmflow.importer.check import run_module
    from tvmflow.importer.onnx import from_model

    nodes = [N("Where", ["m", "x", "inf"], ["w"]), N(op, ["w", "axes"], ["y"], keepdims=0)]
    constants = {"inf": F(sign * np.inf), "axes": np.array([1])}
    built = model(nodes, {"x": (F, [2, 3]), "m": (np.bool_, [2, 3])}, ["y"], constants)
    mask = np.array([[False] * 3, [True, False, True]])
    module = from_model(built, {}, lambda what: None).module
    x = np.arange(6, dtype=F).reshape(2, 3)
    assert run_module(module)([x, mask])[0].tolist() == [sign * np.inf, 5.0 if op == "ReduceMax" else 3.0]


def test_extreme_of_finite_rows_stays_one_operator(model, imported, operators):
    loaded = imported(model([N("ReduceMax", ["x", "a"], ["y"])], {"x": (F, [2, 3])}, ["y"], {"a": np.array([1])}))
    assert [op for _, op in operators(loaded.module)] == ["relax.max"]


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_extreme_of_booleans(model, imported, op):
    imported(model([N(op, ["x", "a"], ["y"])], {"x": (np.bool_, [4, 3])}, ["y"], {"a": np.array([1])}))
