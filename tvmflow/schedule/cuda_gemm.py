"""The matrix product of a block of threads, shared by convolution, dense layers and products of two activations.

A block computes ``bm x bn`` outputs. It copies both operands to shared memory, chunk after chunk of the reduction, as
``[depth, bm]`` and ``[depth, bn]`` words; the next chunk is on its way to registers while one is being multiplied. Each thread
keeps ``tm x tn`` accumulators in registers. A word is four int8 elements (one ``dp4a``) or one float32 (one FMA). With
``slices > 1`` groups of threads share the work of a chunk along the reduction and add up at the end: that fills the machine
where a layer has few outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import msgspec
from tvm.tirx.script.builder import ir as T

from tvmflow.schedule import cuda, tir
from tvmflow.target import Cuda

Expr = Any

SHARED_BYTES = 49152
"""Shared memory that a kernel may use without asking the driver for more."""


class GemmTile(msgspec.Struct, frozen=True, tag="cuda_gemm"):
    """``bm x bn`` outputs a block, ``tm x tn`` a thread, chunks of ``bk`` words for each of ``slices`` groups of threads."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    slices: int = 1

    @property
    def depth(self) -> int:
        """Words of the reduction that a chunk holds."""
        return self.bk * self.slices

    @property
    def team(self) -> int:
        """Threads that hold the outputs once."""
        return (self.bm // self.tm) * (self.bn // self.tn)

    @property
    def threads(self) -> int:
        return self.team * self.slices

    @property
    def shared_bytes(self) -> int:
        """A chunk of each operand (with the padding of transposed ones), and what the slices exchange."""
        return 4 * (self.depth * (self.bm + self.bn + 2 * PAD) + (self.slices - 1) * self.bm * self.bn)


PAD = 4
"""Words added to a row of a transposed operand: neighbours in the reduction fall into other banks, and rows stay aligned."""


@dataclass(frozen=True)
class Operand:
    """One operand as the block reads it from global memory.

    ``locate(k, column)`` does what is the same for all chunks; ``fetch(place, first)`` gives ``vec`` words of the chunk that
    starts at word ``first``. They run along the reduction (``along_k``), or along the columns of the tile.
    """

    columns: int
    vec: int
    along_k: bool
    locate: Callable[[Expr, Expr], Any]
    fetch: Callable[[Any, Expr], Expr]


@dataclass(frozen=True)
class Sums:
    """Also add up the bytes of each row and column, as products of two tensors with zero points need."""

    rows: Any
    columns: Any


class _Stage:
    """Moves chunks of one operand: global memory -> registers -> shared memory."""

    def __init__(self, tile: GemmTile, operand: Operand, thread: Expr, dtype: str) -> None:
        self.operand, self.tile = operand, tile
        self.stride = operand.columns + (PAD if operand.along_k else 0)
        self.buffer = cuda.shared(tile.depth * self.stride, dtype)
        count = operand.columns * tile.depth // operand.vec
        slots = ceil(count / tile.threads)
        self.registers = cuda.local(slots * operand.vec, dtype)
        self.targets, self.places = [], []
        for slot in range(slots):
            index = thread + slot * tile.threads
            if (slot + 1) * tile.threads > count:
                # threads without work repeat the last piece: they write the value that is there already
                index = tir.clip(index, tir.const(0, "int32"), tir.const(count - 1, "int32"))
            if operand.along_k:
                across = tile.depth // operand.vec
                k, column = T.Bind(index % across * operand.vec), T.Bind(index // across)
            else:
                across = operand.columns // operand.vec
                k, column = T.Bind(index // across), T.Bind(index % across * operand.vec)
            self.targets.append(T.Bind(k * self.stride + column))
            self.places.append(operand.locate(k, column))

    def fetch(self, first: Expr) -> None:
        vec = self.operand.vec
        for slot, place in enumerate(self.places):
            T.buffer_store(self.registers, self.operand.fetch(place, first), [tir.at(slot * vec, vec)])

    def place(self) -> None:
        vec = self.operand.vec
        for slot, target in enumerate(self.targets):
            if self.operand.along_k:
                for i in range(vec):
                    T.buffer_store(self.buffer, self.registers[slot * vec + i], [target + i * self.stride])
            else:
                T.buffer_store(self.buffer, self.registers[tir.at(slot * vec, vec)], [tir.at(target, vec)])


class BlockGemm:
    """Emits the product; afterwards ``accumulators`` hold it in the threads of slice 0, see :meth:`row` and :meth:`column`."""

    def __init__(self, tile: GemmTile, thread: Expr, integer: bool, sums: bool = False) -> None:
        self.tile, self.integer = tile, integer
        self.dtype = "int32" if integer else "float32"
        self.thread = thread
        member = T.Bind(thread % tile.team) if tile.slices > 1 else thread
        self.slice = T.Bind(thread // tile.team) if tile.slices > 1 else tir.const(0, "int32")
        self.member = member
        across = tile.bn // tile.tn
        self.n_thread, self.m_thread = T.Bind(member % across), T.Bind(member // across)
        self.accumulators = cuda.local(tile.tm * tile.tn, self.dtype)
        self.sums = Sums(cuda.local(tile.tm, "int32"), cuda.local(tile.tn, "int32")) if sums else None

    def row(self, i: int) -> Expr:
        """Row of the tile of the thread's ``i``-th row of accumulators."""
        return self.m_thread * self.tile.tm + i

    def column(self, quad: int) -> Expr:
        """First of the four neighbouring columns of the tile that the thread's ``quad``-th four accumulators of a row are for."""
        return quad * (self.tile.bn // self.tile.tn * 4) + self.n_thread * 4

    @property
    def owns(self) -> Expr | bool:
        """Whether this thread holds results."""
        return True if self.tile.slices == 1 else self.slice == 0

    def emit(self, a: Operand, b: Operand, length: int) -> None:
        """The product over ``length`` words, in whole chunks: what lies beyond must come as zero from one operand."""
        tile = self.tile
        self._zero(self.accumulators, tile.tm * tile.tn)
        if self.sums:
            self._zero(self.sums.rows, tile.tm)
            self._zero(self.sums.columns, tile.tn)
        left, right = (_Stage(tile, operand, self.thread, self.dtype) for operand in (a, b))
        self.a_registers, self.b_registers = cuda.local(tile.tm, self.dtype), cuda.local(tile.tn, self.dtype)
        chunks = ceil(length / tile.depth)
        for stage in (left, right):
            stage.fetch(tir.const(0, "int32"))
            stage.place()
        cuda.barrier()
        if chunks == 1:
            self._multiply(left, right)
        else:
            with T.serial(0, chunks) as chunk:
                more = chunk + 1 < chunks
                with cuda.only_if(more):
                    for stage in (left, right):
                        stage.fetch((chunk + 1) * tile.depth)
                self._multiply(left, right)
                cuda.barrier()
                with cuda.only_if(more):
                    for stage in (left, right):
                        stage.place()
                cuda.barrier()
        if tile.slices > 1:
            self._add_slices(self.accumulators, tile.tm * tile.tn)
            if self.sums:
                self._add_slices(self.sums.rows, tile.tm)
                self._add_slices(self.sums.columns, tile.tn)

    def _zero(self, buffer: Any, size: int) -> None:
        with T.unroll(0, size) as i:
            T.buffer_store(buffer, tir.const(0, str(buffer.dtype)), [i])

    def _multiply(self, left: _Stage, right: _Stage) -> None:
        tile, a, b = self.tile, self.a_registers, self.b_registers
        with T.unroll(0, tile.bk) as step:
            k = self.slice * tile.bk + step
            vec = min(4, tile.tm)
            for i in range(0, tile.tm, vec):
                where = k * left.stride + self.row(i)
                T.buffer_store(a, left.buffer[tir.at(where, vec)], [tir.at(i, vec)])
            for quad in range(tile.tn // 4):
                where = k * right.stride + self.column(quad)
                T.buffer_store(b, right.buffer[tir.at(where, 4)], [tir.at(quad * 4, 4)])
            with T.unroll(0, tile.tm) as i, T.unroll(0, tile.tn) as j:
                at = i * tile.tn + j
                seen = self.accumulators[at]
                T.buffer_store(self.accumulators, cuda.dp4a(a[i], b[j], seen) if self.integer else seen + a[i] * b[j], [at])
            if self.sums:
                ones = tir.const(0x01010101, "int32")
                for total, values, size in ((self.sums.rows, a, tile.tm), (self.sums.columns, b, tile.tn)):
                    with T.unroll(0, size) as i:
                        T.buffer_store(total, cuda.dp4a(values[i], ones, total[i]), [i])

    def _add_slices(self, values: Any, size: int) -> None:
        """Adds the values of all slices into those of slice 0."""
        tile = self.tile
        exchange = cuda.shared((tile.slices - 1) * size * tile.team, str(values.dtype))

        def at(index: Expr, i: Expr) -> Expr:
            return (index * size + i) * tile.team + self.member

        with T.If(self.slice > 0), T.Then(), T.unroll(0, size) as i:
            T.buffer_store(exchange, values[i], [at(self.slice - 1, i)])
        cuda.barrier()
        with T.If(self.slice == 0), T.Then(), T.serial(0, tile.slices - 1) as other, T.unroll(0, size) as i:
            T.buffer_store(values, values[i] + exchange[at(other, i)], [i])


_THREAD_TILES = ((2, 4), (4, 4), (8, 4), (4, 8), (8, 8))


def space(rows: int, columns: int, length: int, vec: int) -> Iterator[GemmTile]:
    """Tiles for a product of ``rows x columns`` over ``length`` words, loads along the reduction being ``vec`` words."""
    for bm in (16, 32, 64, 128):
        for bn in (16, 32, 64, 128):
            if bm >= 2 * max(rows, 16) or bn >= 2 * max(columns, 16):
                continue
            for tm, tn in _THREAD_TILES:
                for bk in (4, 8, 16):
                    for slices in (1, 2, 4, 8):
                        tile = GemmTile(bm, bn, bk, tm, tn, slices)
                        wasteful = tile.depth > 2 * length and tile.depth > 4
                        if (
                            not wasteful
                            and 32 <= tile.threads <= 512
                            and tile.shared_bytes <= SHARED_BYTES
                            and tile.depth % vec == 0
                        ):
                            yield tile


REGISTERS = 40
"""Registers of a thread beside its accumulators and operands: addresses, places, the staged pieces."""
LATENCY = 600
"""Cycles from a load of global memory to the barrier after it."""


def estimate(tile: GemmTile, rows: int, columns: int, length: int, batch: int, device: Cuda) -> float:
    """Cycles of a simple machine: waves of blocks, each chunk as long as its multiplies, its shared loads or its latency.

    A multiprocessor does 64 word products a cycle (CUDA programming guide, throughput of 8-bit dot products) and reads 32
    words of shared memory a cycle. It ranks tiles, nothing more.
    """
    blocks = batch * ceil(rows / tile.bm) * ceil(columns / tile.bn)
    registers = tile.threads * (tile.tm * tile.tn + 2 * (tile.tm + tile.tn) + REGISTERS)
    room = max(
        1, min(device.shared_kib * 1024 // (tile.shared_bytes + 1024), 1536 // tile.threads, device.registers_per_sm // registers)
    )
    resident = min(room, ceil(blocks / device.sms))
    waves = ceil(blocks / (device.sms * resident))
    multiply = tile.bm * tile.bn * tile.depth / 64
    read = tile.threads * tile.bk * (tile.tm + tile.tn) / 32
    copy = (tile.bm + tile.bn) * tile.depth / 16
    chunk = max(resident * (max(multiply, read) + copy), LATENCY)
    finish = 2000 + (tile.slices - 1) * tile.bm * tile.bn / 16
    return waves * (ceil(length / tile.depth) * chunk + finish)
