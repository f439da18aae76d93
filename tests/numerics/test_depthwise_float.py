"""float32 depthwise layers: borders without copies, at every tile of every instruction."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.numerics.kernels import check, runnable
from tests.numerics.test_products import offering, registers
from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import depthwise_float

FLOAT = runnable(("fma512", "fma256", "sse", "generic_f32"))


@st.composite
def layers(draw: st.DrawFn) -> Conv2d:
    channels, pad = draw(st.sampled_from((2, 3, 4, 7, 16, 17, 33, 64))), st.integers(0, 4)
    sides = {"h": draw(st.integers(1, 13)), "w": draw(st.integers(1, 19)), "ic": channels, "oc": channels, "groups": channels}
    spec = Conv2d(
        n=draw(st.sampled_from((1, 1, 2))),
        **sides,
        kh=draw(st.sampled_from((1, 3, 5))),
        kw=draw(st.sampled_from((2, 3, 5))),
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        pad=(draw(pad), draw(pad), draw(pad), draw(pad)),
        dilation=(draw(st.integers(1, 3)), draw(st.integers(1, 2))),
        x="float32",
        y="float32",
        residual=draw(st.booleans()),
    )
    assume(spec.oh > 0 and spec.ow > 0)
    return spec


@pytest.mark.parametrize("instruction", FLOAT)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_depthwise(instruction: str, data: st.DataObject) -> None:
    spec, target = data.draw(layers()), offering(instruction)
    tile = data.draw(st.sampled_from(list(depthwise_float.space(spec, target.float32, registers(instruction)))))
    check(spec, msgspec.structs.replace(tile, threads=data.draw(st.booleans())), target, data.draw(st.integers(0, 99)))


def test_tiles_leave_out_the_taps_outside() -> None:
    """Three tiles of four outputs: the first sees the left border, the second nothing, the last the right one."""
    spec = Conv2d(1, 3, 12, 16, 16, 3, 3, pad=(1, 1, 1, 1), groups=16, x="float32", y="float32")
    tiles = depthwise_float.column_tiles(spec, 4)
    assert [(start, count, len(taps)) for start, count, taps in tiles] == [(0, 1, 11), (4, 1, 12), (8, 1, 11)]
