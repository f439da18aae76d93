"""The whole product in one function: a model in, a compiled, self-testing ``.so`` out."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tvmflow.errors import EnvironmentProblem, WorkerCrashed
from tvmflow.flow.describe import constant_bytes, describe, runs_here, self_tests
from tvmflow.flow.lower import Lowered, Shapes, operators
from tvmflow.flow.request import Request, request
from tvmflow.target import Target, get_target
from tvmflow.trace import Progress, Trace, silent
from tvmflow.worker import in_child

if TYPE_CHECKING:
    from tvmflow.build.artifact import Artifact
    from tvmflow.kernels import spec as ks
    from tvmflow.schedule.apply import Lookup, ScheduledKernel
    from tvmflow.schedule.template import Tile
    from tvmflow.tune.log import TuningLog


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
    """Of the process that did the work, or of its largest child."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "stages": [{"name": n, "seconds": s} for n, s in self.stages], "notes": list(self.notes)}


@dataclass(frozen=True)
class CompileResult:
    """The artifact and its report."""

    artifact: Artifact
    report: CompileReport

    def save(self, path: str | Path) -> Artifact:
        """Copies the artifact to ``path``."""
        return self.artifact.save(path)


class Job(msgspec.Struct, frozen=True):
    """One compilation, as the worker process gets it."""

    request: Request
    tuning_log: str
    dump: str | None
    folder: str
    """Where the artifact is written, under a name that says what it is."""


def compile(
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
    """Compiles a model to one shared library. The work is done in a child process, which native code may crash.

    Parameters
    ----------
    model : path, ``onnx.ModelProto``, ``ExportedProgram``, ``(nn.Module, example inputs)`` or ``"package.module:callable"``
    target : name from targets/, path of a TOML file, or ``native``
    quantize : named recipe or TOML file; None compiles in float32 (or with the parameters that a QDQ model carries)
    calibration : data for the recipe's observers; ``params`` instead takes parameters saved by :func:`tvmflow.quantize`
    shapes : static shape of inputs with dynamic dimensions
    tuning_log : ``default`` (shipped and local logs), ``none``, or a file
    dump : folder for the module after every stage

    Raises TvmflowError, see :mod:`tvmflow.errors`; WorkerCrashed names the stage, and the layer where that can be found out.
    """
    from tvmflow.build.artifact import Artifact

    started = time.perf_counter()
    chosen = get_target(target) if isinstance(target, str) else target
    kept = artifacts_folder(Path(work_dir))
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch, tempfile.TemporaryDirectory(prefix=".new-", dir=kept) as new:
        asked = request(
            model, chosen, Path(scratch), quantize=quantize, calibration=calibration, params=params, shapes=shapes,
            check_import=check_import, work_dir=work_dir,
        )  # fmt: skip
        job = Job(asked, str(tuning_log), None if dump is None else str(dump), new)
        try:
            report = in_child(work, job, Path(scratch), progress, what="compiling")
        except WorkerCrashed as crash:
            raise named(crash, job, Path(scratch), progress) from crash
        written = Path(report.artifact)
        out = kept / written.name
        written.replace(out)
    report = replace(report, artifact=str(out), seconds=time.perf_counter() - started)
    return CompileResult(Artifact.open(out), report)


def artifacts_folder(work_dir: Path) -> Path:
    """Where compiled files are kept. Raises EnvironmentProblem."""
    folder = work_dir / "artifacts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"can't write here: {error.strerror}", where=str(work_dir), remedy="choose another --work-dir"
        ) from error
    return folder


def work(job: Job, directory: Path, progress: Progress) -> CompileReport:
    """The child's side: every stage, in order."""
    target = job.request.target
    trace = Trace(Path(job.dump) if job.dump else None, progress)
    with trace.stage("start"):  # loads TVM and its compiler
        from tvmflow.build.artifact import package
        from tvmflow.build.compile import compile_module
        from tvmflow.schedule.apply import schedule
    lowered = job.request.lower(trace)
    log = tuning_log(job)
    with trace.stage("schedule"):
        scheduled, kernels = schedule(lowered.model, target, saying(log.lookup, progress))
    trace.show("schedule", scheduled.module)
    with trace.stage("build"):
        built = compile_module(scheduled.module, target)
    manifest = describe(lowered, target, kernels, built, constant_bytes(scheduled.module), log.name)
    name = f"{lowered.model.name}-{target.name}-{lowered.precision}.so"
    with trace.stage("package"):
        artifact = package(built, manifest, _tests(lowered, target, progress), target, Path(job.folder) / name)
    return CompileReport(
        artifact=str(artifact.path),
        bytes=artifact.bytes,
        weight_bytes=artifact.weight_bytes,
        target=target.name,
        precision=lowered.precision,
        operators=operators(lowered),
        kernels=manifest.kernels,
        import_check=None if lowered.check is None else asdict(lowered.check),
        stages=tuple(trace.stages),
        seconds=sum(seconds for _, seconds in trace.stages),
        peak_rss_bytes=1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)),
        notes=lowered.notes,
    )


def tuning_log(job: Job) -> TuningLog:
    from tvmflow.tune.log import open_log

    return open_log(job.tuning_log, job.request.target, Path(job.request.work_dir))


def saying(lookup: Lookup, progress: Progress) -> Lookup:
    """``lookup``, which is asked before the code of each kernel is emitted, that also reports which one that is."""
    from tvmflow.schedule.apply import kernel_name

    def look(kernel: ks.Kernel, target: Target) -> Tile | None:
        progress(f"schedule: kernel {kernel_name(kernel)}", 0, 0)
        return lookup(kernel, target)

    return look


def _tests(lowered: Lowered, target: Target, progress: Progress) -> Any:
    """Self-test vectors; made with the compiled program where this machine runs it, by a build for this machine elsewhere."""
    progress("package: self-test for another machine", 0, 0)
    if not runs_here(target):
        return self_tests(lowered)

    def with_program(library: Path) -> Any:
        progress("package: self-test", 0, 0)
        return self_tests(lowered, library)

    progress("package: code generation", 0, 0)
    return with_program


NAMEABLE = ("build", "package: code generation")
"""Steps in which the code of all kernels is generated at once, so that a crash there does not say whose it was."""


def named(crash: WorkerCrashed, job: Job, directory: Path, progress: Progress) -> WorkerCrashed:
    """The crash with the layer whose code generation it was, found by generating the code of each layer by itself."""
    if not crash.where.startswith(NAMEABLE):
        return crash
    again = directory / "again"
    again.mkdir()
    try:
        in_child(generate_each, job, again, progress, what="code generation")
    except WorkerCrashed as found:
        return found
    return crash


def generate_each(job: Job, directory: Path, progress: Progress) -> None:
    """A child's side: machine code of one kernel after the other, each announced first."""
    import tvm

    from tvmflow.schedule.apply import schedule

    target = job.request.target
    lowered = job.request.lower(Trace(None, progress))
    scheduled, kernels = schedule(lowered.model, target, tuning_log(job).lookup)
    first: dict[str, ScheduledKernel] = {}
    for kernel in kernels:
        first.setdefault(kernel.function, kernel)
    for done, (function, kernel) in enumerate(first.items()):
        progress(f"build: layer {kernel.layer!r} (kernel {function})", done, len(first))
        module = tvm.IRModule({function: scheduled.module[function].with_attr("global_symbol", function)})
        tvm.tirx.build(module, target=target.device()).inspect_source("asm")
