"""Convolutions, dense layers and matrix products: generated code equals the oracle over awkward shapes, for every instruction."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.numerics.kernels import check, run, runnable, tensors
from tvmflow.kernels.reference import run_kernel
from tvmflow.kernels.spec import Conv2d, MatMul
from tvmflow.schedule import conv2d, matmul
from tvmflow.schedule.conv2d_geometry import geometry
from tvmflow.schedule.intrinsics import BY_NAME
from tvmflow.schedule.template import executed_ops, template_for
from tvmflow.target import Target, get_target

AWKWARD = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 24, 33))
ACTIVATIONS = st.sampled_from(("", "", "gelu", "silu", "sigmoid", "tanh", "erf"))
SMALL = st.sampled_from((1, 2, 3, 5, 7, 13))
INTEGER = runnable(("vnni512", "vnni256", "maddwd512", "maddwd256", "maddwd128", "sse2", "neon", "generic"))
FLOAT = runnable(("fma512", "fma256", "sse", "generic_f32"))
QUICK = settings(max_examples=12, deadline=None, derandomize=True)


def registers(name: str) -> int:
    return 32 if "512" in name else 16


def offering(name: str) -> Target:
    """This machine with one instruction to choose from."""
    native = get_target("native")
    cpu = msgspec.structs.replace(native.cpu, registers=registers(name))
    int8 = msgspec.structs.replace(native.int8, dot=(name,))
    return msgspec.structs.replace(native, cpu=cpu, int8=int8, float32=(name,))


def storage(name: str) -> str:
    """Stored operands that an instruction takes: VPDPBUSD wants unsigned ones, the others take any."""
    return "uint8" if name.startswith("vnni") else "int8"


@st.composite
def convolutions(draw: st.DrawFn, dtype: str) -> Conv2d:
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    spec = Conv2d(
        n=draw(st.sampled_from((1, 1, 2))),
        h=draw(SMALL),
        w=draw(SMALL),
        ic=groups * draw(AWKWARD),
        oc=groups * draw(AWKWARD),
        kh=draw(st.sampled_from((1, 2, 3, 5))),
        kw=draw(st.sampled_from((1, 3, 4))),
        stride=(draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2, 3)))),
        pad=(draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=(draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, 2)))),
        groups=groups,
        x=dtype,
        y=dtype,
        residual=draw(st.booleans()),
    )
    assume(spec.oh > 0 and spec.ow > 0 and not spec.is_depthwise)
    if not spec.residual and spec.is_integer and draw(st.booleans()):
        spec = msgspec.structs.replace(spec, y="float32")
    if not spec.is_integer:
        spec = msgspec.structs.replace(spec, activation=draw(ACTIVATIONS))
    if not spec.is_integer and groups == spec.dilation[1] == 1:
        spec = msgspec.structs.replace(spec, nchw=draw(st.booleans()))
    return spec


@pytest.mark.parametrize("name", INTEGER)
@QUICK
@given(data=st.data())
def test_integer_convolution(name: str, data: st.DataObject) -> None:
    spec = data.draw(convolutions(storage(name)))
    tiles = list(conv2d.space(spec, (name,), registers(name)))
    check(spec, tiles[data.draw(st.integers(0, len(tiles) - 1))], seed=data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("name", [*INTEGER, *FLOAT])
@QUICK
@given(data=st.data())
def test_padding_is_left_out(name: str, data: st.DataObject) -> None:
    """Images larger and smaller than the kernel, outputs that see no pixel at all, tiles as wide as a row and narrower."""
    dtype, groups = ("float32" if name in FLOAT else storage(name)), data.draw(st.sampled_from((1, 1, 2)))
    sides, pads = st.sampled_from((1, 2, 3, 5, 7)), st.integers(0, 6)
    spec = Conv2d(
        n=data.draw(st.sampled_from((1, 2))),
        h=data.draw(st.sampled_from((1, 2, 3, 7, 13))),
        w=data.draw(st.sampled_from((1, 2, 3, 7, 13, 29))),
        ic=groups * data.draw(st.sampled_from((4, 8, 12))),
        oc=groups * data.draw(AWKWARD),
        kh=data.draw(sides),
        kw=data.draw(sides),
        stride=(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))),
        pad=(data.draw(pads), data.draw(pads), data.draw(pads), data.draw(pads)),
        dilation=(data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))),
        groups=groups,
        x=dtype,
        y=dtype,
    )
    assume(spec.oh > 0 and spec.ow > 0)
    tiles = [tile for tile in conv2d.space(spec, (name,), registers(name)) if geometry(spec, tile).unpadded]
    assume(tiles)
    tile = tiles[data.draw(st.integers(0, len(tiles) - 1))]
    check(spec, tile, seed=data.draw(st.integers(0, 99)))
    inside = [
        sum(0 <= o * spec.stride[d] - spec.pad[d] + t * spec.dilation[d] < size for o in range(outputs) for t in range(taps))
        for d, (size, outputs, taps) in enumerate(((spec.h, spec.oh, spec.kh), (spec.w, spec.ow, spec.kw)))
    ]
    assert executed_ops(spec, tile) == 2 * spec.n * inside[0] * inside[1] * spec.oc * spec.ic // groups


@pytest.mark.parametrize("name", [n for n in INTEGER if BY_NAME[n].packs])
@QUICK
@given(data=st.data())
def test_pipelined_convolution(name: str, data: st.DataObject) -> None:
    """The epilogue of a tile beside the multiplies of the next: chunks, the first and the last tile, tiles that overlap."""
    dtype, side = storage(name), data.draw(st.sampled_from((1, 3)))
    outputs, size = data.draw(st.sampled_from((16, 24, 33, 48, 64, 130))), st.integers(4, 23)
    spec = Conv2d(
        n=data.draw(st.sampled_from((1, 2))),
        h=data.draw(size),
        w=data.draw(size),
        ic=data.draw(st.sampled_from((3, 8, 40))),
        oc=outputs,
        kh=side,
        kw=side,
        pad=(side // 2,) * 4,
        x=dtype,
        y=dtype,
        residual=data.draw(st.booleans()),
    )
    tiles = [tile for tile in conv2d.space(spec, (name,), 32) if tile.pipelined]
    assume(tiles)
    check(spec, tiles[data.draw(st.integers(0, len(tiles) - 1))], seed=data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("name", FLOAT)
@QUICK
@given(data=st.data())
def test_float_convolution(name: str, data: st.DataObject) -> None:
    spec = data.draw(convolutions("float32"))
    check(spec, template_for(spec, offering(name)).default(spec, offering(name)))


@st.composite
def depthwise_layers(draw: st.DrawFn, dtype: str) -> Conv2d:
    channels = draw(st.sampled_from((2, 3, 7, 16, 17, 24, 33, 48, 64, 80, 96)))
    stride, dilation = draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, 1, 2)))
    side = draw(st.sampled_from((3, 5)))
    spec = Conv2d(
        n=draw(st.sampled_from((1, 2))),
        h=draw(SMALL),
        w=draw(SMALL),
        ic=channels,
        oc=channels,
        kh=side,
        kw=draw(st.sampled_from((side, 1))),
        stride=(stride, draw(st.sampled_from((1, 3)))),
        pad=(draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=(dilation, dilation),
        groups=channels,
        x=dtype,
        y=dtype,
        residual=draw(st.booleans()),
    )
    assume(spec.oh > 0 and spec.ow > 0)
    if not spec.is_integer:
        return msgspec.structs.replace(spec, activation=draw(ACTIVATIONS))
    return msgspec.structs.replace(spec, y="float32") if not spec.residual and draw(st.booleans()) else spec


@pytest.mark.parametrize("name", [*INTEGER, *FLOAT])
@settings(QUICK, max_examples=25)
@given(data=st.data())
def test_depthwise(name: str, data: st.DataObject) -> None:
    dtypes = ("float32",) if name in FLOAT else ("uint8",) if name.startswith("vnni") else ("int8", "uint8")
    spec, target = data.draw(depthwise_layers(data.draw(st.sampled_from(dtypes)))), offering(name)
    tiles = list(template_for(spec, target).space(spec, target))
    check(spec, tiles[data.draw(st.integers(0, len(tiles) - 1))], target, data.draw(st.integers(0, 99)))


def test_sums_beyond_every_byte() -> None:
    """Biases near the ends of int32 and multipliers of a million: far outside of a byte, the nearer bound."""
    spec = Conv2d(1, 5, 6, 80, 80, 3, 3, pad=(1, 1, 1, 1), groups=80)
    x, weight, bias, multiplier, quant = tensors(spec)
    rng = np.random.default_rng(0)
    bias = np.where(rng.integers(2, size=80), rng.integers(-(2**30), 2**30, 80), bias).astype(np.int32)
    multiplier = np.where(rng.integers(2, size=80), multiplier * 1e6, multiplier).astype(np.float32)
    args = [x, weight, bias, multiplier, quant]
    for name in runnable(("vnni512", "vnni256", "maddwd512", "maddwd256", "maddwd128", "sse2")):
        target = offering(name)
        got = run(spec, template_for(spec, target).default(spec, target), list(args), target)
        np.testing.assert_array_equal(got, run_kernel(spec, args))


@pytest.mark.parametrize("name", [*INTEGER, *FLOAT])
@QUICK
@given(data=st.data())
def test_matmul(name: str, data: st.DataObject) -> None:
    dtype = "float32" if name in FLOAT else storage(name)
    out = data.draw(st.sampled_from((dtype, "float32")))
    batch = data.draw(st.sampled_from((1, 3)))
    spec = MatMul(batch, data.draw(AWKWARD), data.draw(AWKWARD), data.draw(AWKWARD), data.draw(st.booleans()), dtype, out)
    tiles = list(matmul.space(spec, (name,), registers(name)))
    check(spec, tiles[data.draw(st.integers(0, len(tiles) - 1))], seed=data.draw(st.integers(0, 99)))


def test_saturating_inputs_do_not_saturate_on_the_way() -> None:
    """All operands at their extremes: pmaddubsw would clip the pairs, and a layer on AVX2 would differ from one with VNNI."""
    spec = Conv2d(1, 4, 4, 64, 16, 3, 3, x="uint8", y="float32")
    x = np.full((1, 4, 4, 64), 255, np.uint8)
    weight = np.full((16, 3, 3, 64), 127, np.int8)
    args = [x, weight, np.zeros(16, np.int32), np.ones(16, np.float32), np.array([0, 0, 0, 255], np.int32)]
    for name in runnable(("vnni512", "maddwd512", "maddwd256", "maddwd128", "sse2")):
        tile = template_for(spec, offering(name)).default(spec, offering(name))
        got = run(spec, tile, list(args), get_target("native"))
        np.testing.assert_array_equal(got, np.full(spec.out_shape, 255.0 * 127 * 576, np.float32))
