"""Strassen's dense layers: the code equals the oracle, rounds as stated, and leaves the rest to the direct kernel."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.numerics.kernels import check, run, runnable, tensors
from tests.numerics.test_products import ACTIVATIONS, offering, registers
from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import conv2d, strassen
from tvmflow.schedule.conv2d_geometry import ConvTile
from tvmflow.schedule.strassen import StrassenTile
from tvmflow.schedule.template import executed_ops, template_for, weight_bytes
from tvmflow.target import get_target

FLOAT = runnable(("fma512", "fma256", "sse", "generic_f32"))
DENSE = Conv2d(1, 1, 128, 384, 384, x="float32", y="float32")


@st.composite
def layers(draw: st.DrawFn) -> Conv2d:
    """Odd numbers of rows, halves of channels that are no whole vectors."""
    return Conv2d(
        n=draw(st.sampled_from((1, 2))),
        h=draw(st.integers(3, 6)),
        w=draw(st.integers(11, 13)),
        ic=256 + 2 * draw(st.sampled_from((0, 1, 3, 50))),
        oc=256 + 2 * draw(st.sampled_from((0, 1, 5, 64))),
        x="float32",
        y="float32",
        residual=draw(st.booleans()),
        activation=draw(ACTIVATIONS),
    )


@pytest.mark.parametrize("instruction", FLOAT)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_strassen(instruction: str, data: st.DataObject) -> None:
    spec = data.draw(layers())
    tile = data.draw(st.sampled_from(list(strassen.space(spec, (instruction,), registers(instruction)))))
    tile = msgspec.structs.replace(tile, threads=data.draw(st.booleans()))
    check(spec, tile, offering(instruction), seed=data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("instruction", FLOAT)
def test_rounding_is_that_of_a_few_more_sums(instruction: str) -> None:
    """Root mean square and largest error beside float64: twice those of the direct kernel."""
    target, free = offering(instruction), np.array([-np.inf, np.inf], np.float32)
    args = [*tensors(DENSE)[:3], free]
    exact = args[0][0, 0].astype(np.float64) @ args[1].reshape(384, 384).T.astype(np.float64) + args[2]

    def errors(tile: ConvTile | StrassenTile) -> np.ndarray:
        difference = np.abs(run(DENSE, tile, args, target)[0, 0] - exact)
        return np.array([np.sqrt((difference**2).mean()), difference.max()])

    tiles = (strassen, conv2d)
    ours, direct = (errors(next(of.space(DENSE, (instruction,), registers(instruction)))) for of in tiles)
    assert np.all(ours > 0) and np.all(ours < 3 * direct)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("pairs", [13, 6, 4])
def test_results_do_not_depend_on_who_computes_them(pairs: int, threads: bool) -> None:
    """49 rows: the last one is both of its pair, and bands overlap. Rounding differs between the two of a pair, so each row has
    one place in one pair."""
    target, spec = offering(FLOAT[0]), Conv2d(1, 7, 7, 64, 64, x="float32", y="float32")
    args = tensors(spec)
    expected = run(spec, StrassenTile(FLOAT[0], 25, 5, 1, threads=False), args, target)
    tile = StrassenTile(FLOAT[0], pairs, min(pairs, 5), 1, threads)
    for _ in range(5):
        np.testing.assert_array_equal(run(spec, tile, args, target), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"stride": (2, 2)}, {"groups": 2}, {"pad": (1, 1, 1, 1)}, {"kh": 3}, {"nchw": True}, {"ic": 383}, {"oc": 383},
        {"ic": 254}, {"oc": 254}, {"w": 31}, {"x": "uint8", "y": "uint8"},
    ],
)  # fmt: skip
def test_what_is_left_to_the_direct_kernel(change: dict[str, object]) -> None:
    assert list(strassen.space(DENSE, ("fma512",), 32))
    assert not list(strassen.space(msgspec.structs.replace(DENSE, **change), ("fma512",), 32))


@pytest.mark.parametrize(("rows", "more"), [(128, 1), (49, 50 / 49)])
def test_operations_and_weights(rows: int, more: float) -> None:
    spec = msgspec.structs.replace(DENSE, w=rows)
    tile = next(strassen.space(spec, ("fma512",), 32))
    assert executed_ops(spec, tile) == pytest.approx(spec.ops * 7 / 8 * more)
    assert weight_bytes(spec, tile) == 4 * 384 * 384 * 7 // 4


@pytest.mark.parametrize("rows", [32, 35, 49, 128, 784])
def test_bands_are_shared_by_four_threads_with_little_done_twice(rows: int) -> None:
    spec = msgspec.structs.replace(DENSE, w=rows)
    for tile in strassen.space(spec, ("fma512",), 32):
        geo = strassen.geometry(spec, tile)
        assert geo.bands >= 4 and geo.bands * tile.pairs < 1.2 * geo.pairs


@pytest.mark.parametrize("name", ["zen5", "zen4", "x86-64-v3", "x86-64", "rpi4"])
def test_the_model_chooses(name: str) -> None:
    target = get_target(name)
    template = template_for(DENSE, target)
    assert {type(tile) for tile in template.space(DENSE, target)} == {ConvTile, StrassenTile}
    assert isinstance(template.default(DENSE, target), StrassenTile)


def test_the_model_leaves_large_outputs_to_the_direct_kernel() -> None:
    """They come a block at a time, and wait for lines that the cache does not hold."""
    spec, target = msgspec.structs.replace(DENSE, w=3136, oc=512, residual=True), get_target("zen4")
    assert isinstance(template_for(spec, target).default(spec, target), ConvTile)
