"""The optimize stage: an imported model in, the same function out in the one form that later stages read.

``PASSES`` is the stage. Each pass is a function from module to module that says what must hold before it (``REQUIRES``) and
what holds after it (``ENSURES``); :func:`check` reads both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import tvm

from tvmflow.errors import InternalError
from tvmflow.model import Model
from tvmflow.optimize import (
    canonical_activations,
    canonical_clip,
    canonical_layer_norm,
    canonical_operands,
    canonical_shapes,
    channels_last,
    common_subexpressions,
    conv1d_to_conv2d,
    dead_code,
    decompose_batch_norm,
    fold_affine,
    fold_affine_forward,
    fold_constants,
    global_average_pool,
    lower_conv_transpose,
    merge_pads,
    name_te_calls,
    remove_identities,
)

if TYPE_CHECKING:
    from tvmflow.trace import Trace

Pass = Callable[[tvm.IRModule], tvm.IRModule]

FAILURES = (RuntimeError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What a bug in a pass, or TVM below it, raises; TVM's InternalError is a RuntimeError."""

IMPORTED = ("static shapes",)
"""What every importer ensures."""

PASSES: tuple[ModuleType, ...] = (
    # what importers leave to be computed or named
    name_te_calls,
    fold_constants,
    remove_identities,
    # one spelling for each thing
    canonical_shapes,
    canonical_operands,
    canonical_clip,
    canonical_activations,
    canonical_layer_norm,
    merge_pads,
    # arithmetic into weights
    decompose_batch_norm,
    fold_affine,
    fold_affine_forward,
    fold_affine,
    canonical_clip,
    # fewer operators
    conv1d_to_conv2d,
    lower_conv_transpose,
    global_average_pool,
    # layout
    channels_last,
    canonical_shapes,
    remove_identities,
    common_subexpressions,
    dead_code,
)


def name_of(step: ModuleType) -> str:
    """Name of a pass, as dumps and errors say it."""
    return step.__name__.rpartition(".")[2]


def check(passes: Sequence[ModuleType]) -> None:
    """Raises InternalError when a pass requires what no pass before it ensures."""
    holds = set(IMPORTED)
    for step in passes:
        missing = set(step.REQUIRES) - holds
        if missing:
            raise InternalError(f"requires {', '.join(sorted(missing))}, which no pass before it ensures", where=name_of(step))
        holds.update(step.ENSURES)


def optimize(model: Model, trace: Trace | None = None) -> Model:
    """``model`` after all passes. Shapes and dtypes of inputs and outputs, and what is computed, stay the same.

    Raises InternalError that names the pass that failed and those that ran before it.
    """
    module = model.module
    done: list[str] = []
    for step in PASSES:
        try:
            module = step.run(module)
        except FAILURES as error:
            raise InternalError(
                f"the pass failed: {error}",
                where=f"optimize/{name_of(step)}",
                remedy=f"ran before it: {', '.join(done) or 'none'}; please report this model",
            ) from error
        done.append(name_of(step))
        if trace is not None:
            trace.show(f"optimize_{name_of(step)}", module)
    return model.then("optimize", module)
