"""The few words in which the CUDA templates write TIR: a launch, words of four bytes, the dot product, packed stores.

Every kernel is one launch of a one-dimensional grid of one-dimensional blocks. Requantize and the fixed-point add are those of
``tir`` with one lane: each step is an IEEE operation or an integer one, and nothing in them can be contracted to an FMA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.schedule import tir
from tvmflow.schedule.epilogue import ConvEpilogue

Expr = Any

WORD = 4
"""int8 elements in a 32-bit word."""


def kernel(name: str, params: tir.Params, blocks: int, threads: int, body: Callable[..., None]) -> tirx.PrimFunc:
    """PrimFunc of one launch; ``body(block, thread, *flat views of the parameters)`` emits what each thread does."""

    def launch(*buffers: Any) -> None:
        with T.launch_thread("blockIdx.x", blocks) as block, T.launch_thread("threadIdx.x", threads) as thread:
            body(block, thread, *buffers)

    return tir.prim_func(name, params, launch, {})


def local(size: int, dtype: str) -> Any:
    """An array of a thread. All its indices must be constants once loops are unrolled, so that it stays in registers."""
    return T.alloc_buffer((size,), dtype, scope="local")


def shared(size: int, dtype: str) -> Any:
    """An array of a block, in shared memory."""
    return T.alloc_buffer((size,), dtype, scope="shared")


def barrier() -> None:
    """Every thread of the block waits for the others."""
    T.evaluate(T.tvm_storage_sync("shared"))


def words(buffer: Any) -> Any:
    """View of a flat int8 buffer as int32 words; the last, incomplete word is left out."""
    return T.decl_buffer((max(1, int(buffer.shape[0]) // WORD),), "int32", data=buffer.data)


def dp4a(a: Expr, b: Expr, acc: Expr) -> Expr:
    """``acc + sum(a[i] * b[i])`` over the four signed bytes of two words: exact, never saturates."""
    return T.call_pure_extern("int32", "__dp4a", a, b, acc)


def every_byte(value: Expr) -> Expr:
    """The low byte of an int32, in all four bytes of a word."""
    return (value & 255) * tir.const(0x01010101, "int32")


def byte_of(word: Expr, index: int) -> Expr:
    """Signed byte ``index`` of a word, as int32."""
    return (word << (24 - 8 * index)) >> 24


def word_of(values: Sequence[Expr]) -> Expr:
    """Four int32 values of int8 range as one word, the first in the lowest byte."""
    low = [(v.astype("int32") & 255) << (8 * i) if i else v.astype("int32") & 255 for i, v in enumerate(values)]
    return (low[0] | low[1]) | (low[2] | low[3])


@contextmanager
def only_if(condition: Expr | bool) -> Iterator[None]:
    """What is emitted inside runs where the condition holds; one that Python knows to hold costs nothing."""
    if condition is True:
        yield
    else:
        with T.If(condition), T.Then():
            yield


def both(*conditions: Expr | bool) -> Expr | bool:
    """Conjunction; ``True`` when nothing needs to be asked at run time."""
    asked = [c for c in conditions if c is not True]
    if not asked:
        return True
    whole = asked[0]
    for condition in asked[1:]:
        whole = tirx.all(whole, condition)
    return whole


def select(condition: Expr | bool, value: Expr, other: Expr) -> Expr:
    """``value`` where the condition holds, else ``other``; the value is not even read where it does not hold."""
    return value if condition is True else T.if_then_else(condition, value, other)


def element_kernel(name: str, params: tir.Params, units: int, threads: int, body: Callable[..., None]) -> tirx.PrimFunc:
    """PrimFunc in which each thread does one of ``units`` independent pieces; ``body(unit, *flat views)``."""

    def guarded(block: Expr, thread: Expr, *buffers: Any) -> None:
        unit = T.Bind(block * threads + thread)
        with only_if(True if units % threads == 0 else unit < units):
            body(unit, *buffers)

    return kernel(name, params, -(-units // threads), threads, guarded)


def lanes_for(run: int, *dtypes: str) -> int:
    """Elements a thread: a word where all tensors are int8 and runs are whole words, else one."""
    return WORD if run % WORD == 0 and set(dtypes) == {"int8"} else 1


def load(buffer: Any, index: Expr, lanes: int) -> list[Expr]:
    """``lanes`` elements from ``index`` on: int8 as int32 (one load of a word), float32 as they are."""
    if lanes == 1:
        return [buffer[index].astype("int32") if str(buffer.dtype) == "int8" else buffer[index]]
    word = T.Bind(words(buffer)[index // WORD])
    return [byte_of(word, i) for i in range(lanes)]


def store(buffer: Any, index: Expr, values: Sequence[Expr]) -> None:
    """Writes neighbouring elements, four int8 ones as a word."""
    if len(values) == 1:
        T.buffer_store(buffer, values[0].astype(str(buffer.dtype)), [index])
    else:
        T.buffer_store(words(buffer), word_of(values), [index // WORD])


@dataclass(frozen=True)
class Channel:
    """The epilogue of one output channel: its bias and multiplier are in registers."""

    epilogue: ConvEpilogue
    bias: Expr

    def value(self, acc: Expr, residual: Expr | None) -> Expr:
        return self.epilogue.value(acc + self.bias, residual)

    def store(self, y: Any, index: Expr, acc: Expr) -> None:
        """Writes one output."""
        self.epilogue.store(y, index, acc + self.bias)


def channels(epilogue: ConvEpilogue, first: Expr, count: int) -> list[Channel]:
    """Epilogues of ``count`` neighbouring channels."""
    found = []
    for i in range(count):
        mine = copy(epilogue)
        mine.bind_multiplier(first + i)
        found.append(Channel(mine, mine.bias_at(first + i)))
    return found


def store_channels(lanes: Sequence[Channel], acc: Sequence[Expr], y: Any, index: Expr) -> None:
    """Finishes four neighbouring channels and writes them as a word."""
    residual = lanes[0].epilogue.residual
    others = [None] * WORD if residual is None else load(residual, index, WORD)
    store(y, index, [lane.value(a, other) for lane, a, other in zip(lanes, acc, others, strict=True)])
