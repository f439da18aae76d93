"""Kernels on slices: what they write is what they wrote before, nothing beside it is touched, and operands may lie in slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import te

from tests.numerics.kernels import argument_names, run, tensors
from tvmflow.kernels import spec as ks
from tvmflow.schedule.elementwise import FlatTile
from tvmflow.schedule.slices import Slice, in_slice
from tvmflow.schedule.template import template_for
from tvmflow.target import get_target

SPECS: tuple[ks.Kernel, ...] = (
    ks.Conv2d(1, 11, 9, 8, 40, 3, 3, pad=(1, 1, 1, 1)),
    ks.Conv2d(2, 7, 7, 16, 9),  # fewer outputs than lanes
    ks.Conv2d(1, 12, 12, 16, 24, 3, 3, groups=4, pad=(1, 1, 1, 1)),
    ks.Conv2d(1, 14, 14, 32, 64, residual=True),
    ks.Conv2d(1, 15, 15, 36, 36, 5, 5, (2, 2), (2, 2, 2, 2), groups=36),
    ks.Conv2d(1, 16, 16, 64, 64, 3, 3, pad=(1, 1, 1, 1), x="float32", y="float32"),
    ks.Conv2d(1, 9, 9, 24, 24, 3, 3, pad=(1, 1, 1, 1), groups=24, x="float32", y="float32"),
    ks.Chain((
        ks.Conv2d(1, 12, 12, 16, 40, x="float32", y="float32"),
        ks.Conv2d(1, 12, 12, 40, 40, 3, 3, (2, 2), (1, 1, 1, 1), groups=40, x="float32", y="float32"),
        ks.Conv2d(1, 6, 6, 40, 24, x="float32", y="float32"),
    )),
    ks.Pool2d("max", 1, 12, 12, 40, 3, 3, (2, 2), (1, 1, 1, 1), "float32", "float32"),
    ks.Pool2d("avg", 1, 9, 8, 48, 3, 3, pad=(1, 1, 1, 1)),
    ks.Binary("add", (1, 130, 160, 24), (1, 130, 160, 24)),  # in chunks, whose vectors lie across rows
    ks.Binary("mul", (1, 5, 6, 48), (1, 1, 1, 48)),
    ks.Lookup((1, 9, 7, 24)),
    ks.Dequantize((1, 5, 5, 32)),
    ks.MatMul(3, 20, 16, 40),
)  # fmt: skip
BESIDE = 77


OPERANDS = ("x", "a", "b", "residual")


def each_kernel(test: Any) -> Any:
    """Runs a test for every kernel of SPECS, with two register files."""
    test = pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{type(s).__name__}-{'x'.join(map(str, s.out_shape))}")(test)
    return pytest.mark.parametrize("target", ["native", "x86-64"])(test)


def prepared(spec: ks.Kernel, target: str) -> tuple[Any, list[np.ndarray], np.ndarray]:
    """A kernel, its arguments with the constants as it wants them, and what it computes of them."""
    chosen = get_target(target)
    template = template_for(spec, chosen)
    tile, args = template.default(spec, chosen), tensors(spec)
    expected = run(spec, tile, args, chosen)
    constant = [i for i, name in enumerate(argument_names(spec)) if name not in OPERANDS]
    for i, value in zip(constant, template.pack(spec, tile, [args[i] for i in constant]), strict=True):
        args[i] = value
    return template.emit(spec, tile, "main"), args, expected


@each_kernel
def test_slice_holds_the_result(spec: ks.Kernel, target: str) -> None:
    whole, args, expected = prepared(spec, target)
    place = Slice((*spec.out_shape[:-1], spec.out_shape[-1] + 13), len(spec.out_shape) - 1, 8, spec.out_shape[-1])
    function = in_slice(whole, place)
    assert function is not None
    assert_slice(function, place, args, expected, get_target(target))


@each_kernel
def test_slices_hold_the_operands(spec: ks.Kernel, target: str) -> None:
    function, args, expected = prepared(spec, target)
    where = [i for i, name in enumerate(argument_names(spec)) if name in OPERANDS]
    assert where
    for index in where:
        shape = args[index].shape
        place = Slice((*shape[:-1], shape[-1] + 24), len(shape) - 1, 8, shape[-1])
        moved = in_slice(function, place, index)
        assert moved is not None
        whole = np.full(place.shape, BESIDE, args[index].dtype)
        whole[..., 8 : 8 + shape[-1]] = args[index]
        function, args[index] = moved, whole
    everything = Slice(expected.shape, expected.ndim - 1, 0, expected.shape[-1])
    assert_slice(function, everything, args, expected, get_target(target))


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_loop_nest_along_any_axis(axis: int) -> None:
    """A reduction reads what it writes."""
    x = te.placeholder((2, 3, 4, 5, 6), "float32", "x")
    k = te.reduce_axis((0, 6), "k")
    function = te.create_prim_func([x, te.compute((2, 3, 4, 5), lambda a, b, c, d: te.sum(x[a, b, c, d, k], k), "y")])
    shape = [2, 3, 4, 5]
    shape[axis] += 7
    place = Slice(tuple(shape), axis, 3, (2, 3, 4, 5)[axis])
    moved = in_slice(function, place)
    assert moved is not None
    data = np.random.default_rng(0).integers(-9, 9, (2, 3, 4, 5, 6)).astype(np.float32)
    assert_slice(moved, place, [data], data.sum(-1), get_target("native"))


def test_rows_of_a_kernel_along_an_outer_axis() -> None:
    """A row of the slice is then many pixels, and the slice may have a shape of its own."""
    spec, target = ks.Lookup((1, 6, 5, 7)), get_target("native")
    args = tensors(spec)
    place = Slice((1, 80, 7), 1, 11, 30)
    function = in_slice(template_for(spec, target).emit(spec, FlatTile(64), "main"), place)
    assert function is not None
    assert_slice(function, place, args, run(spec, FlatTile(64), args, target), target)


def test_vectors_that_fall_into_no_pieces() -> None:
    spec = ks.Lookup((1, 8, 8, 3))
    function = template_for(spec, get_target("zen5")).emit(spec, FlatTile(64), "main")
    assert in_slice(function, Slice((1, 8, 8, 9), 3, 3, 3)) is None


def assert_slice(function: Any, place: Slice, args: list[np.ndarray], expected: np.ndarray, target: Any) -> None:
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    library = tvm.tirx.build(module, target=target.host())
    whole = tvm.runtime.tensor(np.full(place.shape, BESIDE, expected.dtype))
    library["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in args], whole)
    want = np.full(place.shape, BESIDE, expected.dtype)
    inside = [slice(None)] * want.ndim
    inside[place.axis] = slice(place.start, place.start + place.extent)
    want[tuple(inside)] = expected.reshape(place.own_shape)
    np.testing.assert_array_equal(whole.numpy(), want)
