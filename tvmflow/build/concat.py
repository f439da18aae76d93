"""Concatenation without copies: what writes an operand writes it into its slice of the result.

Before: a = conv(x);  b = conv(y);  z = concat(a, b, axis=3)
After:  a = conv_into_0(x), a tensor of z's shape;  z = conv_into_64(y, a), in place

Whoever else reads an operand reads it from its slice, and so the operands of a concatenation that is an operand itself.

It takes two steps, for TVM fuses loop nests in between. :func:`hold_concats` takes out of its hands the concatenations that
kernels of ours write to, :func:`write_in_place` replaces each by its writers. An operand that no call writes, or that others read
in a way that slices don't allow, is copied into its slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax, te, tirx

from tvmflow.build.calls import Call
from tvmflow.build.program import Memory, Program
from tvmflow.optimize.expr import op_name, shape_of
from tvmflow.optimize.walk import Walk, Writer, rewrite, substitute, variables
from tvmflow.schedule.slices import Slice, in_slice

HELD = "tvmflow.concat "
"""Begin of the name of the packed function that stands for a concatenation between the steps; the axis follows."""


def hold_concats(module: tvm.IRModule) -> tvm.IRModule:
    """Keeps TVM from fusing the concatenations that kernels write to.

    Where TVM would read all operands and write what the only reader makes of the result in one pass, each operand that no kernel
    writes would cost a pass more: such a concatenation stays as it is.
    """
    program = Program(module)
    held = set()

    def is_written(field: Any) -> bool:
        views, _ = program.writer(field)
        return field in held or (bool(views) and program.is_kernel(program.values[views[-1]]))

    def rule(walk: Walk, call: Any) -> Any:
        axis = _axis(call)
        if axis is None:
            return None
        readers = program.readers[walk.var]
        written = [is_written(field) for field in program.values[walk.var].args[0].fields]
        fuses = len(readers) == 1 and isinstance(readers[0], relax.Call) and not program.is_kernel(readers[0])
        fuses = fuses and _axis(readers[0]) != axis  # such a concatenation is held as well
        if not any(written) or (fuses and not all(written)):
            return None
        held.add(walk.var)
        return relax.op.call_dps_packed(f"{HELD}{axis}", call.args[0], call.ty)

    return rewrite(module, rule)


def _axis(value: Any) -> int | None:
    """The axis of a concatenation of several tensors; None for everything else."""
    if op_name(value) != "concat" or value.attrs.axis is None or not isinstance(value.args[0], relax.Tuple):
        return None
    return int(value.attrs.axis) % len(shape_of(value))


@dataclass
class _Operand:
    """An operand of a held concatenation."""

    tensor: Any
    whole: Any
    """The concatenation that it is a slice of: the outermost one."""
    place: Slice
    function: Any = None
    """What writes it into the slice; None where it is copied, or where it is a concatenation of what lies there."""
    reason: str = ""
    """Why it is copied."""
    views: Sequence[Any] = ()
    """The tensor, and those that it is a view of up to the one that a call writes."""


class _Plan:
    """Which tensors of a program lie in slices of its concatenations. Those of ``elsewhere`` do not."""

    def __init__(self, program: Program, library: _Library, elsewhere: set[Any]) -> None:
        self.program, self.library, self.elsewhere = program, library, elsewhere
        self.inside: dict[Any, _Operand] = {}
        """Tensors that exist as slices only."""
        self.joins: dict[Any, list[_Operand]] = {}
        """The operands of each held concatenation."""
        for var, value in reversed(program.values.items()):
            if _is_held(value):
                self.joins[var] = list(self._operands(var, value))
        self.written = {o.views[-1]: o for o in self.inside.values() if o.function}

    def wholes(self) -> Iterator[tuple[Any, list[Any]]]:
        """Concatenations that are no slices, in order, and the tensors that are slices of each."""
        for join in reversed(self.joins):
            if join not in self.inside:
                yield join, [tensor for tensor, o in self.inside.items() if o.whole is join]

    def _operands(self, join: Any, held: Any) -> Iterator[_Operand]:
        axis = int(str(held.args[0].global_symbol).removeprefix(HELD))
        outer = self.inside.get(join)
        whole, start = (outer.whole, outer.place.start) if outer else (join, 0)
        for tensor in held.args[1].fields:
            place = Slice(shape_of(self.program.values[whole]), axis, start, shape_of(tensor)[axis])
            operand = _Operand(tensor, whole, place)
            operand.reason = self._obstacle(operand, held)
            if not operand.reason:
                self.inside[operand.views[-1] if operand.views else tensor] = operand
            yield operand
            start += place.extent

    def _obstacle(self, operand: _Operand, held: Any) -> str:
        """Why the operand must be copied; empty where it is made in its slice, and then its writer is found."""
        tensor, place = operand.tensor, operand.place
        views, reason = self.program.writer(tensor)
        if not self.elsewhere.isdisjoint((tensor, *views)):
            return "the result would take memory for too long"
        value: Any = self.program.values.get(tensor)
        readers = [reader for reader in self.program.readers[tensor] if not reader.same_as(held)]
        if tensor in self.inside or not all(self._can_read(reader, tensor, place) for reader in readers):
            return "it has other readers, of the whole tensor"
        if _is_held(value) and value.args[0].global_symbol == held.args[0].global_symbol:
            return ""
        if reason:
            return reason
        operand.views = views
        operand.function = self.library.moved(self.program.values[views[-1]].args[0], {-1: place})
        return "" if operand.function else "what writes it can't leave room between rows"

    def _can_read(self, reader: Any, tensor: Any, place: Slice) -> bool:
        if _is_held(reader):
            return True
        if op_name(reader) != "call_tir":
            return False
        where = [i for i, field in enumerate(reader.args[1].fields) if field.same_as(tensor)]
        return self.library.moved(reader.args[0], dict.fromkeys(where, place)) is not None


def write_in_place(module: tvm.IRModule, calls: Sequence[Call]) -> tuple[tvm.IRModule, tuple[Call, ...]]:
    """Replaces the held concatenations by writers of slices. ``calls`` are those of ``module``; returns those of the result."""
    program, library = Program(module), _Library(module)
    plan = _plan(program, library)
    views = {view for operand in plan.written.values() for view in operand.views[:-1]}

    writer, told, given = Writer(module), [], iter(calls)
    new: dict[Any, Any] = {}
    whole: dict[Any, Any] = {}  # concatenation -> the tensor that its writers hand on

    def call_tir(function: Any, args: Sequence[Any], ty: Any) -> Any:
        """A call of ``function``, or of its form for operands that lie in slices."""
        places = {i: plan.inside[arg].place for i, arg in enumerate(args) if arg in plan.inside}
        function = library.moved(function, places)
        now = [whole[plan.inside[arg].whole] if arg in plan.inside else substitute(arg, new) for arg in args]
        return relax.call_tir(function, relax.Tuple(now), list(ty.fields) if isinstance(ty, relax.TupleType) else ty)

    def hand_on(join: Any, call: Any, name: str) -> None:
        """Binds a call that writes into the tensor of a concatenation, which the first one allocates."""
        if join in whole:
            function, args = call.args[0], list(call.args[1].fields)
            call = relax.op.call_tir_inplace(function, relax.Tuple([*args, whole[join]]), len(args), join.ty)
        whole[join] = writer.emit(call, name)

    for var, value in program.values.items():
        name, operand = str(var.name), plan.written.get(var)
        call = next(given) if op_name(value) == "call_tir" else None
        if call and (operand or not plan.inside.keys().isdisjoint(variables(value))):
            function, ty = (operand.function, operand.whole.ty) if operand else (value.args[0], value.ty)
            now = call_tir(function, value.args[1].fields, ty)
            into = f"into {operand.whole.name} {operand.place}" if operand else ""
            told.append(replace(call, function=str(now.args[0].name_hint), into=into))
            if operand:
                hand_on(operand.whole, now, name)
            else:
                new[var] = writer.emit(now, name)
        elif var in plan.joins:
            for operand in plan.joins[var]:
                if operand.reason:
                    copy = call_tir(library.copy(operand.tensor.ty, operand.place), [operand.tensor], operand.whole.ty)
                    hand_on(operand.whole, copy, name)
                    symbol = str(copy.args[0].name_hint)
                    told.append(Call(symbol, (name,), ("copy",), symbol, f"into {operand.place}: {operand.reason}"))
            if var not in plan.inside:
                new[var] = whole[var]
        elif var not in views:
            told += [call] if call else []
            now = substitute(value, new)
            if now.same_as(value):
                writer.bind(var, value)
            else:
                new[var] = writer.emit(now, name)
    module = writer.finish(substitute(program.result, new))
    module.update(library.builder.get())
    return module, tuple(told)


def _plan(program: Program, library: _Library) -> _Plan:
    """The plan of the most slices that takes no more memory at its peak than the program does."""
    elsewhere: set[Any] = set()
    while True:
        plan, memory = _Plan(program, library, elsewhere), Memory(program)
        late = next((parts for whole, parts in plan.wholes() if parts and not memory.joins(whole, parts)), None)
        if late is None:
            return plan
        joins = [tensor for tensor in late if tensor in plan.joins]
        elsewhere.add(max(joins, key=memory.order.__getitem__) if joins else min(late, key=memory.order.__getitem__))


def _is_held(value: Any) -> bool:
    return op_name(value) == "call_dps_packed" and str(value.args[0].global_symbol).startswith(HELD)


class _Library:
    """Functions on slices, each made once."""

    def __init__(self, module: tvm.IRModule) -> None:
        self.module, self.builder = module, relax.BlockBuilder()
        self.made: dict[tuple[str, int, Slice], Any] = {}
        self.source: dict[Any, tirx.PrimFunc] = {}

    def moved(self, function: Any, places: Mapping[int, Slice]) -> Any:
        """``function`` with those of its parameters in slices; None where it can't."""
        for index, place in places.items():
            function = function and self._moved(function, index, place)
        return function

    def copy(self, ty: relax.TensorType, place: Slice) -> Any:
        """A copy of a tensor of that type into its slice."""
        shape, dtype = place.own_shape, str(ty.dtype)
        x = te.placeholder(shape, dtype, "x")
        plain = te.create_prim_func([x, te.compute(shape, lambda *i: x[i], "y")])
        return self._get(f"copy_{'x'.join(map(str, shape))}_{dtype}", plain, -1, place)

    def _moved(self, function: Any, index: int, place: Slice) -> Any:
        source = self.source[function] if function in self.source else self.module[function]
        return self._get(str(function.name_hint), source, index, place)

    def _get(self, name: str, source: tirx.PrimFunc, index: int, place: Slice) -> Any:
        key = name, index, place
        if key not in self.made:
            function, new = in_slice(source, place, index), None
            if function:
                where = f"into_{place.offset}_of_{place.pitch}" if index < 0 else f"{index}_from_{place.offset}_of_{place.pitch}"
                new = self.builder.add_func(function.with_attr("global_symbol", f"{name}_{where}"), f"{name}_{where}")
                self.source[new] = function
            self.made[key] = new
        return self.made[key]
