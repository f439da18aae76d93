"""Convolutions that feed each other, a few rows at a time: what is between them stays in the cache (float32, CPUs).

A large intermediate tensor is written to the last cache or to memory and read from there, and depthwise convolutions wait for
it. Here every stage keeps the rows that the next one still needs in a ring. For some rows of the result every stage makes the
rows that are missing. Threads take parts of the image, and make the rows around the seams twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from typing import Any, TypeAlias

import msgspec
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Chain, Conv2d
from tvmflow.schedule import conv2d, depthwise_float, tir
from tvmflow.schedule.conv2d_geometry import ConvTile, Geometry, is_pointwise
from tvmflow.schedule.conv2d_nest import Line, Nest
from tvmflow.schedule.intrinsics import BY_NAME
from tvmflow.target import Cpu

Array = NDArray[Any]
Expr = Any
StageTile: TypeAlias = ConvTile | depthwise_float.DepthwiseFloatTile

CANDIDATES = 3
"""Tiles of a stage that are combined with those of the others: the best by the stage's own model."""
LEAST_ROWS = 4
"""Of the result in a part: the rows at a seam are made twice."""


class ChainTile(msgspec.Struct, frozen=True, tag="chain"):
    """A tile for a row of each stage. Each of the threads that the program has when it runs takes a part of the image's rows."""

    stages: tuple[StageTile, ...]
    rows: int
    """Rows of the result that are made together."""
    threads: bool = True


def fits(spec: Chain) -> bool:
    """Float32 stages, each pointwise or depthwise but for the first, which may be any convolution without groups."""
    first, *others = spec.stages
    followers = all(is_pointwise(stage) or stage.is_depthwise for stage in others)
    return not spec.is_integer and followers and (first.groups == 1 or first.is_depthwise)


def space(spec: Chain, names: tuple[str, ...], registers: int, cpu: Cpu) -> Iterator[ChainTile]:
    """The best tiles of each stage, in all combinations."""

    def best(stage: Conv2d) -> list[StageTile]:
        row = _row_spec(stage)
        every = (msgspec.structs.replace(tile, threads=False) for tile in _way(stage).space(row, names, registers))
        fitting = (tile for tile in every if not getattr(tile, "channels_outer", False))
        return sorted(fitting, key=lambda tile: _row_cycles(row, tile, cpu))[:CANDIDATES]

    for stages in product(*map(best, spec.stages)):
        for rows in (1, 2, 4, 8):
            yield ChainTile(stages, rows)


def estimate(spec: Chain, tile: ChainTile, cpu: Cpu) -> float:
    """Cycles of one thread: the rows of every stage, and what is read from the rings."""
    stages = zip(spec.stages, tile.stages, strict=True)
    total = sum(stage.oh * _row_cycles(_row_spec(stage), chosen, cpu) for stage, chosen in stages)
    rings = sum(held * stage.ow * stage.oc for held, stage in zip(held_rows(spec.stages, tile.rows), spec.stages, strict=False))
    # a row in a ring is read by every block of rows that needs it, beyond L2 at a price
    again = sum(
        stage.ow * stage.oc * (_span(after) - after.stride[0]) / tile.rows * spec.stages[-1].oh
        for stage, after in zip(spec.stages, spec.stages[1:], strict=False)
    )
    return spec.stages[0].n * (total + again / 16) * (1.0 if rings < cpu.l2_kib * 128 else 2.0)


def _row_cycles(row: Conv2d, tile: StageTile, cpu: Cpu) -> float:
    """Cycles of a row of a stage."""
    if isinstance(tile, depthwise_float.DepthwiseFloatTile):
        return depthwise_float.estimate(row, tile)
    return conv2d.estimate(row, tile, cpu)


def pack(spec: Chain, tile: ChainTile, consts: list[Array]) -> list[Array]:
    """Constants of each stage as its kernel wants them."""
    rest = iter(consts)
    packed = []
    for stage, chosen in zip(spec.stages, tile.stages, strict=True):
        packed += _way(stage).pack(_row_spec(stage), chosen, list(islice(rest, spec.CONSTANTS)))
    return packed


def emit(spec: Chain, tile: ChainTile, name: str) -> tirx.PrimFunc:
    """The kernel as a PrimFunc over ``x, (packed weight, bias, bounds) of each stage[, residual], y``."""
    first, last = spec.stages[0], spec.stages[-1]
    params: tir.Params = [("x", first.in_shape, first.x)]
    for i, (stage, chosen) in enumerate(zip(spec.stages, tile.stages, strict=True)):
        constants = _way(stage).params(_row_spec(stage), chosen)[1 : 1 + spec.CONSTANTS]
        params += [(f"{label}{i}", shape, dtype) for label, shape, dtype in constants]
    if last.residual:
        params.append(("residual", last.out_shape, last.y))
    params.append(("y", last.out_shape, last.y))
    lent = ("x",) if first.nchw else ()
    return tir.prim_func(name, params, lambda *buffers: _emit(spec, tile, *buffers), {}, anywhere=lent)


def _emit(spec: Chain, tile: ChainTile, x: Any, *rest: Any) -> None:
    stages = spec.stages
    last = stages[-1]
    constants = [rest[i * spec.CONSTANTS : (i + 1) * spec.CONSTANTS] for i in range(len(stages))]
    y, residual = rest[-1], rest[-2] if last.residual else None
    parts = T.Bind(tir.clip(tirx.call_packed("runtime.NumThreads"), 1, max(1, last.oh // LEAST_ROWS))) if tile.threads else 1
    with T.parallel(0, last.n * parts) if tile.threads else T.serial(0, last.n) as task:
        image, part = (task // parts, task % parts) if last.n > 1 else (0, task)
        begin, end = T.Bind(part * last.oh // parts), T.Bind((part + 1) * last.oh // parts)
        tensors = [tir.Rows(x, stages[0].h, stages[0].w * stages[0].ic, image)]
        for stage, held in zip(stages[:-1], held_rows(stages, tile.rows), strict=True):
            ring = T.alloc_buffer((held * stage.ow * stage.oc,), stage.y, scope="global")
            tensors.append(tir.Rows(ring, held, stage.ow * stage.oc, ring=True))
        tensors.append(tir.Rows(y, last.oh, last.ow * last.oc, image))
        added = tir.Rows(residual, last.oh, last.ow * last.oc, image) if last.residual else None
        with T.serial(0, (end - begin + tile.rows - 1) // tile.rows) as block:
            first = T.Bind(begin + block * tile.rows)
            now = _needed(stages, first, T.Bind(tirx.min(first + tile.rows, end)))
            before = _needed(stages, first - 1, first)
            for i, stage in enumerate(stages):
                start = T.Bind(tirx.Select(block == 0, now[i][0], before[i][1]))
                stop = T.Bind(now[i][1])
                added_here = added if i == len(stages) - 1 else None
                _rows(stage, tile.stages[i], constants[i], tensors[i], tensors[i + 1], added_here, start, stop)


def _rows(
    stage: Conv2d,
    tile: StageTile,
    constants: Any,
    source: tir.Rows,
    to: tir.Rows,
    residual: tir.Rows | None,
    start: Expr,
    stop: Expr,
) -> None:
    """Rows ``start`` to ``stop`` of a stage's outputs."""
    weight, bias, bounds = constants
    if isinstance(tile, depthwise_float.DepthwiseFloatTile):
        depthwise_float.Nest(stage, tile, weight, bias, (bounds,)).lines(source, to, start, stop)
        return
    dot = BY_NAME[tile.dot]
    pointwise = is_pointwise(stage)
    geo = Geometry(_row_spec(stage), dot) if pointwise else Geometry(stage, dot, unpadded=True)
    with T.serial(start, stop) as line:
        corner = source.start(line) if pointwise else source.image * geo.image + geo.line.start(line) * geo.row
        place = Line(line, T.Bind(corner), T.Bind(to.start(line)))
        added = [] if residual is None else [residual.buffer]
        Nest(geo, tile, place).emit(source.buffer, weight, bias, bounds, *added, to.buffer)


def held_rows(stages: tuple[Conv2d, ...], rows: int) -> list[int]:
    """Rows that the ring behind each stage but the last holds when ``rows`` of the result are made together."""
    held = [rows]
    for stage in reversed(stages[1:]):
        held.append((held[-1] - 1) * stage.stride[0] + _span(stage))
    return held[:0:-1]


def _needed(stages: tuple[Conv2d, ...], begin: Expr, end: Expr) -> list[tuple[Expr, Expr]]:
    """First and one past the last row of each stage's output that rows ``begin`` to ``end`` of the result depend on."""
    needed = [(begin, end)]
    for stage in reversed(stages[1:]):
        begin, end = needed[-1]
        top = tirx.max(begin * stage.stride[0] - stage.pad[0], 0)
        bottom = (end - 1) * stage.stride[0] - stage.pad[0] + _span(stage)
        needed.append((top, tir.clip(bottom, 0, stage.h)))
    return needed[::-1]


def _way(stage: Conv2d) -> Any:
    """The template of a stage's rows."""
    return depthwise_float if stage.is_depthwise else conv2d


def _span(stage: Conv2d) -> int:
    return (stage.kh - 1) * stage.dilation[0] + 1


def _row_spec(stage: Conv2d) -> Conv2d:
    """A stage's row as a convolution of its own, with the rows of the input that it needs."""
    if is_pointwise(stage):
        return msgspec.structs.replace(stage, n=1, h=1)
    pad = (0, stage.pad[1], 0, stage.pad[3])
    return msgspec.structs.replace(stage, n=1, h=_span(stage), pad=pad)
