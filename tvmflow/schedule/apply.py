"""The schedule stage: gives every kernel call of a module its code.

Before: ``R.call_dps_packed('tvmflow.kernel {...}', (x, weight, bias, multiplier, quant))``
After:  ``R.call_tir(cls.conv2d_3x3_64_64_56x56, (x, packed weight, bias, multiplier, quant))``

Calls of one signature and one decision share one PrimFunc.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvmflow.kernels import spec as ks
from tvmflow.kernels.call import kernel_args, kernel_of, result_types
from tvmflow.model import Model
from tvmflow.optimize.expr import array, is_constant
from tvmflow.optimize.walk import Walk
from tvmflow.schedule.ahead import bytes_ahead
from tvmflow.schedule.template import CONVOLUTIONS, Tile, template_for, weight_bytes
from tvmflow.target import Target

Lookup = Callable[[ks.Kernel, Target], Tile | None]
"""The tuning log: the recorded decision for a signature on a target, or None."""


def untuned(_spec: ks.Kernel, _target: Target) -> Tile | None:
    """The empty tuning log."""
    return None


@dataclass(frozen=True)
class ScheduledKernel:
    """What one kernel call of the network got."""

    layer: str
    function: str
    spec: ks.Kernel
    template: str
    tile: Tile
    tuned: bool


def schedule(model: Model, target: Target, lookup: Lookup = untuned) -> tuple[Model, tuple[ScheduledKernel, ...]]:
    """Replaces every kernel call of ``model`` by a call of a PrimFunc for ``target``.

    Returns the model and, in program order, what each call got.
    """
    kernels: list[ScheduledKernel] = []
    functions: dict[tuple[ks.Kernel, Tile], tvm.ir.GlobalVar] = {}
    library = relax.BlockBuilder()
    names: Counter[str] = Counter()
    walk = Walk(model.module)
    calls = {binding.var: spec for binding in walk.old_bindings() if (spec := kernel_of(binding.value)) is not None}
    recorded = {spec: lookup(spec, target) for spec in calls.values()}
    tiles = {spec: tile or template_for(spec, target).default(spec, target) for spec, tile in recorded.items()}
    weights = [weight_bytes(spec, tiles[spec]) for spec in calls.values()]
    ahead = dict(zip(calls, bytes_ahead(list(calls.values()), weights, target.cpu), strict=True))

    def rule(walk: Walk, call: Any) -> Any:
        spec = kernel_of(call)
        if spec is None:
            return None
        template, tile = template_for(spec, target), tiles[spec]
        if type(tile) in CONVOLUTIONS:
            tile = msgspec.structs.replace(tile, ahead=ahead[walk.var])
        if (spec, tile) not in functions:
            name = kernel_name(spec)
            names[name] += 1
            if names[name] > 1:
                name += f"_v{names[name]}"
            functions[spec, tile] = library.add_func(template.emit(spec, tile, name), name)
        function = functions[spec, tile]
        kernels.append(
            ScheduledKernel(str(walk.name), str(function.name_hint), spec, template.name, tile, recorded[spec] is not None)
        )
        args = _pack(kernel_args(call), lambda consts: template.pack(spec, tile, consts))
        return relax.call_tir(function, relax.Tuple(args), result_types(spec))

    module = walk.run(rule)
    module.update(library.get())
    return model.then("schedule", module), tuple(kernels)


def _pack(args: list[Any], pack: Callable[[list[NDArray[Any]]], list[NDArray[Any]]]) -> list[Any]:
    """Arguments with their constants replaced by packed ones, in place."""
    where = [i for i, a in enumerate(args) if is_constant(a)]
    packed = pack([array(args[i]) for i in where])
    for i, value in zip(where, packed, strict=True):
        args[i] = relax.const(np.ascontiguousarray(value))
    return args


def kernel_name(spec: ks.Kernel) -> str:
    """A readable name of a kernel's function, as profilers show it; ``_v2`` and so on follow where it omits a difference."""
    if isinstance(spec, ks.Conv2d):
        kind = "depthwise" if spec.is_depthwise else "dense" if spec.h == spec.kh == spec.kw == 1 else "conv2d"
        tail = ("_add" if spec.residual else "") + (f"_{spec.activation}" if spec.activation else "")
        stride = "" if spec.stride == (1, 1) else f"_stride{spec.stride[0]}x{spec.stride[1]}"
        return f"{kind}_{spec.kh}x{spec.kw}{stride}_{spec.ic}_{spec.oc}_{spec.h}x{spec.w}_{spec.x}{tail}"
    if isinstance(spec, ks.Chain):
        sizes = "_".join(str(size) for size in (spec.stages[0].ic, *(stage.oc for stage in spec.stages)))
        return f"chain_{sizes}_{spec.stages[0].h}x{spec.stages[0].w}_{spec.stages[0].x}" + "_add" * spec.stages[-1].residual
    if isinstance(spec, ks.MatMul):
        return f"matmul_{spec.batch}x{spec.m}x{spec.k}x{spec.n}_{spec.x}"
    if isinstance(spec, ks.Pool2d):
        return f"{spec.fn}_pool_{spec.kh}x{spec.kw}_{spec.c}_{spec.h}x{spec.w}_{spec.x}"
    kind = spec.fn if isinstance(spec, ks.Binary) else type(spec).__name__.lower()
    return f"{kind}_{'x'.join(str(d) for d in spec.out_shape)}_{spec.out_dtype}"
