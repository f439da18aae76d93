"""The machine that ranks tiles: what a step of a register tile takes.

Two dot products and nearly two loads a cycle, five cycles of latency, 28 or 36 bytes from L2. The constants were fitted to 500
measured tiles of 16 layers (Zen 5): the choice is on average within 1 %. On a Zen 4, float32, it is 5 % above the best measured
one (7,124 tiles of 53 layers, nine targets; the data of the fit).
"""

from __future__ import annotations

from math import gcd

import numpy as np

from tvmflow.schedule.intrinsics import Dot
from tvmflow.target import Cpu

PLACES = 4096
"""Bytes after which an address comes to the same lines of a first-level cache again."""


def of_step(dot: Dot, rows: int, columns: int, fresh: int, cpu: Cpu) -> float:
    """Cycles of a step that multiplies ``rows`` broadcasts by ``columns`` vectors of weights, of which ``fresh`` bytes are read
    between two uses of one."""
    products, loads = rows * columns * dot.regs_per_acc, rows + columns * dot.regs_per_acc
    line = columns * vector_bytes(dot)
    from_l2 = line / (36 if _is_wide(dot) or dot.acc_dtype == "int32" else 28) if fresh > cpu.l1d_kib * 400 else 0.0
    cycles = max(products / 2, loads / 1.9, 5.0, from_l2)
    if dot.name == "sse2":  # copy, multiply, add; a pixel's word is spread, weights are widened: seven instructions a cycle
        cycles = max(cycles, (3 * rows * columns + rows + 3 * columns + 5) / 7.3)
    if dot.name == "fma512":  # 250 tiles of 14 layers, measured there: the choice was 4 % above the best, is 2 % now
        cycles += 0.2 * loads + 0.1 * from_l2
    if dot.name == "sse":
        cycles = max(cycles, _sse(rows, columns, cpu.registers))
    return cycles


def crowded(dot: Dot, rows: int, stride: int) -> bool:
    """Whether ``rows`` of which the next is ``stride`` bytes on throw each other out of the first-level cache.

    Rows so far apart share its lines, of which few lie at one place.
    """
    return rows * gcd(stride, PLACES) / PLACES >= (8 if _is_wide(dot) else 6)


def vector_bytes(dot: Dot) -> int:
    """Of the weights that an instruction takes, in memory."""
    return dot.lanes * dot.group * np.dtype(dot.b_dtype).itemsize


def _is_wide(dot: Dot) -> bool:
    return vector_bytes(dot) == 64


def _sse(rows: int, columns: int, registers: int) -> float:
    """Cycles of a step of ``rows * columns`` products by MULPS and ADDPS, which overwrite an operand.

    Every product is multiplied, added and, but for the last use of an operand, copied; 5.2 instructions a cycle. A vector that
    does not fit the registers costs three cycles. Fitted on a Zen 4 by a few layers, checked on 1,448 tiles of 38.
    """
    fewer, more = sorted((rows, columns))
    instructions = 3 * rows * columns - more + 2 * rows + columns + 2
    return instructions / 5.2 + 3.0 * max(0, rows * columns + fewer + 2 - registers)
