"""An ONNX graph under construction: nodes, initializers, unique names, and tensors that know how their axes lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmflow.quantize.qparams import QParam
from tvmflow.quantize.realize.emit import same

UNSIGNED = 128
"""Activations are written as uint8: codes and zero points are this much above those of int8."""

CHANNELS_FIRST = (0, 3, 1, 2)
"""Order of a channels-last tensor that ONNX reads as NCHW."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the Relax graph as it exists in the ONNX graph."""

    name: str
    shape: tuple[int, ...]
    """Shape in the Relax graph."""
    order: tuple[int, ...]
    """Axis ``i`` in the ONNX graph is axis ``order[i]`` of the Relax graph: a transpose changes this and writes no node."""
    param: QParam | None = None
    """Parameters of the QDQ pair that it comes out of, None without one."""

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape in the ONNX graph."""
        return tuple(self.shape[axis] for axis in self.order)

    def axis(self, axis: int) -> int:
        """Place in the ONNX graph of an axis of the Relax graph, negative ones included."""
        return self.order.index(axis % len(self.order))


@dataclass(frozen=True)
class Constant:
    """A constant operand: float values, or int8 codes with their parameters."""

    values: np.ndarray
    param: QParam | None = None


Operand = Tensor | Constant


def plain(shape: Sequence[int]) -> tuple[int, ...]:
    """Order of a tensor whose axes lie as in the Relax graph."""
    return tuple(range(len(shape)))


class OnnxWriter:
    """Collects nodes in order; every tensor and node gets a name of its own. ``reserved`` are the names of inputs and outputs."""

    def __init__(self, reserved: Sequence[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._tensors = set(reserved)
        self._layers: set[str] = set()
        self._moved: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def node(self, op: str, inputs: Sequence[str], name: str, **attrs: Any) -> str:
        """Adds a node with one result and returns the result's name."""
        return self.nodes_of(op, inputs, [name], name, **attrs)[0]

    def nodes_of(self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attrs: Any) -> list[str]:
        """Adds a node with several results."""
        results = [_unique(o, self._tensors) for o in outputs]
        self.nodes.append(helper.make_node(op, list(inputs), results, _unique(name, self._layers), **attrs))
        return results

    def constant(self, values: np.ndarray, name: str) -> str:
        """Adds an initializer."""
        unique = _unique(name, self._tensors)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), unique))
        return unique

    def integers(self, values: Sequence[int], name: str) -> str:
        """Adds an int64 vector: axes, shapes, sizes."""
        return self.constant(np.array(values, np.int64), name)

    def pair(self, x: Tensor, param: QParam) -> Tensor:
        """``x`` through QuantizeLinear and DequantizeLinear; itself when it comes out of the same pair."""
        if x.param is not None and same(x.param, param):
            return x
        scale = self.constant(np.float32(param.scale[0]), f"{x.name}_scale")
        zero = self.constant(np.uint8(param.zero_point + UNSIGNED), f"{x.name}_zero_point")
        codes = self.node("QuantizeLinear", [x.name, scale, zero], f"{x.name}_quantized")
        real = self.node("DequantizeLinear", [codes, scale, zero], f"{x.name}_dequantized")
        return replace(x, name=real, param=param)

    def reordered(self, x: Tensor, order: tuple[int, ...]) -> Tensor:
        """``x`` with its axes in ``order``: a Transpose at most once, inside a pair of its own when ``x`` comes out of one."""
        if x.order == order:
            return x
        key = (x.name, x.shape, order)
        if key not in self._moved:
            dims = [d for d in x.order if x.shape[d] > 1]
            if dims == [d for d in order if x.shape[d] > 1]:  # only axes of one element move
                name = self._reshape(x.name, [x.shape[d] for d in order])
            else:
                name = self.node("Transpose", [x.name], f"{x.name}/transpose", perm=[x.order.index(axis) for axis in order])
            self._moved[key] = self.again(Tensor(name, x.shape, order), x.param)
        return self._moved[key]

    def reshaped(self, x: Tensor, shape: tuple[int, ...], name: str = "") -> Tensor:
        """``x`` in another shape, axes in order."""
        if x.shape == shape and x.order == plain(shape):
            return x
        if [d for d in x.order if x.shape[d] > 1] != [d for d in plain(x.shape) if x.shape[d] > 1]:
            x = self.reordered(x, plain(x.shape))
        return self.again(Tensor(self._reshape(x.name, shape, name), shape, plain(shape)), x.param)

    def again(self, x: Tensor, param: QParam | None) -> Tensor:
        """A moved tensor in the pair that it had before, so that the move itself is one of integers."""
        return x if param is None else self.pair(x, param)

    def aligned(self, operand: Operand, order: tuple[int, ...], name: str) -> str:
        """Name of an operand of an elementwise operator whose result has ``order``; NumPy's broadcasting is kept."""
        if isinstance(operand, Tensor):
            rank = len(order) - len(operand.shape)
            if rank == 0:
                return self.reordered(operand, order).name
            if order == plain(order):
                return self.reordered(operand, plain(operand.shape)).name
            return self.reordered(self.reshaped(operand, (1,) * rank + operand.shape), order).name
        values = operand.values
        if values.size == 1 and values.ndim <= len(order):
            return self.operand(Constant(values.reshape(()), operand.param), name)
        values = values.reshape((1,) * (len(order) - values.ndim) + values.shape).transpose(order)
        return self.operand(Constant(values, operand.param), name)

    def operand(self, operand: Operand, name: str) -> str:
        """Name of an operand, axes as in the Relax graph; codes become real numbers through DequantizeLinear."""
        if isinstance(operand, Tensor):
            return self.reordered(operand, plain(operand.shape)).name
        if operand.param is None:
            return self.constant(operand.values, f"{name}_constant")
        codes = self.constant((operand.values.astype(np.int32) + UNSIGNED).astype(np.uint8), f"{name}_constant_quantized")
        scale = self.constant(np.float32(operand.param.scale[0]), f"{name}_constant_scale")
        zero = self.constant(np.uint8(operand.param.zero_point + UNSIGNED), f"{name}_constant_zero_point")
        return self.node("DequantizeLinear", [codes, scale, zero], f"{name}_constant")

    def rename(self, name: str, output: str) -> None:
        """Calls the result of some node ``output``, a reserved name."""
        for node in self.nodes:
            for field in (node.input, node.output):
                for at, used in enumerate(field):
                    if used == name:
                        field[at] = output

    def _reshape(self, x: str, shape: Sequence[int], name: str = "") -> str:
        name = name or f"{x}/reshape"
        return self.node("Reshape", [x, self.integers(shape, f"{name}_shape")], name)


def _unique(name: str, taken: set[str]) -> str:
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}:{count}"
    taken.add(found)
    return found
