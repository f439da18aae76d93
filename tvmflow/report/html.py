"""The report as one HTML file: no script, no font, no image from elsewhere, light or dark as the reader's system is."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmflow.bench.stats import percentile
from tvmflow.errors import EnvironmentProblem, MissingTool
from tvmflow.report import plots, tables
from tvmflow.report.data import Accuracy, LayerCost, LayerError, ReportData, Runs, TensorRange

TEMPLATE = Path(__file__).with_name("template.html")
MOST_ROWS = 400
"""Rows of one table; what is beyond is counted below it. The JSON has everything."""
WEAK_DB = 20.0
"""Signal to noise below which a layer is marked: a tenth of the signal's amplitude is noise."""


@dataclass(frozen=True)
class Figure:
    """One number at the head of the page."""

    value: str
    caption: str


@dataclass(frozen=True)
class LatencyRow:
    name: str
    precision: str
    ours: bool
    min: str
    median: str
    p90: str
    p99: str
    runs: int
    ratio: str
    """Median over that of ours."""


@dataclass(frozen=True)
class LayerRow:
    """``bar`` and ``share`` are percentages for the drawn bars, ``weak`` marks a layer to look at."""

    name: str
    op: str
    value: str
    bar: float
    detail: str = ""
    share: float | None = None
    weak: bool = False


@dataclass(frozen=True)
class RangeRow:
    name: str
    role: str
    low: str
    high: str
    scale: str
    zero_point: int
    channels: int
    observer: str
    clipped: str
    """Share of values that saturate."""
    histogram: str


def write_report(path: Path, data: ReportData) -> None:
    """Write ``data`` as a self-contained page; an older file stays whole until the new one is complete.

    Raises MissingTool without the extra ``report``, EnvironmentProblem when the file can't be written.
    """
    page = render(data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            new = Path(scratch) / path.name
            new.write_text(page, encoding="utf-8")
            os.replace(new, path)
    except OSError as error:
        raise EnvironmentProblem(f"can't write the report: {error.strerror}", where=str(path)) from error


def render(data: ReportData) -> str:
    """The page as text. Equal data gives an equal page. Raises MissingTool without the extra ``report``."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingTool("jinja2 is not installed", where="report", remedy=plots.REMEDY) from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=tables.percent, size=tables.size)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        data=data,
        figures=figures(data),
        summary=tables.cells(data.summary),
        accuracy=accuracy_cells(data.accuracy),
        latency=latency_rows(data.latency),
        layers=layer_rows(data.layers)[:MOST_ROWS],
        errors=error_rows(data.errors)[:MOST_ROWS],
        ranges=[range_row(item) for item in data.ranges[:MOST_ROWS]],
        most_rows=MOST_ROWS,
        weak_db=WEAK_DB,
        plot={
            "latency": Markup(plots.latency(data.latency)) if data.latency else "",
            "operators": Markup(plots.time_by_operator(data.layers)) if data.layers else "",
            "errors": Markup(plots.layer_errors(data.errors, WEAK_DB)) if len(data.errors) > 1 else "",
        },
    )


def figures(data: ReportData) -> list[Figure]:
    """What a hurried reader takes home: speed, size, accuracy, coverage, share of the machine."""
    found = []
    ours = next((runs for runs in data.latency if runs.ours), None)
    if ours:
        found.append(Figure(tables.milliseconds(percentile(ours.runs_ms, 0.5)), "median latency"))
        rivals = [(percentile(runs.runs_ms, 0.5), runs) for runs in data.latency if not runs.ours]
        if rivals:
            best, rival = min(rivals, key=lambda item: item[0])
            ratio = best / percentile(ours.runs_ms, 0.5)
            found.append(Figure(f"{ratio:.2f}\N{MULTIPLICATION SIGN}", f"the speed of {rival.name} {rival.precision}".rstrip()))
    if data.sizes:
        found.append(Figure(tables.size(data.sizes[0].bytes), data.sizes[0].name))
    if data.accuracy:
        last = data.accuracy[-1]
        if last.top1 is not None:
            found.append(Figure(tables.percent(last.top1), f"top-1, {last.name}"))
        if last.sqnr_db is not None:
            found.append(Figure(f"{last.sqnr_db:.1f} dB", "signal to quantization noise"))
    if data.coverage and data.coverage.integer:
        share = data.coverage.integer / (data.coverage.integer + data.coverage.float)
        found.append(Figure(tables.percent(share, 0), "of operators in integers"))
    if data.peak_fraction is not None:
        found.append(Figure(tables.percent(data.peak_fraction, 0), "of the machine's peak"))
    return found


def accuracy_cells(accuracy: Sequence[Accuracy]) -> list[tuple[str, ...]]:
    def number(value: float | None, form: str) -> str:
        return tables.DASH if value is None else format(value, form)

    return [
        (
            row.name,
            tables.percent(row.top1),
            tables.percent(row.top5),
            tables.percent(row.agreement),
            number(row.sqnr_db, ".1f"),
            number(row.cosine, ".5f"),
            number(row.max_abs_error, ".3g"),
        )
        for row in accuracy
    ]


def latency_rows(latency: Sequence[Runs]) -> list[LatencyRow]:
    ours = next((percentile(runs.runs_ms, 0.5) for runs in latency if runs.ours), None)
    rows = []
    for runs in latency:
        median = percentile(runs.runs_ms, 0.5)
        p90, p99 = (tables.milliseconds(percentile(runs.runs_ms, share)) for share in (0.9, 0.99))
        ratio = tables.DASH if ours is None or runs.ours else f"{median / ours:.2f}\N{MULTIPLICATION SIGN}"
        fastest, middle = tables.milliseconds(min(runs.runs_ms)), tables.milliseconds(median)
        rows.append(LatencyRow(runs.name, runs.precision, runs.ours, fastest, middle, p90, p99, len(runs.runs_ms), ratio))
    return rows


def layer_rows(layers: Sequence[LayerCost]) -> list[LayerRow]:
    longest = max((layer.ms for layer in layers), default=0.0) or 1.0
    return [
        LayerRow(
            layer.name,
            layer.op,
            f"{layer.ms:.3f}",
            100 * layer.ms / longest,
            detail=f"{layer.gop:.3f}" if layer.gop else tables.DASH,
            share=None if layer.peak_fraction is None else 100 * layer.peak_fraction,
        )
        for layer in layers
    ]


def error_rows(errors: Sequence[LayerError]) -> list[LayerRow]:
    """Worst first; layers without a ratio last."""
    found = [(error, error.sqnr_db if error.sqnr_db is not None and math.isfinite(error.sqnr_db) else None) for error in errors]
    found.sort(key=lambda item: math.inf if item[1] is None else item[1])
    return [
        LayerRow(error.name, error.op, tables.DASH, 100.0)
        if decibel is None
        else LayerRow(error.name, error.op, f"{decibel:.1f}", min(100.0, max(0.0, decibel / 60 * 100)), weak=decibel < WEAK_DB)
        for error, decibel in found
    ]


def _small_percent(share: float | None) -> str:
    """Shares of a few values in a million don't round to nothing."""
    return tables.DASH if share is None else "0" if share == 0 else f"{100 * share:.2g} %"


def range_row(item: TensorRange) -> RangeRow:
    from markupsafe import Markup

    return RangeRow(
        item.name,
        item.role,
        f"{item.low:.4g}",
        f"{item.high:.4g}",
        f"{item.scale:.4g}",
        item.zero_point,
        item.channels,
        item.observer,
        _small_percent(item.clipped),
        Markup(plots.sparkline(item.counts, item.inside)),
    )
