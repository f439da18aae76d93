"""``tvmflow quantize``: calibrate a model, save its parameters, say what each layer loses and why."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.flow.lower import Lowered, Shapes, host_runner, lower, operators
from tvmflow.target import get_target
from tvmflow.trace import Progress, Trace, silent

if TYPE_CHECKING:
    from tvmflow.quantize.analysis import Advice, LayerError

ANALYSED = 16
"""Samples over which layer errors are measured."""


@dataclass(frozen=True)
class QuantizeResult:
    """Where the parameters were written, and how good they are."""

    out: Path
    recipe: str
    samples: int
    lowered: Lowered
    errors: tuple[LayerError, ...]
    advice: tuple[Advice, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "recipe": self.recipe,
            "samples": self.samples,
            "operators": operators(self.lowered),
            "output_sqnr_db": _finite(self.errors[-1].sqnr_db) if self.errors else None,
            "layers": [{**asdict(e), "sqnr_db": _finite(e.sqnr_db)} for e in self.errors],
            "advice": [asdict(a) for a in self.advice],
            "notes": list(self.lowered.notes),
        }


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
    """Calibrates ``model`` and writes its quantization parameters to ``out`` (JSON), for ``compile(params=...)``.

    Parameters
    ----------
    calibration : data, see :mod:`tvmflow.data`
    recipe : named recipe or TOML file
    report : HTML file with the error of every layer and the range of every tensor

    Raises TvmflowError, see :mod:`tvmflow.errors`.
    """
    from tvmflow.build.versions import versions
    from tvmflow.quantize.qparams import Origin, save_qparams

    native = get_target("native")
    lowered = lower(
        model, native, Trace(None, progress), quantize=recipe, calibration=calibration, shapes=shapes, work_dir=work_dir
    )  # fmt: skip
    found = lowered.quantization
    assert found is not None and found.data is not None  # a recipe and data were given, so lower calibrated
    path = Path(out)
    origin = Origin(lowered.model.sha256, found.data.sha256, len(found.data), versions())
    save_qparams(path, found.params, found.plan, found.recipe, origin, found.shifts)
    errors, advice = analyse(lowered, progress)
    if report is not None:
        write_quantize_report(Path(report), lowered, errors, advice)
    return QuantizeResult(path, found.recipe.name, len(found.data), lowered, errors, advice)


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
        ranges.append(
            rd.TensorRange(site.id, site.role, low, high, scale, param.zero_point, channels, counts, param.observer)
        )
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
