"""Self-test: replay the vectors inside an artifact and compare what comes out with what was promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from tvmflow.build.manifest import Manifest, read_self_test
from tvmflow.runtime.session import load


class Runner(Protocol):
    """A loaded model: a :class:`~tvmflow.runtime.session.Session`, or one on a board."""

    path: Path
    manifest: Manifest

    def __call__(self, *arrays: Any) -> Any: ...


class VerifyResult(msgspec.Struct, frozen=True):
    """Outcome over all vectors. ``max_abs_error`` is infinite where only one side is not a number."""

    passed: bool
    vectors: int
    max_abs_error: float
    bit_exact: bool

    def to_json(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self)


def verify(source: str | Path | Runner) -> VerifyResult:
    """Run the embedded inputs of a file or session and compare all outputs.

    Passes when every bit is equal, or, where the manifest does not promise that, when the largest absolute error is within its
    tolerance. A file without vectors does not pass. Raises ArtifactError as :func:`load` does.
    """
    session = load(source) if isinstance(source, str | Path) else source
    vectors = read_self_test(session.path)
    errors, equal = [0.0], True
    for inputs, expected in vectors:
        found = session(*inputs)
        for got, want in zip(found if isinstance(found, list) else [found], expected, strict=True):
            equal &= got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()
            errors.append(max_abs_error(got, want))
    promise, worst = session.manifest.self_test, max(errors)
    passed = bool(vectors) and (equal or (not promise.bit_exact and worst <= promise.tolerance))
    return VerifyResult(passed=passed, vectors=len(vectors), max_abs_error=worst, bit_exact=equal)


def max_abs_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest absolute difference in float64; infinite for different shapes, or a NaN or infinity on one side only."""
    if got.shape != want.shape:
        return float("inf")
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    difference = np.abs(a[~same] - b[~same])
    return float("inf") if np.isnan(difference).any() else float(difference.max())
