"""A depthwise convolution, the pointwise one behind it and the convolution before it become one kernel that runs in rows.

Before: e = kernel conv2d(x);  d = kernel depthwise(e);  y = kernel conv2d_1x1(d, residual)
After:  y = kernel chain[conv2d, depthwise, conv2d_1x1](x, residual)

1. float32; e and d have no other reader, and no residual is added to them; without e the chain begins at the depthwise stage
2. rows are long enough for the tiles of a register file, and the weights, which every row reads, leave half of L2 to the rows
"""

from __future__ import annotations

from typing import Any

from tvm import relax

from tvmflow.kernels import spec as ks
from tvmflow.kernels.call import kernel_args, kernel_call, kernel_of
from tvmflow.model import Model
from tvmflow.optimize.walk import Walk, rewrite
from tvmflow.schedule.conv2d_geometry import is_pointwise
from tvmflow.target import Target

SHORTEST_ROW = 28
"""Pixels."""


def fuse_chains(model: Model, target: Target) -> Model:
    """``model`` with its depthwise separable convolutions and inverted bottlenecks as kernels."""

    def rule(walk: Walk, call: Any) -> Any:
        last = _stage(call)
        if last is None or not is_pointwise(last):
            return None
        calls, stages = [call], [last]
        for wanted in (lambda stage: stage.is_depthwise, lambda stage: stage.groups == 1):
            before = _producer(walk, calls[0])
            stage = _stage(before)
            if stage is None or stage.residual or not wanted(stage):
                break
            calls.insert(0, before)
            stages.insert(0, stage)
        spec = ks.Chain(tuple(stages))
        if len(stages) == 1 or not _pays(spec, target):
            return None
        args = [kernel_args(c) for c in calls]
        constants = [constant for found in args for constant in found[1 : 1 + spec.CONSTANTS]]
        return kernel_call(spec, [args[0][0], *constants, *args[-1][1 + spec.CONSTANTS :]])

    return model.then("fuse_chains", rewrite(model.module, rule))


def _stage(call: Any) -> ks.Conv2d | None:
    spec = kernel_of(call)
    return spec if isinstance(spec, ks.Conv2d) and not spec.is_integer else None


def _producer(walk: Walk, call: Any) -> Any:
    """What makes the tensor that only ``call`` reads as its first argument; None when others read it."""
    x = kernel_args(call)[0]
    return walk.value(x) if isinstance(x, relax.Var) and walk.only_use(x) else None


def _pays(spec: ks.Chain, target: Target) -> bool:
    weights = sum(4 * s.oc * s.kh * s.kw * (s.ic // s.groups) for s in spec.stages)
    return min(s.ow for s in spec.stages) >= SHORTEST_ROW and weights <= target.cpu.l2_kib * 512
