"""Machine code of candidates: several decisions of one kernel in one module, as compile would build them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import tirx

from tvmflow.build.context import code_generation
from tvmflow.kernels import spec as ks
from tvmflow.schedule.template import Tile, template_for
from tvmflow.target import Target


def generate(kernel: ks.Kernel, tiles: Sequence[Tile], target: Target) -> tuple[Any, list[tirx.PrimFunc]]:
    """A built module with functions ``c0``, ``c1``, ..., one for each tile, and their PrimFuncs."""
    emit = template_for(kernel, target).emit
    functions = {f"c{i}": emit(kernel, tile, f"c{i}") for i, tile in enumerate(tiles)}
    module = tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})
    with code_generation(target) as device:
        return tvm.tirx.build(module, target=device), list(functions.values())
