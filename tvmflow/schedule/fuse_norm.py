"""A layer normalization takes the sum before it and the quantization behind it into its one pass over the rows.

Before: s = R.add(x, r);  y = kernel layer_norm(s);  q = kernel quantize(y)
After:  t = kernel layer_norm(x, r);  y = t[0];  q = t[1]

1. the sum has no other reader and both operands have its shape
2. the normalized tensor keeps its other readers; the first quantization of it goes along
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from tvm import relax

from tvmflow.kernels import spec as ks
from tvmflow.kernels.call import kernel_args, kernel_call, kernel_of
from tvmflow.model import Model
from tvmflow.optimize.expr import array, dtype_of, is_constant, op_name, shape_of
from tvmflow.optimize.walk import Walk, rewrite


def fuse_norm(model: Model) -> Model:
    """``model`` with sums and quantizations in its layer normalizations."""
    quantizations = _quantizations(model.module)
    codes: dict[Any, Any] = {}

    def rule(walk: Walk, call: Any) -> Any:
        if walk.var in codes:
            return walk.emit(relax.op.reshape(codes[walk.var], shape_of(call)))
        spec = kernel_of(call)
        if not isinstance(spec, ks.LayerNorm) or spec.residual or spec.quantized:
            return None
        x, *args = kernel_args(call)
        operands = _operands(walk, x)
        if operands:
            spec = msgspec.structs.replace(spec, residual=True)
            x, residual = (walk.emit(relax.op.reshape(o, spec.out_shape), f"{walk.name}.rows") for o in operands)
            args.append(residual)
        if walk.var not in quantizations:
            return kernel_call(spec, [x, *args]) if operands else None
        quantized, dtype, scale, zero = quantizations[walk.var]
        multiplier = relax.const((1.0 / array(scale).astype(np.float64)).astype(np.float32))
        spec = msgspec.structs.replace(spec, quantized=dtype)
        both = walk.emit(kernel_call(spec, [x, *args, multiplier, zero]), f"{walk.name}/quantized")
        codes[quantized] = walk.emit(relax.TupleGetItem(both, 1), f"{walk.name}.codes")
        return walk.emit(relax.TupleGetItem(both, 0))

    return model.then("fuse_norm", rewrite(model.module, rule))


def _quantizations(module: Any) -> dict[Any, tuple[Any, str, Any, Any]]:
    """For each layer normalization that is quantized: variable, dtype, scale and zero point of its first quantization."""
    values = {binding.var: binding.value for block in module["main"].body.blocks for binding in block.bindings}
    found: dict[Any, tuple[Any, str, Any, Any]] = {}
    for var, value in values.items():
        spec = kernel_of(value)
        if not isinstance(spec, ks.Quantize) or spec.nchw:
            continue
        source, scale, zero = kernel_args(value)
        while op_name(values.get(source)) == "reshape":
            source = values[source].args[0]
        if isinstance(kernel_of(values.get(source)), ks.LayerNorm) and is_constant(scale):
            found.setdefault(source, (var, spec.y, scale, zero))
    return found


def _operands(walk: Walk, x: Any) -> list[Any]:
    """The two tensors whose sum ``x`` is; none when others read that sum, or it is another one."""
    while walk.call(x, "reshape") is not None and walk.only_use(x):
        x = walk.call(x, "reshape").args[0]
    add = walk.call(x, "add")
    if add is None or not walk.only_use(x) or dtype_of(add) != "float32":
        return []
    fits = all(shape_of(a) == shape_of(add) and not is_constant(a) for a in add.args)
    return list(add.args) if fits else []
