"""Under which TVM settings code is generated: the same for an artifact and for a tuner's candidates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import tvm

from tvmflow.build import cuda
from tvmflow.target import Target

SUPERFLUOUS = ["s_tir.CompactBufferAllocation"]
"""Our CPU kernels allocate what they use. The pass proves that by analysing every access: up to 3 of 4 seconds of a kernel."""


@contextmanager
def code_generation(target: Target) -> Iterator[Any]:
    """TVM's device of ``target``, with its compiler and the settings of our passes.

    Raises MissingTool when the target needs a CUDA compiler and there is none.
    """
    device = target.device()
    compiler = cuda.compiler_environment() if target.cuda else nullcontext()
    config = {"tirx.disable_assert": True, **(cuda.PASS_CONFIG if target.cuda else {})}
    left_out = [] if target.cuda else SUPERFLUOUS
    with compiler, device, tvm.transform.PassContext(opt_level=3, config=config, disabled_pass=left_out):
        yield device
