"""Winograd's convolutions: the transforms are exact algebra, generated code equals the oracle, errors are those stated."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.numerics.kernels import check, run, runnable, tensors
from tests.numerics.test_products import ACTIVATIONS, INTEGER, offering, registers, storage
from tvmflow.kernels.reference import run_kernel
from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import conv2d, winograd
from tvmflow.schedule.conv2d_geometry import ConvTile
from tvmflow.schedule.template import executed_ops, template_for
from tvmflow.schedule.winograd_transforms import LARGEST, POINTS, WHOLE_POINTS, Transforms, transforms
from tvmflow.target import get_target

FLOAT = runnable(("fma512", "fma256", "sse", "generic_f32"))
SAME = {"kh": 3, "kw": 3, "pad": (1, 1, 1, 1), "x": "float32", "y": "float32"}


WHOLE = [points for alternatives in WHOLE_POINTS.values() for points in alternatives]
LARGEST_PATCHES = [*(Transforms(points) for points in POINTS.values()), *(Transforms([*p], [*p.values()]) for p in WHOLE)]
EVERY = [transforms.fewer(m) for transforms in LARGEST_PATCHES for m in range(1, transforms.m + 1)]


@pytest.mark.parametrize(
    "transforms", EVERY, ids=lambda t: f"F({t.m}) of F({len(t.among) - 2}) {'whole' if t.whole else 'float'}"
)
def test_transforms_are_a_convolution(transforms: Transforms) -> None:
    m, rng = transforms.m, np.random.default_rng(0)
    patch, kernel = rng.standard_normal((m + 2, m + 2)), rng.standard_normal((3, 3))
    products = (transforms.weight @ kernel @ transforms.weight.T) * (transforms.input @ patch @ transforms.input.T)
    outputs = transforms.output @ products @ transforms.output.T
    if transforms.whole:
        outputs /= np.outer(transforms.factors, transforms.factors)
    windows = np.lib.stride_tricks.sliding_window_view(patch, (3, 3))
    np.testing.assert_allclose(outputs, (windows * kernel).sum((-1, -2)), atol=1e-13)


@pytest.mark.parametrize("largest", LARGEST_PATCHES, ids=lambda t: f"F({t.m}) {'whole' if t.whole else 'float'}")
def test_smaller_patches_take_the_same_weights(largest: Transforms) -> None:
    for m in range(1, largest.m):
        smaller = largest.fewer(m)
        np.testing.assert_array_equal(smaller.weight, largest.weight[largest.kept(m)])
        assert smaller.m == m


@pytest.mark.parametrize("transforms", [t for t in EVERY if t.whole], ids=lambda t: f"F({t.m}) of {t.among}")
def test_whole_transforms_fit_words(transforms: Transforms) -> None:
    for matrix in (transforms.weight, transforms.input):
        largest = np.abs(matrix).sum(axis=1).max()
        assert np.array_equal(matrix, np.rint(matrix)) and largest**2 * LARGEST < 2**15
    assert np.array_equal(transforms.output, np.rint(transforms.output))


@pytest.mark.parametrize("transforms", [t for t in EVERY if t.whole], ids=lambda t: f"F({t.m}) of {t.among}")
def test_a_bias_is_added_to_one_product(transforms: Transforms) -> None:
    products = np.zeros(transforms.side)
    products[1] = transforms.one
    np.testing.assert_array_equal(transforms.output @ products, transforms.factors)


def test_smaller_patches_need_no_more_bits() -> None:
    for largest in (t for t in LARGEST_PATCHES if t.whole):
        enough = [k for k in range(10, 20) if largest.suffices(1 << k)]
        assert all(largest.fewer(m).suffices(1 << k) for m in range(1, largest.m) for k in enough)


def test_points_follow_from_the_bits_to_spare() -> None:
    """F(4x4) with +-1, +-2 takes 6 of 32 bits, and 9 products of two bytes 18: 227 channels leave as many, 228 do not."""
    cheap, spare = WHOLE_POINTS[4]
    used = {
        channels: found and dict(zip(found.points, found.multiples, strict=True))
        for channels in (227, 228, 3640, 3641)
        if [found := transforms(4, channels, True)]
    }
    assert used == {227: cheap, 228: spare, 3640: spare, 3641: None}


@st.composite
def convolutions(draw: st.DrawFn, lanes: int, dtype: str) -> Conv2d:
    pad = st.integers(0, 2)
    residual = draw(st.booleans())
    return Conv2d(
        n=draw(st.sampled_from((1, 2))),
        h=draw(st.integers(4, 11)),
        w=draw(st.integers(4, 11)),
        ic=lanes + draw(st.sampled_from((0, 3, lanes) if dtype == "float32" else (0, 2, 6, lanes, 228))),
        oc=lanes + draw(st.sampled_from((0, 5, 2 * lanes))),
        kh=3,
        kw=3,
        pad=(draw(pad), draw(pad), draw(pad), draw(pad)),
        x=dtype,
        y=dtype if residual or dtype == "float32" else draw(st.sampled_from((dtype, dtype, "float32"))),
        residual=residual,
        activation=draw(ACTIVATIONS) if dtype == "float32" else "",
    )


@pytest.mark.parametrize("instruction", [*FLOAT, *INTEGER])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_winograd(instruction: str, data: st.DataObject) -> None:
    target = offering(instruction)
    dtype = "float32" if instruction in FLOAT else storage(instruction)
    spec = data.draw(convolutions(winograd.BY_NAME[instruction].lanes, dtype))
    tile = data.draw(st.sampled_from(list(winograd.space(spec, (instruction,), registers(instruction)))))
    check(spec, msgspec.structs.replace(tile, threads=data.draw(st.booleans())), target, seed=data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("channels", [224, 228])
@pytest.mark.parametrize("instruction", INTEGER)
def test_the_largest_sums_are_exact(instruction: str, channels: int) -> None:
    """Operands at both ends of their types, so that products overflow on the way and outputs need all bits that they may."""
    target, dtype = offering(instruction), storage(instruction)
    spec = Conv2d(1, 6, 7, channels, 16, 3, 3, (1, 1), (1, 1, 1, 1), x=dtype, y="float32")
    x, weight, bias, multiplier, quant = tensors(spec)
    ends, rng = np.iinfo(dtype), np.random.default_rng(1)
    weight = np.where(np.arange(16)[:, None, None, None] % 2, rng.choice([-128, 127], weight.shape), -128).astype(np.int8)
    for pattern in (
        np.full_like(x, ends.max),
        np.full_like(x, ends.min),
        rng.choice([ends.min, ends.max], x.shape).astype(dtype),
    ):
        args = [pattern, weight, bias, multiplier, quant]
        expected = run_kernel(spec, args)
        for tile in {t.m: t for t in winograd.space(spec, (instruction,), registers(instruction))}.values():
            np.testing.assert_array_equal(run(spec, tile, args, target), expected)


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


@pytest.mark.parametrize("change", [{"stride": (2, 2)}, {"groups": 2}, {"dilation": (2, 2)}, {"ic": 7}, {"oc": 3}, {"kw": 1}])
@pytest.mark.parametrize(("dtype", "row"), [("float32", "fma512"), ("uint8", "vnni512"), ("int8", "maddwd512")])
def test_what_winograd_leaves_to_the_direct_kernel(dtype: str, row: str, change: dict[str, object]) -> None:
    spec = msgspec.structs.replace(Conv2d(1, 14, 14, 64, 64, **SAME | {"x": dtype, "y": dtype}), **change)
    assert not list(winograd.space(spec, (row,), 32))


@pytest.mark.parametrize(("row", "channels"), [("sdot", 64), ("maddwd512", 65), ("maddwd512", 3642)])
def test_integers_that_winograd_leaves_to_the_direct_kernel(row: str, channels: int) -> None:
    """No instruction for words, half a pair of channels, no bits to spare."""
    assert not list(winograd.space(Conv2d(1, 14, 14, channels, 64, **SAME | {"x": "int8", "y": "int8"}), (row,), 32))


def test_operations_are_those_executed() -> None:
    spec = Conv2d(1, 8, 8, 16, 16, **SAME)
    by_m = {t.m: t for t in winograd.space(spec, ("fma512",), 32)}
    assert [executed_ops(spec, by_m[m]) * factor for m, factor in ((2, 2.25), (4, 4))] == [spec.ops, spec.ops]


@pytest.mark.parametrize(("row", "saved"), [("vnni512", 2), ("maddwd512", 4)])
def test_words_count_for_the_bytes_in_whose_place_they_are(row: str, saved: int) -> None:
    spec = Conv2d(1, 8, 8, 64, 64, **SAME | {"x": "uint8", "y": "uint8"})
    (tile,) = {t.m: t for t in winograd.space(spec, (row,), 32) if t.m == 4}.values()
    assert executed_ops(spec, tile) * saved == spec.ops


def test_the_model_chooses_and_the_tuner_sees_both() -> None:
    target = get_target("zen5")
    wide, narrow = Conv2d(1, 28, 28, 128, 128, **SAME), Conv2d(1, 1, 300, 16, 16, **SAME)
    template = template_for(wide, target)
    assert {type(t) for t in template.space(wide, target)} == {ConvTile, winograd.WinogradTile}
    assert isinstance(template.default(wide, target), winograd.WinogradTile)
    assert isinstance(template.default(narrow, target), ConvTile)


@pytest.mark.parametrize(
    ("name", "size", "channels", "chosen"),
    [
        ("zen5", 56, 64, True),
        ("zen5", 14, 256, True),
        ("zen5", 7, 512, False),
        ("x86-64-v3", 7, 512, True),
        ("rpi4", 14, 256, True),
        ("rpi5", 14, 256, False),
    ],
)
def test_the_model_chooses_for_integers(name: str, size: int, channels: int, chosen: bool) -> None:
    target = get_target(name)
    spec = Conv2d(1, size, size, channels, channels, **SAME | {"x": target.int8.storage, "y": target.int8.storage})
    assert isinstance(template_for(spec, target).default(spec, target), winograd.WinogradTile) == chosen


def test_what_large_patches_leave_over_is_done_by_smaller_ones() -> None:
    """14 is three times 4, and 2: 22 points a side. Rows of several bands overlap instead, columns do not."""
    (tile, *_) = (t for t in winograd.space(Conv2d(1, 14, 14, 64, 64, **SAME), ("fma512",), 32) if t.m == 4 and t.rows == 4)
    one = winograd.Geometry(Conv2d(1, 14, 14, 64, 64, **SAME), tile)
    assert one.rows == 22**2 and [(m.points, m.rows) for m in one.matrices] == [(16, 16), (16, 12), (4, 9)]
    several = winograd.Geometry(Conv2d(1, 30, 30, 64, 64, **SAME), msgspec.structs.replace(tile, rows=2))
    assert several.bands == 4 and several.rows == 2 * 6 * (7 * 6 + 4)


def test_images_of_many_patches_are_split_for_threads() -> None:
    spec = Conv2d(1, 28, 28, 64, 64, **SAME)
    assert min(winograd.Geometry(spec, tile).bands for tile in winograd.space(spec, ("fma512",), 32)) == 2
