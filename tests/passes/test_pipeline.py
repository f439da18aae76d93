"""The whole stage: contracts between passes, errors, names, and random networks that compute what they computed before."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import relax

from tvmflow.errors import InternalError
from tvmflow.model import Model, TensorInfo
from tvmflow.optimize import pipeline
from tvmflow.optimize.pipeline import PASSES, check, optimize
from tvmflow.trace import Trace


def const(rng: np.random.Generator, *shape: int) -> relax.Expr:
    return relax.const(rng.uniform(-1, 1, shape).astype("float32"))


class Network:
    """Appends layers, as an importer would spell them, to a 4-D NCHW tensor."""

    def __init__(self, seed: int, channels: int, size: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.input = relax.Var("input", relax.TensorType((1, channels, size, size), "float32"))
        self.build = relax.BlockBuilder()
        self.x: Any = self.input

    def shape(self) -> list[int]:
        return [int(d) for d in self.x.ty.shape]

    def emit(self, expr: relax.Expr, name: str = "") -> None:
        self.x = self.build.emit(expr, name)

    def conv(self, groups: int = 1, out: int = 4) -> None:
        channels = self.shape()[1]
        groups = groups if channels % groups == 0 and out % groups == 0 else 1
        weight = const(self.rng, out, channels // groups, 3, 3)
        self.emit(relax.op.nn.conv2d(self.x, weight, padding=1, groups=groups), "conv")
        self.emit(relax.op.add(self.x, relax.op.reshape(const(self.rng, out), (1, out, 1, 1))), "bias")

    def depthwise(self) -> None:
        channels = self.shape()[1]
        self.emit(relax.op.nn.conv2d(self.x, const(self.rng, channels, 1, 3, 3), padding=1, groups=channels), "depthwise")

    def batch_norm(self) -> None:
        channels = self.shape()[1]
        gamma, beta, mean = (const(self.rng, channels) for _ in range(3))
        var = relax.const(self.rng.uniform(0.5, 2, channels).astype("float32"))
        norm = self.build.emit(relax.op.nn.batch_norm(self.x, gamma, beta, mean, var, axis=1, training=False), "norm")
        self.emit(relax.TupleGetItem(norm, 0))

    def relu6(self) -> None:
        self.emit(relax.op.maximum(self.x, relax.const(0.0)))
        self.emit(relax.op.minimum(self.x, relax.const(6.0)))

    def hard_swish(self) -> None:
        x = self.x
        self.emit(relax.op.clip(relax.op.add(x, relax.const(3.0)), 0, 6))
        self.emit(relax.op.divide(relax.op.multiply(x, self.x), relax.const(6.0)))

    def gate(self) -> None:
        x, channels = self.x, self.shape()[1]
        self.emit(relax.op.mean(x, [2, 3], keepdims=True))
        self.emit(relax.op.nn.conv2d(self.x, const(self.rng, channels, channels, 1, 1)))
        self.emit(relax.op.multiply(x, relax.op.sigmoid(self.x)))

    def residual(self) -> None:
        x, channels = self.x, self.shape()[1]
        self.emit(relax.op.nn.conv2d(x, const(self.rng, channels, channels, 1, 1)), "branch")
        self.emit(relax.op.nn.relu(relax.op.add(self.x, x)))

    def concat(self) -> None:
        self.emit(relax.op.concat([self.x, relax.op.nn.relu(self.x)], axis=1))

    def shuffle(self) -> None:
        n, c, h, w = self.shape()
        self.emit(relax.op.reshape(self.x, (n, 2, c // 2, h, w)))
        self.emit(relax.op.permute_dims(self.x, [0, 2, 1, 3, 4]))
        self.emit(relax.op.reshape(self.x, (n, c, h, w)))

    def padded_pool(self) -> None:
        self.emit(relax.op.nn.pad(self.x, (0, 0, 0, 0, 1, 0, 0, 1)))
        self.emit(relax.op.nn.avg_pool2d(self.x, pool_size=(2, 2)))

    def transposed(self) -> None:
        channels = self.shape()[1]
        self.emit(relax.op.nn.conv2d_transpose(self.x, const(self.rng, channels, 4, 2, 2), strides=2))
        self.emit(relax.op.nn.max_pool2d(self.x, pool_size=(2, 2), strides=(2, 2)))

    def halves(self) -> None:
        parts = self.build.emit(relax.op.split(self.x, 2, axis=1))
        self.emit(relax.op.multiply(relax.TupleGetItem(parts, 0), relax.op.tanh(relax.TupleGetItem(parts, 1))))
        self.emit(relax.op.concat([self.x, self.x], axis=1))

    def to_1d_and_back(self) -> None:
        n, c, h, w = self.shape()
        self.emit(relax.op.reshape(self.x, (n, c, h * w)))
        self.emit(relax.op.nn.conv1d(self.x, const(self.rng, c, c, 3), padding=1))
        self.emit(relax.op.reshape(self.x, (n, c, h, w)))

    def pool_head(self) -> None:
        self.emit(relax.op.nn.adaptive_avg_pool2d(self.x, (1, 1)))
        self.dense_head()

    def dense_head(self) -> None:
        self.emit(relax.op.nn.relu(relax.op.nn.batch_flatten(self.x)))
        weight = const(self.rng, 3, self.shape()[1])
        self.emit(relax.op.matmul(self.x, relax.op.permute_dims(weight)), "dense")
        self.emit(relax.op.add(self.x, const(self.rng, 3)))

    def no_head(self) -> None:
        self.emit(relax.op.sigmoid(self.x))

    def module(self, layers: list[str]) -> tvm.IRModule:
        with self.build.function("main", [self.input]):
            with self.build.dataflow():
                for layer in layers:
                    getattr(self, layer)()
                result = self.build.emit_output(self.x)
            self.build.emit_func_output(result)
        return self.build.get()


LAYERS = [
    "batch_norm",
    "concat",
    "conv",
    "depthwise",
    "gate",
    "halves",
    "hard_swish",
    "padded_pool",
    "relu6",
    "residual",
    "shuffle",
    "to_1d_and_back",
    "transposed",
]


def optimized(module: tvm.IRModule, trace: Trace | None = None) -> tvm.IRModule:
    info = TensorInfo("input", (1, 4, 4, 4), "float32")
    return optimize(Model(module, (info,), (info,), "random"), trace).module


NETWORKS = given(
    layers=st.lists(st.sampled_from(LAYERS), min_size=2, max_size=6),
    head=st.sampled_from(["pool_head", "dense_head", "no_head"]),
    seed=st.integers(0, 99),
)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=QUIET)
@NETWORKS
def test_random_networks_compute_the_same(layers: list[str], head: str, seed: int, compute) -> None:
    computes_the_same(layers, head, seed, compute)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@NETWORKS
def test_many_random_networks_compute_the_same(layers: list[str], head: str, seed: int, compute) -> None:
    computes_the_same(layers, head, seed, compute)


def computes_the_same(layers: list[str], head: str, seed: int, compute: Callable[..., list[np.ndarray]]) -> None:
    """Asserts that the stage changes a network's output by less than 1e-4 of its largest element."""
    network = Network(seed, 4, 4)
    before = network.module(["conv", *layers, head])
    after = optimized(before)
    relax.analysis.well_formed(after)
    x = np.random.default_rng(seed).standard_normal((1, 4, 4, 4)).astype("float32")
    expected, got = compute(before, x)[0], compute(after, x)[0]
    assert np.abs(got - expected).max() <= 1e-4 * max(np.abs(expected).max(), 1.0)


def test_mobile_block_is_conv_bias_clip_in_nhwc(names) -> None:
    network = Network(0, 3, 8)
    module = network.module(["conv", "batch_norm", "relu6", "depthwise", "batch_norm", "relu6", "conv", "pool_head"])
    after = optimized(module)
    ops = [b.value.op.name.removeprefix("relax.") for b in after["main"].body.blocks[0].bindings]
    conv = ["nn.conv2d", "add"]
    assert ops == ["permute_dims", *conv, "clip", *conv, "clip", *conv, "mean", "nn.relu", "reshape", "matmul", "add"]
    assert [n for n in names(after) if n.rstrip("0123456789") in ("conv", "depthwise", "dense")] == [
        "conv",
        "depthwise",
        "conv1",
        "dense",
    ]


def test_dump_shows_the_module_after_each_pass(tmp_path) -> None:
    optimized(Network(0, 4, 4).module(["conv", "no_head"]), Trace(dump=tmp_path))
    assert [p.stem[3:] for p in sorted(tmp_path.glob("*.py"))] == [f"optimize_{pipeline.name_of(p)}" for p in PASSES]


def test_contracts_of_the_literal_order_hold() -> None:
    check(PASSES)
    with pytest.raises(InternalError, match="constants second|canonical shapes"):
        check(PASSES[::-1])


def test_failure_names_the_pass_and_those_before_it(monkeypatch) -> None:
    def run(module: tvm.IRModule) -> tvm.IRModule:
        raise ValueError("no such axis")

    monkeypatch.setattr(pipeline, "PASSES", (*PASSES[:2], SimpleNamespace(__name__="broken", run=run, REQUIRES=(), ENSURES=())))
    with pytest.raises(InternalError, match="no such axis") as caught:
        optimized(Network(0, 4, 4).module(["conv", "no_head"]))
    assert caught.value.where == "optimize/broken"
    assert "name_te_calls, fold_constants" in caught.value.remedy
