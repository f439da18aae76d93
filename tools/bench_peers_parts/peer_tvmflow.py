"""Ours."""

from __future__ import annotations

import json
from pathlib import Path

from bench_peers_parts.worker import Run

from tvmflow import __version__
from tvmflow.runtime.library import load_runtime
from tvmflow.runtime.session import load

load_runtime()  # before the clock of the first load starts, as the others' runtimes are


def version() -> str:
    return __version__


def prepare(model: Path, precision: str, calibration: Path, folder: Path) -> None:
    from tvmflow.flow import compile  # not where a model is only served: its modules would count as the session's memory

    recipe = {"quantize": "int8", "calibration": str(calibration)} if precision == "int8" else {}
    result = compile(str(model), "native", **recipe, work_dir=folder / "work")
    result.save(folder / "model.so")
    (folder / "report.json").write_text(json.dumps(result.report.to_json()))


def serve(folder: Path, precision: str, threads: int) -> Run:
    session = load(folder / "model.so", threads=threads)
    (output,) = (info.name for info in session.manifest.outputs)
    return lambda inputs: session.run(inputs)[output]
