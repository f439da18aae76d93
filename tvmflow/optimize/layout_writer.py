"""The engine of ``channels_last``: for each variable of the model a view, and the tensors that were laid out for it.

A handler of an operator reads the views of its arguments, asks for the layout that it wants, emits, and says which view of the
result the model sees. What has no handler, or declines by returning None, gets the model's layout back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmflow.optimize.expr import array, const, has_static_shape, is_constant, op_name, shape_of
from tvmflow.optimize.views import Group, View, dimension_of, flat, permutation, plain, reshaped, sizes, whole_dimensions
from tvmflow.optimize.walk import Writer, substitute, variables

Handler = Callable[["LayoutWriter", Any], Any]
"""``handler(writer, call)``: view or tuple of views of the result, or None to decline."""


class LayoutWriter(Writer):
    """One walk that keeps, for each old variable, the view that stands for it."""

    def __init__(self, module: tvm.IRModule, handlers: Mapping[str, Handler]) -> None:
        super().__init__(module)
        self._handlers = handlers
        self._views: dict[Any, Any] = {}
        self._laid_out: dict[Any, Any] = {}

    def run(self) -> tvm.IRModule:
        """The module with ``main`` as the handlers lay it out."""
        for param in self.main.params:
            self._views[param] = plain(param) if has_static_shape(param) else param
        for binding in self.old_bindings():
            self.name = str(binding.var.name)
            self._views[binding.var] = self._visit(binding.var, binding.value)
        return self.finish(self._as_meant(self.main.body.body))

    def _visit(self, var: Any, value: Any) -> Any:
        """View, tuple of views, or plain variable of a binding."""
        if isinstance(value, relax.Var):
            return self._views[value]
        if isinstance(value, relax.TupleGetItem):
            source = self._views[value.tuple_value]
            if isinstance(source, tuple):
                return source[value.index]
        handler = self._handlers.get(op_name(value))
        result = handler(self, value) if handler is not None and self._is_plain(value) else None
        return self._verbatim(var, value) if result is None else result

    def _is_plain(self, call: Any) -> bool:
        """Whether tensors in and out have static shapes."""
        outputs = call.ty.fields if isinstance(call.ty, relax.TupleType) else [call.ty]
        return all(isinstance(t, relax.TensorType) and isinstance(t.shape, relax.ShapeExpr) for t in outputs)

    def _verbatim(self, var: Any, value: Any) -> Any:
        """A binding on tensors in the model's layout."""
        new = self._as_meant(value)
        if new.same_as(value):
            self.bind(var, value)
        else:
            var = self.emit(new)
        return plain(var) if has_static_shape(var) else var

    def _as_meant(self, expr: Any) -> Any:
        """``expr`` on tensors in the model's layout."""
        return substitute(expr, {v: self.in_order(self._views[v]) for v in variables(expr)})

    def in_order(self, view: Any) -> Any:
        """The tensor of a view in the model's layout."""
        if isinstance(view, tuple):
            return relax.Tuple([self.in_order(v) for v in view])
        return self.laid_out(view, view.logical) if isinstance(view, View) else view

    def view(self, expr: Any) -> View:
        """View of an argument; constants are as they are."""
        return plain(expr) if is_constant(expr) else self._views[expr]

    def laid_out(self, view: View, wanted: Sequence[Group]) -> Any:
        """The tensor of ``view`` with dimensions ``wanted`` in memory."""
        shape, order = sizes(wanted), flat(wanted)
        if flat(view.physical) == order:
            return self._reshape(view.var, shape)
        before = flat(view.physical)
        positions = tuple(before.index(a) for a in order)
        key = (view.var, tuple(a.size for a in before), positions, shape)
        if key not in self._laid_out:
            axes = permutation(view, wanted)
            if axes is not None:
                self._laid_out[key] = self._permute(view.var, axes)
            else:
                split = self._reshape(view.var, key[1])
                self._laid_out[key] = self._reshape(self._permute(split, positions), shape)
        return self._laid_out[key]

    def _reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        if shape_of(x) == shape:
            return x
        return (
            const(array(x).reshape(shape))
            if is_constant(x)
            else self.emit(relax.op.reshape(x, shape), self.name_of(x) + ".shape")
        )

    def _permute(self, x: Any, axes: Sequence[int]) -> Any:
        if is_constant(x):
            return const(np.transpose(array(x), axes))
        return self.emit(relax.op.permute_dims(x, list(axes)), self.name_of(x) + ".layout")

    def isolated(self, view: View, axes: Sequence[int]) -> tuple[View, list[int]]:
        """The view with a memory dimension for each of the model's ``axes``, and those dimensions."""
        found = [dimension_of(view, a) for a in axes]
        if all(d is not None for d in found):
            return view, [d for d in found if d is not None]
        whole = whole_dimensions(view)
        view = View(self.laid_out(view, whole), whole, view.logical)
        return view, [view.physical.index(view.logical[a]) for a in axes]

    def followed(self, view: View, leader: View) -> Any:
        """The tensor of ``view`` laid out to broadcast against ``leader``'s; None when no layout of dimensions does that."""
        lead = len(leader.logical) - len(view.logical)
        if lead < 0 or math.prod(view.shape) == 1:
            return None if lead < 0 else view.var if len(view.physical) <= len(leader.physical) else self._reshape(view.var, ())
        pairs = zip(leader.logical[lead:], view.shape, strict=True)
        slots = [(axis, size > 1) for group, size in pairs for axis in flat([group])]
        parts = [axis.size if varies else 1 for axis, varies in slots]
        fine = reshaped(view, parts) or reshaped(plain(self.in_order(view)), parts)
        if fine is None:
            return None
        varying = {axis for axis, varies in slots if varies}
        missing = {a for g in leader.physical if varying & set(g) for a in flat([g])} - varying
        if missing:
            if not is_constant(view.var):
                return None
            repeated = [axis.size if axis in missing else part for (axis, _), part in zip(slots, parts, strict=True)]
            fine = plain(const(np.broadcast_to(array(view.var).reshape(parts), repeated)))
        group_of = {axis: group for (axis, _), group in zip(slots, fine.logical, strict=True) if axis in varying | missing}
        wanted = [tuple(a for axis in flat([dim]) for a in group_of.get(axis, ())) for dim in leader.physical]
        if is_constant(view.var) and len(view.logical) == 1 and len(wanted) < 4 and flat(wanted) == flat(wanted[-1:]):
            wanted = wanted[-1:]
        return self.laid_out(fine, wanted)
