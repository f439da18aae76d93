"""The few words in which the CPU templates write TIR: flat views, vector ramps, loops, the requantize epilogue.

Functions here run inside an open ``T.prim_func`` frame. An accumulator is a buffer of one vector in scope ``global``: small
constant-indexed buffers become registers in LLVM (scope ``local`` or one large buffer do not, and cost a factor of three).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import DataType, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Conv2d

Expr = Any
CACHE_LINE = 64
"""Bytes; on CPUs with longer lines some prefetches ask twice."""
Params: TypeAlias = list[tuple[str, tuple[int, ...], str]]
"""Name, shape and dtype of each buffer that a kernel takes."""


def const(value: float, dtype: str) -> Expr:
    return tirx.const(value, dtype)


def lanes_of(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: Expr, lanes: int) -> Expr:
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def at(start: Expr, lanes: int) -> Expr:
    """Index of ``lanes`` consecutive elements."""
    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)


def inside(index: Expr, size: int, extent: int) -> Expr:
    """Start of tile ``index``, moved back where the last one would stick out; what is smaller than a tile has one, from 0 on."""
    start = index * size
    return tirx.min(start, extent - size) if extent > size and extent % size else start


def flat(buffer: Any) -> Any:
    """One-dimensional view of a parameter."""
    size = 1
    for extent in buffer.shape:
        size *= int(extent)
    return T.decl_buffer((size,), buffer.dtype, data=buffer.data)


@dataclass(frozen=True)
class Rows:
    """Rows of a flat buffer: those of image ``image`` of a tensor, or, in a ring, the last few of an image.

    Rows have no views of their own: TVM 0.27's StorageRewrite does not see what a declared view of scratch reads, and gives its
    memory away before that.
    """

    buffer: Any
    held: int
    """Rows of an image in the buffer."""
    size: int
    """Elements of a row."""
    image: Expr = 0
    ring: bool = False

    def start(self, row: Expr) -> Expr:
        """First element of a row."""
        return (row % self.held if self.ring else self.image * self.held + row) * self.size


def register(lanes: int, dtype: str) -> Any:
    """A vector that stays in a register."""
    return T.alloc_buffer((lanes,), dtype, scope="global")


def parallel_if(condition: bool, extent: int) -> AbstractContextManager[Any]:
    """A loop that threads share when it is worth waking them."""
    return T.parallel(0, extent) if condition and extent > 1 else T.serial(0, extent)


def loops(bounds: Sequence[tuple[Expr, Expr]], body: Callable[..., None]) -> None:
    """``body(*indices)`` in nested serial loops, each from the first to before the second of its bounds; no loop of one turn."""

    def level(done: list[Expr]) -> None:
        if len(done) == len(bounds):
            body(*done)
            return
        begin, end = bounds[len(done)]
        if isinstance(end, int) and isinstance(begin, int) and end - begin == 1:
            level([*done, begin])
        else:
            with T.serial(begin, end) as i:
                level([*done, i])

    level([])


def side_by_side(rows: int, most: int, body: Callable[[list[Expr]], None], threads: bool = False) -> None:
    """``body`` of up to ``most`` rows at a time, always as many: while one waits for its result, the next computes."""
    together = next(count for count in range(most, 0, -1) if rows % count == 0)
    with parallel_if(threads, rows // together) as group:
        body([group * together + row for row in range(together)])


def prefetch(buffer: Any, index: Expr) -> None:
    """Asks for the cache line of an element; it is on its way to the second-level cache while other work goes on."""
    intrinsic = T.llvm_lookup_intrinsic_id("llvm.prefetch.p0")
    read, to_l2, data = (const(n, "int32") for n in (0, 2, 1))
    T.evaluate(T.call_llvm_intrin("void", intrinsic, tirx.address_of(buffer[index]), read, to_l2, data))


def prim_func(
    name: str, params: Params, body: Callable[..., None], attrs: dict[str, Any], anywhere: Collection[str] = ()
) -> tirx.PrimFunc:
    """Builds a PrimFunc with the given buffer parameters; ``body`` receives their flat views and emits statements.

    Buffers begin at a multiple of 64 bytes; those named in ``anywhere`` need not.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"op_pattern": 8, "tirx.is_scheduled": True, **attrs})
        align = {label: DataType(dtype).itemsize for label, _, dtype in params if label in anywhere}
        buffers = [T.arg(label, T.buffer(shape, dtype, align=align.get(label, 0))) for label, shape, dtype in params]
        body(*[flat(b) for b in buffers])
    return builder.get()


def conv_params(spec: Conv2d, weight: tuple[int, ...], weight_dtype: str, channels: int, biases: int = 1) -> Params:
    """Parameters of a convolution: ``x, weight, bias, (multiplier, quant | bounds)[, residual], y``, the weight as it is packed,
    the tables with room for ``channels``, and as many tables of biases."""
    params: Params = [
        ("x", spec.in_shape, spec.x),
        ("weight", weight, weight_dtype),
        ("bias", (biases * channels,), "int32" if spec.is_integer else "float32"),
    ]
    if spec.is_integer:
        params += [("multiplier", (channels,), "float32"), ("quant", (12 if spec.residual else 4,), "int32")]
    else:
        params += [("bounds", (2,), "float32")]
    if spec.residual:
        params.append(("residual", spec.out_shape, spec.y))
    return [*params, ("y", spec.out_shape, spec.y)]


def to_int32(value: Expr, lanes: int) -> Expr:
    return value.astype(lanes_of("int32", lanes))


def clip(value: Expr, lo: Expr, hi: Expr) -> Expr:
    return tirx.max(tirx.min(value, hi), lo)


class Requantizer:
    """int32 accumulators to ``dtype``: kernels/reference.py ``requantize`` on vectors.

    Clipping happens on the float, to ``lo - zero`` and ``hi - zero``; as these are integers and rint is monotone the bits
    are those of clipping last, and the conversion can't overflow. Adding 1.5 * 2**23 rounds to nearest even and leaves the
    integer in the low bits; its subtraction is folded into the zero point. The clip between product and sum forbids contraction.
    """

    MAGIC = 12582912.0
    MAGIC_BITS = 0x4B400000

    def __init__(self, zero: Expr, lo: Expr, hi: Expr, lanes: int, dtype: str) -> None:
        self.lanes, self.dtype = lanes, dtype
        self.lo = T.Bind(splat((lo - zero).astype("float32"), lanes))
        self.hi = T.Bind(splat((hi - zero).astype("float32"), lanes))
        self.shift = T.Bind(splat(zero - const(self.MAGIC_BITS, "int32"), lanes))

    def whole(self, acc: Expr, multiplier: Expr) -> Expr:
        """The requantized value as int32."""
        scaled = acc.astype(lanes_of("float32", self.lanes)) * multiplier
        rounded = clip(scaled, self.lo, self.hi) + splat(const(self.MAGIC, "float32"), self.lanes)
        return tirx.reinterpret(lanes_of("int32", self.lanes), rounded) + self.shift

    def __call__(self, acc: Expr, multiplier: Expr) -> Expr:
        return self.whole(acc, multiplier).astype(lanes_of(self.dtype, self.lanes))


class FixedPointAdd:
    """The ``Binary`` add of kernels/spec.py on int32 vectors, parameters from ``quant[offset:offset + 8]``."""

    def __init__(self, quant: Any, offset: int, lanes: int, dtype: str) -> None:
        self.lanes, self.dtype = lanes, dtype
        a_zero, b_zero, y_zero, lo, hi, ma, mb, shift = (quant[offset + i] for i in range(8))
        bias = (const(1, "int32") << (shift - 1)) - a_zero * ma - b_zero * mb
        self.ma, self.mb, self.bias = (T.Bind(splat(v, lanes)) for v in (ma, mb, bias))
        self.shift, self.zero = (T.Bind(splat(v, lanes)) for v in (shift, y_zero))
        self.lo, self.hi = (T.Bind(splat(v, lanes)) for v in (lo, hi))

    def __call__(self, a: Expr, b: Expr) -> Expr:
        total = a * self.ma + b * self.mb + self.bias
        return clip((total >> self.shift) + self.zero, self.lo, self.hi).astype(lanes_of(self.dtype, self.lanes))


def for_each_run(count: int, widest: int, body: Callable[[Expr, int], None]) -> None:
    """``body(offset, lanes)`` over ``count`` elements in vectors of a power of two; the last may overlap the one before it.

    There is no scalar remainder; ``body`` must not mind doing an element twice.
    """
    lanes = 1
    while lanes * 2 <= min(count, widest):
        lanes *= 2
    whole = count // lanes
    if whole == 1:
        body(const(0, "int32"), lanes)
    else:
        with T.serial(0, whole) as i:
            body(i * lanes, lanes)
    if count % lanes:
        body(const(count - lanes, "int32"), lanes)
