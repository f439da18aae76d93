"""Rules for elementwise operators."""

from __future__ import annotations

import numpy as np
import onnx

from tvmflow.importer.graph import Graph, attributes, make
from tvmflow.importer.rewrite.rule import rule


@rule("IsInf")
def signed_infinity(node: onnx.NodeProto, graph: Graph) -> list[onnx.NodeProto] | None:
    """IsInf with detect_negative=0 or detect_positive=0 -> comparison with one infinity (TVM ignores both flags)."""
    attrs = attributes(node)
    negative, positive = attrs.get("detect_negative", 1), attrs.get("detect_positive", 1)
    if negative and positive:
        return None
    infinity = np.inf if positive else -np.inf if negative else np.nan
    return [make("Equal", [node.input[0], graph.add_const(node.name, infinity, graph.dtype(node.input[0]))], node.output, node.name)]


ELEMENTWISE = (signed_infinity,)
