"""Elementwise kernels and pools equal the oracle over awkward shapes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.numerics.kernels import check
from tvmflow.kernels.spec import Binary, Dequantize, Lookup, Pool2d, Quantize
from tvmflow.runtime import cpu
from tvmflow.schedule.elementwise import FlatTile, lookup_tiles
from tvmflow.schedule.pool import PoolTile

SHAPES = st.lists(st.sampled_from((1, 2, 3, 7, 13, 17, 33)), min_size=1, max_size=4).map(tuple)
STORED = st.sampled_from(("uint8", "int8"))
LANES = st.sampled_from((4, 8, 16, 64))
QUICK = settings(max_examples=15, deadline=None, derandomize=True)


@QUICK
@given(shape=SHAPES, dtype=STORED, tile=st.sampled_from(list(lookup_tiles(cpu.features()))))
def test_lookup(shape: tuple[int, ...], dtype: str, tile: FlatTile) -> None:
    check(Lookup(shape, dtype, dtype), tile)


@pytest.mark.parametrize("dtype", ("uint8", "int8"))
@pytest.mark.parametrize("count", (64, 65, 200))
def test_lookup_of_whole_vectors(count: int, dtype: str) -> None:
    for tile in lookup_tiles(cpu.features()):
        check(Lookup((count,), dtype, dtype), tile)


@QUICK
@given(shape=SHAPES, dtype=STORED, lanes=LANES, nchw=st.booleans())
def test_quantize(shape: tuple[int, ...], dtype: str, lanes: int, nchw: bool) -> None:
    check(Quantize(shape, nchw and len(shape) == 4, dtype), FlatTile(lanes))


@pytest.mark.parametrize("lanes", (4, 16))
@pytest.mark.parametrize("channels", (1, 2, 3, 4, 5))
def test_quantize_pictures(channels: int, lanes: int) -> None:
    """Channels brought together by shuffles, up to four, and rows that are no multiple of a vector."""
    for width, dtype in ((1, "uint8"), (7, "int8"), (64, "uint8"), (87, "int8")):
        check(Quantize((2, 3, width, channels), True, dtype), FlatTile(lanes))


@QUICK
@given(shape=SHAPES, dtype=STORED, lanes=LANES)
def test_dequantize(shape: tuple[int, ...], dtype: str, lanes: int) -> None:
    check(Dequantize(shape, dtype), FlatTile(lanes))


@QUICK
@given(shape=SHAPES, fn=st.sampled_from(("add", "mul")), dtype=STORED, lanes=LANES, data=st.data())
def test_binary(shape: tuple[int, ...], fn: str, dtype: str, lanes: int, data: st.DataObject) -> None:
    """Any pattern of broadcast axes, on either side."""
    sides = [data.draw(st.tuples(*[st.sampled_from((1, extent, extent)) for extent in shape])) for _ in range(2)]
    assume(all(max(p, q) == extent for p, q, extent in zip(*sides, shape, strict=True)))
    check(Binary(fn, sides[0], sides[1], dtype, dtype), FlatTile(lanes), seed=data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("fn", ["max", "avg"])
@QUICK
@given(dtype=STORED, lanes=LANES, data=st.data())
def test_pool(fn: str, dtype: str, lanes: int, data: st.DataObject) -> None:
    side = st.sampled_from((1, 2, 3, 7, 13))
    spec = Pool2d(
        fn,
        data.draw(st.sampled_from((1, 2))),
        data.draw(side),
        data.draw(side),
        data.draw(st.sampled_from((1, 3, 16, 33))),
        data.draw(st.sampled_from((1, 2, 3, 7))),
        data.draw(st.sampled_from((1, 2, 3))),
        stride=(data.draw(st.sampled_from((1, 2))), data.draw(st.sampled_from((1, 2, 3)))),
        pad=(
            data.draw(st.integers(0, 1)),
            data.draw(st.integers(0, 1)),
            data.draw(st.integers(0, 1)),
            data.draw(st.integers(0, 1)),
        ),
        x=dtype,
        y=dtype,
    )
    assume(spec.oh > 0 and spec.ow > 0 and spec.kh > max(spec.pad[0], spec.pad[2]) and spec.kw > max(spec.pad[1], spec.pad[3]))
    check(spec, PoolTile(lanes), seed=data.draw(st.integers(0, 99)))


def test_long_tensors_are_shared_among_threads() -> None:
    """Longer than one chunk, and no multiple of it."""
    check(Dequantize((3, 50021), "uint8"), FlatTile(16, chunk=1024))
    check(Lookup((3, 50021)), FlatTile(1, chunk=1024))
    check(Binary("add", (7, 131, 97), (7, 131, 97)), FlatTile(16, chunk=1024))
