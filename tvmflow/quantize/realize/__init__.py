"""realize: from a float graph, its plan and its parameters to integer kernels; the step that rewrites, and the only one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from tvm import relax

from tvmflow.model import Model
from tvmflow.quantize.domains import MOVING
from tvmflow.quantize.graph import Graph, op_of, rebuild, view
from tvmflow.quantize.patterns import MOVES_FLOAT
from tvmflow.quantize.plan import Group, Plan
from tvmflow.quantize.qparams import QParams
from tvmflow.quantize.realize import combine, local, moves, products
from tvmflow.quantize.realize.emit import Emitter
from tvmflow.quantize.realize.products import Pending


@dataclass(frozen=True)
class FloatLayer:
    """A layer left in float32 and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """What became integers: layers of the plan, not kernels.

    ``boundaries`` counts the tensors that change between float32 and integers, those of inputs and outputs included, and those
    that a convolution dequantizes itself. Data movement among float layers computes nothing and counts in none of them.
    """

    integer: int
    float: int
    boundaries: int
    float_list: tuple[FloatLayer, ...]

    def with_integer(self, layers: Collection[str]) -> Coverage:
        """This coverage after float ``layers`` became part of the integer kernels before and behind them."""
        left = tuple(f for f in self.float_list if f.name not in layers)
        joined = [f for f in self.float_list if f.name in layers]
        crossings = 2 * sum(f.op == "softmax" for f in joined)
        return Coverage(self.integer + len(joined), self.float - len(joined), self.boundaries - crossings, left)


_REALIZERS: dict[str, Callable[[Emitter, Group], object]] = {
    "conv2d": products.conv2d,
    "depthwise": products.conv2d,
    "dense": products.dense,
    "matmul": products.matmul,
    "scale_shift": products.scale_shift,
    "add": combine.add,
    "mul": combine.mul,
    "concat": combine.concat,
    "max_pool": local.max_pool,
    "avg_pool": local.avg_pool,
    "mean": local.mean,
    "lookup": local.lookup,
    **dict.fromkeys(sorted(MOVING), moves.move),
}


def realize(model: Model, plan: Plan, params: QParams, storage: str) -> tuple[Model, Coverage]:
    """Model with the plan's integer groups as kernel calls, and what was covered.

    ``storage`` is ``uint8`` or ``int8``, the dtype of integer activations. Inputs and outputs of the model keep their dtypes and
    layouts. Raises ConfigError when ``params`` lacks a site of the plan.
    """
    graph = view(model.module)
    e = Emitter(graph, plan, params, storage)
    residuals = _residual_adds(graph, plan, e)
    held: dict[str, Pending | None] = dict.fromkeys(residuals.values())
    arguments = [relax.Var(v.name, v.ty) for v in model.module["main"].params]
    e.floats.update({v.name: v for v in arguments})
    for group in plan.groups:
        _realize_group(e, group, residuals, held)
    module = e.finish(model.module, arguments, rebuild(model.module["main"].body.body, lambda var: e.float(var.name)))
    return model.then("realize", module), _coverage(graph, plan, e.boundaries)


def _realize_group(e: Emitter, group: Group, residuals: dict[str, str], held: dict[str, Pending | None]) -> None:
    """One group: kept in float, joined with the convolution held for it, held for the add that follows, or emitted."""
    if not group.integer:
        for name in group.bindings:
            e.floats[name] = e.emit(name, rebuild(e.graph.exprs[name], lambda var: e.float(var.name)))
    elif (convolution := residuals.get(group.output, "")) and (pending := held[convolution]) is not None:
        combine.add_to_convolution(e, group, convolution, pending)
    elif group.output in held:
        held[group.output] = (products.dense if group.op == "dense" else products.conv2d)(e, group, hold=True)
    else:
        _REALIZERS[group.op](e, group)


def _residual_adds(graph: Graph, plan: Plan, e: Emitter) -> dict[str, str]:
    """Results of adds with the operand that a convolution or dense layer writes for them alone, shapes being equal.

    Of two such operands the later one is taken: the other must exist when the convolution runs.
    """
    writer = {g.output: i for i, g in enumerate(plan.groups) if g.integer and g.op in ("conv2d", "depthwise", "dense")}
    residuals: dict[str, str] = {}
    for group in plan.groups:
        if not group.integer or group.op != "add" or len(group.inputs) != 2:
            continue
        if len({graph.shape(t) for t in (*group.inputs, group.output)}) > 1:
            continue
        able = [t for t in group.inputs if t in writer and e.is_site(t) and graph.only_reader(t)]
        if able:
            residuals[group.output] = max(able, key=writer.__getitem__)
    return residuals


def _coverage(graph: Graph, plan: Plan, boundaries: int) -> Coverage:
    """Counts and list of the layers left in float."""
    left = [g for g in plan.groups if not g.integer and g.reason != MOVES_FLOAT]
    named = tuple(FloatLayer(g.layer, op_of(graph.exprs[g.bindings[0]]), g.reason) for g in left)
    return Coverage(sum(g.integer for g in plan.groups), len(left), boundaries, named)
