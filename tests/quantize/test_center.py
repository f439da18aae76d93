"""Center: the function stays, the means go; layers that could not restore them are left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from tvmflow.data import load_data
from tvmflow.errors import ConfigError
from tvmflow.model import Model, TensorInfo
from tvmflow.quantize.cache import channel_means_cached
from tvmflow.quantize.calibrate import with_outputs
from tvmflow.quantize.center import centerable, centered, channel_means
from tvmflow.quantize.graph import view

RANDOM = np.random.default_rng(0)
SHAPE = (1, 5, 5, 4)


def array(*shape: int, offset: float = 0.0) -> np.ndarray:
    return (RANDOM.standard_normal(shape) + offset).astype(np.float32)


class Net:
    """A builder of NHWC networks with layer names."""

    def __init__(self) -> None:
        self.builder = relax.BlockBuilder()
        self.x = relax.Var("x", relax.TensorType(SHAPE, "float32"))

    def conv(self, x: relax.Expr, name: str, *, pad: int = 0, size: int = 1, groups: int = 1, bias: bool = True) -> relax.Expr:
        weight = relax.const(array(4, size, size, 4 // groups))
        conv = relax.op.nn.conv2d(x, weight, padding=pad, groups=groups, data_layout="NHWC", kernel_layout="OHWI")
        conv = self.builder.emit(conv, name_hint=f"{name}/1")
        return self.builder.emit(relax.op.add(conv, relax.const(array(1, 1, 1, 4, offset=5.0))), name_hint=name) if bias else conv

    def relu(self, x: relax.Expr, name: str) -> relax.Expr:
        return self.builder.emit(relax.op.nn.relu(x), name_hint=name)

    def add(self, a: relax.Expr, b: relax.Expr, name: str) -> relax.Expr:
        return self.builder.emit(relax.op.add(a, b), name_hint=name)


def finish(net: Net, build) -> Model:  # type: ignore[no-untyped-def]
    with net.builder.function("main", [net.x]):
        with net.builder.dataflow():
            result = net.builder.emit_output(relax.op.nn.relu(build(net)), name_hint="out")
        net.builder.emit_func_output(result)
    info = TensorInfo("x", SHAPE, "float32")
    return Model(net.builder.get(), (info,), (TensorInfo("out", SHAPE, "float32"),), "net")


def run(module: tvm.IRModule):  # type: ignore[no-untyped-def]
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())

    def execute(arguments):  # type: ignore[no-untyped-def]
        result = machine["main"](*[tvm.runtime.tensor(a) for a in arguments])
        return [result.numpy()] if hasattr(result, "numpy") else [r.numpy() for r in result]

    return execute


SAMPLES = [{"x": array(*SHAPE)} for _ in range(8)]


def residual(net: Net) -> relax.Expr:
    """Two narrow ends joined by a sum, as in an inverted residual block."""
    narrow = net.conv(net.x, "narrow")
    wide = net.relu(net.conv(narrow, "expand"), "wide")
    deep = net.relu(net.conv(wide, "depthwise", pad=1, size=3, groups=4), "deep")
    total = net.add(narrow, net.conv(deep, "project"), "sum")
    return net.conv(total, "head", size=3)


def test_the_function_stays_and_the_means_go() -> None:
    model = finish(Net(), residual)
    assert centerable(view(model.module)) == ["narrow", "sum"]
    means = channel_means(model, SAMPLES, run)
    after = centered(model, means)
    assert after.history == ("center",)
    watched = ["narrow", "sum", "out"]
    before, now = (run(with_outputs(m.module, watched)) for m in (model, after))
    sums = {t: np.zeros(4) for t in watched}
    for sample in SAMPLES:
        old, new = before([sample["x"]]), now([sample["x"]])
        assert np.allclose(old[2], new[2], atol=1e-4)
        for tensor, value in zip(watched, new, strict=True):
            sums[tensor] += value.reshape(-1, 4).mean(axis=0) / len(SAMPLES)
    assert np.abs(means["narrow"]).max() > 3
    assert np.abs(sums["narrow"]).max() < 1e-5
    assert np.abs(sums["sum"]).max() < 1e-4


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_and_larger_kernels_restore_the_means(size: int, groups: int) -> None:
    model = finish(Net(), lambda net: net.conv(net.conv(net.x, "narrow"), "reader", size=size, groups=groups))
    after = centered(model, {"narrow": np.array([1.0, -2.0, 30.0, 4.0])})
    sample = SAMPLES[0]["x"]
    assert np.allclose(run(model.module)([sample])[0], run(after.module)([sample])[0], atol=1e-3)


@pytest.mark.parametrize(
    "build",
    [
        lambda net: net.conv(net.conv(net.x, "t"), "reader", pad=1, size=3),  # zeros around the input are not shifted
        lambda net: net.conv(net.relu(net.conv(net.x, "t"), "relu"), "reader"),  # not linear
        lambda net: net.conv(net.conv(net.x, "t"), "reader", bias=False),  # nowhere to restore
        lambda net: net.conv(net.conv(net.x, "t", bias=False), "reader"),  # nothing to subtract from
        lambda net: net.conv(net.add(net.x, net.relu(net.conv(net.x, "t"), "r"), "sum"), "reader"),  # no free operand
    ],
)
def test_what_can_not_be_restored_is_left_alone(build) -> None:  # type: ignore[no-untyped-def]
    model = finish(Net(), build)
    assert centerable(view(model.module)) == []
    assert channel_means(model, SAMPLES, run) == {}


def test_a_reader_that_does_not_absorb_spoils_the_whole_chain() -> None:
    def build(net: Net) -> relax.Expr:
        narrow = net.conv(net.x, "narrow")
        total = net.add(narrow, net.conv(net.x, "project"), "sum")
        return net.add(net.relu(total, "relu"), net.conv(total, "reader"), "last")

    assert centerable(view(finish(Net(), build).module)) == []


def test_the_cache_keeps_the_means_exactly(tmp_path: Path) -> None:
    model = replace(finish(Net(), residual), sha256="cafe")
    np.savez(tmp_path / "d.npz", x=np.concatenate([s["x"] for s in SAMPLES]))
    data = load_data(tmp_path / "d.npz", model.inputs)

    def unused(module: tvm.IRModule) -> None:
        raise AssertionError("compiled again")

    first = channel_means_cached(model, data, run, tmp_path)
    again = channel_means_cached(model, data, unused, tmp_path)  # type: ignore[arg-type]
    assert first.keys() == again.keys() == {"narrow", "sum"}
    assert all(np.array_equal(first[t], again[t]) for t in first)


def test_means_of_another_model_are_refused() -> None:
    model = finish(Net(), residual)
    with pytest.raises(ConfigError, match="can't be centred"):
        centered(model, {"expand": np.zeros(4)})
    with pytest.raises(ConfigError, match="can't be centred"):
        centered(model, {"sum": np.zeros(3)})
