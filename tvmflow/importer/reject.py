"""What has no correct lowering is refused here, by name, before TVM sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from tvmflow.errors import ModelError, UnsupportedOperator
from tvmflow.importer.graph import DOMAINS, Graph, attributes, describe

DTYPES = frozenset(
    {"bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"}
)


@dataclass(frozen=True)
class Refusal:
    """A reason to refuse nodes of ``operators``: ``when(node, graph)`` says yes, ``why`` and ``remedy`` are for the user."""

    operators: tuple[str, ...]
    when: Callable[[onnx.NodeProto, Graph], bool]
    why: str
    remedy: str


def always(node: onnx.NodeProto, graph: Graph) -> bool:
    return True


def training(node: onnx.NodeProto, graph: Graph) -> bool:
    return bool(attributes(node).get("training_mode")) or len([n for n in node.output if n]) > 1


def output_used(index: int) -> Callable[[onnx.NodeProto, Graph], bool]:
    """Whether somebody reads an output."""
    return lambda node, graph: bool(graph.result(node, index))


def inexact_resize(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a Resize is left that the rules could not turn into constants, and TVM computes another way than ONNX."""
    attrs = attributes(node)
    if attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "axes" in attrs
    return not (
        attrs.get("mode") == "nearest"
        and attrs.get("coordinate_transformation_mode") == "asymmetric"
        and attrs.get("nearest_mode") == "floor"
    )


def integer_base(node: onnx.NodeProto, graph: Graph) -> bool:
    dtype = graph.dtype(node.input[0])
    return dtype is not None and dtype.kind in "iu"


def not_average(node: onnx.NodeProto, graph: Graph) -> bool:
    return attributes(node).get("mode", "avg") != "avg"


def too_large_output(node: onnx.NodeProto, graph: Graph) -> bool:
    return "output_shape" in attributes(node)


def not_depth_first(node: onnx.NodeProto, graph: Graph) -> bool:
    return attributes(node).get("mode", "DCR") != "DCR"


def standard(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether it is ONNX's own operator, where TVM knows only com.microsoft's of the same name."""
    return DOMAINS[node.domain] == ""


def unsigned(node: onnx.NodeProto, graph: Graph) -> bool:
    dtype = graph.dtype(node.input[0])
    return dtype is not None and dtype.kind == "u"


def blocked(node: onnx.NodeProto, graph: Graph) -> bool:
    return bool(attributes(node).get("block_size"))


LONGEST = 256
"""Steps up to which a recurrent layer is unrolled: each one adds its kernels to the program."""


def not_unrolled(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether an LSTM, GRU or RNN is one that recurrent.py does not unroll."""
    attrs, shape = attributes(node), graph.shape(node.input[0])
    steps = shape[1 if attrs.get("layout") else 0] if shape else 0
    lengths = graph.const(graph.operand(node, 4))
    partial = graph.operand(node, 4) and (lengths is None or (lengths != steps).any())
    weights = [graph.operand(node, k) for k in (1, 2, 3)]
    unusual = {"clip", "activation_alpha", "activation_beta"} & attrs.keys() or attrs.get("input_forget")
    known = {name.decode() for name in attrs.get("activations", ())} <= {"Relu", "Sigmoid", "Tanh"}
    computed = any(name and graph.const(name) is None for name in weights)
    return not 0 < steps <= LONGEST or bool(partial or unusual or graph.operand(node, 7)) or computed or not known


EVAL_MODE = "export the model in evaluation mode (model.eval())"
CUT = "cut this node and what follows off the model and compute it outside"
UNROLL = "export the model with torch.export, which unrolls it"

REFUSALS: tuple[Refusal, ...] = (
    Refusal(("Dropout",), always, "it drops at random in training mode", EVAL_MODE),
    Refusal(("BatchNormalization",), training, "it computes batch statistics in training mode", EVAL_MODE),
    Refusal(("NonMaxSuppression", "NonZero", "Unique", "Compress"), always, "the shape of its result depends on data", CUT),
    Refusal(("Loop", "Scan"), always, "loops over data have no lowering", UNROLL),
    Refusal(
        ("LSTM", "GRU", "RNN"),
        not_unrolled,
        f"only whole sequences of up to {LONGEST} steps with constant weights, and without clip or peepholes, are unrolled",
        UNROLL,
    ),
    Refusal(("MaxPool",), output_used(1), "its second output, the indices, has no lowering", CUT),
    Refusal(
        ("Resize", "Upsample"),
        inexact_resize,
        "its scales or sizes are computed at run time, or no two frameworks agree on it",
        "resize by constant factors",
    ),
    Refusal(("Pow",), integer_base, "powers of integers have no lowering", "cast the base to float32"),
    Refusal(("SpaceToDepth",), not_depth_first, "only the mode DCR is computed correctly", "use reshape and transpose"),
    Refusal(
        ("Attention",),
        standard,
        "its definition can't be expanded with these optional inputs",
        "export attention as matmul and softmax",
    ),
    Refusal(("TopK",), unsigned, "sorting unsigned integers has no kernel", "cast its input to int64 or float32"),
    Refusal(("RoiAlign",), not_average, "only the average mode is computed correctly", "use mode=avg"),
    Refusal(
        ("ConvTranspose",), too_large_output, "output_shape is larger than the input can fill", "give output_padding instead"
    ),
    Refusal(
        ("QuantizeLinear", "DequantizeLinear"),
        blocked,
        "blocked quantization of computed tensors has no lowering",
        "quantize per tensor or per channel",
    ),
    Refusal(("If",), always, "its condition is computed at run time", "export the model with the branch decided"),
)
"""In order; the first that applies is reported."""


def reject(graph: Graph) -> None:
    """Raises for the first node, input or output that can't be imported correctly.

    Raises
    ------
    ModelError : a graph input or output of a kind or type that no kernel takes
    UnsupportedOperator : a node, with its name, operator, and what to do
    """
    from tvm.relax.frontend.onnx import onnx_frontend as frontend

    from tvmflow.importer.lower import LOWERED

    for value in (*graph.inputs, *graph.outputs):
        kind = value.type.WhichOneof("value")
        if kind not in ("tensor_type", None):
            raise ModelError(
                f"{value.name!r} is a {kind.removesuffix('_type')}, not a tensor", remedy="only tensors go in and out"
            )
    for value in graph.inputs:
        check_type(value.name, graph, f"input {value.name!r}")
    convertible = {*frontend._get_convert_map(), *LOWERED}
    for node in graph.nodes:
        if node.domain not in DOMAINS:
            raise UnsupportedOperator(f"operators of domain {node.domain!r} are unknown", where=describe(node), remedy=CUT)
        for refusal in REFUSALS:
            if node.op_type in refusal.operators and refusal.when(node, graph):
                raise UnsupportedOperator(refusal.why, where=describe(node), remedy=refusal.remedy)
        if node.op_type not in convertible:
            raise UnsupportedOperator(
                "no lowering for this operator", where=describe(node), remedy="export the model with other operators, or " + CUT
            )
        for name in node.output:
            if name:
                check_type(name, graph, describe(node))


def check_type(name: str, graph: Graph, where: str) -> None:
    dtype = graph.dtype(name)
    if dtype is None:
        raise UnsupportedOperator("its type can't be inferred", where=where, remedy=CUT)
    if str(dtype) not in DTYPES:
        raise UnsupportedOperator(
            f"elements of type {'string' if dtype.kind == 'O' else dtype} have no kernels",
            where=where,
            remedy="convert them to a usual number type",
        )
    if graph.shape(name) is None:
        raise UnsupportedOperator("its shape depends on data", where=where, remedy="fix dynamic shapes with --shape, or " + CUT)


__all__ = ["DTYPES", "REFUSALS", "Refusal", "reject"]
