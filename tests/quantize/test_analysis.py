"""Analysis: known errors give known figures, and advice is given where it is due."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from tvmflow.quantize.analysis import (
    ErrorMeter,
    LayerError,
    advise,
    dequantized,
    layer_errors,
    outlier_ratio,
    sqnr_db,
    tensors_of,
)
from tvmflow.quantize.calibrate import Calibration, SiteStats
from tvmflow.quantize.plan import Group, Plan
from tvmflow.quantize.qparams import QParam


def param(scale: float = 0.5, zero: int = 3, observer: str = "minmax") -> QParam:
    return QParam(np.array([scale], np.float32), zero, -1, 1, observer)


def test_figures_of_a_known_error() -> None:
    reference = np.array([3.0, 4.0, 0.0, 0.0])
    meter = ErrorMeter()
    meter.update(reference[:2], np.array([3.0, 4.5]))
    meter.update(reference[2:], np.array([0.0, 0.0]))
    found = meter.result("a")
    assert found.sqnr_db == pytest.approx(20.0)
    assert found.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert (found.max_abs_error, found.mean_abs_error, found.signal_rms) == (0.5, 0.125, 2.5)
    assert sqnr_db(reference, reference) == math.inf
    assert sqnr_db(np.zeros(2), np.ones(2)) == -math.inf
    with pytest.raises(ValueError, match="4 values against 3"):
        sqnr_db(reference, np.zeros(3))


def test_uniform_values_in_eight_bits_lose_what_theory_says() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 100_000)
    step = 2 / 255
    assert sqnr_db(values, np.rint(values / step) * step) == pytest.approx(20 * math.log10(255), abs=0.1)


@pytest.mark.parametrize(("dtype", "offset"), [(np.int8, 0), (np.uint8, 128)])
def test_both_storage_types_dequantize_to_the_same_values(dtype: type, offset: int) -> None:
    codes = (np.array([-128, 3, 127]) + offset).astype(dtype)
    assert dequantized(codes, param()).tolist() == [-65.5, 0, 62]
    assert dequantized(np.array([1.25], np.float32), param()).tolist() == [1.25]


def test_layer_errors_compare_what_both_models_have() -> None:
    samples = [{"x": np.array([1.0, 2.0])}, {"x": np.array([-1.0, 0.5])}]

    def floating(arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [arguments[0], 2 * arguments[0]]

    def quantized(arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [(np.rint(arguments[0] / 0.5) + 3).astype(np.int8), 2 * arguments[0] + 0.25]

    errors = layer_errors(
        tensors_of(floating, ["x"], ["a", "b"]), tensors_of(quantized, ["x"], ["a", "b"]), samples, {"a": param()}
    )
    assert [e.layer for e in errors] == ["a", "b"]
    assert errors[0].sqnr_db == math.inf
    assert errors[1].max_abs_error == 0.25
    fused = layer_errors(tensors_of(floating, ["x"], ["a", "b"]), tensors_of(lambda x: [x[0]], ["x"], ["b"]), samples, {})
    assert [e.layer for e in fused] == ["b"]


def stats(high: float, tail_high: float) -> SiteStats:
    return SiteStats(0.0, high, 0.0, tail_high, 0, 100, (100,))


def test_outliers_are_advised_against() -> None:
    assert outlier_ratio(stats(6.0, 6.0)) == 1
    assert outlier_ratio(stats(6.0, 0.0)) == math.inf
    assert outlier_ratio(stats(0.0, 0.0)) == 1
    found = {"wide": stats(90.0, 9.0), "fine": stats(6.0, 5.5), "clipped": stats(90.0, 9.0)}
    params = {"wide": param(), "fine": param(), "clipped": param(observer="percentile 99.99")}
    advice = advise((), Calibration(params, found, 8, (), ()), Plan((), ()))
    assert [a.layer for a in advice] == ["wide"]
    assert "10.0 times wider" in advice[0].finding
    assert 'layer = "wide"' in advice[0].remedy


def test_the_layer_where_the_error_arises_is_named() -> None:
    groups = (
        Group("/a", "conv2d", ("/a",), ("x",), "a", "/a:weight"),
        Group("/b", "depthwise", ("/b",), ("a",), "b", "/b:weight"),
        Group("/c", "conv2d", ("/c",), ("b",), "c", "/c:weight"),
        Group("/d", "softmax", ("/d",), ("c",), "d", integer=False, reason="float"),
    )
    decibels = {"x": 45.0, "a": 40.0, "b": 9.0, "c": 8.0, "d": 1.0}
    errors = [LayerError(name, value, 1.0, 0.0, 0.0, 1.0) for name, value in decibels.items()]
    advice = advise(errors, Calibration({}, {}, 8, (), ()), Plan((), groups))
    assert [a.layer for a in advice] == ["/b"]
    assert "falls by 31.0 dB to 9.0 dB in this depthwise" in advice[0].finding
