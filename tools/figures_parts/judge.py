"""Closeness in the terms of a model's task, beyond what ``tvmflow.bench.evaluate`` compares: texts read, masks drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

THRESHOLD = 0.3
"""Probability from which on a pixel counts as text (PP-OCR's own)."""
BLANK = 0


class Runner(Protocol):
    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]: ...


def ctc(scores: np.ndarray) -> tuple[int, ...]:
    """Best symbol of each step of ``[1, steps, symbols]``, repetitions merged, blanks dropped."""
    best = scores[0].argmax(axis=1)
    changed = np.concatenate([[True], best[1:] != best[:-1]])
    return tuple(int(b) for b in best[changed] if b != BLANK)


def mask(probabilities: np.ndarray) -> np.ndarray:
    return probabilities > THRESHOLD


KEPT: dict[str, Callable[[np.ndarray], Any]] = {"text": ctc, "mask": mask}
"""What is kept of a first output, by what the model is judged by."""


@dataclass
class Recorder:
    """Passes runs on, and keeps what each first output means."""

    runner: Runner
    judged: str
    kept: list[Any] = field(default_factory=list)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        outputs = self.runner.run(inputs)
        if self.judged in KEPT:
            self.kept.append(KEPT[self.judged](next(iter(outputs.values()))))
        return outputs


def verdict(
    judged: str, ours: Sequence[Any], reference: Sequence[Any], symbols: Sequence[str], texts: Sequence[str]
) -> dict[str, float]:
    """Shares, 0 to 1: texts read as by the reference and as they are; overlap of the masks (intersection over union)."""
    if judged == "text":
        found = {"texts_as_reference": _equal(ours, reference)}
        if symbols and texts:
            found["texts_right"] = _equal([spell(s, symbols) for s in ours], texts)
            found["reference_texts_right"] = _equal([spell(s, symbols) for s in reference], texts)
        return found
    if judged == "mask":
        both = sum(int((a & b).sum()) for a, b in zip(ours, reference, strict=True))
        either = sum(int((a | b).sum()) for a, b in zip(ours, reference, strict=True))
        return {"mask_overlap": both / either if either else 1.0}
    return {}


def _equal(first: Sequence[Any], second: Sequence[Any]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / max(1, len(second))


def spell(sequence: Sequence[int], symbols: Sequence[str]) -> str:
    """``symbols[0]`` belongs to class 1: class 0 is the blank. The class after the last symbol is the space."""
    return "".join([*symbols, " "][number - 1] for number in sequence)


def symbols_of(model: Path) -> list[str]:
    """The alphabet in a reader's metadata; empty where it has none."""
    import onnx

    found = {item.key: item.value for item in onnx.load(model, load_external_data=False).metadata_props}
    return found["character"].splitlines() if "character" in found else []
