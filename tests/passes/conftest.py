"""What each pass test says: a module becomes another one, or stays; and what a module computes."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax


@pytest.fixture
def becomes() -> Callable[..., tvm.IRModule]:
    """``becomes(step, before, expected)``: asserts structural equality, well-formedness and that a second run changes nothing."""

    def check(step: ModuleType, before: Any, expected: Any) -> tvm.IRModule:
        after = step.run(before)
        tvm.ir.assert_structural_equal(after, expected)
        relax.analysis.well_formed(after)
        tvm.ir.assert_structural_equal(step.run(after), expected)
        return after

    return check


@pytest.fixture
def stays() -> Callable[..., None]:
    """``stays(step, module)``: asserts that the pass does not fire."""

    def check(step: ModuleType, module: Any) -> None:
        tvm.ir.assert_structural_equal(step.run(module), module)

    return check


@pytest.fixture
def compute() -> Callable[..., list[np.ndarray]]:
    """``compute(module, *inputs)``: what TVM's own compilation of the module returns."""

    def run(module: Any, *inputs: np.ndarray) -> list[np.ndarray]:
        machine = relax.VirtualMachine(relax.build(module, "llvm"), tvm.cpu())
        result = machine["main"](*[tvm.runtime.tensor(x) for x in inputs])
        return [result.numpy()] if hasattr(result, "numpy") else [r.numpy() for r in result]

    return run


@pytest.fixture
def names() -> Callable[[tvm.IRModule], list[str]]:
    """Names of the bindings of ``main`` in order."""
    return lambda module: [str(b.var.name) for block in module["main"].body.blocks for b in block.bindings]
