"""A main function as a table: who writes and who reads each tensor, and how many bytes are alive at each call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.build.calls import bindings
from tvmflow.optimize.expr import op_name
from tvmflow.optimize.walk import variables


class Program:
    """The main function of a module, which stays as it is."""

    def __init__(self, module: tvm.IRModule) -> None:
        self.module, self.result = module, module["main"].body.body
        self.values = {binding.var: binding.value for binding in bindings(module["main"])}
        self.readers: dict[Any, list[Any]] = defaultdict(list)
        for value in (*self.values.values(), self.result):
            for var in variables(value):
                self.readers[var].append(value)

    def writer(self, tensor: Any) -> tuple[list[Any], str]:
        """``tensor`` and those that it is a view of, one reader each, of which a call writes the last and nothing else.

        Where that is not so: an empty list, and the reason.
        """
        views = [tensor]
        while op_name(self.values.get(views[-1])) == "reshape":
            views.append(self.values[views[-1]].args[0])
        if len(views) > 1 and any(len(self.readers[view]) > 1 for view in views):
            return [], "it has other readers"
        value: Any = self.values.get(views[-1])
        if op_name(value) != "call_tir" or not isinstance(value.ty, relax.TensorType):
            return [], "no kernel writes it alone"
        return views, ""

    def is_kernel(self, value: Any) -> bool:
        """Whether a kernel of ours computes ``value``."""
        return op_name(value) == "call_tir" and "tirx.is_scheduled" in (self.module[value.args[0]].attrs or {})


class Memory:
    """Bytes that are alive at each binding of a program. A plan is held to the peak of the program as it was."""

    def __init__(self, program: Program) -> None:
        self.order = {var: i for i, var in enumerate(program.values)}
        stored: dict[Any, Any] = {}  # tensor -> the one that holds its bytes
        self.last = dict(self.order)
        for i, (var, value) in enumerate((*program.values.items(), (None, program.result))):
            read = [stored[v] for v in variables(value) if v in stored]
            self.last.update(dict.fromkeys(read, i))
            is_view = op_name(value) == "reshape" or isinstance(value, relax.TupleGetItem)
            stored[var] = read[0] if is_view and read else var
        self.alive = np.zeros(len(self.order) + 1, np.int64)
        for var, first in self.order.items():
            if stored[var] is var:
                self.alive[first : self.last[var] + 1] += _bytes(var.ty)
        self.peak = int(self.alive.max())

    def joins(self, whole: Any, parts: Sequence[Any]) -> bool:
        """Lets ``parts`` be slices of ``whole``, which then exists from the first of them to the last use of one; False where the
        peak would grow."""
        alive = self.alive.copy()
        for tensor in (whole, *parts):
            alive[self.order[tensor] : self.last[tensor] + 1] -= _bytes(tensor.ty)
        first = min(self.order[tensor] for tensor in (whole, *parts))
        last = max(self.last[tensor] for tensor in (whole, *parts))
        alive[first : last + 1] += _bytes(whole.ty)
        if alive.max() > self.peak:
            return False
        self.alive = alive
        return True


def _bytes(ty: Any) -> int:
    if isinstance(ty, relax.TupleType):
        return sum(_bytes(field) for field in ty.fields)
    if not isinstance(ty, relax.TensorType):
        return 0
    return prod(int(d) for d in ty.shape) * tvm.DataType(str(ty.dtype)).itemsize
