"""int32 accumulators to bytes, four vectors at a time, by the packing instructions of x86 (PACKSSDW, PACKUSWB, PACKSSWB).

They saturate, which is most of a clip for nothing. The arithmetic is that of kernels/reference.py to the last bit: a product is
bounded above before CVTPS2DQ rounds it to nearest even, for that instruction returns the most negative integer for what is out of
range, which the packs saturate to the lower bound, where it belongs when it is below. Adding the zero point saturates too, on the
side where the result is below the lower bound anyway.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from math import gcd
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.schedule import tir
from tvmflow.schedule.intrinsics import llvm, pmaddwd

Expr = Any

GROUP = 4
"""Vectors that become one vector of bytes."""
_WIDTH = {4: "sse2.{}.128", 8: "avx2.{}", 16: "avx512.{}.512"}
"""Names of the packs of int32 vectors by their lanes."""


Emission: TypeAlias = Generator[None, None, Any]
"""Emits code and pauses now and then, so that instructions of other work can be laid between; its value is the result."""


def bind(values: Iterable[Expr]) -> Emission:
    """Names each value, with a pause after it."""
    names = []
    for value in values:
        names.append(T.Bind(value))
        yield
    return names


def finish(emission: Emission) -> Any:
    """Emits all that is left."""
    while True:
        try:
            next(emission)
        except StopIteration as end:
            return end.value


class Packs:
    """Requantizes groups of four accumulators of ``lanes`` int32 each to ``dtype``, int8 or uint8.

    ``quant`` is ``[x_zero, y_zero, lo, hi]``, and with a residual tensor eight values more: kernels/spec.py Conv2d. Accumulators
    in ``quarters`` (schedule/interleave.py) are in natural order once they are packed.
    """

    def __init__(self, quant: Any, lanes: int, dtype: str, residual: bool, quarters: bool = False) -> None:
        self.lanes, self.dtype, self.in_order = lanes, dtype, quarters or lanes == GROUP
        zero, lo, hi = quant[1], quant[2], quant[3]
        self.hi = T.Bind(tir.splat((hi - zero).astype("float32"), lanes))
        self.add = _Residual(self, quant) if residual else None
        if residual:
            self.lo = T.Bind(tir.splat((lo - zero).astype("int16"), 2 * lanes))
        else:
            self.zero = T.Bind(tir.splat(zero.astype("int16"), 2 * lanes))
            self.lo = T.Bind(tir.splat(lo.astype(dtype), 4 * lanes))

    def __call__(self, accumulators: list[Expr], multipliers: list[Expr], residual: Expr | None = None) -> Expr:
        """``4 * lanes`` bytes: the results of the first accumulator, of the second, ...; ``residual`` has the same order."""
        return finish(self.emit(accumulators, multipliers, residual))

    def emit(self, accumulators: list[Expr], multipliers: list[Expr], residual: Expr | None = None) -> Emission:
        """The same, an instruction at a time."""
        floats = yield from bind(a.astype(tir.lanes_of("float32", self.lanes)) for a in accumulators)
        scaled = yield from bind(f * m for f, m in zip(floats, multipliers, strict=True))
        bounded = yield from bind(tirx.min(s, self.hi) for s in scaled)
        steps = yield from bind(_round_to_int32(b, self.lanes) for b in bounded)
        words = yield from bind(self.words(*pair) for pair in (steps[:2], steps[2:]))
        if self.add:
            words = yield from bind(tirx.max(w, self.lo) for w in words)
            packed = yield from self.add.emit(words, self._interleaved(residual))
        else:
            shifted = yield from bind(llvm(f"int16x{2 * self.lanes}", "llvm.sadd.sat", w, self.zero) for w in words)
            (packed,) = yield from bind([self.bytes(*shifted)])
            packed = tirx.max(packed, self.lo)
        return self._in_order(T.Bind(packed))

    def words(self, a: Expr, b: Expr) -> Expr:
        """int16 lanes of a and b, saturated: in each 128 bits four of a, then four of b."""
        return llvm(f"int16x{2 * self.lanes}", "llvm.x86." + _WIDTH[self.lanes].format("packssdw"), a, b)

    def bytes(self, a: Expr, b: Expr) -> Expr:
        """Bytes of the int16 lanes of a and b, saturated: in each 128 bits eight of a, then eight of b."""
        name = "packuswb" if self.dtype == "uint8" else "packsswb"
        return llvm(f"{self.dtype}x{4 * self.lanes}", "llvm.x86." + _WIDTH[self.lanes].format(name), a, b)

    def _in_order(self, packed: Expr) -> Expr:
        """From 128 bits with four bytes of each vector to one vector after the other."""
        return self._permuted(packed, np.arange(self.lanes).reshape(-1, GROUP).T)

    def _interleaved(self, natural: Expr) -> Expr:
        return self._permuted(natural, np.arange(self.lanes).reshape(GROUP, -1).T)

    def _permuted(self, value: Expr, words: Any) -> Expr:
        if self.in_order:
            return value
        moved = shuffle([tirx.reinterpret(f"int32x{self.lanes}", value)], words)
        return T.Bind(tirx.reinterpret(f"{self.dtype}x{4 * self.lanes}", moved))


class Cell(NamedTuple):
    """A vector of results on its way to memory."""

    index: Expr
    """Of its first element in the output."""
    accumulator: Expr
    multiplier: Expr


def store(packs: Packs, y: Any, cells: list[Cell], run: int, residual: Any | None = None) -> Emission:
    """Writes the results of ``cells``, of which each ``run`` are neighbours in memory, an instruction at a time."""
    piece, lanes = gcd(run, GROUP), packs.lanes
    for first in range(0, len(cells), GROUP):
        group = cells[first : first + GROUP]
        places = [(i, tir.at(group[i].index, piece * lanes)) for i in range(0, len(group), piece)]
        group += group[-1:] * (GROUP - len(group))
        added = None
        if residual is not None:
            parts = [residual[tir.at(group[i].index, piece * lanes)] for i in range(0, GROUP, piece)]
            added = parts[0] if len(parts) == 1 else T.Bind(shuffle(parts, range(GROUP * lanes)))
        result = yield from packs.emit([c.accumulator for c in group], [c.multiplier for c in group], added)
        for i, place in places:
            part = result if piece == GROUP else shuffle([result], range(i * lanes, (i + piece) * lanes))
            T.buffer_store(y, part, [place])
            yield


class _Residual:
    """The ``Binary`` add of kernels/spec.py on words: pairs of both operands in one multiply-add (PMADDWD)."""

    def __init__(self, packs: Packs, quant: Any) -> None:
        self.packs = packs
        lanes = packs.lanes
        a_zero, b_zero, y_zero, lo, hi, ma, mb, shift = (quant[4 + i] for i in range(8))
        if packs.dtype == "int8":
            b_zero = b_zero + 128  # the operand is read as unsigned
        # what is added holds no zero point yet: a's own is in the bias, as is y's, shifted up
        bias = (tir.const(1, "int32") << (shift - 1)) + (quant[1] - a_zero) * ma - b_zero * mb + (y_zero << shift)
        self.multipliers = T.Bind(tirx.reinterpret(f"int16x{2 * lanes}", tir.splat((mb << 16) | (ma & 0xFFFF), lanes)))
        self.bias, self.shift = T.Bind(tir.splat(bias, lanes)), T.Bind(tir.splat(shift, lanes))
        self.lo, self.hi = (T.Bind(tir.splat(v.astype(packs.dtype), 4 * lanes)) for v in (lo, hi))

    def emit(self, words: list[Expr], residual: Expr) -> Emission:
        packs, lanes = self.packs, self.packs.lanes
        if packs.dtype == "int8":
            residual = tirx.reinterpret(f"uint8x{4 * lanes}", residual) ^ tir.splat(tir.const(128, "uint8"), 4 * lanes)
        zeros = tir.splat(tir.const(0, "uint8"), 4 * lanes)
        wide = yield from bind(tirx.reinterpret(f"int16x{2 * lanes}", unpack(residual, zeros, half)) for half in (0, 1))
        pairs = yield from bind(unpack(a, b, half) for a, b in zip(words, wide, strict=True) for half in (0, 1))
        sums = yield from bind(pmaddwd(self.bias, p, self.multipliers, lanes) for p in pairs)
        sums = yield from bind(s >> self.shift for s in sums)
        words = yield from bind(packs.words(*pair) for pair in (sums[:2], sums[2:]))
        (packed,) = yield from bind([packs.bytes(*words)])
        return tirx.max(tirx.min(packed, self.hi), self.lo)


def _round_to_int32(value: Expr, lanes: int) -> Expr:
    """CVTPS2DQ: to nearest even."""
    if lanes == 16:
        nothing, every, as_set = tir.splat(tir.const(0, "int32"), 16), tir.const(-1, "int16"), tir.const(4, "int32")
        return llvm("int32x16", "llvm.x86.avx512.mask.cvtps2dq.512", value, nothing, every, as_set)
    return llvm(f"int32x{lanes}", {4: "llvm.x86.sse2.cvtps2dq", 8: "llvm.x86.avx.cvt.ps2dq.256"}[lanes], value)


def shuffle(vectors: list[Expr], lanes: Any) -> Expr:
    """Elements ``lanes`` of the vectors laid end to end."""
    return tirx.Shuffle(vectors, [tir.const(int(i), "int32") for i in np.ravel(lanes)])


def unpack(a: Expr, b: Expr, half: int) -> Expr:
    """PUNPCKL (``half`` 0) or PUNPCKH (1): elements of a and b in turns, from one half of each 128 bits."""
    count = int(a.ty.dtype.lanes)
    per_block = 128 // (a.ty.dtype.bits)
    starts = np.arange(0, count, per_block)[:, None] + half * per_block // 2 + np.arange(per_block // 2)
    return shuffle([a, b], np.stack([starts, starts + count], axis=-1))
