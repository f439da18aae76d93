"""Machine code of candidates: several decisions of one kernel in one module, as compile would build them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import tvm
from tvm import tirx

from tvmflow.build import cuda
from tvmflow.kernels import spec as ks
from tvmflow.schedule.template import Tile, template_for
from tvmflow.target import Target


def generate(kernel: ks.Kernel, tiles: Sequence[Tile], target: Target) -> tuple[Any, list[tirx.PrimFunc]]:
    """A built module with functions ``c0``, ``c1``, ..., one for each tile, and their PrimFuncs."""
    emit = template_for(kernel, target).emit
    functions = {f"c{i}": emit(kernel, tile, f"c{i}") for i, tile in enumerate(tiles)}
    module = tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})
    device = target.device()
    environment = cuda.compiler_environment() if target.cuda else nullcontext()
    config = {"tirx.disable_assert": True, **(cuda.PASS_CONFIG if target.cuda else {})}
    with environment, device, tvm.transform.PassContext(opt_level=3, config=config):
        return tvm.tirx.build(module, target=device), list(functions.values())
