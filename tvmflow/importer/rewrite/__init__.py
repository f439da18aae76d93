"""Rewrites on the ONNX graph, before TVM sees it: what its converters lack or get wrong becomes what they get right."""

from __future__ import annotations

from tvmflow.importer.qdq import QUANTIZED_RULES
from tvmflow.importer.rewrite.elementwise import ELEMENTWISE
from tvmflow.importer.rewrite.extremes import EXTREMES
from tvmflow.importer.rewrite.functions import FUNCTIONS
from tvmflow.importer.rewrite.half import HALF_RULES
from tvmflow.importer.rewrite.resize import RESIZE_RULES
from tvmflow.importer.rewrite.rule import Rule
from tvmflow.importer.rewrite.structure import STRUCTURE
from tvmflow.importer.rewrite.windows import WINDOW_RULES

RULES: tuple[Rule, ...] = (
    *STRUCTURE,
    *QUANTIZED_RULES,
    *FUNCTIONS,
    *WINDOW_RULES,
    *RESIZE_RULES,
    *ELEMENTWISE,
    *EXTREMES,
    *HALF_RULES,
)
"""In order; the first that fits a node is applied, and the node's replacement is looked at again."""
