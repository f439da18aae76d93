"""PyTorch to Relax: an exported program, node by node under the FX nodes' names; quantized (PT2E) programs included."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.errors import MissingTool, ModelError, UnsupportedOperator, UsageError
from tvmflow.importer.source import EXACT_ARITHMETIC, HALF, QUANTIZED, Framework, Loaded, Say
from tvmflow.model import TensorInfo

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from tvmflow.importer.worker import Job

try:
    import torch
except ModuleNotFoundError as e:
    raise MissingTool("PyTorch models need torch", remedy="pip install 'tvmflow[torch]'") from e

UNQUANTIZED = (
    "quantize with the PT2E flow (static, per-tensor activations), or import the float model and let tvmflow quantize it"
)

ELSEWHERE = "write it with other operators, or export the model to ONNX and import that"


def export(module: Any, example: Any) -> ExportedProgram:
    """Exports a module in evaluation mode on example inputs: a tensor, or a tuple of positional arguments.

    Raises
    ------
    UsageError : not a module
    ModelError : torch.export refuses it
    """
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"expected an nn.Module and example inputs, not a {type(module).__name__}")
    args = tuple(example) if isinstance(example, tuple | list) else (example,)
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            return torch.export.export(module, args)
    except Exception as e:  # torch.export runs the user's code: any exception means that it can't be exported
        raise ModelError(
            f"torch.export can't export it: {first_line(e)}",
            where=type(module).__name__,
            remedy="see torch.export's documentation, or export to ONNX and import that",
        ) from e
    finally:
        for child, training in modes:
            child.training = training


def content_hash(program: ExportedProgram) -> str:
    """Hash of an exported program: its graph, its parameters and its constants."""
    digest = hashlib.sha256(str(program.graph).encode())
    tensors = {**program.state_dict, **{k: v for k, v in program.constants.items() if isinstance(v, torch.Tensor)}}
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(job: Job, say: Say) -> Loaded:
    """The program of a job, imported."""
    if job.shapes:
        raise UsageError(
            "--shape is for ONNX files",
            remedy="PyTorch programs have the shapes of the example inputs that they were exported with",
        )
    say("reading the program")
    return from_program(read(Path(job.path)), say)


def read(path: Path) -> ExportedProgram:
    """The program of a ``.pt2`` file."""
    import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed.* for programs that use them

    try:
        return torch.export.load(path)
    except Exception as e:  # a damaged archive fails in zipfile, json, pickle or torch's own reader
        raise ModelError(
            f"is no exported program: {first_line(e)}",
            where=str(path),
            remedy="write it with torch.export.save of the same torch version",
        ) from e


def from_program(program: ExportedProgram, say: Say) -> Loaded:
    """An exported program imported.

    Raises
    ------
    ModelError : inputs that are no tensors, or dynamic shapes
    UnsupportedOperator : TVM has no converter for a node
    """
    say("preparing the program")
    inputs = tensor_infos(program, program.graph_signature.user_inputs)
    program = program.run_decompositions()
    quantized = any("quantize" in str(node.target) for node in program.graph.nodes)
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in program.parameters())
    module = convert(program, say)
    outputs = tuple(
        TensorInfo(info.name, info.shape, info.dtype) for info in tensor_infos(program, program.graph_signature.user_outputs)
    )
    tolerance = QUANTIZED if quantized else HALF if half else EXACT_ARITHMETIC
    return Loaded(module, inputs, outputs, (), tolerance, lambda: [reference(program, inputs)])


def tensor_infos(program: ExportedProgram, names: Sequence[Any]) -> tuple[TensorInfo, ...]:
    """Types of graph inputs or outputs; they must be tensors with static shapes."""
    nodes = {node.name: node for node in program.graph.nodes}
    infos = []
    for name in names:
        value = nodes[name].meta.get("val") if isinstance(name, str) and name in nodes else None
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"{name!r} is not a tensor", remedy="export a module whose inputs and outputs are tensors")
        if not all(isinstance(size, int) for size in value.shape):
            raise ModelError(
                f"{name!r} has the dynamic shape {[str(s) for s in value.shape]}",
                remedy="export it without dynamic_shapes, at the sizes to run",
            )
        infos.append(TensorInfo(name, tuple(value.shape), str(value.dtype).removeprefix("torch.")))
    return tuple(infos)


def convert(program: ExportedProgram, say: Say) -> Any:
    """The Relax module of a decomposed program, with the FX nodes' names."""
    from tvm import relax
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    from tvmflow.importer.names import rename
    from tvmflow.importer.tidy import tidy

    known = set(ExportedProgramImporter().convert_map) | set(QUANTIZE)
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target.__name__ not in known:
            remedy = UNQUANTIZED if "quant" in str(node.target) else ELSEWHERE
            raise UnsupportedOperator("no lowering for this operator", where=describe(node), remedy=remedy)
    now = [""]

    class Importer(ExportedProgramImporter):
        """TVM's importer, saying which node it converts."""

        def _translate_fx_graph(self, graph_module: Any, nodes: Any, *rest: Any) -> Any:
            def announced() -> Iterator[Any]:
                for node in nodes:
                    now[0] = describe(node)
                    say(now[0])
                    yield node

            return super()._translate_fx_graph(graph_module, announced(), *rest)

    importer = Importer()
    try:
        module = importer.from_exported_program(program, False, True, False, dict(QUANTIZE))
    except Exception as e:  # foreign converters fail with any kind of exception; every one means: this node can't be imported
        raise UnsupportedOperator(f"TVM can't convert it: {first_line(e)}", where=now[0], remedy=ELSEWHERE) from e
    names: dict[str, str] = {}
    for node, value in importer.env.items():
        if isinstance(value, relax.Var) and node.op != "placeholder":
            names.setdefault(value.name, node.name)
    return tidy(rename(module, names, {}))


def describe(node: Any) -> str:
    """FX node name and operator, for errors."""
    return f"node {node.name!r} ({node.target})"


def reference(program: ExportedProgram, inputs: Sequence[TensorInfo]) -> Framework:
    """The program, run by torch."""
    from torch.utils import _pytree as pytree

    module = program.module()

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        flat = [torch.from_numpy(np.array(feeds[info.name])) for info in inputs]
        args, kwargs = pytree.tree_unflatten(flat, program.call_spec.in_spec)
        with torch.no_grad():
            return [value.numpy() for value in pytree.tree_leaves(module(*args, **kwargs))]

    return Framework(run, f"torch {torch.__version__}", (RuntimeError, IndexError))


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# -- PT2E: quantized_decomposed.* --------------------------------------------------------------------------------------------

DTYPES = {torch.int8: "int8", torch.uint8: "uint8", torch.int16: "int16", torch.uint16: "uint16", torch.int32: "int32"}

Converter = Callable[[Any, Any], Any]


def quantize_tensor(node: Any, importer: Any) -> Any:
    """quantize_per_tensor(x, scale, zero point, low, high, dtype)."""
    x, scale, zero, low, high, dtype = node.args
    return quantized(
        importer,
        importer.env[x],
        number(importer, scale, "float32"),
        number(importer, zero, "int32"),
        0,
        low,
        high,
        DTYPES[dtype],
    )


def quantize_channel(node: Any, importer: Any) -> Any:
    """quantize_per_channel(x, scales, zero points, axis, low, high, dtype)."""
    x, scales, zeros, axis, low, high, dtype = node.args
    return quantized(
        importer,
        importer.env[x],
        number(importer, scales, "float32"),
        number(importer, zeros, "int32"),
        axis,
        low,
        high,
        DTYPES[dtype],
    )


def quantized(importer: Any, x: Any, scale: Any, zero: Any, axis: int, low: int, high: int, dtype: str) -> Any:
    """``R.quantize``, clipped where the range is narrower than the type's."""
    from tvm import relax

    q = importer.block_builder.emit(relax.op.quantize(x, scale, zero, axis, dtype))
    limits = np.iinfo(dtype)
    if (low, high) == (limits.min, limits.max):
        return q
    return importer.block_builder.emit(relax.op.clip(q, low, high))


def dequantize_tensor(node: Any, importer: Any) -> Any:
    """dequantize_per_tensor(q, scale, zero point, low, high, dtype)."""
    q, scale, zero, *_ = node.args
    return dequantized(importer, importer.env[q], number(importer, scale, "float32"), number(importer, zero, "int32"), 0)


def dequantize_channel(node: Any, importer: Any) -> Any:
    """dequantize_per_channel(q, scales, zero points, axis, low, high, dtype); zero points may be left out."""
    q, scales, zeros, axis, *_ = node.args
    return dequantized(
        importer, importer.env[q], number(importer, scales, "float32"), number(importer, zeros or 0, "int32"), axis
    )


def dequantized(importer: Any, q: Any, scale: Any, zero: Any, axis: int) -> Any:
    from tvm import relax

    return importer.block_builder.emit(relax.op.dequantize(q, scale, zero, axis, "float32"))


def number(importer: Any, value: Any, dtype: str) -> Any:
    """A scale or zero point as a Relax operand: a number in the graph, or a buffer of the program."""
    from tvm import relax

    if isinstance(value, int | float):
        return relax.const(np.array(value, dtype))
    found = importer.env[value]
    return found if str(found.ty.dtype) == dtype else importer.block_builder.emit(relax.op.astype(found, dtype))


QUANTIZE: Mapping[str, Converter] = {
    "quantize_per_tensor.default": quantize_tensor,
    "quantize_per_tensor.tensor": quantize_tensor,
    "dequantize_per_tensor.default": dequantize_tensor,
    "dequantize_per_tensor.tensor": dequantize_tensor,
    "quantize_per_channel.default": quantize_channel,
    "dequantize_per_channel.default": dequantize_channel,
}
"""Converters for the operators by which PT2E programs carry their parameters."""
