"""The first float convolution reads a picture as the user has it: channel planes, at any address.

Before: y = R.permute_dims(x, [0, 2, 3, 1]);  z = kernel conv2d(y)
After:  z = kernel conv2d(x), with ``nchw``

1. x is an input of the model; no groups, no dilation along the row, and few channels, for each is a run of its own
2. others that read y keep it
"""

from __future__ import annotations

from typing import Any

import msgspec

from tvmflow.kernels import spec as ks
from tvmflow.kernels.call import kernel_args, kernel_call, kernel_of
from tvmflow.model import Model
from tvmflow.optimize.canonical_shapes import TO_CHANNELS_LAST, permutation
from tvmflow.optimize.walk import Walk, rewrite

MOST_CHANNELS = 4


def fuse_picture(model: Model) -> Model:
    """``model`` with its first convolutions reading planes."""
    inputs = list(model.module["main"].params)

    def rule(walk: Walk, call: Any) -> Any:
        spec = kernel_of(call)
        if not isinstance(spec, ks.Conv2d) or spec.is_integer or spec.groups > 1 or spec.dilation[1] > 1:
            return None
        y, *constants = kernel_args(call)
        permute = walk.call(y, "permute_dims")
        if permute is None or spec.ic > MOST_CHANNELS or not any(permute.args[0].same_as(p) for p in inputs):
            return None
        if permutation(permute) != TO_CHANNELS_LAST:
            return None
        return kernel_call(msgspec.structs.replace(spec, nchw=True), [permute.args[0], *constants])

    return model.then("fuse_picture", rewrite(model.module, rule))
