"""What both front ends hand to the check: the module and how to run the original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmflow.importer.check import Reference, Tolerance
from tvmflow.model import TensorInfo

if TYPE_CHECKING:
    from tvm import IRModule

Say = Callable[[str], None]
"""Told what is being worked on, so that a crash of native code can be blamed on a node."""


@dataclass(frozen=True)
class Loaded:
    """An imported module before its check. ``reference()`` starts the original framework: runner, its name, its refusals."""

    module: IRModule
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    notes: tuple[str, ...]
    tolerance: Tolerance
    reference: Callable[[], tuple[Reference, str, Any]]
