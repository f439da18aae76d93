"""Pools, means and elementwise tables: one quantized tensor in, one out."""

from __future__ import annotations

from math import prod

import numpy as np
from tvm import relax

from tvmflow.kernels import spec as ks
from tvmflow.quantize.elementwise import evaluate
from tvmflow.quantize.graph import axes_of, op_of, shape_of
from tvmflow.quantize.plan import Group
from tvmflow.quantize.realize.emit import Emitter, floats, ints


def max_pool(e: Emitter, group: Group) -> None:
    """Maximum of the codes: parameters pass through."""
    value, x = e.integer(group.inputs[0])
    e.pass_on(group, e.kernel(group.layer, _window(e, group, "max"), (value,)), x)


def avg_pool(e: Emitter, group: Group) -> None:
    """Average of the elements inside the image, or of all of them with ``count_include_pad``."""
    spec = _window(e, group, "avg")
    area = spec.kh * spec.kw
    counts = np.full(area + 1, area) if e.graph.exprs[group.bindings[0]].attrs.count_include_pad else np.arange(area + 1)
    _average(e, group, spec, e.integer(group.inputs[0])[0], counts)


def mean(e: Emitter, group: Group) -> None:
    """Mean or sum over neighbouring axes: a window over all of them."""
    call = e.graph.exprs[group.bindings[0]]
    shape = e.graph.shape(group.inputs[0])
    axes = (1, 2) if op_of(call) == "adaptive_avg_pool2d" else axes_of(call.attrs.axis, len(shape))
    if len(shape) == 4 and axes == (1, 2):
        plane = shape
    else:
        plane = (prod(shape[: axes[0]]), prod(shape[axes[0] : axes[-1] + 1]), 1, prod(shape[axes[-1] + 1 :]))
    n, h, w, c = plane
    spec = ks.Pool2d("avg", n, h, w, c, h, w, x=e.storage, y=e.storage)
    counts = np.ones(h * w + 1) if op_of(call) == "sum" else np.arange(h * w + 1)
    _average(e, group, spec, e.reshape(e.integer(group.inputs[0])[0], plane), counts)


def lookup(e: Emitter, group: Group) -> None:
    """Elementwise functions as one table."""
    value, x = e.integer(group.inputs[0])
    y = e.param(group.output)
    table = e.table(x, y, lambda values: evaluate(e.graph, group.bindings, group.inputs[0], values))
    spec = ks.Lookup(shape_of(value), e.storage, e.storage)
    e.integers[group.output] = (e.kernel(group.layer, spec, (value, relax.const(table))), y)


def _average(e: Emitter, group: Group, spec: ks.Pool2d, value: relax.Expr, counts: np.ndarray) -> None:
    """Emits a pool that divides the sum over a window with ``i`` elements inside the image by ``counts[i]``."""
    x, y = e.integer(group.inputs[0])[1], e.param(group.output)
    ratio = np.float64(np.float32(x.scale[0])) / np.float64(np.float32(y.scale[0]))
    multiplier = np.divide(ratio, counts, out=np.zeros(counts.shape), where=counts > 0)
    quant = ints(e.zero(x), e.zero(y), *e.bounds(y, None))
    result = e.kernel(group.layer, spec, (value, floats(multiplier), quant))
    e.integers[group.output] = (e.reshape(result, e.graph.shape(group.output)), y)


def _window(e: Emitter, group: Group, fn: str) -> ks.Pool2d:
    """Signature of a pooling layer; ceil_mode becomes padding at the bottom and the right, which never counts as inside."""
    attrs = e.graph.exprs[group.bindings[0]].attrs
    n, h, w, c = e.graph.shape(group.inputs[0])
    _, oh, ow, _ = e.graph.shape(group.output)
    kh, kw = (int(v) for v in attrs.pool_size)
    sh, sw = (int(v) for v in attrs.strides)
    top, left, bottom, right = (int(v) for v in attrs.padding)
    bottom = max(bottom, (oh - 1) * sh + kh - h - top)
    right = max(right, (ow - 1) * sw + kw - w - left)
    return ks.Pool2d(fn, n, h, w, c, kh, kw, (sh, sw), (top, left, bottom, right), e.storage, e.storage)
