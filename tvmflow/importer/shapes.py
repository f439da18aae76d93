"""Input shapes: dynamic dimensions are fixed by what the user says; everything after is static."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from tvmflow.errors import ModelError, nearest


def fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes ``shapes`` (input name -> static shape) into the model's inputs, in place.

    Symbolic dimensions that carry the same name get the same value everywhere, so one ``--shape`` is often enough.

    Raises
    ------
    ModelError : an unknown input name, a wrong rank, a contradiction to the file, or a dimension that stays open
    """
    stored = {t.name for t in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in stored}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise ModelError(f"the model has no input {name!r}", where=f"--shape {name}", remedy=nearest(name, inputs))
        fix_one(inputs[name], tuple(shape), symbols)
    for value in inputs.values():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    still_open = [value for value in inputs.values() if is_open(value)]
    if still_open:
        remedy = "fix it with " + " ".join(f"--shape {value.name}={text(value)}" for value in still_open)
        names = ", ".join(f"{value.name} [{text(value)}]" for value in still_open)
        raise ModelError(f"dynamic input shape: {names}", remedy=remedy + " (numbers in place of names and ?)")
    if shapes:
        for output in model.graph.output:  # inference finds them again from the inputs
            if output.type.WhichOneof("value") == "tensor_type":
                output.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]


def fix_one(value: onnx.ValueInfoProto, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
    where = f"--shape {value.name}={'x'.join(map(str, shape))}"
    if value.type.WhichOneof("value") != "tensor_type":
        raise ModelError(f"input {value.name!r} is no tensor", where=where)
    if any(size < 1 for size in shape):
        raise ModelError("dimensions must be positive", where=where)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        for size in shape:
            tensor.shape.dim.add().dim_value = size
        return
    dims = tensor.shape.dim
    if len(dims) != len(shape):
        raise ModelError(
            f"input {value.name!r} has {len(dims)} dimensions ({text(value)}), not {len(shape)}",
            where=where,
            remedy="give one number each",
        )
    for index, (dim, size) in enumerate(zip(dims, shape, strict=True)):
        fixed = dim.dim_value if dim.HasField("dim_value") else symbols.get(dim.dim_param, size)
        if fixed != size:
            raise ModelError(
                f"dimension {index} of {value.name!r} is {fixed}, not {size}",
                where=where,
                remedy=f"the model's shape is {text(value)}; only names and ? can be chosen, and equal names get equal numbers",
            )
        if dim.dim_param:
            symbols[dim.dim_param] = size
        dim.dim_value = size


def is_open(value: onnx.ValueInfoProto) -> bool:
    """Whether an input has a rank or dimension that is no number."""
    if value.type.WhichOneof("value") != "tensor_type":
        return False
    tensor = value.type.tensor_type
    return not tensor.HasField("shape") or any(not dim.HasField("dim_value") for dim in tensor.shape.dim)


def text(value: onnx.ValueInfoProto) -> str:
    """A shape as the command line writes it, with names and ? for open dimensions."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return "?"
    return "x".join(str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
