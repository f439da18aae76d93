"""``tvmflow quantize``: calibrate a model, save its parameters, say what each layer loses and why."""

from __future__ import annotations

import datetime
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tvmflow.errors import UsageError
from tvmflow.flow.lower import Lowered, Shapes, host_runner, operators
from tvmflow.flow.request import Request, request
from tvmflow.target import get_target
from tvmflow.trace import Progress, Trace, silent
from tvmflow.worker import in_child

if TYPE_CHECKING:
    from tvmflow.quantize.analysis import Advice, LayerError

ANALYSED = 16
"""Samples over which layer errors are measured."""


@dataclass(frozen=True)
class QuantizeResult:
    """Where the parameters were written, and how good they are."""

    out: str
    recipe: str
    samples: int
    operators: dict[str, Any]
    """Counts of integer and float ones, and every float one with its reason."""
    layers: tuple[dict[str, Any], ...]
    """Error of each tensor, by layer, as :class:`tvmflow.quantize.analysis.LayerError` names them; infinite decibels are None."""
    advice: tuple[dict[str, str], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "out": self.out,
            "recipe": self.recipe,
            "samples": self.samples,
            "operators": self.operators,
            "output_sqnr_db": self.layers[-1]["sqnr_db"] if self.layers else None,
            "layers": list(self.layers),
            "advice": list(self.advice),
            "notes": list(self.notes),
        }


class Job(msgspec.Struct, frozen=True):
    """One calibration, as the worker process gets it."""

    request: Request
    out: str
    report: str | None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def quantize(
    model: Any,
    calibration: str | Path,
    recipe: str | Path = "int8",
    *,
    out: str | Path,
    report: str | Path | None = None,
    shapes: Shapes | None = None,
    work_dir: str | Path = ".tvmflow",
    progress: Progress = silent,
) -> QuantizeResult:
    """Calibrates ``model`` and writes its quantization parameters to ``out``.

    A ``.onnx`` file is the model with QDQ pairs; every other one is JSON, for ``compile(params=...)``.

    Parameters
    ----------
    calibration : data, see :mod:`tvmflow.data`
    recipe : named recipe or TOML file
    report : HTML file with the error of every layer and the range of every tensor

    Raises TvmflowError, see :mod:`tvmflow.errors`.
    """
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        asked = request(
            model, get_target("native"), Path(scratch), quantize=recipe, calibration=calibration, shapes=shapes, work_dir=work_dir
        )  # fmt: skip
        job = Job(asked, str(out), None if report is None else str(report))
        return in_child(work, job, Path(scratch), progress, what="quantizing")


def work(job: Job, directory: Path, progress: Progress) -> QuantizeResult:
    """The child's side."""
    from tvmflow.build.versions import versions
    from tvmflow.quantize.export_qdq import export_qdq, qdq_properties, save_qdq
    from tvmflow.quantize.qparams import Origin, save_qparams

    lowered = job.request.lower(Trace(None, progress))
    found = lowered.quantization
    assert found is not None  # a recipe was given
    if found.data is None:
        raise UsageError(
            "the model is quantized already: its QDQ nodes carry the parameters",
            where=lowered.model.name,
            remedy="compile it as it is, without --quantize",
        )
    path = Path(job.out)
    origin = Origin(lowered.model.sha256, found.data.sha256, len(found.data), versions())
    if path.suffix == ".onnx":
        save_qdq(path, export_qdq(lowered.floating, found.plan, found.params, qdq_properties(found.recipe.name, origin)))
    else:
        save_qparams(path, found.params, found.plan, found.recipe, origin, found.shifts)
    errors, advice = analyse(lowered, progress)
    if job.report is not None:
        write_quantize_report(Path(job.report), lowered, errors, advice)
    layers = tuple({**asdict(e), "sqnr_db": _finite(e.sqnr_db)} for e in errors)
    said = tuple(asdict(a) for a in advice)
    return QuantizeResult(job.out, found.recipe.name, len(found.data), operators(lowered), layers, said, lowered.notes)


def analyse(lowered: Lowered, progress: Progress = silent) -> tuple[tuple[LayerError, ...], tuple[Advice, ...]]:
    """Error of every tensor of the quantized graph against the float graph, over the first calibration samples."""
    from tvmflow.quantize.analysis import advise, counterparts, layer_errors, tensors_of
    from tvmflow.quantize.calibrate import with_outputs
    from tvmflow.quantize.graph import view

    found = lowered.quantization
    assert found is not None and found.data is not None
    inputs = [i.name for i in lowered.model.inputs]
    pairs = counterparts(found.plan, view(lowered.model.module))
    progress("layer errors", 0, 0)
    wanted = list(pairs)
    float_values = tensors_of(host_runner(with_outputs(lowered.floating.module, wanted)), inputs, wanted)
    integer_values = tensors_of(host_runner(with_outputs(lowered.model.module, list(pairs.values()))), inputs, wanted)
    samples = islice(iter(found.data), ANALYSED)
    errors = layer_errors(float_values, integer_values, samples, found.params)
    return errors, advise(errors, found.calibration, found.plan) if found.calibration else ()


def write_quantize_report(path: Path, lowered: Lowered, errors: Sequence[LayerError], advice: Sequence[Advice]) -> None:
    """HTML report of a quantization: layer errors, ranges with histograms, float islands with reasons."""
    from tvmflow.report import data as rd
    from tvmflow.report.gather import coverage
    from tvmflow.report.html import write_report

    found = lowered.quantization
    assert found is not None
    ops = {g.output: g.op for g in found.plan.groups}
    ranges = []
    for site in found.plan.sites:
        param, stats = found.params[site.id], found.stats.get(site.id)
        counts = stats.counts if stats else ()
        scale, channels = float(param.scale.max()), int(param.scale.size)
        low, high = (stats.low, stats.high) if stats else (param.low, param.high)
        ranges.append(rd.TensorRange(site.id, site.role, low, high, scale, param.zero_point, channels, counts, param.observer))
    write_report(
        path,
        rd.ReportData(
            title=f"{lowered.model.name}, quantized",
            precision="int8",
            created=datetime.datetime.now().isoformat(" ", "minutes"),
            errors=tuple(rd.LayerError(e.layer, ops.get(e.layer, ""), _finite(e.sqnr_db)) for e in errors),
            coverage=coverage(operators(lowered)),
            ranges=tuple(ranges),
            advice=tuple(rd.Advice(a.layer, a.finding, a.remedy) for a in advice),
            notes=lowered.notes,
        ),
    )
