"""Rows of bytes brought together word by word, and the order of elements that comes of it.

Two rounds of unpacking (PUNPCKL and PUNPCKH, ZIP1 and ZIP2) turn four vectors of ``4 * lanes`` bytes into four of ``lanes``
words. Each holds a quarter of the elements: quarter q those at ``4 q`` to ``4 q + 3`` of every 16. The packs of x86 undo that
order on the way back to bytes (schedule/packs.py), so nothing is ever permuted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.schedule import tir
from tvmflow.schedule.packs import shuffle, unpack

Expr = Any

FEWEST = 16
"""Elements of the narrowest vector."""


def quarters(lanes: int) -> NDArray[np.int64]:
    """``[4, lanes]``: natural position of each element of the quarters."""
    return np.arange(4 * lanes).reshape(-1, 4, 4).transpose(1, 0, 2).reshape(4, lanes)


def natural(values: list[Expr], lanes: int) -> Expr:
    """Four quarters as one vector in natural order."""
    return T.Bind(shuffle(values, np.argsort(quarters(lanes), axis=None)))


def words(rows: list[Expr], width: int, dtype: str) -> list[Expr]:
    """Quarters of ``width`` words, each with an element of every one of ``rows`` (int8 vectors): four bytes, or two widened ones.

    ``dtype`` says whether the bytes to widen are signed.
    """
    pairs = [[_unpack(a, b, half, "int8") for half in (0, 1)] for a, b in zip(rows[::2], rows[1::2], strict=True)]
    if len(pairs) == 2:
        parts = [_unpack(a, b, half, "int16") for a, b in zip(*pairs, strict=True) for half in (0, 1)]
    elif dtype == "uint8":
        zeros = tir.splat(tir.const(0, "int8"), width)
        parts = [_unpack(pair, zeros, half, "int8") for pair in pairs[0] for half in (0, 1)]
    else:  # each byte in both halves of 16 bits, of which the upper one stays
        doubled = [_unpack(pair, pair, half, "int8") for pair in pairs[0] for half in (0, 1)]
        eight = tir.splat(tir.const(8, "int16"), width // 2)
        parts = [tirx.reinterpret(f"int16x{width // 2}", value) >> eight for value in doubled]
    return [T.Bind(tirx.reinterpret(f"int32x{width // 4}", part)) for part in parts]


def _unpack(a: Expr, b: Expr, half: int, dtype: str) -> Expr:
    count = int(a.ty.dtype.lanes) * int(a.ty.dtype.bits) // int(dtype.removeprefix("int"))
    return T.Bind(unpack(tirx.reinterpret(f"{dtype}x{count}", a), tirx.reinterpret(f"{dtype}x{count}", b), half))
