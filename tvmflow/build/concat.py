"""Concatenation without copies: what writes an operand writes it into its slice of the result.

Before: a = conv(x);  b = conv(y);  z = concat(a, b, axis=3)
After:  a = conv_into_0(x), a tensor of z's shape;  z = conv_into_64(y, a), in place

It takes two steps, for TVM fuses loop nests in between. :func:`hold_concats` takes out of its hands the concatenations that
kernels of ours write to, :func:`write_in_place` replaces each by its writers. An operand that has other readers, or that no call
writes, is copied into its slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax, te

from tvmflow.build.calls import Call
from tvmflow.build.program import Memory, Program
from tvmflow.optimize.expr import op_name, shape_of
from tvmflow.optimize.walk import Walk, Writer, rewrite, substitute
from tvmflow.schedule.slices import Slice, into_slice

HELD = "tvmflow.concat "
"""Begin of the name of the packed function that stands for a concatenation between the steps; the axis follows."""


def hold_concats(module: tvm.IRModule) -> tvm.IRModule:
    """Keeps TVM from fusing the concatenations that kernels write to. The operands of one that is an operand are the outer's.

    Where TVM would read all operands and write what the only reader makes of the result in one pass, each operand that no kernel
    writes would cost a pass more: such a concatenation stays as it is.
    """
    program = Program(module)

    def operands(call: Any) -> Iterator[Any]:
        for field in call.args[0].fields:
            inner = program.values.get(field)
            if _axis(inner) == _axis(call) and len(program.readers[field]) == 1:
                yield from operands(inner)
            else:
                yield field

    def rule(walk: Walk, call: Any) -> Any:
        axis = _axis(call)
        if axis is None:
            return None
        fields = list(operands(program.values[walk.var]))
        written = [bool(views) and program.is_kernel(program.values[views[-1]]) for views, _ in map(program.writer, fields)]
        readers = program.readers[walk.var]
        fuses = len(readers) == 1 and isinstance(readers[0], relax.Call) and not program.is_kernel(readers[0])
        if not any(written) or (fuses and not all(written)):
            return None
        tensors = [walk.now(field) if field in program.values else field for field in fields]
        return relax.op.call_dps_packed(f"{HELD}{axis}", relax.Tuple(tensors), call.ty)

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
    place: Slice
    views: list[Any]
    """The tensor, and those that it is a view of up to the one that a call writes."""
    function: Any
    """What writes it into the slice; None where it is copied."""
    reason: str
    """Why it is copied."""


def write_in_place(module: tvm.IRModule, calls: Sequence[Call]) -> tuple[tvm.IRModule, tuple[Call, ...]]:
    """Replaces the held concatenations by writers of slices. ``calls`` are those of ``module``; returns those of the result."""
    program, library = Program(module), _Library(module)
    memory = Memory(program)
    joins = {var: list(_operands(value, program, library)) for var, value in program.values.items() if _is_held(value)}
    direct: dict[Any, tuple[Any, _Operand]] = {}
    for join, operands in joins.items():
        parts = sorted((o for o in operands if o.function), key=lambda o: memory.order[o.views[-1]])
        while parts and not memory.joins(join, [o.views[-1] for o in parts]):
            late = parts.pop(0)
            late.function, late.reason = None, "the result would take memory for too long"
        direct.update((o.views[-1], (join, o)) for o in parts)
    views = {view for _, operand in direct.values() for view in operand.views[:-1]}

    writer, told, given = Writer(module), [], iter(calls)
    new: dict[Any, Any] = {}
    whole: dict[Any, Any] = {}  # concatenation -> the tensor that its writers hand on

    def write(join: Any, function: Any, args: list[Any], name: str) -> None:
        if join in whole:
            call = relax.op.call_tir_inplace(function, relax.Tuple([*args, whole[join]]), len(args), join.ty)
        else:
            call = relax.call_tir(function, relax.Tuple(args), join.ty)
        whole[join] = writer.emit(call, name)

    for var, value in program.values.items():
        now, name = substitute(value, new), str(var.name)
        call = next(given) if op_name(value) == "call_tir" else None
        if call and var in direct:
            join, operand = direct[var]
            write(join, operand.function, list(now.args[1].fields), name)
            told.append(replace(call, function=str(operand.function.name_hint), into=f"into {join.name} {operand.place}"))
        elif var in joins:
            for operand in joins[var]:
                if operand.function is None:
                    copy = library.copy(operand.tensor.ty, operand.place)
                    write(var, copy, [substitute(operand.tensor, new)], name)
                    symbol = str(copy.name_hint)
                    told.append(Call(symbol, (name,), ("copy",), symbol, f"into {operand.place}: {operand.reason}"))
            new[var] = whole[var]
        elif var not in views:
            told += [call] if call else []
            if now.same_as(value):
                writer.bind(var, value)
            else:
                new[var] = writer.emit(now, name)
    module = writer.finish(substitute(program.result, new))
    module.update(library.builder.get())
    return module, tuple(told)


def _is_held(value: Any) -> bool:
    return op_name(value) == "call_dps_packed" and str(value.args[0].global_symbol).startswith(HELD)


def _operands(held: Any, program: Program, library: _Library) -> Iterator[_Operand]:
    axis, start = int(str(held.args[0].global_symbol).removeprefix(HELD)), 0
    for tensor in held.args[1].fields:
        place = Slice(shape_of(held), axis, start, shape_of(tensor)[axis])
        views, reason = program.writer(tensor)
        function = library.into(program.values[views[-1]].args[0], place) if views else None
        yield _Operand(tensor, place, views, function, reason or "what writes it can't leave room between rows")
        start += place.extent


class _Library:
    """Functions that write into slices, each made once."""

    def __init__(self, module: tvm.IRModule) -> None:
        self.module, self.builder = module, relax.BlockBuilder()
        self.made: dict[tuple[str, Slice], Any] = {}

    def into(self, function: Any, place: Slice) -> Any:
        """``function`` of the module, writing into a slice; None where it can't."""
        return self._get(str(function.name_hint), place, lambda: self.module[function])

    def copy(self, ty: relax.TensorType, place: Slice) -> Any:
        """A copy of a tensor of that type into its slice."""
        shape, dtype = place.own_shape, str(ty.dtype)

        def plain() -> Any:
            x = te.placeholder(shape, dtype, "x")
            return te.create_prim_func([x, te.compute(shape, lambda *i: x[i], "y")])

        return self._get(f"copy_{'x'.join(map(str, shape))}_{dtype}", place, plain)

    def _get(self, name: str, place: Slice, whole: Callable[[], Any]) -> Any:
        if (name, place) not in self.made:
            function = into_slice(whole(), place)
            full = f"{name}_into_{place.offset}_of_{place.pitch}"
            self.made[name, place] = function and self.builder.add_func(function.with_attr("global_symbol", full), full)
        return self.made[name, place]
