"""A report put together from results: each function takes a report and the JSON object of one verb and adds what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tvmflow.report.data import Accuracy, Coverage, Device, Island, LayerCost, ReportData, Runs, Size


def add_manifest(report: ReportData, manifest: Mapping[str, Any]) -> ReportData:
    """Keys of ``tvmflow inspect``: target, precision, coverage, provenance."""
    source = dict(manifest.get("provenance") or {})
    versions = source.pop("versions", None) or {}
    provenance = {**report.provenance, **{key.replace("_", " "): str(value) for key, value in source.items() if value}}
    if manifest.get("sha256"):
        provenance["artifact sha256"] = str(manifest["sha256"])
    provenance |= {f"{name} version": str(version) for name, version in versions.items()}
    operators = manifest.get("operators") or {}
    return replace(
        report,
        target=str(manifest.get("target", report.target)),
        precision=str(manifest.get("precision", report.precision)),
        coverage=coverage(operators) if operators else report.coverage,
        provenance=provenance,
    )


def coverage(operators: Mapping[str, Any]) -> Coverage:
    """``operators`` of ``tvmflow compile``."""
    islands = tuple(Island(str(row["name"]), str(row["op"]), str(row["reason"])) for row in operators.get("float_list", ()))
    return Coverage(int(operators["integer"]), int(operators["float"]), int(operators.get("boundaries", 0)), islands)


def add_compile(report: ReportData, result: Mapping[str, Any]) -> ReportData:
    """Keys of ``tvmflow compile``: sizes, coverage, stages, kernels."""
    sizes = (*report.sizes, Size("artifact", int(result["bytes"])), Size("of which weights", int(result["weight_bytes"])))
    kernels = result["kernels"]
    note = f"{kernels['total']} kernels, {kernels['specialised']} with a specialised schedule, {kernels['tuned']} tuned."
    check = result.get("import_check")
    if check:
        note += f" Import check: largest difference {check['max_abs_error']:.3g} against {check['against']}."
    return replace(
        report,
        target=str(result["target"]),
        precision=str(result["precision"]),
        sizes=sizes,
        coverage=coverage(result["operators"]),
        stages=tuple((str(stage["name"]), float(stage["seconds"])) for stage in result["stages"]),
        notes=(*report.notes, note),
    )


def add_benchmark(report: ReportData, result: Mapping[str, Any], name: str = "tvmflow") -> ReportData:
    """Keys of ``tvmflow bench``: device, peak, all runs of ours and of the peers, layers. ``name`` is shown for ours."""
    peak, device = result.get("machine_peak") or {}, result["device"]
    peers = (
        Runs(f"{peer['name']} {peer['version']}", tuple(peer["latency_ms"]["runs"]), str(peer["precision"]))
        for peer in result.get("against", ())
    )
    return replace(
        report,
        device=Device(
            str(device["name"]),
            str(device["cpu"]),
            tuple(device["isa"]),
            int(result["threads"]),
            tuple(result.get("load_average", ())),
            peak.get("int8_gops"),
            peak.get("fp32_gflops"),
        ),
        peak_fraction=result.get("peak_fraction"),
        latency=(*report.latency, Runs(name, tuple(result["latency_ms"]["runs"]), report.precision, ours=True), *peers),
        layers=tuple(
            LayerCost(row["name"], row["op"], row["ms"], row["gop"], row["peak_fraction"]) for row in result.get("layers", ())
        )
        or report.layers,
    )


def add_evaluation(report: ReportData, result: Mapping[str, Any], name: str = "tvmflow") -> ReportData:
    """Keys of ``tvmflow eval``; the reference's own accuracy becomes a row before ours."""
    reference = result.get("reference")
    rows = [Accuracy(str(reference["name"]), reference["top1"], reference["top5"])] if reference else []
    closeness = {key: result.get(key) for key in ("top1", "top5", "agreement", "sqnr_db", "cosine", "max_abs_error")}
    return replace(report, accuracy=(*report.accuracy, *rows, Accuracy(name, **closeness)))
