"""The whole network as one function: TVM's virtual machine is entered once a run instead of once a kernel.

For each kernel the machine makes a view of the planned memory, packs arguments and frees what was used, 0.3 us where that is in
the caches: a third of the time of a small network. Here a generated function has the descriptors of all tensors on its stack and
calls one kernel after the other, through the same entry points that the machine uses. The machine hands it one block of memory.

The program of single calls stays beside it, under the name ``layers``: a profile times those.
"""

from __future__ import annotations

from typing import Any

import msgspec
import tvm
from tvm import relax, tirx

from tvmflow.build.calls import bindings, calls_kernel, tensor_bytes
from tvmflow.build.constants import ALIGNMENT
from tvmflow.build.manifest import Workspace
from tvmflow.build.memory import Life, plan
from tvmflow.optimize.expr import is_constant, op_name
from tvmflow.optimize.walk import variables

NETWORK, LAYERS = "tvmflow_network", "layers"
_CHECKS, _VIEW = ("vm.builtin.check_", "vm.builtin.match_"), "vm.builtin.reshape"
"""What the virtual machine calls by itself: functions that begin so look at inputs; a view moves nothing."""

# Fields of a DLTensor and of an argument, as TVM's struct_get and struct_set call them (tvm/tirx/builtin.h, TVMStructFieldKind).
_ADDRESS, _DATA, _DIMENSIONS, _CODE, _BITS, _LANES, _OFFSET, _DEVICE, _DEVICE_TYPE = 0, 1, 4, 5, 6, 7, 8, 9, 10
_KIND, _PADDING, _VALUE = 13, 14, 15
_INTEGER, _TENSOR = 1, 7
"""Kinds of arguments (tvm/ffi/c_api.h, TVMFFITypeIndex)."""
_CPU = 1
_ENTRY = "__tvm_ffi_"
"""Before the name of a kernel: the symbol through which the virtual machine calls it."""


def join_calls(module: tvm.IRModule, planned: Workspace) -> tuple[tvm.IRModule, str, Workspace]:
    """A lowered ``module`` whose main function makes one call, the name of the function that makes all of them, and its memory.

    That is ``main``, with the memory that TVM has ``planned``, where there is no kernel, or something else is done between them.
    """
    main = module["main"]
    values = {binding.var: binding.value for binding in bindings(main)}
    calls = [value for value in values.values() if calls_kernel(value)]
    if any(_is_other(value) for value in values.values()):
        return module, "main", planned
    if not calls:
        return _with(module, {NETWORK: _function([], [])}), "main", planned  # TVM can't export a program without any code
    checks = [var for var, value in values.items() if _external(value).startswith(_CHECKS)]
    kept = _needed([*checks, *variables(main.body.body)], values)
    memory = _Memory(_lives(calls, values, kept))
    network = _Network(values, memory)
    for call in calls:
        network.call(call)
    arguments, symbol = network.arguments, tvm.ir.GlobalVar(NETWORK)
    retained = [relax.VarBinding(var, value) for var, value in values.items() if var in kept]
    if memory.bytes:
        block, allocated = memory.allocate(values)
        retained, arguments = [*retained, *allocated], [*arguments, block]
    first = next(binding for binding in bindings(main) if calls_kernel(binding.value))
    retained.append(relax.VarBinding(relax.Var("done", first.var.ty), relax.Call(symbol, arguments)))
    body = relax.SeqExpr([relax.BindingBlock(retained)], main.body.body)
    joined = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    single = main.with_attr("global_symbol", LAYERS)
    used = msgspec.structs.replace(planned, bytes=memory.bytes, storages=int(memory.bytes > 0))
    return _with(module, {symbol: network.function(), LAYERS: single, "main": joined}), LAYERS, used


def _with(module: tvm.IRModule, functions: dict[Any, Any]) -> tvm.IRModule:
    changed = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    for name, function in functions.items():
        changed[name] = function
    return changed


def _function(params: list[Any], statements: list[Any]) -> tirx.PrimFunc:
    attributes = {"global_symbol": NETWORK, "s_tir": True, "tirx.is_scheduled": True}
    body = tirx.SeqStmt(statements) if statements else tirx.Evaluate(_int32(0))
    return tirx.PrimFunc(params, body, None, tvm.ir.make_node("ir.DictAttrs", **attributes))


def _external(value: Any) -> str:
    return str(value.op.global_symbol) if isinstance(value, relax.Call) and isinstance(value.op, relax.ExternFunc) else ""


def _is_other(value: Any) -> bool:
    """Whether ``value`` is none of what is understood here: calls of kernels, planned memory, views, checks of inputs."""
    known = ("null_value", "vm.alloc_storage", "vm.alloc_tensor", "vm.kill_object")
    plain = is_constant(value) or isinstance(value, relax.Var | relax.Tuple | relax.TupleGetItem)
    return not (plain or calls_kernel(value) or op_name(value) in known or _external(value).startswith((*_CHECKS, _VIEW)))


def _source(tensor: Any, values: dict[Any, Any]) -> Any:
    """The allocation, input or constant that a tensor is a view of."""
    while True:
        value: Any = values.get(tensor)
        if _external(value) == _VIEW:
            tensor = value.args[0]
        elif isinstance(value, relax.TupleGetItem):
            whole = _source(value.tuple_value, values)
            tensor = values[whole].fields[value.index]
        elif isinstance(value, relax.Var) or is_constant(value):
            tensor = value
        else:
            return tensor


def _needed(seeds: list[Any], values: dict[Any, Any]) -> set[Any]:
    """``seeds`` and all variables that they are made of."""
    found: set[Any] = set()
    while seeds:
        var = seeds.pop()
        if var not in found:
            found.add(var)
            seeds += variables(values[var]) if var in values else []
    return found


def _lives(calls: list[Any], values: dict[Any, Any], kept: set[Any]) -> dict[Any, Life]:
    """Intermediate tensors and the calls that use them, without those that outlive the calls."""
    lives: dict[Any, Life] = {}
    for number, call in enumerate(calls):
        for argument in call.args:
            source = _source(argument, values)
            value: Any = values.get(source)
            if op_name(value) == "vm.alloc_tensor" and value.args[0] not in kept:
                size, first, _ = lives.get(source, Life(tensor_bytes(source.ty), number, number))
                lives[source] = Life(size, first, number)
    return lives


class _Memory:
    """The block that intermediate tensors lie in."""

    def __init__(self, lives: dict[Any, Life]) -> None:
        starts, self.bytes = plan(list(lives.values()))
        self.offsets: dict[Any, int] = dict(zip(lives, starts, strict=True))

    def allocate(self, values: dict[Any, Any]) -> tuple[Any, list[Any]]:
        """The block, and the bindings that allocate it, after the example of those that it replaces."""
        tensor = values[next(iter(self.offsets))]
        storage = values[tensor.args[0]]
        shape, byte = relax.ShapeExpr([self.bytes]), storage.args[2]
        whole, block = relax.Var("storage", relax.AnyType()), relax.Var("memory", relax.TensorType((self.bytes,), "uint8"))
        zero = tensor.args[4]  # of the CPU, and of an offset
        return block, [
            relax.VarBinding(whole, relax.Call(storage.op, [shape, *storage.args[1:]], storage.attrs, storage.ty_args)),
            relax.VarBinding(block, relax.Call(tensor.op, [whole, zero, shape, byte, zero], tensor.attrs, tensor.ty_args)),
        ]


class _Network:
    """A TIR function that calls kernels in order."""

    def __init__(self, values: dict[Any, Any], memory: _Memory) -> None:
        self.arguments: list[Any] = []
        """What the function is to be called with, before the block of memory."""
        self._values, self._memory = values, memory
        self._params: list[Any] = []
        self._indices: dict[Any, int] = {}  # tensor -> its descriptor
        self._block = tirx.decl_buffer((max(1, memory.bytes),), "uint8", name="memory", data_alignment=ALIGNMENT)
        self._descriptors, self._packed, self._result = (tirx.Var(n, "handle") for n in ("tensors", "arguments", "result"))
        self._most = 0
        self._setup: list[Any] = []
        self._calls: list[Any] = []

    def call(self, call: Any) -> None:
        """Appends the call of a kernel."""
        for i, argument in enumerate(call.args):
            if isinstance(argument, tirx.IntImm):
                kind, value = _INTEGER, argument
            else:
                kind = _TENSOR
                value = tirx.tvm_struct_get(self._descriptors, self._descriptor(argument), _ADDRESS, "handle")
            self._calls += [_set(self._packed, i, _KIND, _int32(kind)), _set(self._packed, i, _VALUE, value)]
        self._most = max(self._most, len(call.args))
        entry, nothing = f"{_ENTRY}{call.op.name_hint}", tirx.reinterpret("handle", tirx.const(0, "uint64"))
        failed = tirx.call_extern("int32", entry, nothing, self._packed, _int32(len(call.args)), self._result)
        self._calls.append(tirx.IfThenElse(failed != 0, tirx.Evaluate(tirx.tvm_throw_last_error()), None))

    def function(self) -> tirx.PrimFunc:
        stack = [
            tirx.Bind(self._descriptors, tirx.tvm_stack_alloca("array", len(self._indices))),
            tirx.Bind(self._packed, tirx.tvm_stack_alloca("tvm_ffi_any", self._most)),
            tirx.Bind(self._result, tirx.tvm_stack_alloca("tvm_ffi_any", 1)),
        ]
        clear = [_set(self._packed, i, _PADDING, _int32(0)) for i in range(self._most)]
        params = [*self._params, self._block] if self._memory.bytes else self._params
        return _function(params, [*stack, *clear, *self._setup, *self._calls])

    def _descriptor(self, tensor: Any) -> int:
        """Index of the descriptor of a tensor. Kernels know shapes; of a descriptor they read where the data is."""
        source = _source(tensor, self._values)
        if source not in self._indices:
            self._indices[source] = index = len(self._indices)
            dtype, dimensions = tvm.DataType(str(source.ty.dtype)), len(source.ty.shape.values)
            fields = {
                _DATA: self._data(source),
                _DIMENSIONS: _int32(dimensions),
                _CODE: tirx.const(int(dtype.type_code), "uint8"),
                _BITS: tirx.const(dtype.bits, "uint8"),
                _LANES: tirx.const(dtype.lanes, "uint16"),
                _OFFSET: tirx.const(0, "uint64"),
                _DEVICE: _int32(0),
                _DEVICE_TYPE: _int32(_CPU),
            }
            self._setup += [_set(self._descriptors, index, field, value) for field, value in fields.items()]
        return self._indices[source]

    def _data(self, source: Any) -> Any:
        """Where the data of an allocation is in the block; what is not in the block is a parameter."""
        if source in self._memory.offsets:
            return tirx.handle_add_byte_offset(self._block.data, tirx.const(self._memory.offsets[source], "int64"))
        shape = [int(extent) for extent in source.ty.shape.values]
        # at any address, as an input may be
        parameter = tirx.decl_buffer(shape, str(source.ty.dtype), name=f"tensor{len(self._params)}", data_alignment=1)
        self._params.append(parameter)
        self.arguments.append(source)
        return parameter.data


def _set(structs: Any, index: int, field: int, value: Any) -> Any:
    return tirx.Evaluate(tirx.tvm_struct_set(structs, index, field, value))


def _int32(value: int) -> Any:
    return tirx.const(value, "int32")
