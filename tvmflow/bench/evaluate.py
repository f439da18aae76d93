"""Accuracy of a session on labelled data, and its closeness to a reference on any data.

Predictions are ranked by score, equal scores by lower index, as ``argmax`` does: int8 scores are often equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sized
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from tvmflow.errors import DataError
from tvmflow.trace import Progress, silent


class Runner(Protocol):
    """A session, local or on a board, or a peer."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs by name, in the model's order."""


class DataSet(Protocol):
    """Samples, each a full set of inputs by name, with or without labels."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class of each row of the model's first output in the order of the samples, -1 where it is unknown."""

    @property
    def batch(self) -> int:
        """Rows of one sample. Labels of a last, incomplete sample, which is left out, do no harm."""

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...


@dataclass(frozen=True)
class Reference:
    """The reference's own accuracy, 0 to 1, None without labels."""

    name: str
    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True)
class EvalResult:
    """Shares are 0 to 1. None is what can't be known: accuracy without labels, closeness without a reference."""

    count: int
    """Rows of the first output: samples, or positions of sequences. Accuracy is over those of them that have a label."""
    top1: float | None = None
    top5: float | None = None
    reference: Reference | None = None
    agreement: float | None = None
    """Share of rows whose best class is the reference's too."""
    sqnr_db: float | None = None
    """10 log10 of signal energy over error energy, all outputs and samples together; None when the outputs are equal."""
    cosine: float | None = None
    """Cosine similarity of all outputs with the reference's, all samples together."""
    max_abs_error: float | None = None
    non_finite: int = 0
    """Samples with a NaN or an infinity in an output. Their rows count as wrong, and are left out of the closeness."""

    def to_json(self) -> dict[str, Any]:
        """Keys of ``tvmflow eval --json``."""
        return asdict(self)


@dataclass
class _Closeness:
    """Running sums over everything compared."""

    signal: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    energy: float = 0.0
    worst: float = 0.0

    def add(self, ours: np.ndarray, reference: np.ndarray) -> None:
        mine, theirs = ours.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
        error = mine - theirs
        self.signal += float(theirs @ theirs)
        self.noise += float(error @ error)
        self.dot += float(mine @ theirs)
        self.energy += float(mine @ mine)
        self.worst = max(self.worst, float(np.abs(error).max(initial=0.0)))

    @property
    def sqnr_db(self) -> float | None:
        return 10 * math.log10(self.signal / self.noise) if self.noise > 0 and self.signal > 0 else None

    @property
    def cosine(self) -> float | None:
        scale = math.sqrt(self.signal * self.energy)
        return min(1.0, self.dot / scale) if scale > 0 else None


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of each row's label among its scores: 0 is the best. Rows with a NaN rank last.

    Parameters
    ----------
    scores : float ``[rows, classes]``
    labels : integer ``[rows]``
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    place = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return np.where(np.isnan(scores).any(axis=1), scores.shape[1], place)


def evaluate(
    session: Runner,
    dataset: DataSet,
    reference: Runner | None = None,
    progress: Progress = silent,
    *,
    reference_name: str = "reference",
) -> EvalResult:
    """Accuracy of ``session`` on ``dataset`` and closeness to ``reference``, one sample at a time.

    The first output's last axis holds the class scores; every other axis counts rows, one label each. Raises DataError when
    there are no samples, or when labels don't fit the outputs.
    """
    labels = None if dataset.labels is None else np.asarray(dataset.labels).ravel()
    total = _length(dataset)
    places: list[np.ndarray] = []
    reference_places: list[np.ndarray] = []
    closeness = _Closeness()
    rows = agreeing = non_finite = samples = 0
    for samples, inputs in enumerate(dataset, start=1):
        outputs = list(session.run(inputs).values())
        expected = list(reference.run(inputs).values()) if reference is not None else []
        scores = _scores(outputs[0])
        label = None if labels is None else _labels(labels, rows, scores)
        rows += len(scores)
        known = None if label is None else label >= 0
        if label is not None:
            places.append(ranks(scores[known], label[known]))
        clean = all(np.isfinite(value).all() for value in outputs)
        non_finite += not clean
        if expected:
            theirs = _scores(expected[0])
            _check_same(outputs, expected)
            if label is not None:
                reference_places.append(ranks(theirs[known], label[known]))
            if clean:
                agreeing += int((scores.argmax(axis=1) == theirs.argmax(axis=1)).sum())
                for mine, other in zip(outputs, expected, strict=True):
                    closeness.add(mine, other)
        progress("eval", samples, total)
    if not samples:
        raise DataError("there are no samples", where="eval", remedy="see that the data set is not empty")
    if labels is not None and len(labels) - rows >= dataset.batch:
        raise DataError(f"{len(labels)} labels for {rows} results", where="label", remedy="one label for each sample")
    top1, top5 = _accuracy(places)
    if reference is None:
        return EvalResult(rows, top1, top5, non_finite=non_finite)
    return EvalResult(
        count=rows,
        top1=top1,
        top5=top5,
        reference=Reference(reference_name, *_accuracy(reference_places)),
        agreement=agreeing / rows,
        sqnr_db=closeness.sqnr_db,
        cosine=closeness.cosine,
        max_abs_error=closeness.worst if non_finite < samples else None,
        non_finite=non_finite,
    )


def _length(dataset: object) -> int:
    """Samples to come; 0 when a stream does not know."""
    return len(dataset) if isinstance(dataset, Sized) else 0


def _scores(output: np.ndarray) -> np.ndarray:
    """``[rows, classes]``."""
    value = np.asarray(output)
    return value.reshape(-1, value.shape[-1] if value.ndim else 1)


def _labels(labels: np.ndarray, start: int, scores: np.ndarray) -> np.ndarray:
    part = labels[start : start + len(scores)]
    if len(part) < len(scores):
        raise DataError(
            f"only {len(labels)} labels, and more results than that", where="label", remedy="one label for each sample"
        )
    if part.dtype.kind not in "iu":
        raise DataError(f"labels are {labels.dtype}, not class numbers", where="label")
    if part.min(initial=0) < -1 or part.max(initial=0) >= scores.shape[1]:
        raise DataError(f"a label is outside the {scores.shape[1]} classes of the model", where="label")
    return part.astype(np.int64)


def _check_same(ours: list[np.ndarray], reference: list[np.ndarray]) -> None:
    shapes = [np.shape(value) for value in ours], [np.shape(value) for value in reference]
    if shapes[0] != shapes[1]:
        raise DataError(f"outputs {shapes[0]} can't be compared with the reference's {shapes[1]}", where="eval")


def _accuracy(places: list[np.ndarray]) -> tuple[float | None, float | None]:
    every = np.concatenate(places) if places else np.empty(0)
    if not every.size:
        return None, None
    return float((every < 1).mean()), float((every < 5).mean())
