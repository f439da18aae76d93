"""Accuracy and closeness, against small cases worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tvmflow.bench.evaluate import evaluate, ranks
from tvmflow.errors import DataError


@dataclass
class Rows:
    """Samples of one row each; the fake sessions give them back as scores."""

    values: np.ndarray
    labels: np.ndarray | None = None
    batch: int = 1

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return ({"x": value[None]} for value in self.values)

    def __len__(self) -> int:
        return len(self.values)


@dataclass
class Scores:
    """Scores = input * gain + offset."""

    gain: float = 1.0
    offset: float = 0.0

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * np.float32(self.gain) + np.float32(self.offset)}


def eye(count: int) -> np.ndarray:
    return np.eye(count, dtype=np.float32)


@given(npst.arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.integers(-2, 2)), st.data())
def test_rank_is_the_place_in_a_stable_sort(scores: np.ndarray, data: st.DataObject) -> None:
    labels = np.array([data.draw(st.integers(0, scores.shape[1] - 1)) for _ in scores])
    order = np.argsort(-scores.astype(int), axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert ranks(scores, labels).tolist() == expected


def test_accuracy_counts_top1_and_top5() -> None:
    scores = np.tile(np.arange(10, 0, -1, dtype=np.float32), (4, 1))
    found = evaluate(Scores(), Rows(scores, np.array([0, 4, 5, 0])))
    assert (found.count, found.top1, found.top5) == (4, 0.5, 0.75)
    assert found.reference is None and found.agreement is None


def test_an_equal_reference_agrees_everywhere() -> None:
    found = evaluate(Scores(), Rows(eye(6), np.arange(6)), Scores(), reference_name="fp32")
    assert found.reference is not None and found.reference.name == "fp32" and found.reference.top1 == 1.0
    assert (found.agreement, found.max_abs_error, found.cosine) == (1.0, 0.0, 1.0)
    assert found.sqnr_db is None, "no noise: the ratio is not a number"


def test_sqnr_of_a_known_error() -> None:
    found = evaluate(Scores(gain=1.1), Rows(eye(3)), Scores())
    assert found.sqnr_db == pytest.approx(20.0, abs=1e-4)
    assert found.max_abs_error == pytest.approx(0.1, abs=1e-6)
    assert found.top1 is None and found.reference is not None and found.reference.top1 is None


def test_agreement_is_independent_of_labels() -> None:
    found = evaluate(Scores(gain=-1.0), Rows(eye(4)), Scores())
    assert found.agreement == 0.0 and found.cosine == pytest.approx(-1.0)


def test_nan_outputs_are_counted_and_wrong() -> None:
    values = eye(4)
    values[1, 1] = math.nan
    found = evaluate(Scores(), Rows(values, np.arange(4)), Scores(gain=2.0))
    assert found.non_finite == 1 and found.top1 == 0.75 and found.agreement == 0.75
    json.dumps(found.to_json(), allow_nan=False)


def test_nothing_but_nan_has_no_closeness() -> None:
    found = evaluate(Scores(offset=math.nan), Rows(eye(2), np.arange(2)), Scores())
    assert (found.top1, found.agreement, found.sqnr_db, found.max_abs_error) == (0.0, 0.0, None, None)


def test_sequences_are_judged_at_each_position() -> None:
    values = np.stack([eye(5), eye(5)[::-1]])
    found = evaluate(Scores(), Rows(values, np.array([0, 1, 2, 3, 4, 4, 3, 2, 1, 0])))
    assert found.count == 10 and found.top1 == 1.0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(2), "only 2 labels"),
        (np.arange(9) % 3, "9 labels for 3"),
        (np.array([0, 1, 7]), "outside the 3 classes"),
        (np.array([0, 1, -2]), "outside the 3 classes"),
        (np.array([0.5, 1, 2]), "not class numbers"),
    ],
)
def test_labels_that_do_not_fit(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(Scores(), Rows(eye(3), labels))


def test_rows_without_a_label_are_not_judged() -> None:
    found = evaluate(Scores(), Rows(eye(4), np.array([0, -1, 3, -1])), Scores())
    assert (found.count, found.top1, found.agreement) == (4, 0.5, 1.0)
    assert found.reference is not None and found.reference.top1 == 0.5
    assert evaluate(Scores(), Rows(eye(2), np.array([-1, -1]))).top1 is None


def test_labels_of_an_incomplete_sample_do_no_harm() -> None:
    data = Rows(np.stack([eye(2), eye(2)]), np.array([0, 1, 0, 1, 0]), batch=2)
    assert evaluate(Scores(), data).top1 == 1.0


def test_no_samples_is_an_error() -> None:
    with pytest.raises(DataError, match="no samples"):
        evaluate(Scores(), Rows(np.zeros((0, 3), np.float32)))


def test_a_reference_of_another_shape_is_an_error() -> None:
    class Wide:
        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"y": np.zeros((1, 9), np.float32)}

    with pytest.raises(DataError, match="can't be compared"):
        evaluate(Scores(), Rows(eye(3)), Wide())


def test_progress_counts_samples() -> None:
    seen: list[tuple[str, int, int]] = []
    evaluate(Scores(), Rows(eye(3)), progress=lambda *step: seen.append(step))
    assert seen == [("eval", 1, 3), ("eval", 2, 3), ("eval", 3, 3)]
