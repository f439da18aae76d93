"""Float kernels of islands: the stated errors hold over the range of float32, and rows of awkward lengths are complete."""

from __future__ import annotations

import numpy as np
import pytest

from tests.numerics.kernels import run
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
