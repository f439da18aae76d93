"""The module under construction: each tensor of the float graph in its integer form, its float form, or both.

A tensor is quantized or dequantized at most once; each such crossing counts as a boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax

from tvmflow.errors import ConfigError, nearest
from tvmflow.kernels import spec as ks
from tvmflow.kernels.call import kernel_call
from tvmflow.quantize.graph import Graph, constant_of, shape_of
from tvmflow.quantize.plan import Group, Plan
from tvmflow.quantize.qparams import QParam, QParams
from tvmflow.quantize.realize.writer import Writer


class Emitter(Writer):
    """State of one run of realize. ``storage`` is the dtype of activations; their zero points and bounds move by ``offset``."""

    def __init__(self, graph: Graph, plan: Plan, params: QParams, storage: str) -> None:
        super().__init__()
        self.graph, self.storage = graph, storage
        self.offset = 128 if storage == "uint8" else 0
        self.boundaries = 0
        self.params = params
        self.like = {site.id: site.like for site in plan.sites}
        self.integers: dict[str, tuple[relax.Expr, QParam]] = {}
        self.floats: dict[str, relax.Expr] = {}
        self._before_reshape: dict[str, relax.Expr] = {}

    def param(self, site: str) -> QParam:
        """Parameters of a site, those of the site that it is like when it has none of its own. Raises ConfigError without any."""
        name = site
        while name not in self.params and self.like.get(name):
            name = self.like[name]
        if name not in self.params:
            raise ConfigError("no quantization parameters for this tensor", where=site, remedy=nearest(site, self.params))
        return self.params[name]

    def is_site(self, name: str) -> bool:
        """Whether the plan wants this tensor as integers."""
        return name in self.like

    def kernel(self, name: str, spec: ks.Kernel, args: Sequence[relax.Expr]) -> relax.Var:
        """Emits a kernel call under the layer name ``name``."""
        return self.emit(name, kernel_call(spec, args))

    def reshape(self, value: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        """``value`` in ``shape``; no operation when it has it already, or had it before the reshape that it comes from."""
        if shape_of(value) == shape:
            return value
        base = self._before_reshape.get(value.name, value) if isinstance(value, relax.Var) else value
        if shape_of(base) == shape:
            return base
        result = self.emit("reshape", relax.op.reshape(base, shape))
        self._before_reshape[result.name] = base
        return result

    def zero(self, param: QParam) -> int:
        """Zero point in the storage domain."""
        return param.zero_point + self.offset

    def bounds(self, param: QParam, clamp: tuple[float, float] | None) -> tuple[int, int]:
        """Bounds of the storage values, those of a fused clamp included: rounding is monotonic, so clamping may follow it."""
        lo, hi = -128 + self.offset, 127 + self.offset
        if clamp is None:
            return lo, hi
        low, high = (float(np.rint(np.float64(c) / np.float64(param.scale[0]))) + self.zero(param) for c in clamp)
        return int(np.clip(low, lo, hi)), int(np.clip(high, lo, hi))

    def table(self, source: QParam, target: QParam, function: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """Table of a function between two quantized tensors, in the storage domain; the identity requantizes.

        Computed in float64. Where the function is not a number (the logarithm of a rounding error below zero) the nearest entry
        at which it is one stands in.
        """
        codes = np.arange(-128, 128, dtype=np.float64)
        values = (codes - source.zero_point) * np.float64(source.scale[0])
        results = values if function is None else np.asarray(function(values), dtype=np.float64)
        results = _without_nan(results)
        steps = np.clip(np.rint(results / np.float64(target.scale[0])), -512, 512) + target.zero_point
        return (np.clip(steps, -128, 127).astype(np.int32) + self.offset).astype(self.storage)

    def integer(self, name: str) -> tuple[relax.Expr, QParam]:
        """Integer form of a tensor, quantized now if it has none yet."""
        if name not in self.integers:
            param = self.param(name)
            args = (self.floats[name], *self.quantize_args(param))
            spec = ks.Quantize(self.graph.shape(name), y=self.storage)
            self.integers[name] = (self.kernel(f"{name}/quantize", spec, args), param)
            self.boundaries += 1
        return self.integers[name]

    def constant(self, expr: relax.Expr) -> tuple[relax.Expr, QParam]:
        """A float constant as a quantized tensor; its range is known, so it needs no calibration."""
        values = constant_of(expr)
        assert values is not None  # annotate checks
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        scale = np.float32((high - low) / 255.0 or 1.0)
        param = QParam(np.array([scale], np.float32), int(np.clip(np.rint(-128 - low / scale), -128, 127)), low, high, "constant")
        codes = np.clip(np.rint(values / scale) + param.zero_point, -128, 127).astype(np.int32) + self.offset
        return relax.const(codes.astype(self.storage)), param

    def pass_on(self, group: Group, value: relax.Expr, param: QParam) -> None:
        """Records the result of a group that does no arithmetic: the parameters stay, unless the result has others of its own."""
        own = self.params.get(group.output)
        if own is not None and not same(own, param):
            value, param = self.requantize(group.output, value, param, own), own
        self.integers[group.output] = (value, param)

    def integer_as(self, name: str, param: QParam) -> relax.Expr:
        """Integer form of a tensor with the given parameters, through a table when it has others."""
        value, own = self.integer(name)
        return self.requantize(name, value, own, param)

    def requantize(self, name: str, value: relax.Expr, source: QParam, target: QParam) -> relax.Expr:
        """``value`` with the parameters ``target``."""
        if same(source, target):
            return value
        spec = ks.Lookup(shape_of(value), self.storage, self.storage)
        return self.kernel(f"{name}/requantize", spec, (value, relax.const(self.table(source, target))))

    def quantize_args(self, param: QParam) -> tuple[relax.Expr, relax.Expr]:
        """``scale`` and ``quant`` of a Quantize or Dequantize kernel."""
        return floats(param.scale), ints(self.zero(param))

    def float(self, name: str) -> relax.Expr:
        """Float form of a tensor, dequantized now if it has none yet. Tensors of other dtypes are as they were."""
        if name not in self.floats:
            value, param = self.integers[name]
            spec = ks.Dequantize(shape_of(value), x=self.storage)
            self.floats[name] = self.kernel(f"{name}/dequantize", spec, (value, *self.quantize_args(param)))
            self.boundaries += 1
        return self.floats[name]


def same(a: QParam, b: QParam) -> bool:
    """Whether two tensors have equal parameters."""
    return a.zero_point == b.zero_point and np.float32(a.scale[0]) == np.float32(b.scale[0])


def ints(*values: int) -> relax.Expr:
    """int32 constant of a kernel's ``quant`` argument."""
    return relax.const(np.array(values, np.int32))


def floats(values: np.ndarray | Sequence[float]) -> relax.Expr:
    """float32 constant, one axis."""
    return relax.const(np.asarray(values, np.float32).reshape(-1))


def _without_nan(values: np.ndarray) -> np.ndarray:
    valid = np.flatnonzero(~np.isnan(values))
    if valid.size in (0, values.size):
        return np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
    nearest_valid = valid[np.abs(np.arange(values.size)[:, None] - valid).argmin(axis=1)]
    return values[nearest_valid]
