"""Products of two activations on CUDA: the block product of ``cuda_gemm``, with the sums that two zero points need.

``sum((a - za) (b - zb)) = sum(a b) - zb sum(a) - za sum(b) + k za zb``: rows and columns are added up along the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import MatMul
from tvmflow.schedule import cuda, cuda_gemm, tir
from tvmflow.schedule.cuda_gemm import BlockGemm, GemmTile, Operand
from tvmflow.target import Cuda

Expr = Any


def _group(spec: MatMul) -> int:
    return cuda.WORD if spec.is_integer else 1


def _length(spec: MatMul) -> int:
    """Words of the reduction."""
    return ceil(spec.k / _group(spec))


def _vec(spec: MatMul) -> int:
    """Words that a load along the reduction takes."""
    return next((v for v in (4, 2) if spec.k % (v * _group(spec)) == 0), 1)


def space(spec: MatMul) -> Iterator[GemmTile]:
    return cuda_gemm.space(spec.m, spec.n, _length(spec), _vec(spec))


def estimate(spec: MatMul, tile: GemmTile, device: Cuda) -> float:
    return cuda_gemm.estimate(tile, spec.m, spec.n, _length(spec), spec.batch, device)


def emit(spec: MatMul, tile: GemmTile, name: str) -> tirx.PrimFunc:
    """``a, b, [multiplier, quant,] y``."""
    b_shape = (spec.batch, spec.n, spec.k) if spec.transpose_b else (spec.batch, spec.k, spec.n)
    params: tir.Params = [("a", (spec.batch, spec.m, spec.k), spec.x), ("b", b_shape, spec.x)]
    if spec.is_integer:
        params += [("multiplier", (1,), "float32"), ("quant", (5,), "int32")]
    params.append(("y", spec.out_shape, spec.y))
    blocks = spec.batch * ceil(spec.m / tile.bm) * ceil(spec.n / tile.bn)
    return cuda.kernel(name, params, blocks, tile.threads, lambda *given: _Product(spec, tile).emit(*given))


class _Product:
    """Emits the kernel; its attributes are what the pieces share."""

    def __init__(self, spec: MatMul, tile: GemmTile) -> None:
        self.spec, self.tile, self.group, self.length = spec, tile, _group(spec), _length(spec)

    def emit(self, block: Expr, thread: Expr, a: Any, b: Any, *rest: Any) -> None:
        spec, tile = self.spec, self.tile
        self.params = rest[:-1]
        columns, rows = ceil(spec.n / tile.bn), ceil(spec.m / tile.bm)
        self.n0 = T.Bind(block % columns * tile.bn)
        self.m0 = T.Bind(block // columns % rows * tile.bm)
        self.batch = T.Bind(block // (columns * rows))
        gemm = BlockGemm(tile, thread, spec.is_integer, sums=spec.is_integer)
        left = self._rows(a, self.m0, spec.m, tile.bm)
        right = self._rows(b, self.n0, spec.n, tile.bn) if spec.transpose_b else self._columns(b)
        gemm.emit(left, right, self.length)
        with cuda.only_if(gemm.owns):
            self._store(gemm, rest[-1])

    def _rows(self, source: Any, first_row: Expr, extent: int, size: int) -> Operand:
        """An operand whose rows run along the reduction."""
        spec, group = self.spec, self.group
        vec = _vec(spec)
        whole = spec.k % group == 0
        words = cuda.words(source) if spec.is_integer and whole else source
        zero = tir.splat(tir.const(0, "int32" if spec.is_integer else "float32"), vec)

        def locate(k: Expr, column: Expr) -> tuple[Expr, Expr]:
            row = self.batch * extent + tirx.min(first_row + column, extent - 1)
            return k, T.Bind(row * spec.k)

        def fetch(place: tuple[Expr, Expr], first: Expr) -> Expr:
            k, start = place
            word = first + k
            if whole:
                inside = cuda.both(*((word < self.length,) if self.length % self.tile.depth else ()))
                return cuda.select(inside, words[tir.at((start + word * group) // group, vec)], zero)
            return self._gather(lambda element: source[start + element], word)

        return Operand(size, vec, True, locate, fetch)

    def _columns(self, source: Any) -> Operand:
        """An operand whose columns are contiguous: a word of int8 takes four rows."""
        spec = self.spec
        vec = 4 if not spec.is_integer and spec.n % 4 == 0 else 1

        def locate(k: Expr, column: Expr) -> tuple[Expr, Expr]:
            return k, T.Bind(self.batch * (spec.k * spec.n) + tirx.min(self.n0 + column, spec.n - vec))

        def fetch(place: tuple[Expr, Expr], first: Expr) -> Expr:
            k, start = place
            word = first + k
            if spec.is_integer:
                return self._gather(lambda element: source[start + element * spec.n], word)
            inside = cuda.both(*((word < self.length,) if self.length % self.tile.depth else ()))
            zero = tir.splat(tir.const(0.0, "float32"), vec)
            return cuda.select(inside, source[tir.at(start + word * spec.n, vec)], zero)

        return Operand(self.tile.bn, vec, False, locate, fetch)

    def _gather(self, element: Callable[[Expr], Expr], word: Expr) -> Expr:
        """A word of four elements of the reduction, zero past its end."""
        parts = []
        for i in range(cuda.WORD):
            k = word * cuda.WORD + i
            beyond = self.spec.k % (cuda.WORD * self.tile.depth) != 0
            inside = cuda.both(*((k < self.spec.k,) if beyond else ()))
            parts.append(cuda.select(inside, element(k).astype("int32"), tir.const(0, "int32")))
        return cuda.word_of(parts)

    def _store(self, gemm: BlockGemm, y: Any) -> None:
        spec, tile = self.spec, self.tile
        packed = spec.y == "int8" and spec.n % cuda.WORD == 0
        requantize = offset = None
        if spec.is_integer:
            multiplier, quant = self.params
            a_zero, b_zero = T.Bind(quant[0]), T.Bind(quant[1])
            offset = T.Bind(a_zero * b_zero * spec.k)
            if spec.y != "float32":
                requantize = tir.Requantizer(quant[2], quant[3], quant[4], 1, spec.y)

        def value(i: int, j: int) -> Expr:
            acc = gemm.accumulators[i * tile.tn + j]
            if gemm.sums is None:
                return acc
            total = acc - b_zero * gemm.sums.rows[i] - a_zero * gemm.sums.columns[j] + offset
            return requantize(total, multiplier[0]) if requantize else total.astype("float32") * multiplier[0]

        for i in range(tile.tm):
            row = self.m0 + gemm.row(i)
            in_rows = True if spec.m % tile.bm == 0 else row < spec.m
            for quad in range(tile.tn // 4):
                column = self.n0 + gemm.column(quad)
                index = (self.batch * spec.m + row) * spec.n + column
                for first in (0,) if packed else range(4):
                    size = 4 if packed else 1
                    inside = cuda.both(in_rows, True if spec.n % tile.bn == 0 else column + first < spec.n)
                    values = [value(i, quad * 4 + first + j) for j in range(size)]
                    with cuda.only_if(inside):
                        cuda.store(y, index + first, values)
