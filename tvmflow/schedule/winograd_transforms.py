"""The transforms of Winograd's convolution, made from their interpolation points (Toom and Cook).

Points are fractions ``a / b``, infinity is one over 0. The rows of a pair +-p differ in sign only, so each transform is a sparse
matrix beside a butterfly of sums and differences: ``forward = butterfly . gather``, ``backward = scatter . butterfly``.

In float32 F(4x4) takes the points +-sqrt(1/2), +-sqrt(2) and not the usual +-1, +-2: it loses half as many bits. Error against a
direct convolution in float64, relative to the root mean square of the outputs (3x3, 256 channels, rectified normal inputs;
root mean square / largest): direct float32 6.0e-7 / 4.5e-6, F(2x2) 4.1e-7 / 2.0e-6, F(4x4) 1.2e-6 / 6.4e-6 (with +-1, +-2:
2.5e-6 / 3.1e-5). Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution, 2020, explain why.

Integers lose nothing. The fractions of the weights' transform are moved to the outputs' one, and from there to a factor of each
output (:attr:`Transforms.factors`). Transformed inputs and weights fit int16. Their sums may not fit int32, but all that follows
is right modulo 2**32: what comes out is multiplied by the inverse of the factor's odd part and shifted by the bits of its even
part, if the output has these to spare. The points +-1, +-2 take 6 bits, enough for 227 channels. 0, 1, -1, 2, -1/2 and infinity
have as few twos in their differences as six points can, and take 2, for some more work. What room int16 leaves to the weights
takes multiples of them at some points, so that the outputs' transform has few factors left but powers of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache, partial, reduce
from itertools import combinations, pairwise
from math import lcm, sqrt
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from tvmflow.schedule import tir
from tvmflow.schedule.intrinsics import wrapping

Expr = Any
Matrix = NDArray[np.float64]

Point: TypeAlias = tuple[float, float]
"""Numerator and denominator."""
INFINITY: Point = (-1, 0)
"""Negative, so that the polynomials of the other points have positive leading coefficients."""


def _with_opposites(*points: float) -> tuple[Point, ...]:
    return ((0, 1), *((sign * p, 1) for p in points for sign in (1, -1)), INFINITY)


POINTS: dict[int, tuple[Point, ...]] = {2: _with_opposites(1), 4: _with_opposites(sqrt(0.5), sqrt(2.0))}
"""Outputs a side -> the interpolation points of float32."""
WHOLE_POINTS: dict[int, tuple[dict[Point, int], ...]] = {
    2: ({(0, 1): 1, (1, 1): 1, (-1, 1): 1, INFINITY: 1},),
    4: (
        {(0, 1): 6, (1, 1): 1, (-1, 1): 1, (2, 1): 1, (-2, 1): 1, INFINITY: 6},
        {(0, 1): 15, (1, 1): 5, (-1, 1): 5, (2, 1): 1, (-1, 2): 1, INFINITY: 15},
    ),
}
"""The same of integers, those first that are the least work, each with the multiple of the weights there. The second one is 1."""
LARGEST = 128
"""Of weights, and of inputs that count from the middle of their type."""


@dataclass(frozen=True)
class Vectors:
    """Arithmetic of vectors of ``lanes`` elements; that of integers is modulo 2**16 or 2**32."""

    dtype: str
    lanes: int
    fma: Callable[[Expr, Expr, Expr, int], Expr] | None = None
    """Of a target that has it: ``fma(total, a, b, lanes)``."""

    def add(self, a: Expr, b: Expr) -> Expr:
        return T.Bind(wrapping("add", a, b) if self.dtype == "int32" else a + b)

    def subtract(self, a: Expr, b: Expr) -> Expr:
        return T.Bind(wrapping("sub", a, b) if self.dtype == "int32" else a - b)

    def scale(self, factor: float, value: Expr) -> Expr:
        if factor == 1:
            return value
        if self.dtype != "int32":
            return T.Bind(value * self.splat(factor))
        # to multiply 32 bits takes long, or many instructions
        ones = [bit for bit in range(32) if round(factor) >> bit & 1] if factor > 0 else []
        if len(ones) == 1:
            return T.Bind(value << self.splat(ones[0]))
        if len(ones) == 2:
            return self.add(*(self.scale(1 << bit, value) for bit in ones))
        return T.Bind(wrapping("mul", value, self.splat(factor)))

    def add_scaled(self, total: Expr, factor: float, value: Expr) -> Expr:
        if abs(factor) != 1 and self.fma:
            return T.Bind(self.fma(total, self.splat(factor), value, self.lanes))
        scaled = self.scale(abs(factor), value)
        return self.add(total, scaled) if factor > 0 else self.subtract(total, scaled)

    def splat(self, value: float) -> Expr:
        return tir.splat(tir.const(value if self.dtype == "float32" else round(value), self.dtype), self.lanes)


class Transforms:
    """Matrices of F(m, 3), and the expressions that apply them to a line of vectors."""

    def __init__(
        self, points: Sequence[Point], multiples: Sequence[int] | None = None, among: Sequence[Point] | None = None
    ) -> None:
        """``multiples``: of integers, of the weights at each point; outputs come out :attr:`factors` times as large.

        ``among``: more points, at all of which the weights are transformed.
        """
        self.points, self.whole, self.among = tuple(points), multiples is not None, tuple(among or points)
        self.side = len(self.points)
        self.m = self.side - 2
        self.multiples = np.array(multiples or [1] * self.side)

    def fewer(self, m: int) -> Transforms:
        """Those of F(m, 3) at some of the points, for the same transformed weights."""
        if m == self.m:
            return self
        kept = self.kept(m)
        multiples = [int(self.multiples[i]) for i in kept] if self.whole else None
        return Transforms([self.points[i] for i in kept], multiples, self.among)

    def kept(self, m: int) -> list[int]:
        """Numbers of the points of F(m, 3): the first ones, and infinity."""
        return [*range(m + 1), self.side - 1]

    @cached_property
    def _distances(self) -> Matrix:
        return self._distances_to(self.points)

    def _distances_to(self, others: tuple[Point, ...]) -> Matrix:
        """Of each point, the product of the distances to the others."""
        return np.array([np.prod([a * d - c * b for c, d in others if (c, d) != (a, b)]) for a, b in self.points])

    @cached_property
    def weight(self) -> Matrix:
        """``G [m + 2, 3]``: values of the kernel's polynomial at each point, over its distances."""
        values = np.array([[b * b, a * b, a * a] for a, b in self.points], float)
        return values * self.multiples[:, None] if self.whole else values / self._distances_to(self.among)[:, None]

    @cached_property
    def input(self) -> Matrix:
        """``B^T [m + 2, m + 2]``: coefficients of the polynomials with roots at all points but one."""
        rows = [[(d, -c) for c, d in self.points if (c, d) != point] for point in self.points]
        return np.array([reduce(lambda p, q: np.convolve(p, q), row, np.ones(1))[::-1][: self.side] for row in rows])

    @cached_property
    def output(self) -> Matrix:
        """``A^T [m, m + 2]``: powers of the points. Of integers, over the distances, times what makes each row whole."""
        rows = np.array([[a**k * b ** (self.m - 1 - k) for a, b in self.points] for k in range(self.m)], float)
        if self.whole:
            return rows / (self._distances * self.multiples) * self.factors[:, None]
        return rows * (self._distances_to(self.among) / self._distances)

    @cached_property
    def factors(self) -> NDArray[np.int64]:
        """How many times too large each output of integers is."""

        def denominators(k: int) -> Iterator[int]:
            for (a, b), distance in zip(self.points, self._distances * self.multiples, strict=True):
                yield Fraction(int(a**k * b ** (self.m - 1 - k)), int(distance)).denominator

        return np.array([lcm(*denominators(k)) for k in range(self.m)])

    @property
    def one(self) -> int:
        """What is added to a line's product at the point 1, of integers the second one, so that every output grows by one."""
        return int(self._distances[1] * self.multiples[1])

    def suffices(self, products: int) -> bool:
        """Whether outputs that sum as many products of integers have bits to spare for their division along both sides."""
        return products * LARGEST**2 < 1 << (31 - 2 * max(_even_bits(int(f)) for f in self.factors))

    @cached_property
    def _pairs(self) -> list[int]:
        """Numbers of the points that are followed by their opposite."""
        return [i for i, (p, q) in enumerate(pairwise(self.points)) if p[0] and p == (-q[0], q[1])]

    @cached_property
    def _butterfly(self) -> Matrix:
        eye = np.eye(self.side)
        for i in self._pairs:
            eye[i : i + 2, i : i + 2] = [[1, 1], [1, -1]]
        return eye

    def _sums_and_differences(self, vectors: Vectors, line: list[Expr]) -> list[Expr]:
        line = list(line)
        for i in self._pairs:
            a, b = line[i : i + 2]
            line[i : i + 2] = [vectors.add(a, b), vectors.subtract(a, b)]
        return line

    def forward(self, vectors: Vectors, line: list[Expr]) -> list[Expr]:
        """``B^T d`` of the inputs of a line."""
        if self.whole:
            line = [*line, *(vectors.subtract(b, a) for a, b in zip(line, line[2:], strict=False))]
        return self._sums_and_differences(vectors, _product(vectors, self._gather, line))

    def backward(self, vectors: Vectors, line: list[Expr]) -> list[Expr]:
        """``A^T m`` of the products of a line."""
        return _product(vectors, self._scatter, self._sums_and_differences(vectors, line))

    @cached_property
    def _gather(self) -> Matrix:
        """Of a line; of integers, of the line and of the differences of its elements two apart.

        All points but +-1 are roots beside these two: their polynomials are multiples of x**2 - 1, that of the differences.
        """
        rows = np.linalg.inv(self._butterfly) @ self.input
        return np.array([_fewest_terms(tuple(map(round, row))) for row in rows]) if self.whole else rows

    @cached_property
    def _scatter(self) -> Matrix:
        return self.output @ np.linalg.inv(self._butterfly)


def forward(vectors: Vectors, down: Transforms, along: Transforms, patch: list[list[Expr]], middle: int) -> list[Expr]:
    """The points of a patch of inputs, ``B^T d B`` row by row; inputs count from ``middle``."""
    values = _both_sides(patch, partial(down.forward, vectors), partial(along.forward, vectors))
    shares = (middle * np.outer(down.input.sum(axis=1), along.input.sum(axis=1))).flat
    return [
        vectors.add_scaled(v, -1, vectors.splat(share)) if round(share) else v for v, share in zip(values, shares, strict=True)
    ]


def backward(vectors: Vectors, down: Transforms, along: Transforms, products: list[list[Expr]], bias: Expr) -> list[Expr]:
    """The outputs of a patch from the products at its points, ``A^T m A`` row by row, and ``bias``."""
    if down.whole:
        products = [list(row) for row in products]
        products[1][1] = vectors.add(products[1][1], vectors.scale(down.one * along.one, bias))
    outputs = _both_sides(products, partial(down.backward, vectors), partial(along.backward, vectors))
    if not down.whole:
        return [vectors.add(value, bias) for value in outputs]
    return [_divided(vectors, v, int(f)) for v, f in zip(outputs, np.outer(down.factors, along.factors).flat, strict=True)]


@lru_cache(maxsize=64)
def transforms(m: int, channels: int, whole: bool) -> Transforms | None:
    """Those of F(m x m, 3x3) for inputs of ``channels``; None where no points leave the bits that whole outputs need."""
    if not whole:
        return Transforms(POINTS[m])
    every = (Transforms(list(points), list(points.values())) for points in WHOLE_POINTS[m])
    return next((t for t in every if t.suffices(9 * channels)), None)


@lru_cache(maxsize=64)
def _fewest_terms(row: tuple[int, ...]) -> Matrix:
    """Factors of a line's elements, and of their differences two apart, that sum to ``row`` with the fewest instructions."""
    side = len(row)
    values = np.vstack([np.eye(side), np.eye(side)[2:] - np.eye(side)[:-2]])

    def instructions(factors: Matrix) -> float:
        used = factors[factors != 0]
        # a difference is shared with other rows
        return len(used) + len(set(np.abs(used)) - {1}) + bool((used < 0).all()) + 0.25 * np.count_nonzero(factors[side:])

    found = [np.array([*row, *np.zeros(side - 2)])]
    for chosen in (list(c) for terms in (1, 2, 3) for c in combinations(range(len(values)), terms)):
        factors = np.zeros(len(values))
        factors[chosen] = np.rint(np.linalg.lstsq(values[chosen].T, np.array(row), rcond=None)[0])
        if np.array_equal(factors @ values, row):
            found.append(factors)
    return min(found, key=instructions)


def _even_bits(factor: int) -> int:
    return (factor & -factor).bit_length() - 1


def _divided(vectors: Vectors, value: Expr, factor: int) -> Expr:
    """A multiple of ``factor`` known modulo 2**32, over ``factor``."""
    bits = _even_bits(factor)
    inverse = pow(factor >> bits, -1, 1 << 32)
    signed = inverse - (1 << 32) if inverse >> 31 else inverse
    return T.Bind(vectors.scale(signed, value) >> tir.splat(tir.const(bits, "int32"), vectors.lanes))


def _both_sides(patch: list[list[Expr]], down: Callable[..., list[Expr]], along: Callable[..., list[Expr]]) -> list[Expr]:
    columns = [down(list(column)) for column in zip(*patch, strict=True)]
    return [value for row in zip(*columns, strict=True) for value in along(list(row))]


def _product(vectors: Vectors, matrix: Matrix, line: list[Expr]) -> list[Expr]:
    """``matrix @ line`` with its zeros left out."""
    return [_sum(vectors, [(float(f), value) for f, value in zip(row, line, strict=True) if abs(f) > 1e-12]) for row in matrix]


def _sum(vectors: Vectors, terms: list[tuple[float, Expr]]) -> Expr:
    """Of factors times values; values of one factor, but for its sign, are added first, and multiplied once."""
    # a factor of one starts the sum for nothing, a negative one costs a product
    terms = sorted(terms, key=lambda term: (abs(term[0]) != 1, abs(term[0]), term[0] < 0))
    parts: list[tuple[float, Expr]] = []
    for factor, value in terms:
        if parts and abs(parts[-1][0]) == abs(factor):
            same = parts[-1][0] == factor
            parts[-1] = parts[-1][0], vectors.add(parts[-1][1], value) if same else vectors.subtract(parts[-1][1], value)
        else:
            parts.append((factor, value))
    (first, start), *others = sorted(parts, key=lambda part: (part[0] != 1, part[0] < 0))
    total = vectors.scale(first, start)
    for factor, value in others:
        total = vectors.add_scaled(total, factor, value)
    return total
