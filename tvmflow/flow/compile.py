"""The whole product in one function: a model in, a compiled, self-testing ``.so`` out."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tvmflow.flow.lower import Lowered, Shapes, host_runner, library_runner, lower, operators
from tvmflow.target import Target, get_target
from tvmflow.trace import Progress, Trace, silent

if TYPE_CHECKING:
    import tvm

    from tvmflow.build.artifact import Artifact
    from tvmflow.build.manifest import Manifest, Vector
    from tvmflow.model import TensorInfo
    from tvmflow.schedule.apply import ScheduledKernel

SELF_TESTS = 2
FLOAT_TOLERANCE = 1e-3
"""Largest difference of a self-test's output, relative to the largest expected value, where float islands round differently."""


@dataclass(frozen=True)
class CompileReport:
    """What happened on the way; ``to_json`` gives the keys of the command's ``--json``."""

    artifact: str
    bytes: int
    weight_bytes: int
    target: str
    precision: str
    operators: dict[str, Any]
    kernels: dict[str, int]
    import_check: dict[str, Any] | None
    stages: tuple[tuple[str, float], ...]
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "stages": [{"name": n, "seconds": s} for n, s in self.stages], "notes": list(self.notes)}


@dataclass(frozen=True)
class CompileResult:
    """The artifact, its report, and the lowered model for those who want to look inside."""

    artifact: Artifact
    report: CompileReport
    lowered: Lowered

    def save(self, path: str | Path) -> Artifact:
        """Copies the artifact to ``path``."""
        return self.artifact.save(path)


def compile(  # noqa: A001  the verb of the product
    model: Any,
    target: str | Target = "native",
    *,
    quantize: str | Path | None = None,
    calibration: str | Path | None = None,
    params: str | Path | None = None,
    shapes: Shapes | None = None,
    tuning_log: str | Path = "default",
    check_import: bool = True,
    dump: str | Path | None = None,
    work_dir: str | Path = ".tvmflow",
    progress: Progress = silent,
) -> CompileResult:
    """Compiles a model to one shared library.

    Parameters
    ----------
    model : path, ``onnx.ModelProto``, ``ExportedProgram``, ``(nn.Module, example inputs)`` or ``"package.module:callable"``
    target : name from targets/, path of a TOML file, or ``native``
    quantize : named recipe or TOML file; None compiles in float32 (or with the parameters that a QDQ model carries)
    calibration : data for the recipe's observers; ``params`` instead takes parameters saved by :func:`tvmflow.quantize`
    shapes : static shape of inputs with dynamic dimensions
    tuning_log : ``default`` (shipped and local logs), ``none``, or a file
    dump : folder for the module after every stage

    Raises TvmflowError, see :mod:`tvmflow.errors`.
    """
    started = time.perf_counter()
    trace = Trace(Path(dump) if dump else None, progress)
    chosen = get_target(target) if isinstance(target, str) else target
    lowered = lower(
        model, chosen, trace, quantize=quantize, calibration=calibration, params=params, shapes=shapes, check_import=check_import, work_dir=work_dir
    )  # fmt: skip
    from tvmflow.build.artifact import package
    from tvmflow.build.compile import compile_module
    from tvmflow.schedule.apply import schedule
    from tvmflow.tune.log import open_log

    log = open_log(tuning_log, chosen, Path(work_dir))
    with trace.stage("schedule"):
        scheduled, kernels = schedule(lowered.model, chosen, log.lookup)
    trace.show("schedule", scheduled.module)
    with trace.stage("build"):
        built = compile_module(scheduled.module, chosen)
    counts = {"total": len(kernels) + len(built.generic), "specialised": len(kernels), "tuned": sum(k.tuned for k in kernels)}
    manifest = describe(lowered, chosen, kernels, counts, constant_bytes(scheduled.module), log.name)
    name = f"{lowered.model.name}-{chosen.name}-{lowered.precision}.so"
    tests = self_tests(lowered) if not runs_here(chosen) else lambda library: self_tests(lowered, library)
    with trace.stage("package"):
        artifact = package(built.executable, manifest, tests, chosen, Path(work_dir) / "artifacts" / name)
    report = CompileReport(
        artifact=str(artifact.path),
        bytes=artifact.bytes,
        weight_bytes=artifact.weight_bytes,
        target=chosen.name,
        precision=lowered.precision,
        operators=operators(lowered),
        kernels=counts,
        import_check=None if lowered.check is None else asdict(lowered.check),
        stages=tuple(trace.stages),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        notes=lowered.notes,
    )
    return CompileResult(artifact, report, lowered)


def runs_here(target: Target) -> bool:
    """Whether this machine can execute code for ``target``."""
    from tvmflow.runtime import cpu

    return target.cuda is None and target.arch == cpu.arch() and cpu.features() >= set(target.features)


def self_tests(lowered: Lowered, library: Path | None = None) -> list[Vector]:
    """Inputs (a calibration sample first, then seeded noise) with their outputs.

    ``library`` is the compiled program where this machine can run it; without one the same kernels are compiled for this machine.
    """
    run = host_runner(lowered.model.module) if library is None else library_runner(library)
    data = lowered.quantization.data if lowered.quantization else None
    rng = np.random.default_rng(0)
    inputs = [[_noise(i, rng) for i in lowered.model.inputs] for _ in range(SELF_TESTS)]
    if data is not None:
        sample = next(iter(data))
        inputs[0] = [sample[i.name] for i in lowered.model.inputs]
    return [(arrays, run(arrays)) for arrays in inputs]


def _noise(info: TensorInfo, rng: np.random.Generator) -> np.ndarray:
    if info.dtype.startswith(("int", "uint", "bool")):
        return rng.integers(0, 2, info.shape).astype(info.dtype)
    return rng.standard_normal(info.shape).astype(info.dtype)


def constant_bytes(module: tvm.IRModule) -> int:
    """Bytes of all weights, biases, multipliers and tables of a module."""
    from tvmflow.optimize.expr import array, is_constant

    seen: dict[Any, int] = {}

    def visit(expr: Any) -> None:
        if is_constant(expr):
            seen[expr] = array(expr).nbytes

    from tvm import relax

    relax.analysis.post_order_visit(module["main"], visit)
    return sum(seen.values())


def _bit_exact(lowered: Lowered) -> bool:
    """Whether every operator is integer, so that every target gives the same bits."""
    return lowered.precision == "int8" and lowered.coverage.float == 0


def describe(
    lowered: Lowered, target: Target, kernels: Sequence[ScheduledKernel], counts: dict[str, int], weights: int, log: str
) -> Manifest:
    """The manifest of an artifact."""
    from tvmflow.build import manifest as mf
    from tvmflow.build.versions import versions

    model, quantization, bit_exact = lowered.model, lowered.quantization, _bit_exact(lowered)
    layers = tuple(
        mf.Layer(k.layer, k.template, k.spec.ops / 1e9, k.function, k.spec.is_integer) for k in kernels
    )
    summary: dict[str, Any] = {}
    preprocess = None
    if quantization:
        summary = {"recipe": quantization.recipe.name, "origin": quantization.origin, "storage": target.int8.storage, "sites": len(quantization.params)}
        if quantization.data is not None and quantization.data.preprocess is not None:
            preprocess = msgspec.to_builtins(quantization.data.preprocess)
    return mf.Manifest(
        target=target.name,
        arch=target.arch,
        isa_required=target.features,
        inputs=model.inputs,
        outputs=model.outputs,
        precision=lowered.precision,
        name=model.name,
        device="cuda" if target.cuda else "cpu",
        device_arch=target.cuda.arch if target.cuda else "",
        preprocess=preprocess,
        quantization=summary,
        provenance=mf.Provenance(
            model_sha256=model.sha256,
            calibration_sha256=quantization.data.sha256 if quantization and quantization.data else "",
            recipe=quantization.recipe.name if quantization else "",
            tuning_log=log,
            versions=versions(),
        ),
        operators=operators(lowered),
        kernels=counts,
        layers=layers,
        weight_bytes=weights,
        self_test=mf.SelfTest(tolerance=0.0 if bit_exact else FLOAT_TOLERANCE, bit_exact=bit_exact),
    )
