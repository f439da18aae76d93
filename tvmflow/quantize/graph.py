"""A read-only view of ``main`` by variable name: expressions in program order, readers of each tensor, shapes and constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvmflow.errors import InternalError


@dataclass(frozen=True)
class Graph:
    """``exprs`` and ``vars`` hold every binding under its variable's name, ``params`` the names of main's parameters."""

    params: tuple[str, ...]
    exprs: dict[str, relax.Expr]
    vars: dict[str, relax.Var]
    readers: dict[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    """Names of the tensors that main returns."""
    position: dict[str, int]
    """Place of each binding in program order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Static shape of a tensor, ``()`` of a tuple."""
        return shape_of(self.vars[name])

    def dtype(self, name: str) -> str:
        """dtype of a tensor, empty for a tuple."""
        ty = self.vars[name].ty
        return str(ty.dtype) if isinstance(ty, relax.TensorType) else ""

    def only_reader(self, name: str) -> str:
        """The one binding that reads ``name``; empty when several do, or when main returns it."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else ""


def view(module: tvm.IRModule) -> Graph:
    """The graph of ``module["main"]``. Raises InternalError when two bindings have one name: everything below speaks in names."""
    function = module["main"]
    params = tuple(str(p.name) for p in function.params)
    variables = {str(p.name): p for p in function.params}
    exprs: dict[str, relax.Expr] = {}
    readers: dict[str, list[str]] = {p: [] for p in params}
    for block in function.body.blocks:
        for binding in block.bindings:
            name = str(binding.var.name)
            if name in variables:
                raise InternalError("two tensors of the graph have the same name", where=name)
            exprs[name], variables[name], readers[name] = binding.value, binding.var, []
            for source in dict.fromkeys(read_by(binding.value)):
                readers[source].append(name)
    outputs = tuple(dict.fromkeys(read_by(function.body.body)))
    position = {name: i for i, name in enumerate(exprs)}
    return Graph(params, exprs, variables, {n: tuple(r) for n, r in readers.items()}, outputs, position)


def read_by(expr: relax.Expr) -> Iterator[str]:
    """Names of the variables that an expression reads, in order, with repetitions."""
    if isinstance(expr, relax.Var):
        yield str(expr.name)
    elif isinstance(expr, relax.Tuple):
        for field in expr.fields:
            yield from read_by(field)
    elif isinstance(expr, relax.TupleGetItem):
        yield from read_by(expr.tuple_value)
    elif isinstance(expr, relax.Call):
        for arg in expr.args:
            yield from read_by(arg)


def rebuild(expr: relax.Expr, replace: Callable[[relax.Var], relax.Expr]) -> relax.Expr:
    """``expr`` with every variable replaced; its type is to be inferred anew."""
    if isinstance(expr, relax.Var):
        return replace(expr)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([rebuild(field, replace) for field in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(rebuild(expr.tuple_value, replace), expr.index)
    if isinstance(expr, relax.Call):
        return relax.Call(expr.op, [rebuild(arg, replace) for arg in expr.args], expr.attrs, expr.ty_args)
    return expr


def op_of(expr: relax.Expr) -> str:
    """Operator without its ``relax.`` prefixes; ``get_item``, ``tuple`` and ``copy`` for what is no call."""
    if isinstance(expr, relax.TupleGetItem):
        return "get_item"
    if isinstance(expr, relax.Var):
        return "copy"
    if isinstance(expr, relax.Tuple):
        return "tuple"
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name).removeprefix("relax.").removeprefix("nn.").removeprefix("image.")
    return "call" if isinstance(expr, relax.Call) else "constant"


def constant_of(expr: relax.Expr) -> np.ndarray | None:
    """The array of a constant, None for every other expression."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def shape_of(expr: relax.Expr) -> tuple[int, ...]:
    """Static shape of a tensor expression, ``()`` of everything else."""
    return tuple(int(d) for d in expr.ty.shape) if isinstance(expr.ty, relax.TensorType) else ()


def axes_of(axes: object, rank: int) -> tuple[int, ...]:
    """Sorted non-negative axes from an attribute that may be absent (all axes), one number or several."""
    if axes is None:
        return tuple(range(rank))
    listed = [axes] if isinstance(axes, int | tvm.tirx.IntImm) else list(axes)  # type: ignore[call-overload]
    return tuple(sorted(int(a) % rank for a in listed))
