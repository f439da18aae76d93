"""The numeric check: what it lets pass, and what it calls a mismatch."""

from __future__ import annotations

import numpy as np
import pytest

from tvmflow.errors import ImportMismatch
from tvmflow.importer.check import compare, random_feeds
from tvmflow.importer.source import EXACT_ARITHMETIC, QUANTIZED
from tvmflow.model import TensorInfo

OUT = (TensorInfo("logits", (4,), "float32"),)
WANT = np.array([1.0, -2.0, 0.0, 3.0], np.float32)


def test_returns_the_largest_error():
    got = WANT + np.array([0, 0, 2**-12, 0], np.float32)
    assert compare([got], [WANT], OUT, EXACT_ARITHMETIC, "peer 1.0") == 2**-12


def test_mismatch_names_output_error_and_tolerance():
    with pytest.raises(
        ImportMismatch, match=r"output 'logits': differs from peer 1.0 by 1 where 0.00\d+ is allowed .*25.0% of 4"
    ):
        compare([WANT + np.array([0, 1, 0, 0], np.float32)], [WANT], OUT, EXACT_ARITHMETIC, "peer 1.0")


@pytest.mark.parametrize(
    "wrong", [WANT[:3], WANT.astype(np.float64), np.where(WANT > 2, np.nan, WANT), np.where(WANT > 2, np.inf, WANT)]
)
def test_shape_type_and_special_values(wrong):
    with pytest.raises(ImportMismatch):
        compare([wrong], [WANT], OUT, EXACT_ARITHMETIC, "peer")


def test_nan_and_infinity_in_their_places_are_equal():
    special = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    assert compare([special], [special.copy()], OUT, EXACT_ARITHMETIC, "peer") == 0.0


def test_the_lowest_number_is_an_infinity_and_hides_no_error():
    want = np.array([np.finfo(np.float32).min, 1.0, 2.0], np.float32)
    got = np.array([-np.inf, 1.0, 2.0], np.float32)
    info = (TensorInfo("y", (3,), "float32"),)
    assert compare([got], [want], info, EXACT_ARITHMETIC, "peer") == 0.0
    with pytest.raises(ImportMismatch):
        compare([got + np.float32(0.5)], [want], info, EXACT_ARITHMETIC, "peer")


def test_integers_are_exact_unless_quantized():
    got, want = np.array([1, 2], np.int8), np.array([1, 3], np.int8)
    info = (TensorInfo("q", (2,), "int8"),)
    assert compare([got], [want], info, QUANTIZED, "peer") == 1.0
    with pytest.raises(ImportMismatch):
        compare([got], [want], info, EXACT_ARITHMETIC, "peer")
    with pytest.raises(ImportMismatch):
        compare([got], [want + np.int8(1)], info, QUANTIZED, "peer")


def test_quantized_floats_are_judged_by_their_noise():
    noise = np.array([0.05, -0.05, 0.05, 0.05], np.float32)
    assert compare([WANT + noise], [WANT], OUT, QUANTIZED, "peer") == pytest.approx(0.05, rel=1e-3)
    with pytest.raises(ImportMismatch):
        compare([WANT + 4 * noise], [WANT], OUT, QUANTIZED, "peer")


def test_random_inputs_are_seeded_and_typed():
    inputs = [TensorInfo("f", (3,), "float32"), TensorInfo("i", (5,), "int64"), TensorInfo("b", (2,), "bool")]
    one, two = random_feeds(inputs, 0, 10), random_feeds(inputs, 0, 10)
    assert all(
        np.array_equal(one[name], two[name]) and str(one[name].dtype) == dtype
        for name, dtype in (("f", "float32"), ("i", "int64"), ("b", "bool"))
    )
    assert one["i"].max() < 10 and random_feeds(inputs, 1, 10)["f"].min() >= 0
