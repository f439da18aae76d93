"""Small ONNX models, and the import of one in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Sequence[Any] | None]],
    outputs: Sequence[str] | Mapping[str, tuple[Any, Sequence[Any] | None]],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 21,
    domains: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    def info(name: str, dtype: Any, shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    out = (
        [info(name, *kind) for name, kind in outputs.items()]
        if isinstance(outputs, Mapping)
        else [helper.make_empty_tensor_value_info(name) for name in outputs]
    )
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "small", [info(name, *kind) for name, kind in inputs.items()], out, initializers)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (domains or {}).items())]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    return onnx.shape_inference.infer_shapes(model) if not isinstance(outputs, Mapping) else model


@pytest.fixture
def model() -> Callable[..., onnx.ModelProto]:
    """Builds a model: nodes, inputs {name: (dtype, shape)}, output names, constants {name: value}."""
    return build


@pytest.fixture
def imported() -> Callable[..., Any]:
    """Imports a model in this process and checks it numerically; what it returns has the module and the types."""

    def run(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None, samples: Sequence[Any] = ()) -> Any:
        from tvmflow.importer.check import verify
        from tvmflow.importer.onnx import from_model

        loaded = from_model(model, shapes or {}, lambda what: None)
        verify(loaded, samples)
        return loaded

    return run


@pytest.fixture
def operators() -> Callable[[Any], list[tuple[str, str]]]:
    """Bindings of a module as (variable name, operator)."""

    def read(module: Any) -> list[tuple[str, str]]:
        bindings = [binding for block in module["main"].body.blocks for binding in block.bindings]
        return [(b.var.name, getattr(getattr(b.value, "op", None), "name", type(b.value).__name__)) for b in bindings]

    return read
