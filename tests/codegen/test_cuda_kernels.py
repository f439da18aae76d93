"""CUDA kernels without a GPU: the emitted source, run by the emulator beside this file, equals the oracle to the last bit.

Every kernel runs twice, threads forwards and backwards between barriers, so that a missing barrier shows; the buffers end at
pages that can't be touched.
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.codegen.cuda_emulator import emulate, guarded
from tests.numerics.kernels import argument_names, tensors
from tvmflow.kernels import spec as ks
from tvmflow.kernels.reference import run_kernel
from tvmflow.kernels.spec import Binary, Conv2d, Dequantize, LayerNorm, Lookup, MatMul, Pool2d, Quantize, Softmax, Unary
from tvmflow.schedule import cuda_conv2d, cuda_depthwise, cuda_gemm
from tvmflow.schedule.cuda_elementwise import ThreadTile
from tvmflow.schedule.cuda_gemm import GemmTile
from tvmflow.schedule.template import TEMPLATES, decode_tile, template_for
from tvmflow.target import get_target

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator compiles C++: g++ is not installed")
QUICK = settings(max_examples=8, deadline=None, derandomize=True)
TARGET = get_target("h100")
INT8 = {"x": "int8", "y": "int8"}
FLOAT = {"x": "float32", "y": "float32"}


def arguments(spec: ks.Kernel, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 3).astype(np.float32)

    if isinstance(spec, Unary | Softmax):
        return [normal(*spec.out_shape)]
    if isinstance(spec, LayerNorm):
        return [normal(spec.rows, spec.n), normal(spec.n), normal(spec.n), np.array([1e-5], np.float32)]
    return tensors(spec, seed)


def check(spec: ks.Kernel, tile: Any = None, seed: int = 0) -> None:
    """Compiles, runs both ways, compares."""
    template = template_for(spec, TARGET)
    assert template.name.startswith("cuda_")
    tile = tile if tile is not None else template.default(spec, TARGET)
    assert decode_tile(ks.msgspec.json.encode(tile)) == tile
    args = arguments(spec, seed)
    expected = run_kernel(spec, args)
    function = template.emit(spec, tile, "main").with_attr("global_symbol", "main")
    program, emulated = emulate(tvm.IRModule({"main": function}), TARGET)
    names = argument_names(spec)
    constant = [i for i, n in enumerate(names) if n not in ("x", "a", "b", "residual")]
    for i, value in zip(constant, template.pack(spec, tile, [args[i] for i in constant]), strict=True):
        args[i] = value
    for backwards in (False, True):
        emulated.backwards = backwards
        out = np.full(spec.out_shape, 77, spec.out_dtype)
        arrays = [guarded(np.ascontiguousarray(a)) for a in [*args, out]]
        program["main"](*[tvm.runtime.from_dlpack(a) for a in arrays])
        if spec.is_integer:
            np.testing.assert_array_equal(arrays[-1], expected)
        else:
            np.testing.assert_allclose(arrays[-1], expected, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@st.composite
def convolutions(draw: st.DrawFn) -> Conv2d:
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    small, awkward = st.sampled_from((1, 2, 5, 9)), st.sampled_from((1, 3, 4, 8, 13, 16, 20, 33))
    dtype = draw(st.sampled_from(("int8", "int8", "float32")))
    residual = draw(st.booleans())
    spec = Conv2d(
        n=draw(st.sampled_from((1, 2))),
        h=draw(small),
        w=draw(small),
        ic=groups * draw(awkward),
        oc=groups * draw(awkward),
        kh=draw(st.sampled_from((1, 2, 3))),
        kw=draw(st.sampled_from((1, 3, 4))),
        stride=(draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, 3)))),
        pad=(draw(st.integers(0, 2)), draw(st.integers(0, 1)), draw(st.integers(0, 1)), draw(st.integers(0, 2))),
        dilation=(draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, 2)))),
        groups=groups,
        x=dtype,
        y=dtype if residual or dtype == "float32" else draw(st.sampled_from(("int8", "float32"))),
        residual=residual,
    )
    assume(spec.oh > 0 and spec.ow > 0 and not spec.is_depthwise)
    return spec


@QUICK
@given(data=st.data())
def test_convolution_of_any_shape_and_tile(data: st.DataObject) -> None:
    spec = data.draw(convolutions())
    tiles = list(cuda_conv2d.space(spec))
    check(spec, tiles[data.draw(st.integers(0, len(tiles) - 1))], seed=data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("tile", [GemmTile(32, 64, 8, 4, 8, 2), GemmTile(64, 32, 4, 8, 4, 1), GemmTile(16, 16, 4, 2, 4, 8)])
def test_tiles_with_slices_and_several_blocks(tile: GemmTile) -> None:
    check(Conv2d(1, 9, 8, 32, 72, 3, 3, pad=(1, 1, 1, 1), residual=True, **INT8), tile)


@QUICK
@given(data=st.data())
def test_depthwise(data: st.DataObject) -> None:
    channels, dtype = data.draw(st.sampled_from((2, 3, 7, 8, 20))), data.draw(st.sampled_from(("int8", "int8", "float32")))
    spec = Conv2d(
        n=data.draw(st.sampled_from((1, 2))),
        h=data.draw(st.sampled_from((3, 5, 8))),
        w=data.draw(st.sampled_from((4, 9, 16))),
        ic=channels,
        oc=channels,
        kh=3,
        kw=data.draw(st.sampled_from((3, 5))),
        stride=(data.draw(st.sampled_from((1, 2))), data.draw(st.sampled_from((1, 2)))),
        pad=(1, data.draw(st.integers(0, 2)), data.draw(st.integers(0, 1)), 2),
        dilation=(1, data.draw(st.sampled_from((1, 2)))),
        groups=channels,
        x=dtype,
        y=dtype,
        residual=data.draw(st.booleans()),
    )
    assume(spec.oh > 0 and spec.ow > 0)
    tiles = list(cuda_depthwise.space(spec))
    check(spec, tiles[data.draw(st.integers(0, len(tiles) - 1))])


@pytest.mark.parametrize(
    "spec",
    [
        MatMul(2, 17, 24, 20, **INT8),
        MatMul(2, 17, 13, 9, **INT8),
        MatMul(2, 17, 13, 9, True, x="int8", y="float32"),
        MatMul(1, 33, 64, 40, True, **INT8),
        MatMul(2, 17, 13, 9, True, **FLOAT),
        MatMul(2, 17, 16, 12, **FLOAT),
    ],
)
def test_product_of_two_activations(spec: MatMul) -> None:
    check(spec)


@pytest.mark.parametrize(
    "spec",
    [
        Binary("add", (1, 5, 4, 8), (1, 5, 4, 8), **INT8),
        Binary("mul", (1, 5, 4, 8), (1, 1, 1, 8), **INT8),
        Binary("mul", (1, 5, 4, 8), (1, 5, 4, 1), **INT8),
        Binary("add", (2, 5, 1, 3), (1, 5, 7, 1), **INT8),
        Lookup((3, 40), **INT8),
        Lookup((3, 13), **INT8),
        Quantize((2, 5, 7, 3), True, y="int8"),
        Quantize((1, 40), y="int8"),
        Quantize((1, 41), y="int8"),
        Dequantize((3, 37), x="int8"),
        Unary("gelu", (5, 70)),
        Unary("tanh", (5, 70)),
        Softmax(5, 37),
        Softmax(2, 300),
        LayerNorm(3, 300),
    ],
)
def test_elementwise_and_rows(spec: ks.Kernel) -> None:
    check(spec, ThreadTile(64) if isinstance(spec, Lookup) else None)


@pytest.mark.parametrize(
    "spec",
    [
        Pool2d("max", 1, 9, 7, 8, 3, 3, (2, 2), (1, 1, 1, 1), **INT8),
        Pool2d("avg", 2, 9, 7, 6, 3, 3, (2, 2), (1, 0, 1, 1), **INT8),
        Pool2d("avg", 1, 12, 12, 16, 12, 12, **INT8),
        Pool2d("max", 1, 9, 7, 8, 3, 3, (2, 2), (1, 1, 1, 1), **FLOAT),
    ],
)
def test_pool(spec: Pool2d) -> None:
    check(spec)


def test_emulator_sees_a_missing_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.codegen import cuda_emulator

    class Racing(cuda_emulator.Emulated):
        def __init__(self, source: str) -> None:
            super().__init__(source.replace("__syncthreads();", ";"))

    monkeypatch.setattr(cuda_emulator, "Emulated", Racing)
    with pytest.raises(AssertionError):
        check(Conv2d(1, 8, 8, 32, 32, 3, 3, pad=(1, 1, 1, 1), **INT8))


def test_every_kernel_has_a_template_on_cuda_and_only_there() -> None:
    specs = [Conv2d(1, 8, 8, 16, 16, **INT8), MatMul(1, 4, 4, 4, **INT8), Lookup((4,), **INT8), Softmax(2, 3), Unary("exp", (3,))]
    for spec in specs:
        assert template_for(spec, TARGET).name.startswith("cuda_")
        assert not template_for(spec, get_target("x86-64-v3")).name.startswith("cuda_")
    assert len({t.name for t in TEMPLATES}) == len(TEMPLATES)


def test_default_tiles_fill_the_machine() -> None:
    """Large layers get large tiles, layers with few outputs are split along the reduction."""
    layers = Conv2d(32, 56, 56, 64, 256, **INT8), Conv2d(1, 7, 7, 2048, 512, **INT8)
    large, few = (template_for(layer, TARGET).default(layer, TARGET) for layer in layers)
    assert large.bm * large.bn > few.bm * few.bn
    assert few.slices > 1
    for tile in (large, few):
        assert tile.shared_bytes <= cuda_gemm.SHARED_BYTES
