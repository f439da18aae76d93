"""Constants as bytes of the file: kernels read weights where the system has mapped them.

TVM's VM carries constants inside its program. Loading copies that several times, reads all of it before the first run, and keeps
a copy for each session. Here they are a read-only section of the shared library instead, and a kernel gets the offset of a
constant in it in place of a tensor. Pages come in as they are read, and all processes that use the file share them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from tvmflow.build.calls import bindings, calls_kernel
from tvmflow.optimize.expr import array, is_constant

SECTION, SYMBOL = ".tvmflow.constants", "tvmflow_constants"
ALIGNMENT = 64
"""Of each constant, in bytes: what kernels need."""
LARGE, PAGE = 128 << 10, 4096
"""Constants of so many bytes begin ALIGNMENT after the begin of a page, where an allocator puts them and the tuner has measured
their kernels. Anywhere else, at the begin of a page too, Winograd layers are slower (ResNet-50 float32 by 5 %)."""

_FIRST = f"{SYMBOL}_first"
_FIRST_BYTE = f"""
@{SYMBOL} = external hidden constant [0 x i8], align {PAGE}
define linkonce_odr hidden ptr @{_FIRST}() alwaysinline {{
  ret ptr @{SYMBOL}
}}
"""
"""LLVM IR of a function that TIR can call: TIR has no word for the address of a symbol."""


def place_constants(module: tvm.IRModule) -> tuple[tvm.IRModule, bytes]:
    """A lowered ``module`` whose kernels find constants in a section, and the section.

    A parameter is changed where each call of the kernel passes a constant. Others, one that is returned for instance, stay with
    the VM.
    """
    main = module["main"]
    fixed: dict[Any, Set[int]] = {}
    for binding in bindings(main):
        if calls_kernel(binding.value):
            positions = {i for i, argument in enumerate(binding.value.args) if is_constant(argument)}
            fixed[binding.value.op] = fixed.get(binding.value.op, positions) & positions
    section = _Section()

    def placed(value: Any) -> Any:
        if not calls_kernel(value):
            return value
        positions = fixed[value.op]
        return relax.Call(value.op, [section.offset(array(a)) if i in positions else a for i, a in enumerate(value.args)])

    blocks = [
        relax.BindingBlock([relax.VarBinding(b.var, placed(b.value)) for b in block.bindings]) for block in main.body.blocks
    ]
    changed = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    body = relax.SeqExpr(blocks, main.body.body)
    changed["main"] = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    readers = [kernel for kernel, positions in fixed.items() if positions]
    for kernel in readers:
        changed[kernel] = _reading_section(module[kernel], fixed[kernel], defines=kernel is readers[0])
    return changed, bytes(section.content)


def _reading_section(kernel: tirx.PrimFunc, positions: Set[int], defines: bool) -> tirx.PrimFunc:
    """``kernel`` with offsets in the section, int64, as parameters where it had tensors.

    ``defines``: with the LLVM function behind all of them, which is needed once in a module.
    """
    first = tirx.call_extern("handle", _FIRST)
    params, found = list(kernel.params), []
    for i in sorted(positions):
        tensor = kernel.params[i]
        params[i] = tirx.Var(f"{tensor.name}_offset", "int64")
        data = tirx.reinterpret(tensor.data.ty, tirx.handle_add_byte_offset(first, params[i]))
        found.append(tirx.DeclBuffer(tensor, data=data))
    body = tirx.SeqStmt([*found, kernel.body])
    if defines:
        body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", tvm.ir.StringImm(_FIRST_BYTE), body)
    return tirx.PrimFunc(params, body, kernel.ret_type, kernel.attrs)


class _Section:
    """The bytes of all constants, each once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._offsets: dict[bytes, int] = {}

    def offset(self, value: np.ndarray) -> tirx.IntImm:
        """Where the bytes of ``value`` are, which are appended unless they are there."""
        data = value.tobytes()
        digest = hashlib.sha256(data).digest()
        if digest not in self._offsets:
            free = len(self.content)
            self.content += bytes((ALIGNMENT - free) % PAGE if len(data) >= LARGE else -free % ALIGNMENT)
            self._offsets[digest] = len(self.content)
            self.content += data
        return tirx.const(self._offsets[digest], "int64")
