"""What the compiled program consists of: its kernel calls with the original layers, and its planned memory."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import tvm
from tvm import relax

from tvmflow.build.manifest import Workspace
from tvmflow.errors import InternalError
from tvmflow.optimize.expr import op_name

Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Call:
    """One kernel call of the program."""

    function: str
    """Symbol of the generated function."""
    layers: tuple[str, ...]
    """Names of the layers that it computes: several where TVM fused them."""
    ops: tuple[str, ...]
    """Names of TVM's functions for them, or of the template's."""
    kernel: str
    """Name of the function before it was made to write into a slice."""
    into: str = ""
    """The slice of a concatenation that it writes, and why where it is a copy."""

    @property
    def is_copy(self) -> bool:
        """Whether it copies operands of a concatenation."""
        return not {"copy", "concatenate"}.isdisjoint(self.ops)


def kernel_calls(before: relax.Function, fused: tvm.IRModule) -> tuple[Call, ...]:
    """Kernel calls of ``fused`` in execution order, with layer names of ``before``, the main function that FuseOps made it of.

    FuseOps names neither its groups nor their insides after the layers, and equal groups share one function. So each member of a
    group is looked up in ``before`` by what it calls on which tensors.
    """
    known: dict[Key, deque[str]] = defaultdict(deque)
    for binding in bindings(before):
        known[_key(binding.value)].append(str(binding.var.name))
    original: dict[str, str] = {}
    calls = []
    for binding in bindings(fused["main"]):
        value = binding.value
        if op_name(value) == "call_tir":
            name = _callee(value)
            calls.append(Call(name, (str(binding.var.name),), (_plain(name),), name))
        elif isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
            group = fused[value.op]
            names = {str(p.name): original.get(str(a.name), str(a.name)) for p, a in zip(group.params, value.args, strict=True)
                     if isinstance(a, relax.Var)}  # fmt: skip
            members = list(bindings(group))
            for member in members:
                found = known[_key(member.value, names)]
                if not found:
                    raise InternalError(f"a member of {value.op.name_hint} is no layer: {member.value}")
                names[str(member.var.name)] = found.popleft()
            original[str(binding.var.name)] = names[str(group.body.body.name)]
            layers = tuple(names[str(member.var.name)] for member in members)
            ops = tuple(_plain(_callee(member.value)) for member in members if op_name(member.value) == "call_tir")
            name = str(value.op.name_hint)
            calls.append(Call(name, whole_layers(layers), ops, name))
    return tuple(calls)


def bindings(function: relax.Function) -> Iterator[Any]:
    for block in function.body.blocks:
        yield from block.bindings


def calls_kernel(value: Any) -> bool:
    """Whether ``value``, of a lowered program, calls one of its functions."""
    return isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar)


def _key(value: Any, names: Mapping[str, str] | None = None) -> Key:
    """What is computed on which tensors; in a group ``names`` tells what those are called outside, all but constants."""
    operands: list[Any] = [value]
    head = op_name(value)
    if isinstance(value, relax.Call):
        operands = list(value.args)
    if head == "call_tir":
        head, operands = _callee(value), list(value.args[1].fields)
    elif isinstance(value, relax.TupleGetItem):
        head, operands = f"item {value.index}", [value.tuple_value]
    tensors = [str(v.name) for v in operands if isinstance(v, relax.Var)]
    return head, tuple(tensors if names is None else [names[name] for name in tensors if name in names])


def _callee(call: Any) -> str:
    return str(call.args[0].name_hint)


def _plain(function: str) -> str:
    """``multiply12`` and ``tir_clip`` as ``multiply`` and ``clip``."""
    return re.sub(r"\d+$", "", function).removeprefix("tir_")


def whole_layers(layers: tuple[str, ...]) -> tuple[str, ...]:
    """Without the parts of a layer (``Div.slope``) where the layer itself (``Div``) is among them."""
    return tuple(name for name in layers if not any(name.startswith(f"{other}.") for other in layers))


def borrowed(module: tvm.IRModule) -> tuple[int, ...]:
    """Positions of the main function's inputs that may lie at any address: no kernel that reads them needs a multiple of 64."""
    main = module["main"]
    found = [True] * len(main.params)
    position = {str(p.name): i for i, p in enumerate(main.params)}

    def use(value: Any, alignment: int) -> None:
        if isinstance(value, relax.Var) and str(value.name) in position:
            found[position[str(value.name)]] &= alignment <= tvm.DataType(str(value.ty.dtype)).itemsize

    for binding in bindings(main):
        if op_name(binding.value) in ("call_tir", "call_tir_inplace"):
            parameters = module[binding.value.args[0]].params
            for value, parameter in zip(binding.value.args[1].fields, parameters, strict=False):  # outputs follow
                use(value, parameter.data_alignment)
        else:
            relax.analysis.post_order_visit(binding.value, lambda value: use(value, 64))
    relax.analysis.post_order_visit(main.body.body, lambda value: use(value, 64))
    return tuple(i for i, anywhere in enumerate(found) if anywhere)


def tensor_bytes(ty: relax.TensorType) -> int:
    """What a tensor of static shape takes."""
    return -(-prod(int(extent) for extent in ty.shape.values) * tvm.DataType(str(ty.dtype)).bits // 8)


def workspace(main: relax.Function) -> Workspace:
    """Memory of the intermediate tensors, read from a main function with planned storage."""
    storages: dict[str, int] = {}
    tensors = 0
    for binding in bindings(main):
        if op_name(binding.value) == "memory.alloc_storage":
            storages[str(binding.var.name)] = int(binding.value.args[0].values[0])
        elif op_name(binding.value) == "memory.alloc_tensor":
            tensors += tensor_bytes(binding.var.ty)
    return Workspace(sum(storages.values()), len(storages), tensors)
