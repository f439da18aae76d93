"""Observers: exact where they must be, independent of order, and no memory that grows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tvmflow.quantize.observers import BINS, Histogram, observed_range, weight_scales
from tvmflow.quantize.recipe import ActivationConfig, WeightConfig

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.update(part)
    return histogram


@given(st.lists(arrays(np.float32, st.integers(0, 20), elements=FLOATS), min_size=1, max_size=6), st.randoms())
def test_order_and_batching_do_not_matter(parts: list[np.ndarray], random: object) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    whole, pieces = filled(np.concatenate(parts)), filled(*shuffled)
    assert np.array_equal(whole.counts, pieces.counts)
    assert (whole.low, whole.high, whole.zeros, whole.limit) == (pieces.low, pieces.high, pieces.zeros, pieces.limit)


@given(arrays(np.float32, st.integers(1, 300), elements=FLOATS))
def test_every_value_is_counted_in_its_bin(values: np.ndarray) -> None:
    histogram = filled(values)
    assert histogram.total == values.size
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    expected, _ = np.histogram(values.astype(np.float64), histogram.edges)
    assert np.array_equal(histogram.counts, expected)


@given(arrays(np.float32, st.integers(1, 300), elements=FLOATS), st.floats(0, 1))
def test_a_quantile_is_within_one_bin_of_the_true_one(values: np.ndarray, share: float) -> None:
    histogram = filled(values)
    true = np.sort(values)[max(int(np.ceil(share * values.size)) - 1, 0)]
    assert abs(histogram.quantile(share) - true) <= 2 * histogram.limit / (BINS // 2)
    assert histogram.low <= histogram.quantile(share) <= histogram.high


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        filled(np.array([1.0, bad], np.float32))


def test_percentile_drops_outliers_at_both_ends_and_minmax_does_not() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    values[:2] = -50, 80
    low, high = observed_range(filled(values), ActivationConfig(observer="percentile", percentile=99.9))
    assert -1 < low < -0.99
    assert 0.99 < high < 1
    assert observed_range(filled(values), ActivationConfig()) == (-50, 80)


def rounding_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    zero = np.rint(-low / step)
    restored = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    return float(((restored - values) ** 2).mean())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rectified", [False, True])
def test_mse_finds_nearly_the_best_range(symmetric: bool, rectified: bool) -> None:
    values = np.random.default_rng(1).standard_normal(60_000).astype(np.float32)
    values[0] = 9
    values = np.maximum(values, 0) if rectified else values
    chosen = observed_range(filled(values), ActivationConfig(observer="mse", symmetric=symmetric))
    low, high = (-9.0, 9.0) if symmetric else (min(float(values.min()), 0.0), 9.0)
    found = rounding_error(values, *chosen)
    tried = [rounding_error(values, low * share, high * share) for share in np.linspace(0.2, 1, 81)]
    assert found < 0.96 * rounding_error(values, low, high)
    assert found < 1.03 * min(tried)


def test_mse_keeps_the_whole_range_of_uniform_values() -> None:
    values = np.linspace(-3, 5, 10_001, dtype=np.float32)
    low, high = observed_range(filled(values), ActivationConfig(observer="mse"))
    assert (low, high) == (-3, 5)


@pytest.mark.parametrize("values", [np.zeros(5), np.full(5, 3.0), np.full(5, -3.0), np.array([1e-38])])
@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_degenerate_tensors_have_a_range_inside_what_was_seen(values: np.ndarray, observer: str) -> None:
    low, high = observed_range(filled(values.astype(np.float32)), ActivationConfig(observer=observer))  # type: ignore[arg-type]
    assert min(values.min(), 0) <= low <= high <= max(np.float32(values.max()), 0)


def test_density_keeps_every_value() -> None:
    counts, edges = filled(np.arange(-20, 100, dtype=np.float32)).density(64)
    assert counts.sum() == 120
    assert (edges[0], edges[-1]) == (-20, 99)
    assert filled(np.zeros(7, np.float32)).density(8)[0].sum() == 7


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_weight_scales_are_largest_over_127_along_the_axis(axis: int) -> None:
    weight = np.random.default_rng(2).standard_normal((5, 3, 3, 7)).astype(np.float32)
    scales = weight_scales(weight, axis, WeightConfig())
    others = tuple(i for i in range(4) if i != axis % 4)
    assert scales.dtype == np.float32
    assert np.allclose(scales, np.abs(weight).max(axis=others) / 127, rtol=1e-6)


def test_weight_scales_of_a_whole_tensor_zero_channels_and_zero_tensors() -> None:
    weight = np.array([[1.0, -2.0], [0.0, 0.0], [0.5, 0.25]], np.float32)
    assert weight_scales(weight, 0, WeightConfig(per_channel=False)) == pytest.approx([2 / 127])
    assert weight_scales(weight, None, WeightConfig()) == pytest.approx([2 / 127])
    assert weight_scales(weight, 0, WeightConfig()) == pytest.approx([2 / 127, 2 / 127, 0.5 / 127])
    assert weight_scales(np.zeros((2, 2), np.float32), 0, WeightConfig()) == pytest.approx([1, 1])


def test_mse_weight_scales_lower_the_error_of_every_channel() -> None:
    weight = np.random.default_rng(3).standard_normal((4, 40_000)).astype(np.float32)
    weight[:, 0] = 6

    def error(scales: np.ndarray) -> np.ndarray:
        q = np.clip(np.rint(weight / scales[:, None]), -127, 127)
        return ((q * scales[:, None] - weight) ** 2).sum(axis=1)

    widest, searched = (error(weight_scales(weight, 0, WeightConfig(observer=o))) for o in ("minmax", "mse"))  # type: ignore[arg-type]
    assert (searched <= widest * 1.0001).all()
    assert searched.sum() < 0.9 * widest.sum()
