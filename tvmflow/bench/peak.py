"""The machine's peak: how many multiply-adds a second it does when operands stay in registers or the first-level cache.

It is measured, with the same threads and in the same run as the model, because clocks differ by the minute and by the
number of busy cores. No C compiler is needed: each instruction of ``ROWS`` becomes a small TIR kernel that TVM's LLVM turns
into a loop of independent chains::

    acc[i] += dot(a[m], b[n])        i = m * columns + n, some 12 chains, enough to hide 4 cycles of latency twice a cycle

The best row that the CPU has is its peak. Accumulators come from and go to memory, so that LLVM can't drop the loop; where
an intrinsic is multiply *then* add, the operands are loaded anew in each step, or the product would be hoisted out of it.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tvmflow.bench.measure import MachinePeak
from tvmflow.errors import EnvironmentProblem, UserError

if TYPE_CHECKING:
    from tvmflow.target import Target

Expr = Any
Emit = Callable[[Expr, Expr, Expr], Expr]
"""(accumulator, a, b) -> new accumulator, all of them vectors."""

STEPS = 1 << 17
"""Loop iterations of one measured run: about 0.2 to 2 ms."""
TURNS = 3
"""Of the rows of a machine until the fastest ones are known."""
DEPTH = 8
"""Rows of fresh operands that loaded rows walk through: at most 8 kB, so that they come from the first-level cache."""


@dataclass(frozen=True)
class Row:
    """One instruction (or pair) that multiplies and adds."""

    name: str
    family: str
    features: tuple[str, ...]
    """What the CPU must have, in Linux' spelling."""
    mattr: tuple[str, ...]
    """The same for LLVM."""
    acc: str
    """Vector type of the accumulator; ``operand`` is that of both operands."""
    operand: str
    ops: int
    """Operations of one instruction, a multiply-add counted as two."""
    emit: Emit
    tile: tuple[int, int]
    """Rows x columns of accumulators."""
    loaded: bool = False
    """Operands are loaded in each step instead of held in registers."""

    @property
    def integer(self) -> bool:
        return self.acc.startswith("int32")


def _call(acc: str, intrinsic: str) -> Emit:
    """``intrinsic(accumulator, a, b)``."""

    def emit(c: Expr, a: Expr, b: Expr) -> Expr:
        from tvm.tirx.script.builder import ir as T

        return T.call_llvm_pure_intrin(acc, T.llvm_lookup_intrinsic_id(intrinsic), c, a, b)

    return emit


def _call_add(acc: str, intrinsic: str) -> Emit:
    """``accumulator + intrinsic(a, b)``."""

    def emit(c: Expr, a: Expr, b: Expr) -> Expr:
        from tvm.tirx.script.builder import ir as T

        return c + T.call_llvm_pure_intrin(acc, T.llvm_lookup_intrinsic_id(intrinsic), a, b)

    return emit


def _fma(acc: str) -> Emit:
    def emit(c: Expr, a: Expr, b: Expr) -> Expr:
        from tvm.tirx.script.builder import ir as T

        return T.call_llvm_pure_intrin(acc, T.llvm_lookup_intrinsic_id("llvm.fma"), a, b, c)

    return emit


def _multiply_add(acc: str) -> Emit:
    """Widening multiply, add: LLVM makes SMLAL of it on ARM, MULPS and ADDPS of floats on x86."""

    def emit(c: Expr, a: Expr, b: Expr) -> Expr:
        return c + a.astype(acc) * b.astype(acc)

    return emit


_AVX512 = ("avx512f", "avx512bw", "avx512vl")
_VPDPBUSD = "llvm.x86.avx512.vpdpbusd"
_MADD = "llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx2.pmadd.wd", "llvm.x86.sse2.pmadd.wd"
_I16, _I8, _I4 = "int32x16", "int32x8", "int32x4"
_F16, _F8, _F4 = "float32x16", "float32x8", "float32x4"

ROWS: tuple[Row, ...] = (
    Row(
        "vpdpbusd zmm",
        "x86",
        (*_AVX512, "avx512_vnni"),
        (*_AVX512, "avx512vnni"),
        _I16,
        "int8x64",
        128,
        _call(_I16, f"{_VPDPBUSD}.512"),
        (4, 4),
    ),
    Row(
        "vpdpbusd ymm (AVX-512)",
        "x86",
        (*_AVX512, "avx512_vnni"),
        (*_AVX512, "avx512vnni"),
        _I8,
        "int8x32",
        64,
        _call(_I8, f"{_VPDPBUSD}.256"),
        (4, 4),
    ),
    Row(
        "vpdpbusd ymm (AVX-VNNI)",
        "x86",
        ("avx2", "avx_vnni"),
        ("avx2", "avxvnni"),
        _I8,
        "int8x32",
        64,
        _call(_I8, f"{_VPDPBUSD}.256"),
        (4, 3),
    ),
    Row("vpmaddwd zmm", "x86", _AVX512, _AVX512, _I16, "int16x32", 64, _call_add(_I16, _MADD[0]), (4, 4), loaded=True),
    Row("vpmaddwd ymm", "x86", ("avx2",), ("avx2",), _I8, "int16x16", 32, _call_add(_I8, _MADD[1]), (4, 3), loaded=True),
    Row("pmaddwd xmm", "x86", (), ("sse2",), _I4, "int16x8", 16, _call_add(_I4, _MADD[2]), (3, 3), loaded=True),
    Row("fma zmm", "x86", ("avx512f",), ("avx512f",), _F16, _F16, 32, _fma(_F16), (4, 4)),
    Row("fma ymm", "x86", ("avx2", "fma"), ("avx2", "fma"), _F8, _F8, 16, _fma(_F8), (4, 3)),
    Row("mulps, addps", "x86", (), ("sse2",), _F4, _F4, 8, _multiply_add(_F4), (3, 3), loaded=True),
    Row("smmla", "arm", ("i8mm",), ("i8mm",), _I4, "int8x16", 64, _call(_I4, "llvm.aarch64.neon.smmla.v4i32.v16i8"), (4, 4)),
    Row("sdot", "arm", ("asimddp",), ("dotprod",), _I4, "int8x16", 32, _call(_I4, "llvm.aarch64.neon.sdot.v4i32.v16i8"), (4, 4)),
    Row("smlal", "arm", (), ("neon",), _I4, "int16x4", 8, _multiply_add(_I4), (4, 4), loaded=True),
    Row("fmla", "arm", (), ("neon",), _F4, _F4, 8, _fma(_F4), (4, 4)),
)


def usable(family: str, features: Iterable[str]) -> tuple[Row, ...]:
    """Rows that a CPU of ``family`` with ``features`` can run."""
    have = set(features)
    return tuple(row for row in ROWS if row.family == family and have.issuperset(row.features))


def emit(row: Row, threads: int) -> Any:
    """TIR function ``main(a, b, acc)`` of ``row``: every thread runs ``STEPS`` steps on accumulators of its own.

    ``a`` is ``[DEPTH, rows, lanes]``, ``b`` ``[DEPTH, columns, lanes]``, ``acc`` ``[threads, rows * columns, lanes]``.
    """
    from tvm import tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T

    rows, columns = row.tile
    (acc_type, lanes), (type_, width) = _vector(row.acc), _vector(row.operand)
    every, whole = tirx.Ramp(0, 1, lanes), tirx.Ramp(0, 1, width)

    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        a = T.arg("a", T.buffer((DEPTH, rows, width), type_))
        b = T.arg("b", T.buffer((DEPTH, columns, width), type_))
        acc = T.arg("acc", T.buffer((threads, rows * columns, lanes), acc_type))
        with T.parallel(0, threads) if threads > 1 else T.serial(0, 1) as thread:
            chains = [T.alloc_buffer((lanes,), acc_type, scope="global") for _ in range(rows * columns)]
            for index, chain in enumerate(chains):
                T.buffer_store(chain, acc[thread, index, every], [every])

            def load(step: Expr) -> tuple[list[Expr], list[Expr]]:
                return [T.Bind(a[step, m, whole]) for m in range(rows)], [T.Bind(b[step, n, whole]) for n in range(columns)]

            held = None if row.loaded else load(0)
            with T.serial(0, STEPS) as step:
                left, right = held or load(tirx.bitwise_and(step, DEPTH - 1))
                for index, chain in enumerate(chains):
                    m, n = divmod(index, columns)
                    T.buffer_store(chain, row.emit(chain[every], left[m], right[n]), [every])
            for index, chain in enumerate(chains):
                T.buffer_store(acc, chain[every], [thread, index, every])
    return builder.get()


def _vector(dtype: str) -> tuple[str, int]:
    element, lanes = dtype.split("x")
    return element, int(lanes)


def build(row: Row, target: Target, threads: int) -> Any:
    """Host executable of ``row`` for the machine of ``target``."""
    import tvm

    description = dict(target.tvm)
    description["mattr"] = sorted({*description.get("mattr", ()), *(f"+{name}" for name in row.mattr)})
    module = tvm.IRModule({"main": emit(row, threads)})
    return tvm.tirx.build(module, target=tvm.target.Target(description))


Timer = Callable[[int], list[float]]
"""``timer(repeat)``: seconds of each of ``repeat`` runs."""
Load = Callable[[Any, Sequence[np.ndarray]], Timer]
"""Brings a built module and its arguments onto the device."""


def load_here(module: Any, arguments: Sequence[np.ndarray]) -> Timer:
    """Into this process."""
    import tvm

    device = tvm.cpu()
    tensors = [tvm.runtime.tensor(value, device) for value in arguments]

    def timer(repeat: int) -> list[float]:
        evaluate = module.time_evaluator("main", device, number=1, repeat=repeat)
        return [float(value) for value in evaluate(*tensors).results]

    return timer


class TimesFunctions(Protocol):
    """A board, as far as it matters here."""

    def time_function(
        self, library: Path, function: str, arguments: Sequence[np.ndarray], repeat: int, number: int = 1, threads: int = 1
    ) -> list[float]: ...


def on_board(board: TimesFunctions, target: Target, threads: int) -> Load:
    """Onto a board: linked for ``target``, uploaded with each measurement. Raises MissingTool without a linker."""
    # A name of its own each time: to overwrite a library that is in use would crash the board's session.
    names = (f"tvmflow-peak-{number}.so" for number in itertools.count())

    def load(module: Any, arguments: Sequence[np.ndarray]) -> Timer:
        with tempfile.TemporaryDirectory(prefix="tvmflow-peak-") as folder:
            linked = Path(folder) / "peak.so"
            module.export_library(str(linked), fcompile=_linker(target))
            content = linked.read_bytes()

        def timer(repeat: int) -> list[float]:
            with tempfile.TemporaryDirectory(prefix="tvmflow-peak-") as folder:
                library = Path(folder) / next(names)
                library.write_bytes(content)
                return board.time_function(library, "main", arguments, repeat, threads=threads)

        return timer

    return load


def _linker(target: Target) -> Callable[..., None]:
    """``link`` in the form in which ``export_library`` calls it."""
    from tvmflow.build.link import link

    def run(output: str, objects: Sequence[str], **_options: object) -> None:
        link([Path(item) for item in objects], Path(output), target)

    run.output_format = "so"  # type: ignore[attr-defined]  # what export_library asks its linker for
    return run


@dataclass(frozen=True)
class Meter:
    """A peak kernel on its device, ready to be timed again and again."""

    row: Row
    threads: int
    time: Timer

    @property
    def gop(self) -> float:
        """1e9 operations of one run."""
        return self.threads * STEPS * self.row.tile[0] * self.row.tile[1] * self.row.ops / 1e9

    def rate(self, repeat: int = 20) -> float:
        """1e9 operations a second in the fastest of ``repeat`` runs."""
        return self.gop / min(self.time(repeat))


@dataclass(frozen=True)
class PeakMeter:
    """Peak of one machine; ``measure`` may be called between the rounds of a benchmark."""

    meters: tuple[Meter, ...]

    def measure(self, repeat: int = 20) -> MachinePeak:
        rates = [(meter.row.integer, meter.rate(repeat)) for meter in self.meters]
        return MachinePeak(
            int8_gops=max(rate for integer, rate in rates if integer),
            fp32_gflops=max(rate for integer, rate in rates if not integer),
        )

    def fastest(self) -> PeakMeter:
        """Only the row of each precision that is fastest here, which is all that later measurements need.

        The rows take turns: what disturbs the machine for a moment must not make it a slower row for good.
        """
        rates = [max(turns) for turns in zip(*([meter.rate() for meter in self.meters] for _ in range(TURNS)), strict=True)]
        best: dict[bool, tuple[float, Meter]] = {}
        for rate, meter in zip(rates, self.meters, strict=True):
            if meter.row.integer not in best or rate > best[meter.row.integer][0]:
                best[meter.row.integer] = (rate, meter)
        return PeakMeter(tuple(meter for _, meter in best.values()))


def peak_meter(target: Target, threads: int, *, features: Iterable[str] | None = None, load: Load = load_here) -> PeakMeter:
    """Builds and loads the peak kernels of a machine.

    Parameters
    ----------
    target : the machine's target; its family, triple and CPU are used
    threads : as many threads as the benchmark has; TVM's thread pool on the device must already have that many
    features : CPU features in Linux' spelling, where more is known than the target promises
    load : how to bring a kernel onto the device: into this process unless told, or ``on_board``

    Raises UserError for a family without CPU rows, EnvironmentProblem when no row fits.
    """
    family = target.family
    if family not in {row.family for row in ROWS}:
        raise UserError(f"no peak is known for the family {family!r}", where=target.name, remedy="give the host's target")
    rows = usable(family, target.features if features is None else features)
    meters = tuple(_meter(row, build(row, target, threads), threads, load) for row in rows)
    if not meters:
        raise EnvironmentProblem("no instruction to measure the peak with", where=target.name)
    return PeakMeter(meters)


def _meter(row: Row, module: Any, threads: int, load: Load) -> Meter:
    return Meter(row, threads, load(module, operands(row, threads)))


def operands(row: Row, threads: int) -> list[np.ndarray]:
    """Arguments of ``row``'s kernel: ones, whose sums neither overflow nor become denormal floats, which some CPUs add slowly."""
    rows, columns = row.tile
    (acc_type, lanes), (type_, width) = _vector(row.acc), _vector(row.operand)
    shapes = ((DEPTH, rows, width), type_), ((DEPTH, columns, width), type_), ((threads, rows * columns, lanes), acc_type)
    return [np.ones(shape, dtype) for shape, dtype in shapes]


def measure_peak(
    target: Target, threads: int, *, features: Iterable[str] | None = None, load: Load = load_here, repeat: int = 20
) -> MachinePeak:
    """The machine's int8 and float32 peak with ``threads`` threads; parameters and errors as in ``peak_meter``."""
    return peak_meter(target, threads, features=features, load=load).measure(repeat)
