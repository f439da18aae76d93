"""What both front ends hand to the check: the module and how to run the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvmflow.model import TensorInfo

if TYPE_CHECKING:
    from tvm import IRModule

Feeds = Mapping[str, np.ndarray]
Say = Callable[[str], None]
"""Told what is being worked on, so that a crash of native code can be blamed on a node."""


@dataclass(frozen=True)
class Tolerance:
    """``|got - want| <= relative * |want| + scaled * max|want|`` per element; ``noise`` bounds the relative RMS error instead."""

    relative: float = 1e-3
    scaled: float = 1e-3
    noise: float = 0.0
    steps: int = 0


EXACT_ARITHMETIC = Tolerance()
"""float32 in another order: the default pipeline adds a mean of 12,800 elements one by one; that 2.5e-5 grows to 4.5e-4 of the
peak by the end of PP-OCRv6's detector. Wrong operators are off by whole percents."""
HALF = Tolerance(relative=2e-2, scaled=5e-3)
QUANTIZED = Tolerance(noise=0.05, steps=1)
"""Integers may round to the neighbour, and the neighbours add up downstream."""


@dataclass(frozen=True)
class Framework:
    """Something else that runs the original model: inputs by name to outputs in order; by ``refusals`` it rejects inputs."""

    run: Callable[[Feeds], Sequence[np.ndarray]]
    name: str
    refusals: tuple[type[Exception], ...]


@dataclass(frozen=True)
class Loaded:
    """An imported module before its check. ``references()`` starts frameworks to check it with, the best first."""

    module: IRModule
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    notes: tuple[str, ...]
    tolerance: Tolerance
    references: Callable[[], Iterable[Framework]]
