"""Calibration of a small network: parameters, sharing, cache, and doubts about the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from tvmflow.data import load_data
from tvmflow.errors import ConfigError, DataError
from tvmflow.model import Model, TensorInfo
from tvmflow.quantize.cache import cache_key, cache_path, calibrate_cached, read_cache
from tvmflow.quantize.calibrate import Executable, calibrate, with_outputs
from tvmflow.quantize.plan import Group, Plan, Site
from tvmflow.quantize.recipe import ActivationChange, Recipe, Rule, load_recipe

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((4, 3, 3, 3)).astype(np.float32)
WEIGHT[1] = 0
WEIGHT[2] *= 1e-14
BIAS = np.array([0.5, 1.0, 200.0, -1.0], np.float32)
INPUT = TensorInfo("image", (1, 6, 6, 3), "float32")


def conv_pool() -> Model:
    image = relax.Var("image", relax.TensorType(INPUT.shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [image]):
        with builder.dataflow():
            conv = relax.op.nn.conv2d(image, relax.const(WEIGHT), padding=1, data_layout="NHWC", kernel_layout="OHWI")
            conv = builder.emit(conv, name_hint="/c/Conv")
            biased = builder.emit(relax.op.add(conv, relax.const(BIAS.reshape(1, 1, 1, 4))), name_hint="/c/Bias")
            relu = builder.emit(relax.op.nn.relu(biased), name_hint="/c/Relu")
            pool = builder.emit(relax.op.nn.max_pool2d(relu, (2, 2), (2, 2), layout="NHWC"), name_hint="/p/MaxPool")
            out = builder.emit_output(relax.op.mean(pool, [1, 2]), name_hint="pooled")
        builder.emit_func_output(out)
    return Model(builder.get(), (INPUT,), (TensorInfo("pooled", (1, 4), "float32"),), "tiny", sha256="cafe")


PLAN = Plan(
    (
        Site("image", "input", (1, 6, 6, 3)),
        Site("/c/Conv:weight", "weight", (4, 3, 3, 3), 0),
        Site("/c/Relu", "activation", (1, 6, 6, 4)),
        Site("/p/MaxPool", "activation", (1, 3, 3, 4), like="/c/Relu"),
        Site("pooled", "activation", (1, 4)),
    ),
    (
        Group("/c/Conv", "conv2d", ("/c/Conv", "/c/Bias", "/c/Relu"), ("image",), "/c/Relu", "/c/Conv:weight"),
        Group("/p/MaxPool", "max_pool", ("/p/MaxPool",), ("/c/Relu",), "/p/MaxPool"),
        Group("pooled", "mean", ("pooled",), ("/p/MaxPool",), "pooled"),
    ),
)


def run(module: tvm.IRModule) -> Executable:
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())

    def execute(arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [value.numpy() for value in machine["main"](*[tvm.runtime.tensor(a) for a in arguments])]

    return execute


def samples(count: int, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(5)
    return [{"image": (scale * random.standard_normal(INPUT.shape)).astype(np.float32)} for _ in range(count)]


def test_with_outputs_returns_the_tensors_asked_for_and_computes_nothing_else() -> None:
    module = with_outputs(conv_pool().module, ["/c/Relu", "image", "/c/Conv"])
    bound = [b.var.name for b in module["main"].body.blocks[0].bindings]
    assert bound == ["/c/Conv", "/c/Bias", "/c/Relu", "/c/Relu:seen", "/c/Conv:seen"]
    image = samples(1)[0]["image"]
    relu, same, conv = run(module)([image])
    assert np.array_equal(same, image)
    assert np.allclose(relu, np.maximum(conv + BIAS, 0))


def test_parameters_cover_what_the_layers_give() -> None:
    data = samples(12)
    found = calibrate(conv_pool(), PLAN, load_recipe("int8"), data, run)
    (relu,) = zip(*(run(with_outputs(conv_pool().module, ["/c/Relu"]))([s["image"]]) for s in data), strict=True)
    assert set(found.qparams) == {s.id for s in PLAN.sites}
    param = found.qparams["/c/Relu"]
    assert (param.low, param.high, param.observer) == (0, np.max(relu), "minmax")
    assert param.scale[0] == pytest.approx(np.max(relu) / 255)
    assert param.zero_point == -128
    assert found.qparams["/p/MaxPool"] is param
    assert found.qparams["image"].low == min(s["image"].min() for s in data)
    assert (found.samples, found.stats["/c/Relu"].total) == (12, 12 * 6 * 6 * 4)
    assert sum(found.stats["image"].counts) == 12 * 6 * 6 * 3
    assert found.convergence[-1][0] == 8


def test_weights_have_a_scale_per_channel_that_leaves_room_for_the_bias() -> None:
    found = calibrate(conv_pool(), PLAN, load_recipe("int8"), samples(8), run).qparams
    scale = found["/c/Conv:weight"].scale
    largest = np.abs(WEIGHT).max(axis=(1, 2, 3)) / 127
    assert scale[[0, 3]] == pytest.approx(largest[[0, 3]])
    assert scale[1] == pytest.approx(largest.max())  # a channel of zeros
    assert scale[2] > largest[2]  # tiny weights, a bias of 200
    assert np.all(np.abs(BIAS / (found["image"].scale[0] * scale.astype(np.float64))) <= 2**30 * 1.001)


def test_rules_choose_the_observer_of_a_layer() -> None:
    rules = (
        Rule(op="input", activation=ActivationChange(observer="percentile", percentile=90.0)),
        Rule(layer="pooled", skip=True),
    )
    found = calibrate(conv_pool(), PLAN, Recipe(1, "r", rules=rules), samples(16), run).qparams
    assert found["image"].observer == "percentile 90"
    assert found["image"].high < 2
    assert found["/c/Relu"].observer == found["pooled"].observer == "minmax"


def test_an_infinite_activation_names_the_layer_and_the_sample() -> None:
    data = samples(3)
    data[2]["image"][0, 3, 3, 1] = 1e5

    def overflowing(module: tvm.IRModule) -> Executable:
        execute = run(module)
        return lambda arguments: [np.where(np.abs(v) > 1e3, np.float32(np.inf), v) for v in execute(arguments)]

    with pytest.raises(DataError, match="'/c/Relu', calibration sample 2"):
        calibrate(conv_pool(), PLAN, load_recipe("int8"), data, overflowing)
    data[1]["image"] = np.full(INPUT.shape, np.nan, np.float32)
    with pytest.raises(DataError, match="'image', calibration sample 1"):
        calibrate(conv_pool(), PLAN, load_recipe("int8"), data, run)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "no calibration samples"),
        ([{"imag": np.zeros(3)}], "no input 'image'"),
        ([{"image": np.zeros((1, 6, 6), np.float32)}], r"the model wants \[1, 6, 6, 3\]"),
    ],
)
def test_samples_that_do_not_fit_are_refused(data: list[dict[str, np.ndarray]], says: str) -> None:
    with pytest.raises(DataError, match=says):
        calibrate(conv_pool(), PLAN, load_recipe("int8"), data, run)


def test_progress_counts_samples() -> None:
    seen: list[tuple[str, int, int]] = []
    calibrate(conv_pool(), PLAN, load_recipe("int8"), samples(3), run, lambda *step: seen.append(step))
    assert seen == [("calibrate", n, 3) for n in range(4)]


def notes(data: list[dict[str, np.ndarray]]) -> str:
    return "\n".join(calibrate(conv_pool(), PLAN, load_recipe("int8"), data, run).notes)


def test_good_data_raise_no_doubts() -> None:
    assert notes(samples(64)) == ""


def test_doubtful_data_are_named() -> None:
    assert "only 3 calibration samples" in notes(samples(3))
    assert "4 of 16 calibration samples are copies" in notes([*samples(12), *samples(4)])
    constant = {"image": np.full(INPUT.shape, 2.0, np.float32)}
    assert "'image' is constant in 1 of 17" in notes([*samples(16), constant])
    pixels = np.random.default_rng(0).integers(0, 256, (16, *INPUT.shape))
    assert "look like raw pixels" in notes([{"image": p.astype(np.float32)} for p in pixels])
    growing = notes([*samples(16, 0.1), *samples(16, 10.0)])
    assert "ranges still grew after the first 16 of 32" in growing


def test_the_cache_answers_for_equal_inputs_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.concatenate([s["image"] for s in samples(10)]))
    data = load_data(tmp_path / "d.npz", (INPUT,))
    model, recipe = conv_pool(), load_recipe("int8")
    compiled: list[int] = []

    def counting(module: tvm.IRModule) -> Executable:
        compiled.append(1)
        return run(module)

    first = calibrate_cached(model, PLAN, recipe, data, counting, tmp_path / "work")
    again = calibrate_cached(model, PLAN, recipe, data, counting, tmp_path / "work")
    assert len(compiled) == 1
    for site, param in first.qparams.items():
        assert np.array_equal(param.scale, again.qparams[site].scale)
        assert (param.zero_point, param.low, param.high, param.observer) == (
            again.qparams[site].zero_point,
            again.qparams[site].low,
            again.qparams[site].high,
            again.qparams[site].observer,
        )
    assert (first.stats, first.notes, first.convergence, first.samples) == (
        again.stats,
        again.notes,
        again.convergence,
        again.samples,
    )
    calibrate_cached(model, PLAN, load_recipe("int8-mse"), data, counting, tmp_path / "work")
    calibrate_cached(model, PLAN, recipe, load_data(f"{tmp_path}/d.npz[0:9]", (INPUT,)), counting, tmp_path / "work")
    assert len(compiled) == 3


def test_an_interrupted_calibration_leaves_no_cache_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.concatenate([s["image"] for s in samples(10)]))
    data = load_data(tmp_path / "d.npz", (INPUT,))
    recipe = load_recipe("int8")
    key = cache_key(conv_pool(), data.sha256, recipe, PLAN)

    def interrupted(what: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_cached(conv_pool(), PLAN, recipe, data, run, tmp_path, interrupted)
    assert read_cache(tmp_path, key, PLAN) is None
    cache_path(tmp_path, key).parent.mkdir(exist_ok=True)
    cache_path(tmp_path, key).write_text('{"schema": 1')
    with pytest.raises(ConfigError, match="delete this file"):
        read_cache(tmp_path, key, PLAN)


def test_samples_may_come_from_a_generator() -> None:
    def generator() -> Iterator[dict[str, np.ndarray]]:
        yield from samples(9)

    assert calibrate(conv_pool(), PLAN, load_recipe("int8"), generator(), run).samples == 9
