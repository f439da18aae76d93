"""ONNX nodes of single Relax operators: the literal table :data:`OPERATORS`.

Axes are those of the operands as they lie in the ONNX graph; a permute_dims writes no node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx
from tvm import relax, tirx

from tvmflow.errors import UnsupportedOperator
from tvmflow.quantize.elementwise import scalar
from tvmflow.quantize.export_qdq.products import window
from tvmflow.quantize.export_qdq.writer import CHANNELS_FIRST, Constant, OnnxWriter, Operand, Tensor, plain
from tvmflow.quantize.graph import op_of

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Layer:
    """One binding to write: its name, its call, its tensor operands in order, the shape and dtype of its result."""

    name: str
    call: relax.Call
    operands: tuple[Operand, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def x(self) -> Tensor:
        """The first operand, which must be computed."""
        if not isinstance(self.operands[0], Tensor):
            raise unsupported(self, "of a constant")
        return self.operands[0]

    def constant(self, index: int) -> np.ndarray:
        """An operand that must be constant."""
        operand = self.operands[index]
        if isinstance(operand, Tensor):
            raise unsupported(self, f"with operand {index} computed at run time")
        return operand.values


Write = Callable[[OnnxWriter, Layer], Result]


def unsupported(layer: Layer, why: str = "") -> UnsupportedOperator:
    """The error about a layer that has no form in a QDQ model."""
    return UnsupportedOperator(
        f"{op_of(layer.call)} {why}".strip() + " can't be written to a QDQ model",
        where=layer.name,
        remedy="save the parameters as .json and give them to `tvmflow compile --params`",
    )


def _elementwise(op: str, **attrs: object) -> Write:
    def write(w: OnnxWriter, layer: Layer) -> Tensor:
        tensors = [o for o in layer.operands if isinstance(o, Tensor) and len(o.shape) == len(layer.shape)]
        order = max(tensors, key=lambda t: prod(t.shape)).order if tensors else plain(layer.shape)
        inputs = [w.aligned(o, order, layer.name) for o in layer.operands]
        return Tensor(w.node(op, inputs, layer.name, **attrs), layer.shape, order)

    return write


def _like(layer: Layer, name: str) -> Tensor:
    """The result ``name`` of a layer that keeps shape and order of its first operand."""
    return Tensor(name, layer.shape, layer.x.order)


def _silu(w: OnnxWriter, layer: Layer) -> Tensor:
    gate = w.node("Sigmoid", [layer.x.name], f"{layer.name}/sigmoid")
    return _like(layer, w.node("Mul", [layer.x.name, gate], layer.name))


def _square(w: OnnxWriter, layer: Layer) -> Tensor:
    return _like(layer, w.node("Mul", [layer.x.name, layer.x.name], layer.name))


def _rsqrt(w: OnnxWriter, layer: Layer) -> Tensor:
    return _like(layer, w.node("Reciprocal", [w.node("Sqrt", [layer.x.name], f"{layer.name}/sqrt")], layer.name))


def _softplus(w: OnnxWriter, layer: Layer) -> Tensor:
    if float(layer.call.attrs.beta) != 1.0:
        raise unsupported(layer, "with a factor")
    return _like(layer, w.node("Softplus", [layer.x.name], layer.name))


def _leaky_relu(w: OnnxWriter, layer: Layer) -> Tensor:
    return _like(layer, w.node("LeakyRelu", [layer.x.name], layer.name, alpha=float(layer.call.attrs.alpha)))


def _prelu(w: OnnxWriter, layer: Layer) -> Tensor:
    rank, axis = len(layer.shape), int(layer.call.attrs.axis)
    slope = layer.constant(1).reshape([-1 if d == axis % rank else 1 for d in range(rank)])
    inputs = [layer.x.name, w.aligned(Constant(slope), layer.x.order, layer.name)]
    return _like(layer, w.node("PRelu", inputs, layer.name))


def _clip(w: OnnxWriter, layer: Layer) -> Tensor:
    bounds = (0.0, 6.0) if op_of(layer.call) == "relu6" else tuple(scalar(a) for a in layer.call.args[1:])
    inputs = [w.constant(np.array(b, layer.dtype), f"{layer.name}_{end}") for b, end in zip(bounds, ("min", "max"), strict=True)]
    return _like(layer, w.node("Clip", [layer.x.name, *inputs], layer.name))


def _cast(w: OnnxWriter, layer: Layer) -> Tensor:
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(layer.dtype))
    return _like(layer, w.node("Cast", [layer.x.name], layer.name, to=to))


def _conv2d(w: OnnxWriter, layer: Layer) -> Tensor:
    """A convolution left in float."""
    attrs = layer.call.attrs
    if (attrs.data_layout, attrs.kernel_layout) != ("NHWC", "OHWI"):
        raise unsupported(layer, f"in layout {attrs.data_layout}/{attrs.kernel_layout}")
    x = w.reordered(layer.x, CHANNELS_FIRST)
    weight = w.aligned(layer.operands[1], CHANNELS_FIRST, f"{layer.name}:weight")
    return Tensor(w.node("Conv", [x.name, weight], layer.name, **window(attrs)), layer.shape, CHANNELS_FIRST)


def _matmul(w: OnnxWriter, layer: Layer) -> Tensor:
    inputs = [w.operand(o, f"{layer.name}:weight") for o in layer.operands]
    return Tensor(w.node("MatMul", inputs, layer.name), layer.shape, plain(layer.shape))


def _pool(op: str) -> Write:
    def write(w: OnnxWriter, layer: Layer) -> Tensor:
        attrs = layer.call.attrs
        if attrs.layout != "NHWC":
            raise unsupported(layer, f"in layout {attrs.layout}")
        window = {name: [int(v) for v in value] for name, value in (
            ("kernel_shape", attrs.pool_size), ("strides", attrs.strides), ("pads", attrs.padding), ("dilations", attrs.dilation)
        )}  # fmt: skip
        if set(window["dilations"]) == {1}:
            del window["dilations"]  # onnxruntime's QLinearAveragePool does not know the attribute
        average = {"count_include_pad": int(attrs.count_include_pad)} if op == "AveragePool" else {}
        x = w.reordered(layer.x, CHANNELS_FIRST)
        name = w.node(op, [x.name], layer.name, ceil_mode=int(attrs.ceil_mode), **window, **average)
        return Tensor(name, layer.shape, CHANNELS_FIRST)

    return write


def _adaptive_pool(w: OnnxWriter, layer: Layer) -> Tensor:
    if layer.call.attrs.layout != "NHWC" or layer.shape[1:3] != (1, 1):
        raise unsupported(layer, "to more than one element")
    x = w.reordered(layer.x, CHANNELS_FIRST)
    return Tensor(w.node("GlobalAveragePool", [x.name], layer.name), layer.shape, CHANNELS_FIRST)


def _axes(layer: Layer) -> list[int]:
    """Axes of a reduction in the Relax graph."""
    axes, rank = layer.call.attrs.axis, len(layer.x.shape)
    return list(range(rank)) if axes is None else sorted(int(a) % rank for a in axes)


def _reduce(op: str) -> Write:
    def write(w: OnnxWriter, layer: Layer) -> Tensor:
        x, axes, keep = layer.x, _axes(layer), bool(layer.call.attrs.keepdims)
        if op == "ReduceMean" and keep and len(x.shape) == 4 and axes == [1, 2]:
            x = w.reordered(x, CHANNELS_FIRST)
            return Tensor(w.node("GlobalAveragePool", [x.name], layer.name), layer.shape, x.order)
        inputs = [x.name, w.integers(sorted(x.axis(a) for a in axes), f"{layer.name}_axes")]
        name = w.node(op, inputs, layer.name, keepdims=int(keep))
        if keep:
            return Tensor(name, layer.shape, x.order)
        left = [a for a in x.order if a not in axes]
        return Tensor(name, layer.shape, tuple(sorted(left).index(a) for a in left))

    return write


def _softmax(op: str) -> Write:
    def write(w: OnnxWriter, layer: Layer) -> Tensor:
        return _like(layer, w.node(op, [layer.x.name], layer.name, axis=layer.x.axis(int(layer.call.attrs.axis))))

    return write


def _layer_norm(w: OnnxWriter, layer: Layer) -> Tensor:
    attrs, rank = layer.call.attrs, len(layer.shape)
    axes = sorted(int(a) % rank for a in attrs.axes)
    if axes != list(range(axes[0], rank)):
        raise unsupported(layer, f"over axes {axes}")
    inputs = [w.operand(o, f"{layer.name}_{part}") for o, part in zip(layer.operands, ("x", "scale", "bias"), strict=True)]
    name = w.node("LayerNormalization", inputs, layer.name, axis=axes[0], epsilon=float(attrs.epsilon))
    return Tensor(name, layer.shape, plain(layer.shape))


def _reshape(w: OnnxWriter, layer: Layer) -> Tensor:
    return w.reshaped(layer.x, layer.shape, layer.name)


def _permute(w: OnnxWriter, layer: Layer) -> Tensor:
    rank = len(layer.shape)
    axes = layer.call.attrs.axes
    moved = list(reversed(range(rank))) if axes is None else [int(a) % rank for a in axes]
    return replace(layer.x, shape=layer.shape, order=tuple(moved.index(axis) for axis in layer.x.order))


def _concat(w: OnnxWriter, layer: Layer) -> Tensor:
    tensors = [o for o in layer.operands if isinstance(o, Tensor)]
    order = tensors[0].order if tensors else plain(layer.shape)
    names = [_joined(w, o, order, layer.name) for o in layer.operands]
    axis = order.index(int(layer.call.attrs.axis or 0) % len(order))
    return Tensor(w.node("Concat", names, layer.name, axis=axis), layer.shape, order)


def _joined(w: OnnxWriter, operand: Operand, order: tuple[int, ...], name: str) -> str:
    if isinstance(operand, Tensor):
        return w.reordered(operand, order).name
    return w.constant(operand.values.transpose(order), f"{name}_constant")


def _split(w: OnnxWriter, layer: Layer) -> tuple[Tensor, ...]:
    attrs, x = layer.call.attrs, layer.x
    axis, parts = int(attrs.axis) % len(x.shape), attrs.indices_or_sections
    size = x.shape[axis]
    if isinstance(parts, int | tirx.IntImm):
        step = -(-size // int(parts))
        cuts = [*range(0, size, step), size]
    else:
        cuts = [0, *(int(p) for p in parts), size]
    sizes = [end - begin for begin, end in zip(cuts, cuts[1:], strict=False)]
    outputs = [f"{layer.name}/{k}" for k in range(len(sizes))]
    inputs = [x.name, w.integers(sizes, f"{layer.name}_sizes")]
    names = w.nodes_of("Split", inputs, outputs, layer.name, axis=x.axis(axis))
    return tuple(Tensor(n, (*x.shape[:axis], s, *x.shape[axis + 1 :]), x.order) for n, s in zip(names, sizes, strict=True))


def _slice(w: OnnxWriter, layer: Layer) -> Tensor:
    axes, begin, end, *strides = ([int(v.value) for v in arg.fields] for arg in layer.call.args[1:])
    steps = strides[0] if strides else [1] * len(axes)
    return _sliced(w, layer, axes, begin, end, steps)


def _flip(w: OnnxWriter, layer: Layer) -> Tensor:
    return _sliced(w, layer, [int(layer.call.attrs.axis)], [-1], [np.iinfo(np.int64).min], [-1])


def _sliced(
    w: OnnxWriter, layer: Layer, axes: Sequence[int], begin: Sequence[int], end: Sequence[int], steps: Sequence[int]
) -> Tensor:
    places = [layer.x.axis(a) for a in axes]
    parts = (("starts", begin), ("ends", end), ("axes", places), ("steps", steps))
    inputs = [layer.x.name, *(w.integers(values, f"{layer.name}_{part}") for part, values in parts)]
    return _like(layer, w.node("Slice", inputs, layer.name))


def _pad(w: OnnxWriter, layer: Layer) -> Tensor:
    attrs, order = layer.call.attrs, layer.x.order
    if attrs.pad_mode != "constant":
        raise unsupported(layer, f"in mode {attrs.pad_mode}")
    width = [int(v) for v in attrs.pad_width]
    pads = [width[2 * a] for a in order] + [width[2 * a + 1] for a in order]
    value = w.constant(np.array(float(attrs.pad_value), layer.dtype), f"{layer.name}_value")
    return _like(layer, w.node("Pad", [layer.x.name, w.integers(pads, f"{layer.name}_pads"), value], layer.name))


RESIZE = {"nearest_neighbor": "nearest", "linear": "linear", "cubic": "cubic"}
ROUNDING = {"": "round_prefer_ceil", "round": "round_prefer_ceil"}


def _resize(w: OnnxWriter, layer: Layer) -> Tensor:
    attrs = layer.call.attrs
    if attrs.layout != "NHWC" or attrs.method not in RESIZE:
        raise unsupported(layer, f"by {attrs.method} in layout {attrs.layout}")
    x = w.reordered(layer.x, CHANNELS_FIRST)
    how: dict[str, object] = {
        "mode": RESIZE[attrs.method],
        "coordinate_transformation_mode": str(attrs.coordinate_transformation_mode),
    }
    if attrs.method == "nearest_neighbor":
        how["nearest_mode"] = ROUNDING.get(attrs.rounding_method, str(attrs.rounding_method))
    if attrs.method == "cubic":
        how.update(cubic_coeff_a=float(attrs.cubic_alpha), exclude_outside=int(attrs.cubic_exclude))
    sizes = w.integers([layer.shape[a] for a in CHANNELS_FIRST], f"{layer.name}_sizes")
    return Tensor(w.node("Resize", [x.name, "", "", sizes], layer.name, **how), layer.shape, CHANNELS_FIRST)


def _tile(w: OnnxWriter, layer: Layer) -> Tensor:
    repeats = [int(r) for r in layer.call.attrs.repeats]
    if len(repeats) != len(layer.x.shape):
        raise unsupported(layer, "that changes the rank")
    inputs = [layer.x.name, w.integers([repeats[a] for a in layer.x.order], f"{layer.name}_repeats")]
    return _like(layer, w.node("Tile", inputs, layer.name))


def _repeat(w: OnnxWriter, layer: Layer) -> Tensor:
    attrs = layer.call.attrs
    if attrs.axis is None:
        raise unsupported(layer, "of a flattened tensor")
    axis = int(attrs.axis) % len(layer.shape)
    index = np.repeat(np.arange(layer.x.shape[axis]), int(attrs.repeats))
    inputs = [layer.x.name, w.integers(index.tolist(), f"{layer.name}_indices")]
    return _like(layer, w.node("Gather", inputs, layer.name, axis=layer.x.axis(axis)))


def _broadcast(w: OnnxWriter, layer: Layer) -> Tensor:
    inputs = [w.operand(layer.x, layer.name), w.integers(layer.shape, f"{layer.name}_shape")]
    return Tensor(w.node("Expand", inputs, layer.name), layer.shape, plain(layer.shape))


def _take(w: OnnxWriter, layer: Layer) -> Tensor:
    if layer.call.attrs.axis is None:
        raise unsupported(layer, "of a flattened tensor")
    inputs = [w.operand(o, f"{layer.name}_{part}") for o, part in zip(layer.operands, ("data", "indices"), strict=True)]
    return Tensor(w.node("Gather", inputs, layer.name, axis=int(layer.call.attrs.axis)), layer.shape, plain(layer.shape))


OPERATORS: dict[str, Write] = {
    "abs": _elementwise("Abs"), "acos": _elementwise("Acos"), "acosh": _elementwise("Acosh"), "asin": _elementwise("Asin"),
    "asinh": _elementwise("Asinh"), "atan": _elementwise("Atan"), "atanh": _elementwise("Atanh"), "ceil": _elementwise("Ceil"),
    "cos": _elementwise("Cos"), "cosh": _elementwise("Cosh"), "erf": _elementwise("Erf"), "exp": _elementwise("Exp"),
    "floor": _elementwise("Floor"), "gelu": _elementwise("Gelu"), "gelu_tanh": _elementwise("Gelu", approximate="tanh"),
    "log": _elementwise("Log"), "negative": _elementwise("Neg"), "relu": _elementwise("Relu"), "round": _elementwise("Round"),
    "selu": _elementwise("Selu"), "sigmoid": _elementwise("Sigmoid"), "sign": _elementwise("Sign"), "sin": _elementwise("Sin"),
    "sinh": _elementwise("Sinh"), "sqrt": _elementwise("Sqrt"), "tan": _elementwise("Tan"), "tanh": _elementwise("Tanh"),
    "add": _elementwise("Add"), "subtract": _elementwise("Sub"), "multiply": _elementwise("Mul"), "divide": _elementwise("Div"),
    "maximum": _elementwise("Max"), "minimum": _elementwise("Min"), "power": _elementwise("Pow"), "where": _elementwise("Where"),
    "equal": _elementwise("Equal"), "greater": _elementwise("Greater"), "greater_equal": _elementwise("GreaterOrEqual"),
    "less": _elementwise("Less"), "less_equal": _elementwise("LessOrEqual"), "logical_and": _elementwise("And"),
    "logical_or": _elementwise("Or"), "logical_xor": _elementwise("Xor"), "logical_not": _elementwise("Not"),
    "silu": _silu, "square": _square, "rsqrt": _rsqrt, "softplus": _softplus, "leakyrelu": _leaky_relu, "prelu": _prelu,
    "clip": _clip, "relu6": _clip, "astype": _cast,
    "conv2d": _conv2d, "matmul": _matmul, "max_pool2d": _pool("MaxPool"), "avg_pool2d": _pool("AveragePool"),
    "adaptive_avg_pool2d": _adaptive_pool,
    "mean": _reduce("ReduceMean"), "sum": _reduce("ReduceSum"), "max": _reduce("ReduceMax"), "min": _reduce("ReduceMin"),
    "prod": _reduce("ReduceProd"), "softmax": _softmax("Softmax"), "log_softmax": _softmax("LogSoftmax"),
    "layer_norm": _layer_norm,
    "reshape": _reshape, "flatten": _reshape, "squeeze": _reshape, "expand_dims": _reshape, "permute_dims": _permute,
    "concat": _concat, "split": _split, "strided_slice": _slice, "flip": _flip, "pad": _pad, "resize2d": _resize,
    "tile": _tile, "repeat": _repeat, "broadcast_to": _broadcast, "take": _take,
}  # fmt: skip
"""Relax operators with the function that writes each."""


def write_layer(w: OnnxWriter, layer: Layer) -> Result:
    """Nodes of one binding. Raises UnsupportedOperator that names it when ONNX has no equal of its operator."""
    write = OPERATORS.get(op_of(layer.call))
    if write is None:
        raise unsupported(layer)
    return write(w, layer)
