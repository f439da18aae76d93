"""From a model's source to the graph that kernels are chosen for: import, optimize, quantize. Three journeys share it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.errors import UsageError
from tvmflow.model import Model
from tvmflow.runtime import cpu
from tvmflow.target import Target, get_target
from tvmflow.trace import Trace

if TYPE_CHECKING:
    import tvm

    from tvmflow.data import DataSet
    from tvmflow.importer import ImportCheck
    from tvmflow.quantize.calibrate import Calibration, Executable, SiteStats
    from tvmflow.quantize.plan import Plan
    from tvmflow.quantize.qparams import QParams
    from tvmflow.quantize.realize import Coverage
    from tvmflow.quantize.recipe import Recipe

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Quantization:
    """How a model was quantized: everything that a report or a manifest says about it."""

    recipe: Recipe
    plan: Plan
    params: QParams
    origin: str
    """``calibrated``, ``file`` (parameters of an earlier run) or ``model`` (QDQ nodes)."""
    calibration: Calibration | None = None
    shifts: Mapping[str, Any] = field(default_factory=dict)
    """Channel means that centring moved into biases, by tensor."""
    data: DataSet | None = None
    notes: tuple[str, ...] = ()

    @property
    def stats(self) -> dict[str, SiteStats]:
        """What calibration saw, by site; empty without one."""
        return self.calibration.stats if self.calibration else {}


@dataclass(frozen=True)
class Lowered:
    """A model whose kernels are ready to be scheduled."""

    model: Model
    """Kernel calls, integer or float, and float islands."""
    floating: Model
    """The optimized float model that it came from."""
    check: ImportCheck | None
    coverage: Coverage
    quantization: Quantization | None
    notes: tuple[str, ...]

    @property
    def precision(self) -> str:
        return "int8" if self.quantization else "fp32"


def lower(
    source: Any,
    target: Target,
    trace: Trace,
    *,
    quantize: str | Path | None = None,
    calibration: str | Path | None = None,
    params: str | Path | None = None,
    shapes: Shapes | None = None,
    check_import: bool = True,
    work_dir: str | Path = ".tvmflow",
    identity: tuple[str, str] | None = None,
    isolated: bool = True,
) -> Lowered:
    """Import, optimize and, where asked for or where the model carries parameters, quantize.

    ``identity`` is the name and sha256 of a model whose file was only written to hand it over. ``isolated`` imports in a child
    process, and is False where this is one.

    Raises the errors of the stages; UsageError when a recipe is given without calibration data or parameters.
    """
    from tvmflow.importer import import_model
    from tvmflow.optimize import optimize
    from tvmflow.quantize.realize import realize
    from tvmflow.schedule.fuse_activation import fuse_activation
    from tvmflow.schedule.fuse_attention import fuse_attention
    from tvmflow.schedule.fuse_chains import fuse_chains
    from tvmflow.schedule.fuse_float_attention import fuse_float_attention
    from tvmflow.schedule.fuse_norm import fuse_norm
    from tvmflow.schedule.fuse_picture import fuse_picture
    from tvmflow.schedule.lower_float import lower_float

    with trace.stage("import"):
        imported = import_model(source, shapes=dict(shapes or {}), check=check_import, progress=trace.progress, isolated=isolated)
    source_model = imported.model if identity is None else replace(imported.model, name=identity[0], sha256=identity[1])
    trace.show("import", source_model.module)
    with trace.stage("optimize"):
        floating = optimize(source_model, trace)
    with trace.stage("quantize"):
        floating, quantization = _quantization(floating, quantize, calibration, params, Path(work_dir), trace)
    if quantization is None:
        coverage = _all_float(floating)
        model = floating
    else:
        with trace.stage("realize"):
            model, coverage = realize(floating, quantization.plan, quantization.params, target.int8.storage)
        trace.show("realize", model.module)
        if target.cuda is None:
            with trace.stage("fuse attention"):
                model, absorbed = fuse_attention(model)
            coverage = coverage.with_integer(absorbed)
            trace.show("fuse_attention", model.module)
    with trace.stage("lower float"):
        if target.cuda is None:
            for fuse in (fuse_float_attention, lower_float, fuse_activation, fuse_norm, fuse_picture):
                model = fuse(model)
            model = fuse_chains(model, target)
        else:
            model = lower_float(model)
    trace.show("lower_float", model.module)
    notes = (*imported.notes, *(quantization.notes if quantization else ()))
    return Lowered(model, floating, imported.check, coverage, quantization, notes)


def _quantization(
    model: Model,
    recipe_name: str | Path | None,
    calibration: str | Path | None,
    params: str | Path | None,
    work_dir: Path,
    trace: Trace,
) -> tuple[Model, Quantization | None]:
    """Decides the parameters: those that the model carries, those of a file, or by calibration."""
    from tvmflow.quantize.annotate import annotate
    from tvmflow.quantize.cache import calibrate_cached, channel_means_cached
    from tvmflow.quantize.center import centered
    from tvmflow.quantize.qparams import load_qparams, read_params_file
    from tvmflow.quantize.realize.qdq import plan_from_qdq
    from tvmflow.quantize.recipe import describe_unused, load_recipe, unused_rules

    recipe = load_recipe(str(recipe_name or "int8"))
    carried = plan_from_qdq(model)
    if carried is not None:
        floating, plan, found = carried
        return floating, Quantization(recipe, plan, found, "model")
    if recipe_name is None and params is None:
        if calibration is not None:
            raise UsageError("calibration data without a recipe", where="--calibrate", remedy="add --quantize int8")
        return model, None
    if params is not None:
        model = centered(model, read_params_file(Path(params)).shifts)
        plan = annotate(model, recipe)
        unused = describe_unused(unused_rules(recipe, plan), plan)
        return model, Quantization(recipe, plan, load_qparams(Path(params), plan), origin="file", notes=tuple(unused))
    if calibration is None:
        raise UsageError(
            "quantization needs calibration data",
            where="--quantize",
            remedy="add --calibrate DATA, or --params from `tvmflow quantize`",
        )
    from tvmflow.data import load_data

    data = load_data(calibration, model.inputs)
    shifts = channel_means_cached(model, data, host_runner, work_dir) if recipe.center else {}
    model = centered(model, shifts)
    plan = annotate(model, recipe)
    result = calibrate_cached(model, plan, recipe, data, host_runner, work_dir, trace.progress)
    notes = (*describe_unused(unused_rules(recipe, plan), plan), *data.notes, *result.notes)
    return model, Quantization(recipe, plan, result.qparams, "calibrated", result, shifts, data, notes)


def _all_float(model: Model) -> Coverage:
    """Coverage of a model that was not quantized."""
    from tvmflow.quantize.realize import Coverage

    count = sum(len(block.bindings) for block in model.module["main"].body.blocks)
    return Coverage(0, count, 0, ())


def operators(lowered: Lowered) -> dict[str, Any]:
    """Integer and float operators, boundaries between them, and every float one with its reason."""
    c = lowered.coverage
    listed = [{"name": f.name, "op": f.op, "reason": f.reason} for f in c.float_list]
    return {"integer": c.integer, "float": c.float, "boundaries": c.boundaries, "float_list": listed}


def host_runner(module: tvm.IRModule) -> Executable:
    """Compiles a module for this machine and returns a function from its arguments to the tensors it returns.

    Integer kernels give the same bits here as on any target, so this is also how the expected outputs of self-tests are made.
    """
    from tvmflow.build.artifact import link_program
    from tvmflow.build.compile import compile_module
    from tvmflow.schedule.apply import schedule
    from tvmflow.schedule.lower_float import lower_float

    native = get_target("native")
    scheduled, _ = schedule(lower_float(Model(module, (), (), "host")), native)
    with tempfile.TemporaryDirectory(prefix="tvmflow-host-") as folder:
        library = Path(folder) / "host.so"
        link_program(compile_module(scheduled.module, native), native, library)
        return library_runner(library)


def library_runner(library: Path) -> Executable:
    """A compiled program, linked for this machine, as a function on numpy arrays. The file is needed for the call only."""
    import tvm
    from tvm.runtime.vm import VirtualMachine

    from tvmflow.runtime.threads import prepare_thread_pool

    prepare_thread_pool(cpu.physical_cores())
    machine = VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())

    def run(arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        result = machine["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arguments])
        return [result.numpy()] if hasattr(result, "numpy") else [r.numpy() for r in result]

    return run
