"""What a convolution does with its accumulators while they are in registers."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule import tir
from tvmflow.schedule.transcendental import Vector

Expr = Any


class ConvEpilogue:
    """From accumulators to stored outputs: requantize, dequantize, apply a function or clamp, with an optional residual add.

    Accumulators start at the bias (:meth:`bias_at`). ``params`` are ``multiplier, quant[, residual]`` (integer) or
    ``bounds[, residual]`` (float), as in kernels/spec.py Conv2d.
    """

    def __init__(self, spec: Conv2d, bias: Any, params: Any, lanes: int, acc_dtype: str) -> None:
        self.spec, self.bias, self.params, self.lanes, self.acc_dtype = spec, bias, params, lanes, acc_dtype
        self.residual = params[-1] if spec.residual else None
        if not spec.is_integer:
            self.bounds = [T.Bind(tir.splat(params[0][i], lanes)) for i in range(2)]
        elif spec.y != "float32":
            quant = params[1]
            self.requantize = tir.Requantizer(quant[1], quant[2], quant[3], lanes, spec.y)
            if spec.residual:
                self.add = tir.FixedPointAdd(quant, 4, lanes, spec.y)

    def bias_at(self, table: Expr) -> Expr:
        """Bias of the ``lanes`` channels from ``table`` on: what their accumulators start with."""
        return T.Bind(self.bias[tir.at(table, self.lanes)])

    def bind_multiplier(self, table: Expr) -> None:
        """Loads the multipliers of the ``lanes`` channels from ``table`` on."""
        if self.spec.is_integer:
            self.multiplier = T.Bind(self.params[0][tir.at(table, self.lanes)])

    def value(self, total: Expr, residual: Expr | None) -> Expr:
        """Output lanes of one accumulator."""
        if not self.spec.is_integer:
            value = total if residual is None else total + residual
            if self.spec.activation:
                return Vector(self.lanes).function(self.spec.activation)(T.Bind(value))
            return tir.clip(value, *self.bounds)
        if self.spec.y == "float32":
            return total.astype(tir.lanes_of("float32", self.lanes)) * self.multiplier
        if residual is None:
            return self.requantize(total, self.multiplier)
        return self.add(self.requantize.whole(total, self.multiplier), tir.to_int32(residual, self.lanes))

    def store(self, y: Any, index: Expr, acc: Expr) -> None:
        """Writes the ``lanes`` outputs that start at ``index``."""
        residual = self.residual[tir.at(index, self.lanes)] if self.residual is not None else None
        T.buffer_store(y, self.value(acc, residual), [tir.at(index, self.lanes)])

    def store_some(self, y: Any, index: Expr, acc: Expr, count: int) -> None:
        """Writes ``count < lanes`` outputs, element by element through a small buffer."""
        residual = None
        if self.residual is not None:
            staged = tir.register(self.lanes, self.spec.y)
            for lane in range(count):
                T.buffer_store(staged, self.residual[index + lane], [lane])
            residual = staged[tir.at(0, self.lanes)]
        result = tir.register(self.lanes, self.spec.y)
        T.buffer_store(result, self.value(acc, residual), [tir.at(0, self.lanes)])
        for lane in range(count):
            T.buffer_store(y, result[lane], [index + lane])
