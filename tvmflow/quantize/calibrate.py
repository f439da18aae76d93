"""Calibrate: run the float model on samples and choose the parameters of every site of the plan.

Decides only; nothing is rewritten. Memory is one histogram per activation, whatever the number of samples. An interrupted
calibration starts over: it takes minutes at most, and its result is cached when complete (:mod:`tvmflow.quantize.cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass

import msgspec
import numpy as np
import tvm
from tvm import relax

from tvmflow.errors import DataError, InternalError
from tvmflow.model import Model
from tvmflow.quantize.adequacy import Adequacy
from tvmflow.quantize.graph import Graph, constant_of, view
from tvmflow.quantize.observers import Histogram, observed_range, weight_scales
from tvmflow.quantize.patterns import bias_of
from tvmflow.quantize.plan import Group, Plan, Site
from tvmflow.quantize.qparams import QParam, QParams, activation_param
from tvmflow.quantize.recipe import ActivationConfig, QuantConfig, Recipe, WeightConfig
from tvmflow.trace import Progress, silent

Executable = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
"""Arguments of ``main`` in order -> the tensors that it returns."""
Run = Callable[[tvm.IRModule], Executable]
"""Compiles a module for the host."""

DENSITY_BINS = 64
LARGEST_BIAS = 2**30
"""Bound on an integer bias: half of int32, the other half is the sum of products'."""


class SiteStats(msgspec.Struct, frozen=True):
    """What calibration saw of one activation."""

    low: float
    high: float
    tail_low: float
    """0.01 % of the values lie below."""
    tail_high: float
    """0.01 % of the values lie above."""
    zeros: int
    total: int
    counts: tuple[int, ...]
    """Values in 64 equal bins from ``low`` to ``high``."""


@dataclass(frozen=True)
class Calibration:
    """Parameters of all sites, with what is worth knowing about how they were found."""

    qparams: QParams
    stats: dict[str, SiteStats]
    """By id of the activation sites that have parameters of their own."""
    samples: int
    convergence: tuple[tuple[int, float], ...]
    """``(samples, median share of the final range that they had shown)``."""
    notes: tuple[str, ...]
    """Doubts about the data, as sentences."""


def calibrate(
    model: Model,
    plan: Plan,
    recipe: Recipe,
    samples: Iterable[Mapping[str, np.ndarray]],
    run: Run,
    progress: Progress = silent,
) -> Calibration:
    """Choose parameters for every site of ``plan``.

    Parameters
    ----------
    samples : a dictionary per sample, arrays shaped like the model's inputs (a :class:`tvmflow.data.DataSet`)
    run : compiles a float module for the host

    Raises
    ------
    DataError : no samples, a missing input, or NaN or infinity in an activation (named with its layer and sample)
    """
    seen = {s.id: Histogram() for s in plan.sites if s.role != "weight" and not s.like}
    adequacy = Adequacy()
    _observe(model, seen, samples, run, adequacy, progress)
    if adequacy.count == 0:
        raise DataError("no calibration samples", remedy="give data with at least one sample; 100 to 500 are usual")
    own = activation_params(seen, plan, recipe)
    own |= weight_params(view(model.module), plan, recipe, own)
    return Calibration(
        qparams={s.id: own[root_of(s, plan)] for s in plan.sites},
        stats={site: _stats(h) for site, h in seen.items()},
        samples=adequacy.count,
        convergence=tuple(adequacy.convergence(seen)),
        notes=tuple(adequacy.notes(seen)),
    )


def with_outputs(module: tvm.IRModule, names: Sequence[str]) -> tvm.IRModule:
    """The module with a main that returns a tuple of the tensors ``names`` and computes nothing else. Parameters stay."""
    function = module["main"]
    if len(function.body.blocks) != 1:
        raise InternalError("main must have a single dataflow block", where=f"{len(function.body.blocks)} blocks")
    variables = view(module).vars
    bindings = list(function.body.blocks[0].bindings)
    results = []
    for name in names:
        var = variables[name]
        if isinstance(var, relax.DataflowVar):
            var = relax.Var(f"{name}:seen", var.ty)
            bindings.append(relax.VarBinding(var, variables[name]))
        results.append(var)
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], relax.Tuple(results))
    ty = relax.TupleType([r.ty for r in results])
    observed = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    observed["main"] = relax.Function(function.params, body, ty, attrs=function.attrs)
    return relax.transform.DeadCodeElimination(["main"])(observed)


def _observe(
    model: Model,
    seen: Mapping[str, Histogram],
    samples: Iterable[Mapping[str, np.ndarray]],
    run: Run,
    adequacy: Adequacy,
    progress: Progress,
) -> None:
    params = [p.name for p in model.module["main"].params]
    computed = [site for site in seen if site not in params]
    execute = run(with_outputs(model.module, computed)) if computed else None
    total = len(samples) if isinstance(samples, Sized) else 0
    progress("calibrate", 0, total)
    for number, sample in enumerate(samples):
        arguments = [_argument(sample, i.name, i.shape, number) for i in model.inputs]
        values = dict(zip(params, arguments, strict=True))
        if execute is not None:
            values |= zip(computed, execute(arguments), strict=True)
        for site, histogram in seen.items():
            try:
                histogram.update(values[site])
            except ValueError as error:
                raise DataError(
                    "NaN or infinity",
                    where=f"tensor {site!r}, calibration sample {number}",
                    remedy="check the preprocessing; if the sample is valid, the model itself overflows there",
                ) from error
        adequacy.see(sample, seen)
        progress("calibrate", number + 1, total)


def _argument(sample: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], number: int) -> np.ndarray:
    if name not in sample:
        raise DataError(
            f"no input {name!r}", where=f"calibration sample {number}", remedy=f"it has {', '.join(sample) or 'nothing'}"
        )
    if sample[name].shape != shape:
        raise DataError(
            f"input {name!r} has shape {list(sample[name].shape)}, the model wants {list(shape)}",
            where=f"calibration sample {number}",
        )
    return sample[name]


def root_of(site: Site, plan: Plan) -> str:
    """Id of the site whose parameters this one has: itself, or the end of its chain of ``like``."""
    sites = {s.id: s for s in plan.sites}
    chain = [site.id]
    while sites[chain[-1]].like:
        chain.append(sites[chain[-1]].like)
        if chain[-1] in chain[:-1] or chain[-1] not in sites:
            raise InternalError("sites share their parameters in a circle or with none", where=" -> ".join(chain))
    return chain[-1]


def activation_params(seen: Mapping[str, Histogram], plan: Plan, recipe: Recipe) -> QParams:
    """Parameters of the activations in ``seen``, each as the recipe has it for the layer that writes the tensor."""
    configs = _activation_configs(plan, recipe)
    found = {}
    for site, histogram in seen.items():
        config = configs.get(site, recipe.default.activation)
        low, high = observed_range(histogram, config)
        name = f"percentile {config.percentile:g}" if config.observer == "percentile" else config.observer
        found[site] = activation_param(low, high, name, config.symmetric)
    return found


def _activation_configs(plan: Plan, recipe: Recipe) -> dict[str, ActivationConfig]:
    """Config by the site that a layer writes. A tensor written by a layer that stays float takes the default."""
    configs = {}
    for site in plan.sites:
        if site.role == "input":
            configs[site.id] = recipe.config_for("input", site.id) or recipe.default
    for group in plan.groups:
        configs[group.output] = recipe.config_for(group.op, group.layer) or recipe.default
    return {site: c.activation for site, c in configs.items()}


def weight_params(graph: Graph, plan: Plan, recipe: Recipe, activations: Mapping[str, QParam]) -> QParams:
    """Parameters of the weights of all integer layers, from the constants themselves.

    A channel whose bias would not fit int32 in units of ``s_x * s_w`` (tiny weights, as batch-norm folding may leave them) gets
    the larger scale that its bias needs: the weights lose precision that float32 would not have kept either.
    """
    sites = {s.id: s for s in plan.sites}
    found = {}
    for group in plan.groups:
        if group.weight not in sites:
            continue
        site = sites[group.weight]
        config = recipe.config_for(group.op, group.layer) or QuantConfig()
        found[site.id] = _weight_param(graph, plan, group, site, config.weight, activations)
    return found


def _weight_param(
    graph: Graph, plan: Plan, group: Group, site: Site, config: WeightConfig, activations: Mapping[str, QParam]
) -> QParam:
    sites = {s.id: s for s in plan.sites}
    weight = _weight_of(graph, group, site)
    try:
        scale = weight_scales(weight, site.channel_axis, config)
    except ValueError as error:
        raise DataError("a weight is NaN or infinite", where=site.id, remedy="repair the model, or skip this layer") from error
    for bias in (bias_of(graph, name) for name in group.bindings[1:]):
        if bias is None:
            continue
        input_scale = float(activations[root_of(sites[group.inputs[0]], plan)].scale[0])
        needed = np.abs(bias.astype(np.float64)) / (input_scale * LARGEST_BIAS)
        scale = np.maximum(scale, needed if scale.size > 1 else needed.max()).astype(np.float32)
    return QParam(scale, 0, float(weight.min()), float(weight.max()), config.observer)


def _weight_of(graph: Graph, group: Group, site: Site) -> np.ndarray:
    weight = constant_of(graph.exprs[group.bindings[0]].args[1])
    if weight is None or weight.shape != site.shape:
        raise InternalError("the plan has a weight that is not in the graph", where=site.id)
    return weight


def _stats(seen: Histogram) -> SiteStats:
    counts, _ = seen.density(DENSITY_BINS)
    tails = seen.quantile(1e-4), seen.quantile(1 - 1e-4)
    return SiteStats(seen.low, seen.high, *tails, seen.zeros, seen.total, tuple(counts.tolist()))
