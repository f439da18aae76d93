"""What a rewrite rule is: one ONNX node to nodes that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from tvmflow.importer.graph import Graph

Apply = Callable[[onnx.NodeProto, Graph], "list[onnx.NodeProto] | None"]


@dataclass(frozen=True)
class Rule:
    """Replaces a node of one of ``operators``.

    ``apply(node, graph)`` returns the nodes that stand in its place (they produce the same output tensors), or None when the
    rule does not concern this node. It may add constants to the graph and change nothing else. ``note`` is shown to the user.
    """

    operators: frozenset[str]
    apply: Apply
    note: str = ""
    domains: frozenset[str] = frozenset({"", "ai.onnx"})


def rule(*operators: str, note: str = "", domain: str = "") -> Callable[[Apply], Rule]:
    """Makes a function the ``apply`` of a rule for ``operators``."""
    domains = frozenset({domain} if domain else {"", "ai.onnx"})
    return lambda apply: Rule(frozenset(operators), apply, note, domains)
