"""Where integers flow: which groups compute on integers, which stay between float layers, and which tensors become sites.

Convolutions, dense layers and matrix products are worth a quantize in front of them. Everything else follows its operands:

- *local* groups (pools, means, tables, per-channel scale and shift) compute on integers when their operand comes from integers;
- *combining* groups (add, mul, concat) do when all operands come from integers, or when an integer layer reads the result;
- *movement* does when its operand is an integer already, or when an integer layer reads the result.

A graph input counts as integers: it is quantized once. A convolution, dense layer or product that no integer layer reads writes
float32 itself, without rounding to eight bits first. Three passes over the groups: forward, backward, forward.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from tvmflow.quantize.graph import Graph
from tvmflow.quantize.patterns import MOVEMENT, MOVES_FLOAT, clamp_of
from tvmflow.quantize.plan import Group, Site

ANCHORS = frozenset({"conv2d", "depthwise", "dense", "matmul"})
COMBINING = frozenset({"add", "mul", "concat"})
MOVING = frozenset(MOVEMENT.values())


def resolve(graph: Graph, groups: Sequence[Group], pinned: Set[str]) -> tuple[tuple[Group, ...], frozenset[str]]:
    """Groups with their final ``integer``, and the names of the tensors that exist as integers. ``pinned`` tensors always do."""
    from_integers = _origins(graph, groups, pinned)
    wanted = _wanted(groups, from_integers, pinned)
    integers: set[str] = set()
    resolved = []
    for group in groups:
        if group.integer and not _stays_integer(group, from_integers, wanted, integers):
            group = replace(
                group, integer=False, reason=MOVES_FLOAT if group.op in MOVING else "its operands are computed in float32"
            )
        if group.integer:
            integers.update(group.inputs)
            if group.output in wanted or not writes_float(graph, group):
                integers.add(group.output)
        resolved.append(group)
    return tuple(resolved), frozenset(integers)


def writes_float(graph: Graph, group: Group) -> bool:
    """Whether the group's kernel can dequantize its own result: there is no clamp, which is defined on integers."""
    return group.op in ANCHORS and clamp_of(graph, group.bindings[-1]) is None


def _origins(graph: Graph, groups: Sequence[Group], pinned: Set[str]) -> set[str]:
    """Tensors that come from integers: written by an integer layer, a graph input, or moved and mapped from one of these."""
    known = {p for p in graph.params if graph.dtype(p) == "float32"} | pinned
    for group in groups:
        if group.integer and (group.op in ANCHORS or all(i in known for i in group.inputs)):
            known.add(group.output)
    return known


def _wanted(groups: Sequence[Group], from_integers: Set[str], pinned: Set[str]) -> set[str]:
    """Tensors that some integer layer reads."""
    wanted = set(pinned)
    for group in reversed(groups):
        if group.integer and (group.output in wanted or group.op not in MOVING) and _reads_integers(group, from_integers, wanted):
            wanted.update(group.inputs)
    return wanted


def _reads_integers(group: Group, from_integers: Set[str], wanted: Set[str]) -> bool:
    if group.op in ANCHORS or all(i in from_integers for i in group.inputs):
        return True
    return group.output in wanted and (group.op in COMBINING or group.op in MOVING)


def _stays_integer(group: Group, from_integers: Set[str], wanted: Set[str], integers: Set[str]) -> bool:
    if group.op in MOVING:
        return group.output in wanted or group.inputs[0] in integers
    return _reads_integers(group, from_integers, wanted)


def sites_of(graph: Graph, groups: Sequence[Group], integers: Set[str], weight_axes: dict[str, int | None]) -> tuple[Site, ...]:
    """Sites in program order. ``weight_axes`` holds the channel axis of every weight site."""
    like = _passed_through(groups, integers) | _shared_by_concat(graph, groups, integers)
    sites = [Site(p, "input", graph.shape(p), like=like.get(p, "")) for p in graph.params if p in integers]
    for group in groups:
        if group.integer and group.weight:
            weight = graph.exprs[group.bindings[0]].args[1]
            sites.append(Site(group.weight, "weight", tuple(int(d) for d in weight.ty.shape), weight_axes[group.weight]))
        if group.output in integers and graph.dtype(group.output):
            sites.append(Site(group.output, "activation", graph.shape(group.output), like=like.get(group.output, "")))
    return tuple(sites)


def _passed_through(groups: Sequence[Group], integers: Set[str]) -> dict[str, str]:
    """Results that have their operand's parameters because the kernel does no arithmetic."""
    like: dict[str, str] = {}
    for group in groups:
        if group.integer and group.output in integers and (group.op in MOVING or group.op == "max_pool"):
            source = group.inputs[0]
            like[group.output] = like.get(source, source)
    return like


def _shared_by_concat(graph: Graph, groups: Sequence[Group], integers: Set[str]) -> dict[str, str]:
    """Operands of a concatenation that nothing else reads take its parameters, so that joining them is a copy.

    The operand may have been moved or pooled on its way; the tensor before that takes the parameters then.
    """
    writer = {group.output: group for group in groups if group.integer}
    like: dict[str, str] = {}
    for group in groups:
        if not group.integer or group.op != "concat":
            continue
        for operand in group.inputs:
            root = operand
            while graph.only_reader(root) and root in writer and (writer[root].op in MOVING or writer[root].op == "max_pool"):
                root = writer[root].inputs[0]
            if graph.only_reader(root) and root in integers and root not in graph.params:
                like[root] = group.output
    return like
