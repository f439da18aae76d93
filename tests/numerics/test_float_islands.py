"""Float kernels of islands: the stated errors hold over the range of float32, and rows of awkward lengths are complete."""

from __future__ import annotations

import numpy as np
import pytest

from tests.numerics.kernels import run, run_outputs
from tvmflow.kernels import reference
from tvmflow.kernels.reference import run_kernel
from tvmflow.kernels.spec import UNARY, LayerNorm, Softmax, Unary
from tvmflow.schedule.elementwise import FlatTile
from tvmflow.target import get_target

LENGTHS = (1, 2, 3, 7, 13, 16, 17, 64, 100, 129)


@pytest.mark.parametrize("fn", UNARY)
def test_elementwise_functions_have_the_stated_error(fn: str) -> None:
    near = np.linspace(-9, 9, 20011, dtype=np.float32)
    far = np.array([0.0, -0.0, -86.9, 80.0, -60.0, 40.0], np.float32)
    x = np.concatenate([near, far])
    spec = Unary(fn, x.shape)
    got, expected = run(spec, FlatTile(16), [x], get_target("native")), run_kernel(spec, [x])
    if fn == "exp":
        np.testing.assert_allclose(got, expected, rtol=4e-7, atol=0)
    else:
        np.testing.assert_allclose(got, expected, rtol=4e-7, atol=5e-7 * (9 if fn in ("gelu", "silu") else 1))


@pytest.mark.parametrize("n", LENGTHS)
def test_softmax(n: int) -> None:
    x = (np.random.default_rng(n).standard_normal((5, n)) * 20).astype(np.float32)
    x[0] = -1e4  # as masks of attention do
    x[0, 0] = 3.0
    spec = Softmax(5, n)
    got = run(spec, FlatTile(16), [x], get_target("native"))
    np.testing.assert_allclose(got, run_kernel(spec, [x]), rtol=3e-6, atol=1e-7)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("n", LENGTHS)
def test_layer_norm(n: int) -> None:
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((5, n)) + 100).astype(np.float32)
    args = [x, rng.standard_normal(n).astype(np.float32), rng.standard_normal(n).astype(np.float32), np.array([1e-5], np.float32)]
    spec = LayerNorm(5, n)
    got = run(spec, FlatTile(16), args, get_target("native"))
    # a mean of 100 costs two digits of the float32 input before anything is computed
    np.testing.assert_allclose(got, run_kernel(spec, args), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("storage", ["uint8", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 4, 9])
@pytest.mark.parametrize("n", [1, 7, 16, 100])
def test_layer_norm_with_residual_and_codes(n: int, rows: int, storage: str) -> None:
    rng = np.random.default_rng(n)
    x, residual = rng.standard_normal((2, rows, n)).astype(np.float32)
    gamma, beta = rng.standard_normal((2, n)).astype(np.float32)
    zero = np.array([int(np.iinfo(storage).min) + 100], np.int32)
    args = [x, gamma, beta, np.array([1e-5], np.float32), residual, np.array([70.0], np.float32), zero]
    spec = LayerNorm(rows, n, True, storage)
    y, codes = run_outputs(spec, FlatTile(16), args, get_target("native"))
    expected = reference.run_outputs(spec, args)
    np.testing.assert_allclose(y, expected[0], rtol=1e-4, atol=1e-5)
    # whether a float that lies between two steps goes up or down may depend on its last bit, never more than that
    assert codes.dtype == expected[1].dtype == storage and np.abs(codes.astype(int) - expected[1].astype(int)).max() <= 1
    np.testing.assert_array_equal(codes, np.clip(np.rint(y * np.float32(70)) + zero, *_range(storage)))
    np.testing.assert_array_equal(y, run(LayerNorm(rows, n), FlatTile(16), [x + residual, *args[1:4]], get_target("native")))


def _range(dtype: str) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
