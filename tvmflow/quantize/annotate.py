"""annotate: from an optimized float graph and a recipe to a Plan, the first of the three steps of quantization.

Nothing is rewritten here. The plan says which bindings become one integer kernel, which stay float and why, and which tensors
need parameters; calibrate finds those and realize performs the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from tvmflow.model import Model
from tvmflow.quantize.domains import resolve, sites_of
from tvmflow.quantize.graph import Graph, shape_of, view
from tvmflow.quantize.patterns import RULES, float_group
from tvmflow.quantize.plan import Group, Plan
from tvmflow.quantize.recipe import Recipe

Veto = Callable[[Graph, Group], str]
"""Reason why a group must stay float, empty when it may be integer."""


def annotate(model: Model, recipe: Recipe) -> Plan:
    """Plan of ``model``, an optimized module (NHWC convolutions, constants folded).

    A layer stays float when ``recipe.config_for(op, layer)`` is None, when no integer kernel computes it exactly enough, or
    when it lies between float layers; the reason stands in its group.
    """
    graph = view(model.module)
    groups = group_bindings(graph, lambda _, group: "" if recipe.config_for(group.op, group.layer) else "skipped by the recipe")
    axes = {g.weight: _axis(graph, g, recipe) for g in groups if g.integer and g.weight}
    groups, integers = resolve(graph, groups, frozenset())
    return Plan(sites_of(graph, groups, integers, axes), groups)


def group_bindings(graph: Graph, veto: Veto, pinned: Set[str] = frozenset()) -> tuple[Group, ...]:
    """Every binding of the graph in one group, in program order; no group swallows a tensor of ``pinned``."""
    groups: list[Group] = []
    claimed: set[str] = set()
    fixed = set(pinned)
    for name in graph.exprs:
        if name in claimed:
            continue
        group = next(g for rule in RULES if (g := rule(graph, name, fixed)))
        reason = veto(graph, group) if group.integer else ""
        parts = tuple(float_group(graph, b, reason, group.op) for b in group.bindings) if reason else (group,)
        for part in parts:
            groups.append(part)
            claimed.update(part.bindings)
            fixed.add(part.output)
    return tuple(groups)


def weight_axis(graph: Graph, group: Group) -> int:
    """Axis of the output channels in the weight of a group: the first of OHWI, the last of a dense layer's ``[K, N]``."""
    return 0 if group.op != "dense" else len(shape_of(graph.exprs[group.bindings[0]].args[1])) - 1


def _axis(graph: Graph, group: Group, recipe: Recipe) -> int | None:
    config = recipe.config_for(group.op, group.layer)
    return weight_axis(graph, group) if config and config.weight.per_channel else None
