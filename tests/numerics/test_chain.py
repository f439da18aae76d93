"""Chains of convolutions: rings and seams at every size, and what is fused into one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import tvm
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.numerics.kernels import check, runnable, tensors
from tests.numerics.test_products import ACTIVATIONS, offering
from tvmflow.kernels.call import kernel_args, kernel_call, kernel_of
from tvmflow.kernels.interpret import interpret
from tvmflow.kernels.spec import Chain, Conv2d
from tvmflow.model import Model
from tvmflow.schedule.chain import ChainTile, held_rows
from tvmflow.schedule.conv2d_geometry import ConvTile
from tvmflow.schedule.depthwise_float import DepthwiseFloatTile
from tvmflow.schedule.fuse_chains import fuse_chains
from tvmflow.schedule.template import template_for
from tvmflow.target import get_target

FLOAT = runnable(("fma512", "fma256", "sse", "generic_f32"))


def follow(before: Conv2d, oc: int, kernel: int = 1, **more: object) -> Conv2d:
    """A float32 stage behind another: depthwise when its kernel is larger than a pixel."""
    pad = kernel // 2
    sides = {"n": before.n, "h": before.oh, "w": before.ow, "ic": before.oc, "kh": kernel, "kw": kernel, "pad": (pad,) * 4}
    return Conv2d(**{**sides, "oc": oc, "x": "float32", "y": "float32", **more})


def depthwise(before: Conv2d, kernel: int = 3, **more: object) -> Conv2d:
    return follow(before, before.oc, kernel, groups=before.oc, **more)


def image(h: int, w: int, channels: int, n: int = 1) -> Conv2d:
    """A pointwise stage of nothing, to hang the first real one behind."""
    return Conv2d(n, h, w, channels, channels, x="float32", y="float32")


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    channels = st.sampled_from((2, 3, 7, 16, 17, 24))
    start = image(
        draw(st.sampled_from((1, 3, 7, 13, 17, 29))), draw(st.integers(1, 19)), draw(channels), draw(st.sampled_from((1, 1, 2)))
    )
    stages = []
    first = draw(st.sampled_from(("none", "pointwise", "convolution")))
    if first != "none":
        kernel = (
            {"pad": (1, 0, 1, 1), "stride": (draw(st.integers(1, 2)), draw(st.integers(1, 2)))} if first == "convolution" else {}
        )
        kernel["nchw"] = draw(st.booleans())
        stages.append(follow(start, draw(channels), 3 if first == "convolution" else 1, **kernel))
    for _ in range(draw(st.integers(1, 2))):
        pads = tuple(draw(st.integers(0, 3)) for _ in range(4))
        steps = {"stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))), "dilation": (draw(st.integers(1, 2)), 1)}
        stages.append(depthwise(stages[-1] if stages else start, draw(st.sampled_from((2, 3, 5))), pad=pads, **steps))
        assume(stages[-1].oh > 0 and stages[-1].ow > 0)
        stages.append(follow(stages[-1], draw(channels)))
    assume(all(stage.oh > 0 and stage.ow > 0 for stage in stages))
    stages[-1] = msgspec.structs.replace(stages[-1], residual=draw(st.booleans()))
    stages = [msgspec.structs.replace(stage, activation=draw(ACTIVATIONS)) for stage in stages]
    return Chain(tuple(stages))


@pytest.mark.parametrize("instruction", FLOAT)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_chain(instruction: str, data: st.DataObject) -> None:
    spec, target = data.draw(chains()), offering(instruction)
    tile = data.draw(st.sampled_from(list(template_for(spec, target).space(spec, target))))
    cut = msgspec.structs.replace(
        tile,
        rows=data.draw(st.sampled_from((1, 2, 3, 8))),
        threads=data.draw(st.booleans()),
    )
    check(spec, cut, target, data.draw(st.integers(0, 99)))


def test_rings_are_apart_where_no_loop_surrounds_them() -> None:
    """An image of one row: TVM gives a ring's memory away when it sees nobody read it; overlapping tiles do."""
    start = follow(image(1, 15, 3), 3)
    stages = (depthwise(start), follow(start, 3), depthwise(start, pad=(1, 0, 1, 0)))
    spec, target = Chain(stages), offering("generic_f32")
    around, between = DepthwiseFloatTile("generic_f32", 8, 1, threads=False), ConvTile("generic_f32", 1, 8, 1, threads=False)
    check(spec, ChainTile((around, between, msgspec.structs.replace(around, mw=7)), 1, threads=False), target)


def test_held_rows() -> None:
    """One row of a result of stride 2 needs three rows before it, and those five of the depthwise stage before that."""
    first = depthwise(image(16, 16, 8))
    second = depthwise(follow(first, 8), stride=(2, 2))
    stages = (first, follow(first, 8), second, follow(second, 4))
    assert held_rows(stages, 1) == [3, 3, 1]
    assert held_rows(stages, 4) == [9, 9, 4]
    assert held_rows((follow(image(16, 16, 8), 8), *stages), 1) == [5, 3, 3, 1]


def block(height: int = 28, width: int = 28, stride: int = 1, residual: bool = False, dtype: str = "float32") -> list[Conv2d]:
    """Expand, depthwise, project."""
    expand = follow(image(height, width, 8), 16)
    middle = depthwise(expand, stride=(stride, stride))
    stages = [expand, middle, follow(middle, 8, residual=residual)]
    return [msgspec.structs.replace(stage, x=dtype, y=dtype) for stage in stages]


def program(stages: Sequence[Conv2d], also_returned: int | None = None) -> Model:
    """Kernel calls behind each other; the last may add the input. One in the middle may be returned as well."""
    builder = relax.BlockBuilder()
    first = stages[0]
    x = relax.Var("x", relax.TensorType((first.n, first.h, first.w, first.ic), first.x))
    with builder.function("main", [x]):
        with builder.dataflow():
            values = [x]
            for i, stage in enumerate(stages):
                constants = [relax.const(a) for a in tensors(stage, i)[1:]][: 4 if stage.is_integer else 3]
                added = [x] if stage.residual else []
                values.append(builder.emit(kernel_call(stage, [values[-1], *constants, *added]), f"stage{i}"))
            results = [values[-1]] if also_returned is None else [values[-1], values[1 + also_returned]]
            outputs = [builder.emit_output(v) for v in results]
        builder.emit_func_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
    return Model(builder.get(), (), (), "chain")


def specs(module: tvm.IRModule) -> list[object]:
    return [kernel_of(binding.value) for block in module["main"].body.blocks for binding in block.bindings]


@pytest.mark.parametrize("residual", [False, True])
def test_inverted_bottleneck_is_fused(residual: bool) -> None:
    stages = block(residual=residual)
    model = program(stages)
    fused = fuse_chains(model, get_target("zen5")).module
    assert specs(fused) == [Chain(tuple(stages))]
    call = fused["main"].body.blocks[0].bindings[0].value
    assert (
        kernel_args(call)[0].same_as(fused["main"].params[0])
        and str(fused["main"].body.blocks[0].bindings[0].var.name) == "stage2"
    )
    data = [np.random.default_rng(0).standard_normal((1, 28, 28, 8)).astype(np.float32)]
    np.testing.assert_array_equal(interpret(fused, data)[0][0], interpret(model.module, data)[0][0])


def test_depthwise_separable_convolution_is_fused() -> None:
    stages = block()[1:]
    assert specs(fuse_chains(program(stages), get_target("zen5")).module) == [Chain(tuple(stages))]


def test_a_chain_begins_behind_a_residual() -> None:
    start = follow(image(28, 28, 16), 16, residual=True)
    stages = [start, *block()[1:]]
    assert specs(fuse_chains(program(stages), get_target("zen5")).module) == [start, Chain(tuple(stages[1:]))]


@pytest.mark.parametrize("read_twice", [0, 1])
def test_what_others_read_is_kept(read_twice: int) -> None:
    stages = block()
    expected = [stages[0], Chain(tuple(stages[1:]))] if read_twice == 0 else stages
    assert specs(fuse_chains(program(stages, read_twice), get_target("zen5")).module) == expected


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(block(dtype="uint8"), id="integers"),
        pytest.param(block(width=14), id="short rows"),
        pytest.param(block(stride=2), id="short rows behind a stride"),
        pytest.param(block()[:2], id="nothing behind the depthwise stage"),
        pytest.param([block()[0], follow(block()[0], 8)], id="nothing in between"),
        pytest.param([*block()[:2], follow(block()[1], 8, 3)], id="a convolution of 3x3 behind"),
    ],
)
def test_what_does_not_fit_is_kept(stages: list[Conv2d]) -> None:
    assert specs(fuse_chains(program(stages), get_target("zen5")).module) == stages


def test_weights_that_fill_the_cache_are_kept() -> None:
    expand = follow(image(28, 28, 256), 512)
    stages = [expand, depthwise(expand), follow(depthwise(expand), 256)]
    assert specs(fuse_chains(program(stages), get_target("zen5")).module) == stages
