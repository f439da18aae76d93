"""The first convolution reads the picture's planes: what is fused, what stays, what is computed."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from tvm import relax

from tests.numerics.kernels import specs, tensors
from tvmflow.build.calls import borrowed
from tvmflow.flow.lower import host_runner
from tvmflow.kernels.call import kernel_call
from tvmflow.kernels.interpret import interpret
from tvmflow.kernels.spec import Conv2d
from tvmflow.model import Model
from tvmflow.schedule.apply import schedule
from tvmflow.schedule.fuse_picture import fuse_picture
from tvmflow.target import get_target

FIRST = Conv2d(1, 9, 11, 3, 20, 3, 3, stride=(2, 2), pad=(1, 1, 1, 1), x="float32", y="float32")


def program(spec: Conv2d, axes: tuple[int, ...] = (0, 2, 3, 1), of_input: bool = True) -> Model:
    """A permutation of the input and a convolution of it."""
    builder = relax.BlockBuilder()
    source = [0, 0, 0, 0]
    for axis, extent in zip(axes, (spec.n, spec.h, spec.w, spec.ic), strict=True):
        source[axis] = extent
    x = relax.Var("x", relax.TensorType(source, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            picture = x if of_input else builder.emit(relax.op.nn.relu(x))
            pixels = builder.emit(relax.op.permute_dims(picture, axes))
            constants = [relax.const(a) for a in tensors(spec)[1:]]
            out = builder.emit_output(builder.emit(kernel_call(spec, [pixels, *constants]), "first"))
        builder.emit_func_output(out)
    return Model(builder.get(), (), (), "picture")


@pytest.mark.parametrize("batch", [1, 2])
def test_planes_are_read(batch: int) -> None:
    spec = msgspec.structs.replace(FIRST, n=batch)
    model = program(spec)
    fused = fuse_picture(model)
    assert specs(fused.module) == [msgspec.structs.replace(spec, nchw=True)]
    assert len(fused.module["main"].body.blocks[0].bindings) == 1
    data = [np.random.default_rng(0).standard_normal((batch, 3, 9, 11)).astype(np.float32)]
    expected = interpret(model.module, data)[0][0]
    np.testing.assert_allclose(host_runner(fused.module)(data)[0], expected, rtol=1e-4, atol=1e-4)


def test_the_caller_keeps_the_picture_where_it_is() -> None:
    scheduled, _ = schedule(fuse_picture(program(FIRST)), get_target("native"))
    assert borrowed(scheduled.module) == (0,)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        pytest.param({"ic": 6}, {}, id="many channels"),
        pytest.param({"dilation": (1, 2)}, {}, id="dilated rows"),
        pytest.param({"ic": 4, "groups": 2}, {}, id="groups"),
        pytest.param({}, {"axes": (0, 3, 2, 1)}, id="another permutation"),
        pytest.param({}, {"of_input": False}, id="something before it"),
    ],
)
def test_other_convolutions_are_kept(change: dict[str, object], options: dict[str, object]) -> None:
    spec = msgspec.structs.replace(FIRST, **change)
    assert specs(fuse_picture(program(spec, **options)).module) == [spec]
