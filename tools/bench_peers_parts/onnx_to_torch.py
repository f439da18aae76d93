"""An ONNX network as a torch module with the operators that torch users write, for runtimes that start from torch.

Batch norms are folded into convolutions, a product with a constant matrix plus a constant row is ``linear``: what the quantizers
of those runtimes look for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper

Values = dict[str, Any]


class Network(torch.nn.Module):
    """``forward(*inputs)`` in the order of the model's inputs; one output. Raises NotImplementedError for other operators."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        loaded = onnx.load(model)
        constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in loaded.graph.initializer}
        graph = fuse(list(loaded.graph.node), constants)
        if unknown := sorted({node.op_type for node in graph} - set(OPERATORS)):
            raise NotImplementedError(f"no translation to torch for {', '.join(unknown)}")
        self.inputs = [value.name for value in loaded.graph.input]
        (self.output,) = (value.name for value in loaded.graph.output)
        self.nodes = [(n.op_type, list(n.input), n.output[0], attributes(n)) for n in graph]
        self.host: Values = {}
        for number, (name, value) in enumerate(constants.items()):
            if value.is_floating_point() and value.dim():
                self.register_buffer(f"constant{number}", value)
            else:
                self.host[name] = value.tolist()  # shapes, axes and scalars are part of the program
        self.names = {n: f"constant{i}" for i, n in enumerate(constants) if n not in self.host}

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        values: Values = {**self.host, **{name: getattr(self, buffer) for name, buffer in self.names.items()}}
        values |= zip(self.inputs, inputs, strict=True)
        for op, names, output, given in self.nodes:
            arguments = [values[name] if name else None for name in names]
            values[output] = OPERATORS[op](given, *arguments)
        result: torch.Tensor = values[self.output]
        return result


def fuse(nodes: list[onnx.NodeProto], constants: dict[str, torch.Tensor]) -> list[onnx.NodeProto]:
    """The nodes with batch norms and biases folded into what is before them; ``constants`` gains what they become."""
    uses = Counter(name for node in nodes for name in node.input)
    maker = {node.output[0]: node for node in nodes}
    kept: list[onnx.NodeProto] = []
    for node in nodes:
        before = maker.get(node.input[0])
        alone = before is not None and uses[node.input[0]] == 1
        if before and alone and node.op_type == "BatchNormalization" and before.op_type == "Conv":
            fold_norm(node, before, constants)
        elif (
            before
            and alone
            and node.op_type == "Add"
            and before.op_type == "Linear"
            and len(before.input) == 2
            and node.input[1] in constants
        ):
            before.input.append(node.input[1])
        else:
            if node.op_type == "MatMul" and node.input[1] in constants:
                weight = f"{node.input[1]}.T"
                constants[weight] = constants[node.input[1]].T.contiguous()
                node = helper.make_node("Linear", [node.input[0], weight], list(node.output))
            kept.append(node)
            maker[node.output[0]] = node
            continue
        before.output[0] = node.output[0]
        maker[node.output[0]] = before
    used = {name for node in kept for name in node.input}
    for name in set(constants) - used:
        del constants[name]
    return kept


def fold_norm(norm: onnx.NodeProto, conv: onnx.NodeProto, constants: dict[str, torch.Tensor]) -> None:
    scale, shift, mean, variance = (constants[name] for name in norm.input[1:])
    factor = scale / torch.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
    bias = constants[conv.input[2]] if len(conv.input) > 2 else torch.zeros_like(mean)
    made = {
        f"{norm.output[0]}.weight": constants[conv.input[1]] * factor[:, None, None, None],
        f"{norm.output[0]}.bias": (bias - mean) * factor + shift,
    }
    constants |= made
    conv.input[:] = [conv.input[0], *made]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def conv(given: dict[str, Any], x: Any, weight: Any, bias: Any = None) -> Any:
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    stride, dilation, groups = given.get("strides", [1, 1]), given.get("dilations", [1, 1]), given.get("group", 1)
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, [left, right, top, bottom]), 0, 0
    return F.conv2d(x, weight, bias, stride, [top, left], dilation, groups)


def max_pool(given: dict[str, Any], x: Any) -> Any:
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise NotImplementedError("a max pool with uneven padding")
    return F.max_pool2d(x, given["kernel_shape"], given.get("strides"), [top, left])


def clip(given: dict[str, Any], x: Any, low: Any, high: Any) -> Any:
    return F.relu6(x) if (low, high) == (0.0, 6.0) else torch.clamp(x, low, high)


def gemm(given: dict[str, Any], x: Any, weight: Any, bias: Any = None) -> Any:
    return F.linear(x, weight if given.get("transB") else weight.T, bias)


def norm(given: dict[str, Any], x: Any, scale: Any, bias: Any) -> Any:
    return F.layer_norm(x, scale.shape, scale, bias, given["epsilon"])


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda given, a, b: a + b,
    "Cast": lambda given, x: x.to(torch.float32),
    "Clip": clip,
    "Conv": conv,
    "Div": lambda given, a, b: a / b,
    "Erf": lambda given, x: torch.erf(x),
    "Flatten": lambda given, x: torch.flatten(x, given.get("axis", 1)),
    "Gather": lambda given, table, ids: F.embedding(ids, table),
    "Gemm": gemm,
    "GlobalAveragePool": lambda given, x: F.adaptive_avg_pool2d(x, 1),
    "LayerNormalization": norm,
    "Linear": lambda given, x, weight, bias=None: F.linear(x, weight, bias),
    "MatMul": lambda given, a, b: torch.matmul(a, b),
    "Max": lambda given, x, low: torch.clamp(x, min=low),
    "MaxPool": max_pool,
    "Mul": lambda given, a, b: a * b,
    "ReduceL2": lambda given, x: torch.sqrt(torch.sum(x * x, given["axes"], keepdim=bool(given.get("keepdims", 1)))),
    "ReduceSum": lambda given, x, axes: torch.sum(x, axes, keepdim=bool(given.get("keepdims", 1))),
    "Relu": lambda given, x: F.relu(x),
    "Reshape": lambda given, x, shape: torch.reshape(x, shape),
    "Softmax": lambda given, x: torch.softmax(x, given.get("axis", -1)),
    "Sub": lambda given, a, b: a - b,
    "Transpose": lambda given, x: x.permute(given["perm"]),
}
"""(attributes, inputs) -> output."""
