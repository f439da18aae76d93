"""Latency statistics against NumPy's definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmflow.bench.stats import Latency, percentile
from tvmflow.errors import EnvironmentProblem

TIMES = st.lists(st.floats(1e-7, 100), min_size=1, max_size=60)


@given(TIMES, st.floats(0, 1))
def test_percentile_is_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(np.percentile(values, 100 * share), rel=1e-9)


@given(TIMES)
def test_statistics_are_ordered_and_ignore_the_order_of_runs(values: list[float]) -> None:
    latency = Latency(tuple(values))
    assert latency.min <= latency.median <= latency.p90 <= latency.p99 <= max(values)
    assert latency.mad >= 0
    backwards = Latency(tuple(reversed(values)))
    assert (latency.min, latency.median, latency.p90, latency.p99, latency.mad) == (
        backwards.min,
        backwards.median,
        backwards.p90,
        backwards.p99,
        backwards.mad,
    )


@given(TIMES, st.floats(0.1, 10))
def test_statistics_scale_with_the_times(values: list[float], factor: float) -> None:
    slow = Latency(tuple(value * factor for value in values))
    assert slow.p90 == pytest.approx(Latency(tuple(values)).p90 * factor, rel=1e-9)


def test_mad_ignores_an_outlier() -> None:
    assert Latency((1.0, 1.1, 0.9, 1.0, 500.0)).mad == pytest.approx(0.1, abs=1e-9)


def test_json_is_milliseconds_with_all_runs() -> None:
    found = json.loads(json.dumps(Latency((0.002, 0.001), number=3).to_json()))
    assert found["min"] == 1.0 and found["median"] == 1.5
    assert found["runs"] == [2.0, 1.0] and found["number"] == 3


@pytest.mark.parametrize("times", [(), (0.0,), (1.0, -1.0), (math.nan,), (math.inf, 1.0)])
def test_impossible_times_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(EnvironmentProblem):
        Latency(times)
