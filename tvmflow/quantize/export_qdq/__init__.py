"""A quantized model as ONNX with QuantizeLinear/DequantizeLinear pairs (QDQ), for other tools and for reading again.

::

    Plan     conv2d(x) + bias, relu6        parameters of x, of the weight and of the result
    ONNX     QuantizeLinear -> DequantizeLinear -> Conv -> QuantizeLinear -> DequantizeLinear
                                                    '- DequantizeLinear of int8 weights, of an int32 bias

1. The float graph is written operator by operator, under the names of the user's layers, and in NCHW again: a transpose only
   changes how later nodes count axes.
2. Activations are uint8 (code and zero point 128 above ours), weights int8 with one scale per output channel, biases int32 with
   the scale of the products. These are the integers that realize computes with, not a second quantization.
3. A ReLU or clip behind a layer is left out where saturation of the result does the same.
4. Reading the file again gives the same plan and the same integers. onnxruntime computes on the same integers, but rounds the
   factor of a requantization twice (float32) where ours is rounded once, and computes in float32 what is a table or fixed-point
   here (sums, products, elementwise functions, averages): values next to a tie may become the neighbouring code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from tvm import relax

from tvmflow import __version__
from tvmflow.errors import UnsupportedOperator
from tvmflow.model import Model, TensorInfo
from tvmflow.quantize.export_qdq.operators import Layer, Result, write_layer
from tvmflow.quantize.export_qdq.products import convolution, dense
from tvmflow.quantize.export_qdq.writer import Constant, OnnxWriter, Operand, Tensor, plain
from tvmflow.quantize.graph import constant_of, op_of, view
from tvmflow.quantize.patterns import clamp_of
from tvmflow.quantize.plan import Group, Plan
from tvmflow.quantize.qparams import Origin, QParams
from tvmflow.quantize.realize.emit import Emitter

OPSET, IR_VERSION = 21, 10

PRODUCTS = {"conv2d": convolution, "depthwise": convolution, "dense": dense}

CLAMPED = frozenset({*PRODUCTS, "add", "mul", "scale_shift"})
"""Groups whose last binding may be a clamp."""

COMBINING = frozenset({"add", "mul"})
"""Groups that quantize their constant operands."""


def export_qdq(model: Model, plan: Plan, params: QParams, properties: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """QDQ form of ``model``, the optimized float module, with ``plan`` and ``params``: what realize takes.

    Inputs and outputs keep names, shapes and dtypes. ``properties`` become the file's metadata. Raises UnsupportedOperator for a
    layer that ONNX has no equal of, ConfigError when ``params`` lacks a site of the plan.
    """
    export = _Export(model, plan, params)
    for group in plan.groups:
        export.write(group)
    graph = export.finish(model)
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tvmflow"
    )
    helper.set_model_props(proto, dict(properties or {}))
    return proto


def qdq_properties(recipe: str, origin: Origin) -> dict[str, str]:
    """Metadata of a file: where its parameters come from."""
    return {
        "tvmflow.version": __version__,
        "tvmflow.recipe": recipe,
        "tvmflow.model_sha256": origin.model_sha256,
        "tvmflow.calibration_sha256": origin.calibration_sha256,
        "tvmflow.calibration_samples": str(origin.samples),
    }


def save_qdq(path: Path, proto: onnx.ModelProto) -> None:
    """Writes the file in one step: readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(proto.SerializeToString())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


class _Export:
    """The ONNX graph under construction: each tensor in its float form, behind its QDQ pair, or both, as realize has them."""

    def __init__(self, model: Model, plan: Plan, params: QParams) -> None:
        self.graph = view(model.module)
        self.emitter = Emitter(self.graph, plan, params, "uint8")
        names = [i.name for i in (*model.inputs, *model.outputs)]
        self.writer = OnnxWriter(names)
        self.floats: dict[str, Result] = {}
        self.rounded: dict[str, Tensor] = {}
        for name, info in zip(self.graph.params, model.inputs, strict=True):
            self.floats[name] = Tensor(info.name, info.shape, plain(info.shape))

    def write(self, group: Group) -> None:
        """Nodes of one group; its result behind a pair when it is a site."""
        chain: dict[str, Result] = {}
        rest = list(group.bindings)
        if group.integer and group.op in PRODUCTS:
            x = self._read(group.inputs[0], integer=True)
            assert isinstance(x, Tensor)
            clamps = [b for b in group.bindings[1:] if clamp_of(self.graph, b)]
            rest, before = clamps, group.bindings[len(group.bindings) - len(clamps) - 1]
            chain[before] = PRODUCTS[group.op](self.writer, self.emitter, group, x)
        for name in rest:
            chain[name] = self._binding(group, name, chain)
        result = chain[group.output]
        if group.integer and self.emitter.is_site(group.output) and isinstance(result, Tensor):
            self.rounded[group.output] = self.writer.pair(result, self.emitter.param(group.output))
        else:
            self.floats.update(chain)

    def _binding(self, group: Group, name: str, chain: Mapping[str, Result]) -> Result:
        """One binding as a float operator between pairs."""
        expr = self.graph.exprs[name]
        if isinstance(expr, relax.Var):
            return self._value(group, expr.name, chain)
        if isinstance(expr, relax.TupleGetItem):
            return self._fields(group, name, expr.tuple_value, chain)[expr.index]
        if isinstance(expr, relax.Tuple):
            return tuple(self._fields(group, name, expr, chain))
        constant = constant_of(expr)
        if constant is not None:
            return Tensor(self.writer.constant(constant, name), constant.shape, plain(constant.shape))
        if not isinstance(expr, relax.Call):
            raise UnsupportedOperator(f"{op_of(expr)} can't be written to a QDQ model", where=name)
        if group.integer and group.op in CLAMPED and self._is_saturation(group, name):
            return list(chain.values())[-1]
        operands = tuple(o for arg in expr.args for o in self._operands(group, arg, chain))
        layer = Layer(self._layer_name(name), expr, operands, self.graph.shape(name), self.graph.dtype(name))
        return write_layer(self.writer, layer)

    def _layer_name(self, name: str) -> str:
        """``<layer>:k`` for the parts that the importer calls ``<layer>/k``: reading the file again, it will use those names."""
        whole, _, part = name.rpartition("/")
        return f"{whole}:{part}" if part.isdigit() and whole in self.graph.exprs else name

    def _is_saturation(self, group: Group, name: str) -> bool:
        """Whether ``name`` is a clamp behind other bindings that bounds its result no further than eight bits do."""
        clamp = clamp_of(self.graph, name)
        if clamp is None or name == group.bindings[0]:
            return False
        return self.emitter.bounds(self.emitter.param(group.output), clamp) == (0, 255)

    def _operands(self, group: Group, expr: relax.Expr, chain: Mapping[str, Result]) -> list[Operand]:
        """Tensors and constants that an argument stands for; none for shapes and numbers."""
        constant = constant_of(expr)
        if constant is not None:
            return [self._constant(group, expr, constant)]
        if isinstance(expr, relax.Tuple):
            return [o for field in expr.fields for o in self._operands(group, field, chain)]
        if not isinstance(expr, relax.Var):
            return []
        value = self._value(group, expr.name, chain)
        return list(value) if isinstance(value, tuple) else [value]

    def _constant(self, group: Group, expr: relax.Expr, values: np.ndarray) -> Constant:
        if not (group.integer and group.op in COMBINING):
            return Constant(values)
        codes, param = self.emitter.constant(expr)
        stored = constant_of(codes)
        assert stored is not None  # Emitter.constant returns one
        return Constant(stored.astype(np.int32) - self.emitter.offset, param)

    def _value(self, group: Group, name: str, chain: Mapping[str, Result]) -> Result:
        return chain[name] if name in chain else self._read(name, group.integer)

    def _fields(self, group: Group, name: str, expr: relax.Expr, chain: Mapping[str, Result]) -> list[Tensor]:
        """Elements of a tuple, or of a variable that holds one."""
        fields = []
        for operand in self._operands(group, expr, chain):
            if isinstance(operand, Constant):
                operand = Tensor(self.writer.constant(operand.values, name), operand.values.shape, plain(operand.values.shape))
            fields.append(operand)
        return fields

    def _read(self, name: str, integer: bool) -> Result:
        """A tensor as an integer or a float layer reads it: behind its pair, or without rounding where that exists."""
        if integer and self.emitter.is_site(name) and name not in self.rounded:
            value = self.floats[name]
            assert isinstance(value, Tensor)
            self.rounded[name] = self.writer.pair(value, self.emitter.param(name))
        if name in self.rounded and (integer or name not in self.floats):
            return self.rounded[name]
        return self.floats[name]

    def finish(self, model: Model) -> onnx.GraphProto:
        """The graph with the model's inputs and outputs."""
        results = self._results(model.module["main"].body.body)
        infos = zip(model.outputs, results, strict=True)
        dims = [TensorInfo(info.name, result.shape, info.dtype) for info, result in infos]
        inputs = [i.name for i in model.inputs]
        named: dict[str, str] = {}
        for info, result in zip(model.outputs, results, strict=True):
            self._output(info.name, self.writer.reordered(result, plain(result.shape)).name, inputs, named)
        return helper.make_graph(
            self.writer.nodes,
            model.name or "main",
            [_value_info(i) for i in model.inputs],
            [_value_info(o) for o in dims],
            self.writer.initializers,
        )

    def _results(self, expr: relax.Expr) -> list[Tensor]:
        if isinstance(expr, relax.Tuple):
            return [t for field in expr.fields for t in self._results(field)]
        value = self._read(expr.name, integer=False)
        return list(value) if isinstance(value, tuple) else [value]

    def _output(self, name: str, tensor: str, inputs: Sequence[str], named: dict[str, str]) -> None:
        """Gives a tensor the name of an output; an Identity where it is an input, a constant or another output as well.

        ``named`` holds the tensors that have the name of an output already.
        """
        stored = tensor in inputs or any(i.name == tensor for i in self.writer.initializers)
        if stored or tensor in named:
            self.writer.nodes.append(helper.make_node("Identity", [named.get(tensor, tensor)], [name], f"{name}/output"))
        else:
            self.writer.rename(tensor, name)
            named[tensor] = name


def _value_info(info: TensorInfo) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(info.name, helper.np_dtype_to_tensor_dtype(np.dtype(info.dtype)), info.shape)
