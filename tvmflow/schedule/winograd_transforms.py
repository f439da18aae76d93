"""The transforms of Winograd's convolution, made from their interpolation points (Toom and Cook).

Points are 0, pairs of +-p, and infinity. The rows of a pair differ in sign only, so each transform is a sparse matrix beside a
butterfly of sums and differences: ``forward = butterfly . gather``, ``backward = scatter . butterfly``.

F(4x4) takes the points +-sqrt(1/2), +-sqrt(2) and not the usual +-1, +-2: it loses half as many bits. Error against a direct
convolution in float64, relative to the root mean square of the outputs (3x3, 256 channels, rectified normal inputs;
root mean square / largest): direct float32 6.0e-7 / 4.5e-6, F(2x2) 4.1e-7 / 2.0e-6, F(4x4) 1.2e-6 / 6.4e-6 (with +-1, +-2:
2.5e-6 / 3.1e-5). Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution, 2020, explain why.
"""

from __future__ import annotations

from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from tvmflow.schedule import tir
from tvmflow.schedule.intrinsics import Dot

Expr = Any
Matrix = NDArray[np.float64]

POINTS: dict[int, tuple[float, ...]] = {2: (1.0,), 4: (sqrt(0.5), sqrt(2.0))}
"""Outputs a side -> the positive interpolation points."""


class Transforms:
    """Matrices of F(m x m, 3x3), and the expressions that apply them to squares of vectors."""

    def __init__(self, m: int) -> None:
        self.m = m
        self.finite = [0.0, *(sign * p for p in POINTS[m] for sign in (1, -1))]
        self.side = m + 2

    @cached_property
    def weight(self) -> Matrix:
        """``G [m + 2, 3]``: values of the kernel's polynomial at each point, over the product of the distances to the others."""
        rows = [[p**k / np.prod([p - q for q in self.finite if q != p]) for k in range(3)] for p in self.finite]
        return np.array([*rows, [0, 0, 1]])

    @cached_property
    def input(self) -> Matrix:
        """``B^T [m + 2, m + 2]``: coefficients of the polynomials with roots at all points but one."""
        rows = [[*np.poly([q for q in self.finite if q != p])[::-1], 0.0] for p in self.finite]
        return np.array([*rows, np.poly(self.finite)[::-1]])

    @cached_property
    def output(self) -> Matrix:
        """``A^T [m, m + 2]``: powers of the points; infinity adds to the highest only."""
        rows = [[*(p**k for p in self.finite), float(k == self.m - 1)] for k in range(self.m)]
        return np.array(rows)

    @cached_property
    def _butterfly(self) -> Matrix:
        eye = np.eye(self.side)
        for i in range(1, self.side - 1, 2):
            eye[i : i + 2, i : i + 2] = [[1, 1], [1, -1]]
        return eye

    def forward(self, dot: Dot, square: list[list[Expr]]) -> list[Expr]:
        """``B^T d B`` of a patch, row by row."""
        gather = np.linalg.inv(self._butterfly) @ self.input
        return _both_sides(square, lambda line: _sums_and_differences(_product(dot, gather, line)))

    def backward(self, dot: Dot, square: list[list[Expr]]) -> list[Expr]:
        """``A^T m A`` of the products of a patch, row by row."""
        scatter = self.output @ np.linalg.inv(self._butterfly)
        return _both_sides(square, lambda line: _product(dot, scatter, _sums_and_differences(line)))


def _both_sides(square: list[list[Expr]], apply: Any) -> list[Expr]:
    columns = [apply(list(column)) for column in zip(*square, strict=True)]
    return [value for row in zip(*columns, strict=True) for value in apply(list(row))]


def _sums_and_differences(line: list[Expr]) -> list[Expr]:
    pairs = [line[i : i + 2] for i in range(1, len(line) - 1, 2)]
    return [line[0], *(T.Bind(v) for a, b in pairs for v in (a + b, a - b)), line[-1]]


def _product(dot: Dot, matrix: Matrix, line: list[Expr]) -> list[Expr]:
    """``matrix @ line`` with its zeros left out."""
    lanes = dot.lanes

    def row(factors: Matrix) -> Expr:
        # a factor of one starts the sum for nothing
        terms = sorted(((f, v) for f, v in zip(factors, line, strict=True) if abs(f) > 1e-12), key=lambda t: t[0] != 1)
        total = None
        for factor, value in terms:
            scale = tir.splat(tir.const(float(factor), "float32"), lanes)
            if total is None:
                total = value if factor == 1 else value * scale
            elif abs(factor) == 1:
                total = total + value if factor == 1 else total - value
            else:
                total = dot.lanewise(total, scale, value, lanes)
            total = T.Bind(total)
        return total

    return [row(factors) for factors in matrix]
