"""Multiply-accumulate instructions, one row each: the only place where the CPU templates learn what an ISA can do.

A row says how many reduction steps one instruction folds (``group``), how the operands are held and which expression
accumulates. The templates ask for nothing else, so a new ISA is a new row. All integer rows are exact: none saturates.
Intel SDM and Arm ARM names are in the ``why`` of each row. Every row runs bit for bit in tests/numerics.

Left out: AMX-INT8 (TDPBUSD) multiplies tiles of 16 x 64 bytes that a thread must configure and the kernel must grant to the
process first, so it needs a template and a loader of its own, and neither this project's machines nor qemu can run it: code that
was only disassembled would not be known to be exact. AVX-VNNI-INT8 (VPDPBSSD) is signed by signed at the speed of VPDPBUSD, and
activations are stored unsigned on x86: there is nothing to gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

Expr = Any


@dataclass(frozen=True)
class Dot:
    """One multiply-accumulate instruction.

    ``acc[l] += sum(a[g] * b[l, g] for g in range(group))`` for ``lanes`` accumulators l. ``a`` holds ``group`` elements of
    type ``a_dtype`` broadcast to all lanes; ``b`` is stored as ``b_dtype`` in memory.
    """

    name: str
    why: str
    group: int
    lanes: int
    a_dtype: str
    """Type in which the left operand must stand in memory; the template widens it into scratch when x has another type."""
    b_dtype: str
    acc_dtype: str
    lanewise: Callable[[Expr, Expr, Expr, int], Expr]
    """``lanewise(acc, a, b, lanes)``: a holds one int32 word of ``group`` packed elements per lane (one plain element when
    group is 1), b is a vector of ``lanes * group`` elements of ``b_dtype``."""
    regs_per_acc: int = 1
    temporaries: int = 1
    """Registers that a step needs beside accumulators and weights: broadcasts in flight, products that wait for their sum."""
    narrower: str = ""
    """Row with half the lanes, for narrow outputs."""
    words: str = ""
    """Row that multiplies int16 by int16 and adds modulo 2**32, where that is worth while: schedule/winograd.py."""

    @property
    def packs(self) -> bool:
        """Whether results leave the registers through x86's packs: schedule/packs.py."""
        return self.lanewise in (_vpdpbusd, _vpdpwssd, pmaddwd, _pmaddwd_sse2, _pmaddwd_words)

    def broadcast(self, acc: Expr, a: Expr, b: Expr) -> Expr:
        """``a`` is one vector of ``group`` elements (a scalar when group is 1), the same for all lanes."""
        spread = tirx.Broadcast(a, self.lanes) if self.group == 1 else _words(a, self.lanes)
        return self.lanewise(acc, spread, b, self.lanes)


def llvm(dtype: str, name: str, *args: Expr) -> Expr:
    """Call of an LLVM intrinsic without side effects."""
    return T.call_llvm_pure_intrin(dtype, T.llvm_lookup_intrinsic_id(name), *args)


def wrapping(operation: str, a: Expr, b: Expr) -> Expr:
    """``add``, ``sub`` or ``mul`` of int32 vectors modulo 2**32; TVM's own are undefined where they overflow, as C's are.

    LLVM's predicated forms have no such flag, and with all lanes on they become the plain instruction.
    """
    lanes = int(a.ty.dtype.lanes)
    every = tirx.Broadcast(tirx.const(True, "bool"), lanes)
    return llvm(f"int32x{lanes}", f"llvm.vp.{operation}.v{lanes}i32", a, b, every, tirx.const(lanes, "int32"))


def _words(a: Expr, lanes: int) -> Expr:
    """The ``group`` packed elements of ``a`` as one 32-bit word in every lane."""
    return tirx.Broadcast(tirx.reinterpret("int32", a), lanes)


def _vpdpbusd(acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
    name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"
    return llvm(f"int32x{lanes}", name, acc, tirx.reinterpret(f"int8x{4 * lanes}", a), b)


def _vpdpwssd(acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
    name = f"llvm.x86.avx512.vpdpwssd.{lanes * 32}"
    return llvm(f"int32x{lanes}", name, acc, tirx.reinterpret(f"int16x{2 * lanes}", a), b)


_PMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def pmaddwd(acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
    """Sum of pairs of int16 products, exact."""
    return acc + _pairs(a, b, lanes)


def _pmaddwd_words(acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
    return wrapping("add", acc, _pairs(a, b, lanes))


def _pairs(a: Expr, b: Expr, lanes: int) -> Expr:
    wide = f"int16x{2 * lanes}"
    return llvm(f"int32x{lanes}", _PMADDWD[lanes], tirx.reinterpret(wide, a), b.astype(wide))


def _pmaddwd_sse2(acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
    """:func:`pmaddwd` with ``b`` widened by a comparison and an unpack.

    SSE2 has no instruction that widens signed bytes. LLVM unpacks them into a register of which it keeps the old low bytes, only
    to shift them out: a step waits for the one before that used the register (ResNet-50's layers: up to 1.5 times slower).
    """
    n = 2 * lanes
    if str(b.ty) != f"int8x{n}":  # activations, which are wide already
        return pmaddwd(acc, a, b, lanes)
    sign = tirx.Select(b < tirx.Broadcast(tirx.const(0, "int8"), n), *(tirx.Broadcast(tirx.const(v, "int8"), n) for v in (-1, 0)))
    bytes_and_signs = tirx.Shuffle([b, sign], [tirx.const(i // 2 + i % 2 * n, "int32") for i in range(2 * n)])
    return pmaddwd(acc, a, tirx.reinterpret(f"int16x{n}", bytes_and_signs), lanes)


def _sdot(acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
    return llvm(f"int32x{lanes}", "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, tirx.reinterpret(f"int8x{4 * lanes}", a), b)


def _smlal(acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
    wide = "int32" if lanes == 1 else f"int32x{lanes}"
    return acc + a.astype(wide) * b.astype(wide)


def _smlal_words(acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
    wide = f"int32x{lanes}"
    return wrapping("add", acc, a.astype(wide) * b.astype(wide))


def _fma(acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
    return llvm(f"float32x{lanes}", "llvm.fma", a, b, acc)


def _mul_add(acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
    return acc + a * b


DOTS: tuple[Dot, ...] = (
    Dot("vnni512", "VPDPBUSD zmm", 4, 16, "uint8", "int8", "int32", _vpdpbusd, narrower="vnni256", words="wssd512"),
    Dot(
        "vnni256",
        "VPDPBUSD ymm (AVX512VL or AVX-VNNI)",
        4,
        8,
        "uint8",
        "int8",
        "int32",
        _vpdpbusd,
        narrower="vnni128",
        words="wssd256",
    ),
    Dot("vnni128", "VPDPBUSD xmm", 4, 4, "uint8", "int8", "int32", _vpdpbusd, words="wssd128"),
    Dot(
        "maddwd512",
        "VPMADDWD zmm: int16 operands, so that no pair of products saturates",
        2,
        16,
        "int16",
        "int8",
        "int32",
        pmaddwd,
        narrower="maddwd256",
        words="wmadd512",
    ),
    Dot(
        "maddwd256",
        "VPMADDWD ymm (AVX2)",
        2,
        8,
        "int16",
        "int8",
        "int32",
        pmaddwd,
        temporaries=2,
        narrower="maddwd128",
        words="wmadd256",
    ),
    Dot("maddwd128", "PMADDWD xmm (SSE2)", 2, 4, "int16", "int8", "int32", pmaddwd, temporaries=2, words="wmadd128"),
    Dot("sse2", "PMADDWD xmm without SSE4.1", 2, 4, "int16", "int8", "int32", _pmaddwd_sse2, temporaries=2, words="wmadd128"),
    Dot("sdot", "SDOT (Armv8.2 dotprod)", 4, 4, "int8", "int8", "int32", _sdot, temporaries=3),
    Dot(
        "neon", "SMLAL/SMLAL2 on int16", 1, 8, "int16", "int8", "int32", _smlal, regs_per_acc=2, narrower="neon4", words="wsmlal"
    ),
    Dot("neon4", "SMLAL on int16", 1, 4, "int16", "int8", "int32", _smlal, words="wsmlal"),
    Dot(
        "generic",
        "plain integer multiply and add, whatever the compiler makes of it",
        1,
        4,
        "int16",
        "int8",
        "int32",
        _smlal,
        words="wsmlal",
    ),
    Dot("wssd512", "VPDPWSSD zmm", 2, 16, "int16", "int16", "int32", _vpdpwssd, narrower="wssd256"),
    Dot("wssd256", "VPDPWSSD ymm (AVX512VL or AVX-VNNI)", 2, 8, "int16", "int16", "int32", _vpdpwssd, narrower="wssd128"),
    Dot("wssd128", "VPDPWSSD xmm", 2, 4, "int16", "int16", "int32", _vpdpwssd),
    Dot("wmadd512", "VPMADDWD zmm", 2, 16, "int16", "int16", "int32", _pmaddwd_words, temporaries=2, narrower="wmadd256"),
    Dot("wmadd256", "VPMADDWD ymm", 2, 8, "int16", "int16", "int32", _pmaddwd_words, temporaries=2, narrower="wmadd128"),
    Dot("wmadd128", "PMADDWD xmm", 2, 4, "int16", "int16", "int32", _pmaddwd_words, temporaries=2),
    Dot("wsmlal", "SMLAL, or plain multiply and add of int16", 1, 4, "int16", "int16", "int32", _smlal_words),
    Dot("fma512", "VFMADD231PS zmm", 1, 16, "float32", "float32", "float32", _fma, narrower="fma256"),
    Dot("fma256", "VFMADD231PS ymm", 1, 8, "float32", "float32", "float32", _fma, narrower="fma128"),
    Dot("fma128", "VFMADD231PS xmm", 1, 4, "float32", "float32", "float32", _fma),
    Dot("sse", "MULPS and ADDPS", 1, 4, "float32", "float32", "float32", _mul_add),
    Dot("neon_f32", "FMLA by element", 1, 4, "float32", "float32", "float32", _fma),
    Dot("generic_f32", "plain multiply and add", 1, 4, "float32", "float32", "float32", _mul_add),
)

BY_NAME = {dot.name: dot for dot in DOTS}


def dot_for(names: tuple[str, ...], outputs: int) -> Dot:
    """The first of ``names``, or its narrowest form that still holds a run of ``outputs`` results in one vector.

    One vector with idle lanes beats several full ones (Zen 5, 64 inputs, 12 outputs: 2.3 us with one zmm, 4.1 with two ymm,
    6.2 with three xmm), and a narrower one that holds as many is no slower and stores less in vain.
    """
    dot = BY_NAME[names[0]]
    while dot.narrower and BY_NAME[dot.narrower].lanes >= outputs:
        dot = BY_NAME[dot.narrower]
    return dot
