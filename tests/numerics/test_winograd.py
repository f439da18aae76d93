"""Winograd's convolutions: the transforms are exact algebra, generated code equals the oracle, errors are those stated."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.numerics.kernels import check, run, runnable, tensors
from tests.numerics.test_products import ACTIVATIONS, offering, registers
from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import conv2d, winograd
from tvmflow.schedule.conv2d_geometry import ConvTile
from tvmflow.schedule.template import executed_ops, template_for
from tvmflow.schedule.winograd_transforms import POINTS, Transforms
from tvmflow.target import get_target

FLOAT = runnable(("fma512", "fma256", "sse", "generic_f32"))
SAME = {"kh": 3, "kw": 3, "pad": (1, 1, 1, 1), "x": "float32", "y": "float32"}


@pytest.mark.parametrize("m", POINTS)
def test_transforms_are_a_convolution(m: int) -> None:
    transforms, rng = Transforms(m), np.random.default_rng(0)
    patch, kernel = rng.standard_normal((m + 2, m + 2)), rng.standard_normal((3, 3))
    products = (transforms.weight @ kernel @ transforms.weight.T) * (transforms.input @ patch @ transforms.input.T)
    windows = np.lib.stride_tricks.sliding_window_view(patch, (3, 3))
    np.testing.assert_allclose(transforms.output @ products @ transforms.output.T, (windows * kernel).sum((-1, -2)), atol=1e-13)


@st.composite
def convolutions(draw: st.DrawFn, lanes: int) -> Conv2d:
    pad = st.integers(0, 2)
    return Conv2d(
        n=draw(st.sampled_from((1, 2))),
        h=draw(st.integers(4, 11)),
        w=draw(st.integers(4, 11)),
        ic=lanes + draw(st.sampled_from((0, 3, lanes))),
        oc=lanes + draw(st.sampled_from((0, 5, 2 * lanes))),
        kh=3,
        kw=3,
        pad=(draw(pad), draw(pad), draw(pad), draw(pad)),
        x="float32",
        y="float32",
        residual=draw(st.booleans()),
        activation=draw(ACTIVATIONS),
    )


@pytest.mark.parametrize("instruction", FLOAT)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_winograd(instruction: str, data: st.DataObject) -> None:
    target = offering(instruction)
    spec = data.draw(convolutions(winograd.BY_NAME[instruction].lanes))
    tile = data.draw(st.sampled_from(list(winograd.space(spec, target.float32, registers(instruction)))))
    check(spec, msgspec.structs.replace(tile, threads=data.draw(st.booleans())), target)


def test_errors_are_those_of_the_direct_kernel() -> None:
    """Beside float64: F(2x2) loses less than the direct kernel, F(4x4) at most three times as much."""
    target = offering(FLOAT[0])
    spec = Conv2d(1, 12, 12, 64, 32, **SAME)
    args = [*tensors(spec)[:3], np.array([-np.inf, np.inf], np.float32)]
    x = np.pad(args[0][0].astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))
    exact = np.einsum("hwcab,oabc->hwo", windows, args[1].reshape(32, 3, 3, 64).astype(np.float64)) + args[2]

    def error(tile: ConvTile | winograd.WinogradTile) -> float:
        return float(np.sqrt(((run(spec, tile, args, target)[0] - exact) ** 2).mean()))

    direct = error(next(conv2d.space(spec, target.float32, registers(FLOAT[0]))))
    by_m = {t.m: t for t in winograd.space(spec, target.float32, registers(FLOAT[0]))}
    assert 0 < error(by_m[2]) < 1.2 * direct
    assert 0 < error(by_m[4]) < 3 * direct


@pytest.mark.parametrize(
    "change", [{"x": "uint8", "y": "uint8"}, {"stride": (2, 2)}, {"groups": 2}, {"dilation": (2, 2)}, {"ic": 8}, {"kw": 1}]
)
def test_what_winograd_leaves_to_the_direct_kernel(change: dict[str, object]) -> None:
    spec = msgspec.structs.replace(Conv2d(1, 14, 14, 64, 64, **SAME), **change)
    assert not winograd.fits(spec, ("fma512",))


def test_operations_are_those_executed() -> None:
    spec = Conv2d(1, 8, 8, 16, 16, **SAME)
    by_m = {t.m: t for t in winograd.space(spec, ("fma512",), 32)}
    assert [executed_ops(spec, by_m[m]) * factor for m, factor in ((2, 2.25), (4, 4))] == [spec.ops, spec.ops]


def test_the_model_chooses_and_the_tuner_sees_both() -> None:
    target = get_target("zen5")
    wide, narrow = Conv2d(1, 28, 28, 128, 128, **SAME), Conv2d(1, 1, 300, 16, 16, **SAME)
    template = template_for(wide, target)
    assert {type(t) for t in template.space(wide, target)} == {ConvTile, winograd.WinogradTile}
    assert isinstance(template.default(wide, target), winograd.WinogradTile)
    assert isinstance(template.default(narrow, target), ConvTile)
