"""Builds an ONNX graph and runs it at the same time: every node is evaluated as it is added, on a sample that flows along.

That is what gives networks without trained weights sane activations: a batch norm takes its statistics from what really arrives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 17, 8


class Graph:
    """A growing graph. Tensors are addressed by name; ``values`` holds what each one is for the sample, where there is one."""

    def __init__(self, name: str, inputs: Mapping[str, np.ndarray], sizes: Mapping[str, tuple[int, ...]]) -> None:
        """``inputs`` is the sample (its first axis may be a larger batch than the 1 of ``sizes``, the shapes of the model)."""
        self.name, self.values = name, dict(inputs)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, np.ndarray] = {}
        kinds = {n: helper.np_dtype_to_tensor_dtype(x.dtype) for n, x in inputs.items()}
        self._inputs = [helper.make_tensor_value_info(n, kinds[n], sizes[n]) for n in inputs]
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = 1
        self._options.log_severity_level = 3

    def weight(self, name: str, value: np.ndarray) -> str:
        self._weights[name] = value
        return name

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name."""
        node = helper.make_node(op, inputs, [f"{name}_output"], name=name, **attributes)
        self._nodes.append(node)
        self.values[node.output[0]] = self._run(node)
        return node.output[0]

    def model(self, output: str, as_name: str) -> onnx.ModelProto:
        """The finished model; its one output is called ``as_name``."""
        for node in self._nodes:
            node.output[:] = [as_name if o == output else o for o in node.output]
        shape = (1, *self.values[output].shape[1:])
        result = helper.make_tensor_value_info(as_name, helper.np_dtype_to_tensor_dtype(self.values[output].dtype), shape)
        weights = [numpy_helper.from_array(w, n) for n, w in self._weights.items()]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, [result], weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tvmflow zoo"
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _run(self, node: onnx.NodeProto) -> np.ndarray:
        data = {n: self.values[n] for n in node.input if n in self.values}
        infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in data.items()]
        weights = [numpy_helper.from_array(self._weights[n], n) for n in dict.fromkeys(node.input) if n in self._weights]
        graph = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name=node.output[0])], weights)
        one = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        session = onnxruntime.InferenceSession(one.SerializeToString(), self._options, providers=["CPUExecutionProvider"])
        return session.run(None, data)[0]
