"""Which template runs a kernel on which family of targets, and what a template must offer to the scheduler and the tuner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from tvmflow.errors import InternalError
from tvmflow.kernels import spec as ks
from tvmflow.schedule import (
    ahead,
    attention,
    chain,
    conv2d,
    cuda_conv2d,
    cuda_depthwise,
    cuda_elementwise,
    cuda_gemm,
    cuda_matmul,
    cuda_rows,
    depthwise,
    depthwise_dot,
    depthwise_float,
    elementwise,
    float_islands,
    matmul,
    pool,
    strassen,
    winograd,
)
from tvmflow.schedule.conv2d_geometry import ConvTile
from tvmflow.schedule.intrinsics import BY_NAME
from tvmflow.target import Target

Array = NDArray[Any]
Tile: TypeAlias = (
    ConvTile
    | winograd.WinogradTile
    | strassen.StrassenTile
    | chain.ChainTile
    | depthwise.DepthwiseTile
    | depthwise_dot.DepthwiseDotTile
    | depthwise_float.DepthwiseFloatTile
    | matmul.MatMulTile
    | attention.AttentionTile
    | elementwise.FlatTile
    | pool.PoolTile
    | cuda_gemm.GemmTile
    | cuda_depthwise.CudaDepthwiseTile
    | cuda_elementwise.ThreadTile
)
"""Decisions of any template; what a tuning record holds."""

_DECODER = msgspec.json.Decoder(Tile)


def decode_tile(text: str | bytes) -> Tile:
    """A tile from its JSON. Raises ``msgspec.ValidationError`` on anything else."""
    return _DECODER.decode(text)


@dataclass(frozen=True)
class Template:
    """One way to run one kind of kernel.

    ``emit(spec, tile, name)`` gives a PrimFunc over the kernel's arguments (constants as ``pack`` returns them) and its output.
    """

    name: str
    fits: Callable[[Any, Target], bool]
    space: Callable[[Any, Target], Iterator[Any]]
    """Every decision worth trying, filtered by the register model."""
    default: Callable[[Any, Target], Any]
    """The best decision by the template's cycle model."""
    estimate: Callable[[Any, Any, Target], float]
    """Modelled cycles: the rank of a candidate before anything is measured."""
    emit: Callable[[Any, Any, str], tirx.PrimFunc]
    pack: Callable[[Any, Any, list[Array]], list[Array]]
    """Compile-time constants as the kernel wants them."""


def dots(spec: Any, target: Target) -> tuple[str, ...]:
    """Instructions that the target offers for a kernel's operand type.

    int8 operands on a target whose dot product wants unsigned ones (a signed artifact checked on such a host) take the next row.
    """
    if not spec.is_integer:
        return target.float32
    fitting = tuple(n for n in target.int8.dot if BY_NAME[n].a_dtype in (spec.x, "int16"))
    return fitting or ("generic",)


def vector_lanes(target: Target) -> int:
    """32-bit elements in a vector register."""
    return target.cpu.vector_bits // 32


PARALLEL_CYCLES = 24_000
"""Modelled cycles of a kernel above which a second thread pays for being woken, some three microseconds."""


def _tiled(
    name: str, fits: Callable[[Any, Target], bool], space: Callable[[Any, Target], Iterator[Any]],
    estimate: Callable[[Any, Any, Target], float], emit: Callable[[Any, Any, str], tirx.PrimFunc],
    pack: Callable[[Any, Any, list[Array]], list[Array]],
) -> Template:  # fmt: skip
    """A register-tiled template: the default is the best modelled tile, and small kernels stay on one thread."""

    def decided(spec: Any, target: Target) -> Iterator[Any]:
        for tile in space(spec, target):
            yield msgspec.structs.replace(tile, threads=estimate(spec, tile, target) > PARALLEL_CYCLES)

    def default(spec: Any, target: Target) -> Any:
        return min(decided(spec, target), key=lambda tile: estimate(spec, tile, target))

    return Template(name, lambda spec, target: target.cuda is None and fits(spec, target), decided, default, estimate, emit, pack)


def _registers(target: Target) -> int:
    return target.cpu.registers


CONVOLUTIONS: dict[type, Any] = {ConvTile: conv2d, winograd.WinogradTile: winograd, strassen.StrassenTile: strassen}
"""Ways to run a convolution; each has a space, and their models are compared."""


def _convolutions(spec: ks.Conv2d, target: Target) -> Iterator[Any]:
    for way in CONVOLUTIONS.values():
        yield from way.space(spec, dots(spec, target), _registers(target))


def _as_is(_spec: Any, _tile: Any, consts: list[Array]) -> list[Array]:
    return consts


def _flat_template(name: str, kind: type, emit: Callable[[Any, Any, str], tirx.PrimFunc]) -> Template:
    def space(_spec: Any, target: Target) -> Iterator[elementwise.FlatTile]:
        for factor in (1, 2, 4):
            yield elementwise.FlatTile(vector_lanes(target) * factor)

    return Template(
        name,
        fits=lambda spec, target: isinstance(spec, kind) and target.cuda is None,
        space=space,
        default=lambda spec, target: elementwise.FlatTile(vector_lanes(target)),
        estimate=lambda spec, tile, target: float(np.prod(spec.out_shape)) / tile.lanes,
        emit=emit,
        pack=_as_is,
    )


def _cuda_tiled(
    name: str, fits: Callable[[Any], bool], module: Any, pack: Callable[[Any, Any, list[Array]], list[Array]]
) -> Template:
    """A tiled CUDA template whose space, model and code are functions of ``module``."""
    return Template(
        name,
        fits=lambda spec, target: target.cuda is not None and fits(spec),
        space=lambda spec, target: module.space(spec),
        default=lambda spec, target: min(module.space(spec), key=lambda tile: module.estimate(spec, tile, target.cuda)),
        estimate=lambda spec, tile, target: module.estimate(spec, tile, target.cuda),
        emit=module.emit,
        pack=pack,
    )


def _cuda_threads(name: str, kind: type, emit: Callable[[Any, Any, str], tirx.PrimFunc]) -> Template:
    """A CUDA template that decides nothing but the threads of a block."""
    return Template(
        name,
        fits=lambda spec, target: target.cuda is not None and isinstance(spec, kind),
        space=lambda spec, target: cuda_elementwise.space(),
        default=lambda spec, target: cuda_elementwise.DEFAULT,
        estimate=lambda spec, tile, target: float(abs(tile.threads - cuda_elementwise.DEFAULT.threads)),
        emit=emit,
        pack=_as_is,
    )


TEMPLATES: tuple[Template, ...] = (
    _tiled(
        "depthwise_dot",
        fits=lambda spec, target: (
            isinstance(spec, ks.Conv2d) and spec.is_depthwise and depthwise_dot.fits(spec, dots(spec, target))
        ),
        space=lambda spec, target: depthwise_dot.space(spec, dots(spec, target), _registers(target)),
        estimate=lambda spec, tile, target: depthwise_dot.estimate(spec, tile),
        emit=depthwise_dot.emit,
        pack=depthwise_dot.pack,
    ),
    _tiled(
        "depthwise_float",
        fits=lambda spec, target: isinstance(spec, ks.Conv2d) and spec.is_depthwise and not spec.is_integer,
        space=lambda spec, target: depthwise_float.space(spec, dots(spec, target), _registers(target)),
        estimate=lambda spec, tile, target: depthwise_float.estimate(spec, tile),
        emit=depthwise_float.emit,
        pack=depthwise_float.pack,
    ),
    _tiled(
        "depthwise",
        fits=lambda spec, target: isinstance(spec, ks.Conv2d) and spec.is_depthwise,
        space=lambda spec, target: depthwise.space(spec, dots(spec, target), _registers(target)),
        estimate=lambda spec, tile, target: depthwise.estimate(spec, tile, target.cpu.l1d_kib),
        emit=depthwise.emit,
        pack=depthwise.pack,
    ),
    _tiled(
        "conv2d",
        fits=lambda spec, target: isinstance(spec, ks.Conv2d),
        space=_convolutions,
        estimate=lambda spec, tile, target: CONVOLUTIONS[type(tile)].estimate(spec, tile, target.cpu),
        emit=lambda spec, tile, name: CONVOLUTIONS[type(tile)].emit(spec, tile, name),
        pack=lambda spec, tile, consts: CONVOLUTIONS[type(tile)].pack(spec, tile, consts),
    ),
    _tiled(
        "chain",
        fits=lambda spec, target: isinstance(spec, ks.Chain) and chain.fits(spec),
        space=lambda spec, target: chain.space(spec, dots(spec, target), _registers(target), target.cpu),
        estimate=lambda spec, tile, target: chain.estimate(spec, tile, target.cpu),
        emit=chain.emit,
        pack=chain.pack,
    ),
    _tiled(
        "matmul",
        fits=lambda spec, target: isinstance(spec, ks.MatMul),
        space=lambda spec, target: matmul.space(spec, dots(spec, target), _registers(target)),
        estimate=lambda spec, tile, target: matmul.estimate(spec, tile),
        emit=matmul.emit,
        pack=_as_is,
    ),
    _tiled(
        "attention",
        fits=lambda spec, target: isinstance(spec, ks.Attention),
        space=lambda spec, target: attention.space(spec, dots(spec, target), _registers(target)),
        estimate=lambda spec, tile, target: attention.estimate(spec, tile),
        emit=attention.emit,
        pack=_as_is,
    ),
    _flat_template("binary", ks.Binary, elementwise.emit_binary),
    Template(
        "lookup",
        fits=lambda spec, target: isinstance(spec, ks.Lookup) and target.cuda is None,
        space=lambda spec, target: elementwise.lookup_tiles(target.features),
        default=lambda spec, target: next(elementwise.lookup_tiles(target.features)),
        estimate=lambda spec, tile, target: float(np.prod(spec.out_shape)) / tile.lanes,
        emit=elementwise.emit_lookup,
        pack=_as_is,
    ),
    _flat_template("quantize", ks.Quantize, elementwise.emit_quantize),
    _flat_template("dequantize", ks.Dequantize, elementwise.emit_dequantize),
    _flat_template("unary", ks.Unary, float_islands.emit_unary),
    _flat_template("softmax", ks.Softmax, float_islands.emit_softmax),
    _flat_template("layer_norm", ks.LayerNorm, float_islands.emit_layer_norm),
    Template(
        "pool2d",
        fits=lambda spec, target: isinstance(spec, ks.Pool2d) and target.cuda is None,
        space=lambda spec, target: iter((pool.PoolTile(vector_lanes(target)), pool.PoolTile(vector_lanes(target) * 4))),
        default=lambda spec, target: pool.PoolTile(vector_lanes(target) * (4 if spec.fn == "max" and spec.is_integer else 1)),
        estimate=lambda spec, tile, target: float(np.prod(spec.out_shape)) / tile.lanes,
        emit=pool.emit,
        pack=_as_is,
    ),
    _cuda_tiled(
        "cuda_depthwise",
        lambda spec: isinstance(spec, ks.Conv2d) and spec.is_depthwise,
        cuda_depthwise,
        cuda_depthwise.pack,
    ),
    _cuda_tiled("cuda_conv2d", lambda spec: isinstance(spec, ks.Conv2d), cuda_conv2d, cuda_conv2d.pack),
    _cuda_tiled("cuda_matmul", lambda spec: isinstance(spec, ks.MatMul), cuda_matmul, _as_is),
    _cuda_threads("cuda_binary", ks.Binary, cuda_elementwise.emit_binary),
    _cuda_threads("cuda_lookup", ks.Lookup, cuda_elementwise.emit_lookup),
    _cuda_threads("cuda_quantize", ks.Quantize, cuda_elementwise.emit_quantize),
    _cuda_threads("cuda_dequantize", ks.Dequantize, cuda_elementwise.emit_dequantize),
    _cuda_threads("cuda_unary", ks.Unary, cuda_elementwise.emit_unary),
    _cuda_threads("cuda_pool2d", ks.Pool2d, cuda_elementwise.emit_pool),
    _cuda_threads("cuda_softmax", ks.Softmax, cuda_rows.emit_softmax),
    _cuda_threads("cuda_layer_norm", ks.LayerNorm, cuda_rows.emit_layer_norm),
)
"""The first template that fits a kernel is used."""


def executed_ops(spec: ks.Kernel, tile: Tile) -> int:
    """Operations that a kernel executes, a multiply-add counted as two: what a share of the machine's peak is of."""
    way = CONVOLUTIONS.get(type(tile))
    return int(way.ops(spec, tile)) if way else spec.ops


def weight_bytes(spec: ks.Kernel, tile: Tile) -> int:
    """Bytes of a kernel's weights; packed ones of the convolutions, whose packing may multiply them."""
    way = CONVOLUTIONS.get(type(tile))
    return int(way.weight_bytes(spec, tile)) if way else ahead.weight_bytes(spec)


def template_for(spec: ks.Kernel, target: Target) -> Template:
    """The template that runs ``spec`` on ``target``."""
    for template in TEMPLATES:
        if template.fits(spec, target):
            return template
    raise InternalError(f"no template for {ks.encode(spec)}", where=target.name)
