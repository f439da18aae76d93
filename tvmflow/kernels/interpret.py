"""Runs a realized module in numpy: every kernel by its oracle, every other operator by TVM's own legalization, one at a time.

This is the reference that whole artifacts are compared with, bit for bit: it shares no schedule, no packing, no fusion and no
memory plan with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvmflow.kernels.call import kernel_args, kernel_of
from tvmflow.kernels.reference import run_outputs

Array = NDArray[Any]


def interpret(module: tvm.IRModule, inputs: Sequence[Array]) -> tuple[list[Array], dict[str, Array]]:
    """Outputs of ``main`` of a realized (not yet scheduled) module, and every tensor of the graph by its name."""
    main = module["main"]
    values: dict[Any, Any] = dict(zip(main.params, inputs, strict=True))
    named: dict[str, Array] = {}

    def value(expr: Any) -> Any:
        if isinstance(expr, relax.Var):
            return values[expr]
        if isinstance(expr, relax.Tuple):
            return tuple(value(f) for f in expr.fields)
        if isinstance(expr, tvm.ir.GenericConst):
            return expr.value.numpy()
        if isinstance(expr, relax.TupleGetItem):
            return value(expr.tuple_value)[expr.index]
        if isinstance(expr, relax.Call):
            return _call(expr, value)
        return expr  # shapes and immediates

    for block in main.body.blocks:
        for binding in block.bindings:
            values[binding.var] = value(binding.value)
            if isinstance(values[binding.var], np.ndarray):
                named[str(binding.var.name)] = values[binding.var]
    result = value(main.body.body)
    return (list(result) if isinstance(result, tuple) else [result]), named


def _call(call: relax.Call, value: Any) -> Any:
    spec = kernel_of(call)
    if spec is not None:
        results = run_outputs(spec, [value(a) for a in kernel_args(call)])
        return results if len(results) > 1 else results[0]
    tensors: list[Array] = []
    params: list[relax.Var] = []

    def parameter(expr: Any) -> Any:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([parameter(f) for f in expr.fields])
        if not isinstance(expr.ty, relax.TensorType):
            return expr
        tensors.append(value(expr))
        params.append(relax.Var(f"p{len(params)}", expr.ty))
        return params[-1]

    args = [parameter(a) for a in call.args]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(relax.Call(call.op, args, call.attrs, call.ty_args)))
        builder.emit_func_output(out)
    machine = relax.VirtualMachine(tvm.compile(builder.get(), "llvm"), tvm.cpu())
    result = machine["main"](*[tvm.runtime.tensor(np.array(t, order="C")) for t in tensors])
    return result.numpy() if hasattr(result, "numpy") else tuple(r.numpy() for r in result)
