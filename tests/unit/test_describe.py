"""Self-test inputs: repeatable, small in the file, and different wherever a kernel could mix up rows, channels or tiles."""

from __future__ import annotations

import numpy as np
import pytest

from tvmflow.build.manifest import encode_vectors
from tvmflow.flow.describe import noise
from tvmflow.model import TensorInfo


def make(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return noise(TensorInfo("x", shape, dtype), np.random.default_rng(seed))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (1, 3, 32, 32), (2, 128)])
def test_noise_is_repeatable_and_of_the_declared_kind(shape: tuple[int, ...], dtype: str) -> None:
    x = make(shape, dtype)
    assert x.shape == shape and x.dtype == dtype
    np.testing.assert_array_equal(x, make(shape, dtype))
    assert x.size < 100 or not np.array_equal(x, make(shape, dtype, seed=1))


def test_noise_covers_its_range_and_no_neighbours_are_equal() -> None:
    x = make((1, 3, 224, 224))
    assert x.min() == -2 and x.max() == 2 and len(np.unique(x)) > 200
    for length in (8, 16, 64, 224, 224 * 224):
        rows = x.reshape(-1, length)
        assert (rows[:-1] != rows[1:]).any(axis=1).all(), length


def test_noise_is_small_in_the_file() -> None:
    for shape, times in [((1, 3, 32, 32), 5), ((1, 3, 224, 224), 50), ((1, 3, 640, 640), 100)]:
        x = make(shape)
        assert len(encode_vectors([([x], [])])) < x.nbytes / times
